package messaging

import (
	"context"
	"errors"
	"fmt"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// aloneInterval is how often notAlone is called while another process has the queue.
const aloneInterval = time.Minute

// Alone returns a function, to be run until its context ends, that finds out whether another process uses the same name queue.
// It declares an exclusive queue, which gets no messages and goes with the connection; while another process has the queue it
// calls notAlone, at once and then every minute. If the broker's user may not declare the queue, as with the definitions of an
// older release, it notices nothing. queue must be one of the service's Exclusive in the topology.
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
