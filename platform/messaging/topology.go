package messaging

import (
	"errors"
	"fmt"
	"strings"
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

// exchanges are declared in this order, the last one when all queues are bound: who finds it finds the whole topology.
var exchanges = []struct{ name, kind string }{
	{"shop.topic", amqp.ExchangeTopic},
	{deadLetterExchange, amqp.ExchangeFanout},
	{"shop.direct", amqp.ExchangeDirect},
}

// workQueues belong each to the service of the same name.
var workQueues = []struct {
	name     string
	bindings []string // on shop.topic
}{
	{OrderQueue, []string{"shop.order.placed"}},
	{InventoryQueue, []string{"shop.inventory.#", "shop.order.cancelled"}},
	{LoggingQueue, []string{"shop.#"}},
}

// queueSpec is a queue that outlives its consumers.
type queueSpec struct {
	name     string
	owner    string // the service whose user may declare it
	args     amqp.Table
	exchange string
	keys     []string
}

// allQueues are the queues of the shop. A queue's arguments can never be changed, so they hold only what a queue is: its
// type and, for a retry queue, its delay and target, without which messages would stay in it for ever. Limits are policy.
func allQueues() []queueSpec {
	var queues []queueSpec
	for _, q := range workQueues {
		queues = append(queues, queueSpec{q.name, q.name, quorum(nil), "shop.topic", q.bindings})
		for _, delay := range retryDelays {
			queues = append(queues, queueSpec{name: retryQueue(q.name, delay), owner: q.name, args: quorum(amqp.Table{
				"x-message-ttl": delay.Milliseconds(),
				// Straight back to the work queue: through shop.topic every other service would see it again.
				"x-dead-letter-exchange":    "",
				"x-dead-letter-routing-key": q.name,
				"x-dead-letter-strategy":    "at-least-once",
				"x-overflow":                "reject-publish", // at-least-once needs it
			})})
		}
	}
	return append(queues, queueSpec{DeadLetterQueue, LoggingQueue, quorum(nil), deadLetterExchange, []string{""}})
}

func quorum(args amqp.Table) amqp.Table {
	if args == nil {
		args = amqp.Table{}
	}
	args[amqp.QueueTypeArg] = amqp.QueueTypeQuorum
	return args
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

// prepare makes sure that the whole topology is there, so that no service depends on another having been there first.
// It is repeated on every new connection, because a broker may have come back empty.
//
// Where something is missing everything is declared, which takes a user with rights to everything. Where nothing is, as
// after an import of the definitions, a service declares its own: the broker compares that with what it has, and the
// user of a service has no right to more. Whether something is there may be asked without a right, and without a line
// in the broker's log.
func prepare(conn *amqp.Connection, service string) error {
	declaring.Lock()
	defer declaring.Unlock()
	missing, err := firstMissing(conn)
	if err != nil {
		return err
	}
	if missing == "" {
		return declare(conn, func(q queueSpec) bool { return q.owner == service }, false)
	}
	err = declare(conn, func(queueSpec) bool { return true }, true)
	var refusal *amqp.Error
	if errors.As(err, &refusal) && refusal.Code == amqp.AccessRefused {
		return fmt.Errorf("%s is missing in the broker, and this service's user may not make it: import the shop's definitions: %w", missing, err)
	}
	return err
}

// firstMissing names an exchange or queue that is not there, "" where all are.
func firstMissing(conn *amqp.Connection) (string, error) {
	ch, err := conn.Channel()
	if err != nil {
		return "", fmt.Errorf("opening a channel to look at the topology: %w", err)
	}
	for _, e := range exchanges {
		if err := ch.ExchangeDeclarePassive(e.name, e.kind, true, false, false, false, nil); err != nil {
			return missingOr("exchange "+e.name, err)
		}
	}
	for _, q := range allQueues() {
		if _, err := ch.QueueDeclarePassive(q.name, true, false, false, false, nil); err != nil {
			return missingOr("queue "+q.name, err)
		}
	}
	return "", ch.Close()
}

// missingOr is what the answer to a question for what means. The channel is closed by the broker then.
func missingOr(what string, err error) (string, error) {
	var e *amqp.Error
	if errors.As(err, &e) && e.Code == amqp.NotFound {
		return what, nil
	}
	return "", fmt.Errorf("looking for %s: %w", what, err)
}

// declare declares and binds the queues that are wanted, and the exchanges too.
func declare(conn *amqp.Connection, wanted func(queueSpec) bool, withExchanges bool) error {
	ch, err := conn.Channel()
	if err != nil {
		return fmt.Errorf("opening a channel to declare the topology: %w", err)
	}
	last := len(exchanges) - 1
	if withExchanges {
		for _, e := range exchanges[:last] {
			if err := declareExchange(ch, e.name, e.kind); err != nil {
				return err
			}
		}
	}
	for _, q := range allQueues() {
		if !wanted(q) {
			continue
		}
		if _, err := ch.QueueDeclare(q.name, true, false, false, false, q.args); err != nil {
			return declareError("queue", q.name, err)
		}
		for _, key := range q.keys {
			if err := ch.QueueBind(q.name, key, q.exchange, false, nil); err != nil {
				return fmt.Errorf("binding queue %s to %s: %w", q.name, key, err)
			}
		}
	}
	if withExchanges {
		if err := declareExchange(ch, exchanges[last].name, exchanges[last].kind); err != nil {
			return err
		}
	}
	return ch.Close()
}

func declareExchange(ch *amqp.Channel, name, kind string) error {
	if err := ch.ExchangeDeclare(name, kind, true, false, false, false, nil); err != nil {
		return declareError("exchange", name, err)
	}
	return nil
}

// declaring keeps the connections of one process from making the same quorum queue at the same time, which RabbitMQ 3.10
// may answer with an internal error. Between processes it can still happen; the supervisor then connects again.
var declaring sync.Mutex

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

// ErrTopology means that the broker has an exchange or a queue of the shop's names that is not what the contracts say.
var ErrTopology = errors.New("the broker's topology is not the shop's")

func declareError(kind, name string, err error) error {
	var e *amqp.Error
	if errors.As(err, &e) && e.Code == amqp.PreconditionFailed {
		return fmt.Errorf("%w: %s %s is another one: %s; delete it in the broker, a queue once it is empty, and start again", ErrTopology, kind, name, difference(e))
	}
	return fmt.Errorf("declaring %s %s: %w", kind, name, err)
}

// difference is what the broker says without its preamble: "inequivalent arg 'durable' for queue …".
func difference(e *amqp.Error) string {
	return strings.TrimPrefix(e.Reason, "PRECONDITION_FAILED - ")
}
