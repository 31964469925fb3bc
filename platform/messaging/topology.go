package messaging

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"shop.example/platform/contract"
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

// declareTimeout bounds one round of questions and declarations. The library's calls know no deadline.
const declareTimeout = 10 * time.Second

// bounded calls f, which makes calls on conn, and closes conn if they have not been answered within declareTimeout or before
// ctx ends: then f ends with the connection. Other connections notice nothing.
func bounded(ctx context.Context, conn *amqp.Connection, f func() error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, declareTimeout, fmt.Errorf("the broker has not answered within %s", declareTimeout))
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = conn.CloseDeadline(time.Now()) })
	err := f()
	if !stop() && err != nil {
		return fmt.Errorf("%w: %w", context.Cause(ctx), err)
	}
	return err
}

// declaring is held by the connection of this process that declares: RabbitMQ 3.10 may answer with an internal error if two
// make the same quorum queue at once. That costs the connection no more than another attempt, as it does if another
// process declares, so nobody waits longer than declaringWait for a connection whose broker does not answer.
var declaring = make(chan struct{}, 1)

const declaringWait = time.Second

// ensureTopology makes sure that what the service needs is there, so that no service depends on another having been
// there first. It is repeated on every new connection, because a broker may have come back empty.
//
// The service declares its own queues first, for the broker to compare them with what it has: the user of a service has
// the right to do that and no more. If anything else is missing that the service needs, everything is declared, for which
// a user needs rights to everything. Asking whether something is there needs no right, and if it is there the answer
// leaves no line in the broker's log.
func ensureTopology(conn *amqp.Connection, service string) error {
	select {
	case declaring <- struct{}{}:
		defer func() { <-declaring }()
	case <-time.After(declaringWait):
	}
	own := declareQueues(conn, ownQueues(service))
	if own != nil && !isNotFound(own) {
		return own
	}
	missing, err := firstMissing(conn, service)
	if err != nil {
		return err
	}
	if missing == "" {
		return own // not nil if an exchange came back between the two questions: the next round binds the queues
	}
	err = declareEverything(conn)
	if refusal, ok := errors.AsType[*amqp.Error](err); ok && refusal.Code == amqp.AccessRefused {
		return fmt.Errorf("%s is missing in the broker, and this service's user may not declare it: import the shop's definitions: %w", missing, err)
	}
	return err
}

// ownQueues are those that the service's user may declare.
func ownQueues(service string) []queueSpec {
	return slices.DeleteFunc(allQueues(), func(q queueSpec) bool { return q.owner != service })
}

// neededQueues are those without which messages of the service would be lost: its own, those that take what it publishes,
// and if it consumes, that of dead letters. Nobody's requests are lost: whoever asks notices. A program that is no
// service of the contracts needs all of them.
func neededQueues(service string) []string {
	own := ownQueues(service)
	needed := map[string]bool{DeadLetterQueue: len(own) > 0}
	for _, q := range own {
		needed[q.name] = true
	}
	publishes := false
	for _, event := range contract.Events() {
		if !slices.Contains(event.PublishedBy, service) {
			continue
		}
		publishes = true
		for _, handler := range event.HandledBy {
			needed[handler] = needed[handler] || !event.IsRequest() // a service's queue has its name
		}
	}
	names := queueNames()
	if !publishes {
		return names
	}
	return slices.DeleteFunc(names, func(name string) bool { return !needed[name] })
}

// firstMissing names an exchange or queue that the service needs and that is not there, "" if all are.
func firstMissing(conn *amqp.Connection, service string) (string, error) {
	ch, err := conn.Channel()
	if err != nil {
		return "", fmt.Errorf("opening a channel to look at the topology: %w", err)
	}
	for _, e := range exchanges {
		if err := ch.ExchangeDeclarePassive(e.name, e.kind, true, false, false, false, nil); err != nil {
			return missingOr("exchange "+e.name, err)
		}
	}
	for _, name := range neededQueues(service) {
		if _, err := ch.QueueDeclarePassive(name, true, false, false, false, nil); err != nil {
			return missingOr("queue "+name, err)
		}
	}
	return "", ch.Close()
}

// missingOr is what the answer to a question for what means. The channel is closed by the broker then.
func missingOr(what string, err error) (string, error) {
	if isNotFound(err) {
		return what, nil
	}
	return "", fmt.Errorf("looking for %s: %w", what, err)
}

