package messaging

import (
	"context"
	"errors"
	"fmt"

	amqp "github.com/rabbitmq/amqp091-go"
)

// QueueState is how a queue stands.
type QueueState struct {
	Name      string
	Messages  int // that wait; not those that a consumer has in hand
	Consumers int
}

// errAsking says that the broker still owes an answer.
var errQueryPending = errors.New("the broker has not answered the question before")

// Queues asks the broker how the queues of the topology stand, in the order of the topology. One that does not exist is left
// out. To ask takes no right on a queue, and a channel of its own, because the broker closes it over a queue that is
// missing. If the broker does not answer by the end of ctx the question stays open, and until the connection breaks
// over it no other is asked.
func (c *Connection) Queues(ctx context.Context) ([]QueueState, error) {
	conn, err := c.await(ctx)
	if err != nil {
		return nil, err
	}
	if !c.queryMu.TryLock() {
		return nil, errQueryPending
	}
	type answer struct {
		states []QueueState
		err    error
	}
	answered := make(chan answer, 1)
	go func() { // the library's calls know no deadline
		states, err := queueStates(conn, c.topology.queueNames())
		c.queryMu.Unlock() // first: whoever has the answer may ask again at once
		answered <- answer{states, err}
	}()
	select {
	case a := <-answered:
		return a.states, a.err
	case <-ctx.Done():
		return nil, fmt.Errorf("asking the broker for its queues: %w", ctx.Err())
	}
}

func queueStates(conn *amqp.Connection, names []string) (states []QueueState, err error) {
	var ch *amqp.Channel
	for _, name := range names {
		if ch == nil {
			if ch, err = conn.Channel(); err != nil {
				return nil, fmt.Errorf("opening a channel to ask for queues: %w", err)
			}
		}
		q, err := ch.QueueDeclarePassive(name, true, false, false, false, nil)
		var missing *amqp.Error
		switch {
		case errors.As(err, &missing) && missing.Code == amqp.NotFound:
			ch = nil // the broker has closed it
		case err != nil:
			return nil, fmt.Errorf("asking for queue %s: %w", name, err)
		default:
			states = append(states, QueueState{Name: name, Messages: q.Messages, Consumers: q.Consumers})
		}
	}
	if ch == nil {
		return states, nil
	}
	return states, ch.Close()
}

// queueNames are the queues that outlive their consumers.
func (t Topology) queueNames() []string {
	var names []string
	for _, q := range t.Queues() {
		names = append(names, q.Name)
	}
	return names
}
