package messaging

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"google.golang.org/protobuf/proto"

	"shop.example/platform/contract"
)

const (
	watchInterval = time.Second
	// watchTimeout is how long the broker may take to answer whether the queues exist.
	watchTimeout = 2 * time.Second
)

// QueueWatch checks every second whether the exchange of an event exists, and the queues of the required services that
// handle it. A publisher needs to know that because the broker confirms an event as soon as any queue has taken it, for
// example only the log's. It uses a channel of its own, and needs no rights. It cannot see whether the queues are bound to
// the exchange; their owners bind them again every second.
type QueueWatch struct {
	conn   *Connection
	event  contract.Event
	queues []string
	last   atomic.Pointer[lookResult]
}

// lookResult is the outcome of one check.
type lookResult struct{ err error }

// NewQueueWatch returns a watch of the queues of an event. It uses conn, and checks while Run runs.
func NewQueueWatch(conn *Connection, event proto.Message) *QueueWatch {
	e, _ := contract.EventOf(event) // what is no event has no exchange, which no broker has
	w := &QueueWatch{conn: conn, event: e, queues: conn.topology.requiredHandlers(e)}
	w.last.Store(&lookResult{}) // before the first look all is well: without the queues no connection is made
	return w
}

// Ready is nil if all were there at the last look, and an ErrNoAnswer if that look takes too long. It is an atomic read, and
// may be called concurrently. While there is no connection it stays as it was: publishing says that itself.
func (w *QueueWatch) Ready(context.Context) error { return w.last.Load().err }

// Run checks until ctx ends.
func (w *QueueWatch) Run(ctx context.Context) error {
	return w.conn.runSessions(ctx, "watch of the queues of "+w.event.RoutingKey, w.session)
}

func (w *QueueWatch) session(ctx context.Context, conn *amqp.Connection) (err error) {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for ch := (*amqp.Channel)(nil); ; {
		if ch, err = w.look(ctx, conn, ch); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// look stores what it finds; if the broker answers late, when the answer comes. It returns the channel for the next check,
// nil if the broker has closed it because something is missing.
func (w *QueueWatch) look(ctx context.Context, conn *amqp.Connection, ch *amqp.Channel) (*amqp.Channel, error) {
	before := w.last.Load()
	late := time.AfterFunc(watchTimeout, func() {
		err := fmt.Errorf("%w: it has not said within %s whether the queues %s are there", ErrNoAnswer, watchTimeout, strings.Join(w.queues, " and "))
		if w.last.CompareAndSwap(before, &lookResult{err}) {
			w.conn.log.Error("messages are refused", "routing_key", w.event.RoutingKey, "error", err)
		}
	})
	defer late.Stop()
	err := bounded(ctx, conn, declareTimeout, func() (err error) {
		if ch == nil {
			if ch, err = conn.Channel(); err != nil {
				return fmt.Errorf("opening a channel: %w", err)
			}
		}
		if err := ch.ExchangeDeclarePassive(w.event.Exchange, amqp.ExchangeTopic, true, false, false, false, nil); err != nil {
			return fmt.Errorf("looking for exchange %s: %w", w.event.Exchange, err)
		}
		for _, queue := range w.queues { // a service's queue has its name
			if _, err := ch.QueueDeclarePassive(queue, true, false, false, false, nil); err != nil {
				return fmt.Errorf("looking for queue %s: %w", queue, err)
			}
		}
		return nil
	})
	switch {
	case isNotFound(err):
		ch = nil
	case err != nil:
		return nil, err
	}
	w.note(err)
	return ch, nil
}

func (w *QueueWatch) note(err error) {
	before := w.last.Swap(&lookResult{err}).err
	switch {
	case err != nil && !isNotFound(before):
		w.conn.log.Error("something is missing without which messages would be lost; they are refused", "routing_key", w.event.RoutingKey, "error", err)
	case err == nil && before != nil:
		w.conn.log.Info("what was missing is there", "routing_key", w.event.RoutingKey)
	}
}
