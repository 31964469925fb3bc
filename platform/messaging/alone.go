package messaging

import (
	"context"
	"errors"
	"fmt"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// aloneInterval is how often a process that is not alone says so.
const aloneInterval = time.Minute

// Alone finds out whether a process is the only one of its kind. It holds an exclusive queue, which gets no messages; while
// another process holds it, notAlone is called at once and once a minute. A user without the right to declare the queue,
// because the broker's definitions are those of an older release, does not find out. The name has to be one of the
// service's Exclusive in the topology.
func Alone(conn *Connection, queue string, notAlone func()) (run func(context.Context) error) {
	session := func(ctx context.Context, c *amqp.Connection) error {
		ch, err := c.Channel()
		if err != nil {
			return fmt.Errorf("opening a channel to hold queue %s: %w", queue, err)
		}
		defer func() { _ = ch.Close() }()
		closed := c.NotifyClose(make(chan *amqp.Error, 1))
		again := time.NewTimer(aloneInterval)
		defer again.Stop()
		err = bounded(ctx, c, declareTimeout, func() error {
			_, err := ch.QueueDeclare(queue, false, false, true, false, amqp.Table{amqp.QueueTypeArg: amqp.QueueTypeClassic})
			return err
		})
		refusal, _ := errors.AsType[*amqp.Error](err)
		switch {
		case err == nil: // it is held until the connection ends
			again.Stop()
		case refusal != nil && refusal.Code == amqp.ResourceLocked:
			notAlone()
		case refusal != nil && refusal.Code == amqp.AccessRefused:
			conn.log.Debug("cannot find out whether there are others", "error", err)
			again.Stop()
		default:
			return fmt.Errorf("declaring queue %s: %w", queue, err)
		}
		select {
		case <-ctx.Done():
			return nil
		case cause := <-closed:
			return closeError(cause)
		case <-again.C:
			return nil
		}
	}
	return func(ctx context.Context) error { return conn.runSessions(ctx, "queue "+queue, session) }
}
