package messaging

import (
	"errors"
	"fmt"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// The names of the exchanges that are not part of a message's contract.
const (
	deadLetterExchange = "shop.dlx"
	// DeadLetterQueue holds what could not be handled until the logging service has stored it.
	DeadLetterQueue = "dead-letter"
)

// Queues of the services. A routing key that matches a binding is delivered to the queue.
const (
	OrderQueue     = "order"
	InventoryQueue = "inventory"
	LoggingQueue   = "logging"
)

var exchanges = []struct{ name, kind string }{
	{"shop.topic", amqp.ExchangeTopic},
	{"shop.direct", amqp.ExchangeDirect},
	{deadLetterExchange, amqp.ExchangeFanout},
}

var workQueues = []struct {
	name     string
	bindings []string // on shop.topic
}{
	{OrderQueue, []string{"shop.order.placed"}},
	{InventoryQueue, []string{"shop.inventory.#", "shop.order.cancelled"}},
	{LoggingQueue, []string{"shop.#"}},
}

// retryDelays are the waits before the second, third and fourth attempt at a message. After that it is a dead letter.
var retryDelays = []time.Duration{time.Second, 10 * time.Second, time.Minute}

// LongestRetry is how long a message that fails waits in retry queues, all in all, before it is a dead letter.
func LongestRetry() time.Duration {
	var sum time.Duration
	for _, delay := range retryDelays {
		sum += delay
	}
	return sum
}

func retryQueue(queue string, delay time.Duration) string {
	return fmt.Sprintf("%s.retry.%ds", queue, int(delay.Seconds()))
}

// declareTopology declares every exchange, queue and binding of the shop. It is the same for each service, so that no
// service depends on another having been there first, and it is repeated on every new connection, because a broker may
// have come back empty.
//
// A queue's arguments can never be changed, so they hold only what a queue is: its type and, for a retry queue, its
// delay and target, without which messages would stay in it for ever. Limits are policy.
func declareTopology(conn *amqp.Connection) error {
	declaring.Lock()
	defer declaring.Unlock()
	ch, err := conn.Channel()
	if err != nil {
		return fmt.Errorf("opening a channel to declare the topology: %w", err)
	}
	for _, e := range exchanges {
		if err := ch.ExchangeDeclare(e.name, e.kind, true, false, false, false, nil); err != nil {
			return declareError("exchange", e.name, err)
		}
	}
	for _, q := range workQueues {
		if err := declareQuorum(ch, q.name, nil); err != nil {
			return err
		}
		for _, key := range q.bindings {
			if err := ch.QueueBind(q.name, key, "shop.topic", false, nil); err != nil {
				return fmt.Errorf("binding queue %s to %s: %w", q.name, key, err)
			}
		}
		for _, delay := range retryDelays {
			err := declareQuorum(ch, retryQueue(q.name, delay), amqp.Table{
				"x-message-ttl": delay.Milliseconds(),
				// Straight back to the work queue: through shop.topic every other service would see it again.
				"x-dead-letter-exchange":    "",
				"x-dead-letter-routing-key": q.name,
				"x-dead-letter-strategy":    "at-least-once",
				"x-overflow":                "reject-publish", // at-least-once needs it
			})
			if err != nil {
				return err
			}
		}
	}
	if err := declareQuorum(ch, DeadLetterQueue, nil); err != nil {
		return err
	}
	if err := ch.QueueBind(DeadLetterQueue, "", deadLetterExchange, false, nil); err != nil {
		return fmt.Errorf("binding queue %s: %w", DeadLetterQueue, err)
	}
	return ch.Close()
}

// declaring keeps the connections of one process from making the same quorum queue at the same time, which RabbitMQ 3.10
// may answer with an internal error. Between processes it can still happen; the supervisor then connects again.
var declaring sync.Mutex

func declareQuorum(ch *amqp.Channel, name string, args amqp.Table) error {
	table := amqp.Table{amqp.QueueTypeArg: amqp.QueueTypeQuorum}
	for k, v := range args {
		table[k] = v
	}
	if _, err := ch.QueueDeclare(name, true, false, false, false, table); err != nil {
		return declareError("queue", name, err)
	}
	return nil
}

// declareRPCQueue declares the queue of an RPC. It goes when its last server goes, so that a call finds out at once
// that nobody is there. Its requests live no longer than their callers wait, so it needs no replication.
func declareRPCQueue(ch *amqp.Channel, queue, exchange, key string) error {
	if _, err := ch.QueueDeclare(queue, true, true, false, false, amqp.Table{amqp.QueueTypeArg: amqp.QueueTypeClassic}); err != nil {
		return declareError("queue", queue, err)
	}
	if err := ch.QueueBind(queue, key, exchange, false, nil); err != nil {
		return fmt.Errorf("binding queue %s to %s: %w", queue, key, err)
	}
	return nil
}

func declareError(kind, name string, err error) error {
	var e *amqp.Error
	if errors.As(err, &e) && e.Code == amqp.PreconditionFailed {
		return fmt.Errorf("%s %s exists in the broker with other arguments; delete it there once it is empty: %w", kind, name, err)
	}
	return fmt.Errorf("declaring %s %s: %w", kind, name, err)
}
