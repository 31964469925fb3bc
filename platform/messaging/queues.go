package messaging

import (
	"context"
	"errors"
	"fmt"

	amqp "github.com/rabbitmq/amqp091-go"
)

// QueueState is the state of a queue.
type QueueState struct {
	Name      string
	Messages  int // that wait in the queue, without those that consumers have in hand
	Consumers int
}

// errQueryPending means that the broker has not answered an earlier question yet.
var errQueryPending = errors.New("the broker has not answered the question before")

// Queues asks the broker for the state of each queue of the topology, in its order; a queue that does not exist is left
// out. It needs no right on the queues. It opens a channel of its own, because the broker closes a channel that asks for a
// missing queue. If the broker does not answer before ctx ends Queues returns, but until that answer comes, or the
// connection breaks, later calls fail. It may be called concurrently.
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

// queueNames returns the names of the topology's queues.
func (t Topology) queueNames() []string {
	var names []string
	for _, q := range t.Queues() {
		names = append(names, q.Name)
	}
	return names
}