func isNotFound(err error) bool {
	e, ok := errors.AsType[*amqp.Error](err)
	return ok && e.Code == amqp.NotFound
}

// declareQueues declares and binds queues whose exchanges are there.
func declareQueues(conn *amqp.Connection, queues []queueSpec) error {
	if len(queues) == 0 {
		return nil
	}
	ch, err := conn.Channel()
	if err != nil {
		return fmt.Errorf("opening a channel to declare queues: %w", err)
	}
	for _, q := range queues {
		if err := q.declare(ch); err != nil {
			return err
		}
		if err := q.bind(ch); err != nil {
			return err
		}
	}
	return ch.Close()
}

// declareEverything declares all exchanges and queues.
func declareEverything(conn *amqp.Connection) error {
	ch, err := conn.Channel()
	if err != nil {
		return fmt.Errorf("opening a channel to declare the topology: %w", err)
	}
	last := len(exchanges) - 1
	for _, e := range exchanges[:last] {
		if err := declareExchange(ch, e.name, e.kind); err != nil {
			return err
		}
	}
	queues := allQueues()
	for _, q := range queues {
		if err := q.declare(ch); err != nil {
			return err
		}
	}
	// The log's queue is bound before those of the services: what is published meanwhile is in the log at least, from where
	// it is sent again.
	for _, q := range slices.Backward(queues) {
		if err := q.bind(ch); err != nil {
			return err
		}
	}
	if err := declareExchange(ch, exchanges[last].name, exchanges[last].kind); err != nil {
		return err
	}
	return ch.Close()
}

func (q queueSpec) declare(ch *amqp.Channel) error {
	if _, err := ch.QueueDeclare(q.name, true, false, false, false, q.args); err != nil {
		return declareError("queue", q.name, err)
	}
	return nil
}

func (q queueSpec) bind(ch *amqp.Channel) error {
	for _, key := range q.keys {
		if err := ch.QueueBind(q.name, key, q.exchange, false, nil); err != nil {
			return fmt.Errorf("binding queue %s to %s: %w", q.name, key, err)
		}
	}
	return nil
}

func declareExchange(ch *amqp.Channel, name, kind string) error {
	if err := ch.ExchangeDeclare(name, kind, true, false, false, false, nil); err != nil {
		return declareError("exchange", name, err)
	}
	return nil
}

// declareRPCQueue declares the queue of an RPC. It goes when its last server goes, so that a call finds out at once
// that nobody is there. Its requests live no longer than their callers wait, so it needs no replication.
func declareRPCQueue(ctx context.Context, conn *amqp.Connection, ch *amqp.Channel, queue, exchange, key string) error {
	return bounded(ctx, conn, func() error {
		if _, err := ch.QueueDeclare(queue, true, true, false, false, amqp.Table{amqp.QueueTypeArg: amqp.QueueTypeClassic}); err != nil {
			return declareError("queue", queue, err)
		}
		if err := ch.QueueBind(queue, key, exchange, false, nil); err != nil {
			return fmt.Errorf("binding queue %s to %s: %w", queue, key, err)
		}
		return nil
	})
}

// declareOwn declares a queue that goes with the connection, which the broker names.
func declareOwn(ctx context.Context, conn *amqp.Connection, ch *amqp.Channel, args amqp.Table) (q amqp.Queue, err error) {
	err = bounded(ctx, conn, func() (err error) {
		q, err = ch.QueueDeclare("", false, true, true, false, args)
		return err
	})
	return q, err
}

// ErrTopology means that the broker has an exchange or a queue of the shop's names that is not what the contracts say.
var ErrTopology = errors.New("the broker's topology is not the shop's")

func declareError(kind, name string, err error) error {
	if e, ok := errors.AsType[*amqp.Error](err); ok && e.Code == amqp.PreconditionFailed {
		return fmt.Errorf("%w: %s %s is another one: %s; delete it in the broker, a queue once it is empty, and start again", ErrTopology, kind, name, difference(e))
	}
	return fmt.Errorf("declaring %s %s: %w", kind, name, err)
}

// difference is what the broker says without its preamble: "inequivalent arg 'durable' for queue …".
func difference(e *amqp.Error) string {
	return strings.TrimPrefix(e.Reason, "PRECONDITION_FAILED - ")
}
