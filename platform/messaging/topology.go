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

// DeadLetterQueue is the queue of messages that could not be handled, until the DeadLetterService has stored them.
const DeadLetterQueue = "dead-letter"

// Topology is what the services of a product have on the broker: three exchanges and, for each service that consumes, a
// queue of its name and retry queues. Each connection is given the same value. The contracts say the rest: who publishes,
// handles, calls and answers what.
type Topology struct {
	EventExchange      string // of type topic: the contracts' events are published to it
	CallExchange       string // of type direct: calls over the broker are published to it; "" if there are none
	DeadLetterExchange string // of type fanout: what could not be handled
	// DeadLetterService consumes DeadLetterQueue. Its user may publish again what others have published.
	DeadLetterService string
	Services          []Service
}

// Service is a service on the broker. Its user has its name unless provision is given another.
type Service struct {
	Name string
	// Bindings are the patterns of the routing keys that the service's queue takes. A service without any has no queue.
	Bindings []string
	// Required says that an event which the service handles must not be published while its queue is missing: the broker
	// would confirm it all the same if any other queue took it. A service that is not required declares its queue again
	// when it notices, and has missed the events in between.
	Required bool
	// Follows are the routing keys of the events that each process of the service may receive in a queue of its own, see
	// NewSubscription.
	Follows []string
	// Exclusive are the names of queues that only one process at a time can have, see Alone.
	Exclusive []string
}

// Consumes reports whether the service has a queue.
func (s Service) Consumes() bool { return len(s.Bindings) > 0 }

// Service returns the service of that name; false if the topology has none.
func (t Topology) Service(name string) (Service, bool) {
	i := slices.IndexFunc(t.Services, func(s Service) bool { return s.Name == name })
	if i < 0 {
		return Service{}, false
	}
	return t.Services[i], true
}

// Exchange is an exchange of the topology. It is durable and has no arguments.
type Exchange struct{ Name, Kind string }

// Exchanges returns the exchanges in the order in which they are declared.
func (t Topology) Exchanges() []Exchange {
	all := []Exchange{
		{t.EventExchange, amqp.ExchangeTopic}, {t.DeadLetterExchange, amqp.ExchangeFanout}, {t.CallExchange, amqp.ExchangeDirect},
	}
	return slices.DeleteFunc(all, func(e Exchange) bool { return e.Name == "" })
}

// Queue is a queue of the topology. It is durable, and stays when its consumers go.
type Queue struct {
	Name     string
	Owner    string // the service whose user may declare it
	Args     amqp.Table
	Exchange string
	Keys     []string // that it is bound to on Exchange
}

// Queues returns the queues of the topology. The arguments of a queue can never be changed, so they only contain what must
// not change: its type and, for a retry queue, its delay and target, without which messages would stay in it for ever.
// Limits are set by policies.
func (t Topology) Queues() []Queue {
	var queues []Queue
	for _, s := range t.Services {
		if !s.Consumes() {
			continue
		}
		queues = append(queues, Queue{s.Name, s.Name, quorum(nil), t.EventExchange, s.Bindings})
		for _, delay := range retryDelays {
			queues = append(queues, Queue{Name: retryQueue(s.Name, delay), Owner: s.Name, Args: quorum(amqp.Table{
				"x-message-ttl": delay.Milliseconds(),
				// Straight back to the work queue: through the exchange of events every other service would see it again.
				"x-dead-letter-exchange":    "",
				"x-dead-letter-routing-key": s.Name,
				"x-dead-letter-strategy":    "at-least-once",
				"x-overflow":                "reject-publish", // at-least-once needs it
			})})
		}
	}
	if t.DeadLetterService == "" {
		return queues
	}
	return append(queues, Queue{DeadLetterQueue, t.DeadLetterService, quorum(nil), t.DeadLetterExchange, []string{""}})
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

// MaxRetryTime returns how long a message that keeps failing waits in retry queues in total, before it becomes a dead
// letter.
func MaxRetryTime() time.Duration {
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

// bounded calls f, which uses conn, and closes conn if f has not returned within limit or before ctx ends: f then fails
// with the connection. Other connections are not affected.
func bounded(ctx context.Context, conn *amqp.Connection, limit time.Duration, f func() error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("the broker has not answered within %s", limit))
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = conn.CloseDeadline(time.Now()) })
	err := f()
	if !stop() && err != nil {
		return fmt.Errorf("%w: %w", context.Cause(ctx), err)
	}
	return err
}

// declaring is held by the one connection of this process that declares. RabbitMQ 3.10 may answer with an internal error if
// two connections declare the same quorum queue at once. That costs no more than another attempt, which also helps if
// another process declares, so nobody waits longer than declaringWait for a connection whose broker does not answer.
var declaring = make(chan struct{}, 1)

const declaringWait = time.Second

// declareAlone waits until no other connection of this process declares, and returns the function that ends this one's
// turn.
func declareAlone() (end func()) {
	select {
	case declaring <- struct{}{}:
		return func() { <-declaring }
	case <-time.After(declaringWait):
		return func() {}
	}
}

// ensureTopology declares what the service needs if it is missing, so that services can start in any order. It runs on
// every new connection, because a broker may have come back empty.
//
// First the service declares its own queues, which makes the broker compare their arguments; a service's user has the right
// to do that and no more. If anything else that the service needs is missing, everything is declared, for which a user
// needs rights to everything. Asking whether something exists needs no right, and leaves no line in the broker's log if it
// does.
func ensureTopology(conn *amqp.Connection, t Topology, service string) error {
	defer declareAlone()()
	own := declareQueues(conn, t.ownQueues(service))
	if own != nil && !isNotFound(own) {
		return own
	}
	missing, err := firstMissing(conn, t, service)
	if err != nil {
		return err
	}
	if missing == "" {
		return own // not nil if an exchange came back between the two questions: the next round binds the queues
	}
	err = declareEverything(conn, t)
	if refusal, ok := errors.AsType[*amqp.Error](err); ok && refusal.Code == amqp.AccessRefused {
		return &missingError{missing, err}
	}
	return err
}

// missingError means that the broker has no such exchange or queue, and refuses to declare it for this service.
type missingError struct {
	what    string
	refusal error
}

func (e *missingError) Error() string {
	return fmt.Sprintf("%s is missing in the broker, and this service's user may not declare it: import the shop's definitions: %s", e.what, e.refusal)
}

func (e *missingError) Unwrap() error { return e.refusal }

// ownQueues returns the queues that the service's user may declare.
func (t Topology) ownQueues(service string) []Queue {
	return slices.DeleteFunc(t.Queues(), func(q Queue) bool { return q.Owner != service })
}

// routes reports whether the topology has a binding for messages with this exchange and routing key. Bindings that other
// programs have made are not known.
func (t Topology) routes(exchange, key string) bool {
	return slices.ContainsFunc(t.Queues(), func(q Queue) bool {
		return q.Exchange == exchange && slices.ContainsFunc(q.Keys, func(binding string) bool {
			return Matches(binding, key)
		})
	})
}

// Matches reports whether a topic exchange routes messages with the routing key key to a queue that is bound with the
// pattern binding.
func Matches(binding, key string) bool {
	return matches(strings.Split(binding, "."), strings.Split(key, "."))
}

// matches is a topic exchange's rule: * stands for one word, # for any number of them.
func matches(binding, key []string) bool {
	switch {
	case len(binding) == 0:
		return len(key) == 0
	case binding[0] == "#":
		return matches(binding[1:], key) || len(key) > 0 && matches(binding, key[1:])
	}
	return len(key) > 0 && (binding[0] == "*" || binding[0] == key[0]) && matches(binding[1:], key[1:])
}

// requiredHandlers returns the services without whose queues the event must not be published.
func (t Topology) requiredHandlers(event contract.Event) []string {
	var required []string
	for _, handler := range event.HandledBy {
		if s, _ := t.Service(handler); s.Required {
			required = append(required, handler)
		}
	}
	return required
}

// neededQueues returns the queues without which messages would be lost: the service's own, those of required services that
// handle what it publishes and, if it consumes, the dead letters'. Requests do not count, because whoever asks notices that
// no answer comes. A program that is no service of the topology needs all queues.
func (t Topology) neededQueues(service string) []string {
	names := t.queueNames()
	s, known := t.Service(service)
	if !known {
		return names
	}
	needed := map[string]bool{DeadLetterQueue: s.Consumes()}
	for _, q := range t.ownQueues(service) {
		needed[q.Name] = true
	}
	for _, event := range contract.Events() {
		if event.IsRequest() || !slices.Contains(event.PublishedBy, service) {
			continue
		}
		for _, handler := range t.requiredHandlers(event) {
			needed[handler] = true // a service's queue has its name
		}
	}
	return slices.DeleteFunc(names, func(name string) bool { return !needed[name] })
}

// neededExchanges returns the exchanges that the service publishes to or binds queues to; all of them for a program that is
// no service of the topology.
func (t Topology) neededExchanges(service string) []Exchange {
	s, known := t.Service(service)
	if !known {
		return t.Exchanges()
	}
	needed := map[string]bool{t.DeadLetterExchange: s.Consumes(), t.EventExchange: s.Consumes() || len(s.Follows) > 0}
	for _, event := range contract.Events() {
		if slices.Contains(event.PublishedBy, service) {
			needed[event.Exchange] = true
		}
	}
	for _, method := range contract.Methods() {
		if method.AnsweredBy == service || slices.Contains(method.CalledBy, service) {
			needed[method.Exchange] = true
		}
	}
	return slices.DeleteFunc(t.Exchanges(), func(e Exchange) bool { return !needed[e.Name] })
}

// firstMissing names an exchange or queue that the service needs and that does not exist, "" if there is none.
func firstMissing(conn *amqp.Connection, t Topology, service string) (string, error) {
	ch, err := conn.Channel()
	if err != nil {
		return "", fmt.Errorf("opening a channel to look at the topology: %w", err)
	}
	for _, e := range t.neededExchanges(service) {
		if err := ch.ExchangeDeclarePassive(e.Name, e.Kind, true, false, false, false, nil); err != nil {
			return notFoundOr("exchange "+e.Name, err)
		}
	}
	for _, name := range t.neededQueues(service) {
		if _, err := ch.QueueDeclarePassive(name, true, false, false, false, nil); err != nil {
			return notFoundOr("queue "+name, err)
		}
	}
	return "", ch.Close()
}

// notFoundOr returns what if err says that it does not exist, otherwise err. In both cases the channel is closed.
func notFoundOr(what string, err error) (string, error) {
	if isNotFound(err) {
		return what, nil
	}
	return "", fmt.Errorf("looking for %s: %w", what, err)
}

func isNotFound(err error) bool {
	e, ok := errors.AsType[*amqp.Error](err)
	return ok && e.Code == amqp.NotFound
}

// declareQueues declares and binds queues whose exchanges exist.
func declareQueues(conn *amqp.Connection, queues []Queue) error {
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
func declareEverything(conn *amqp.Connection, t Topology) error {
	ch, err := conn.Channel()
	if err != nil {
		return fmt.Errorf("opening a channel to declare the topology: %w", err)
	}
	for _, e := range t.Exchanges() {
		if err := ch.ExchangeDeclare(e.Name, e.Kind, true, false, false, false, nil); err != nil {
			return declareError("exchange", e.Name, err)
		}
	}
	// The log's queue before those of the other services: what is published meanwhile is in the log at least, from where it
	// is sent again. Each queue is bound as soon as it is there, because whoever finds a queue publishes.
	rest := slices.DeleteFunc(t.Queues(), func(q Queue) bool { return q.Owner == t.DeadLetterService })
	for _, q := range append(t.ownQueues(t.DeadLetterService), rest...) {
		if err := q.declare(ch); err != nil {
			return err
		}
		if err := q.bind(ch); err != nil {
			return err
		}
	}
	return ch.Close()
}

func (q Queue) declare(ch *amqp.Channel) error {
	if _, err := ch.QueueDeclare(q.Name, true, false, false, false, q.Args); err != nil {
		return declareError("queue", q.Name, err)
	}
	return nil
}

func (q Queue) bind(ch *amqp.Channel) error {
	for _, key := range q.Keys {
		if err := ch.QueueBind(q.Name, key, q.Exchange, false, nil); err != nil {
			return fmt.Errorf("binding queue %s to %s: %w", q.Name, key, err)
		}
	}
	return nil
}

// RPCSubstitutes is how many queues may take the place of the queue of an RPC, one after the other.
const RPCSubstitutes = 2

// substituteExpiry is how long a substitute stays that nobody serves: its node may come back with it when all servers have
// gone elsewhere, and it is bound still.
const substituteExpiry = 10 * time.Second

// rpcQueues returns the queue of an RPC and its substitutes. A classic queue is on one node, and cannot be declared on another
// one while that is down. Then all servers go to the first substitute that can be declared. It has the same binding, so
// callers notice nothing.
func rpcQueues(queue string) []string {
	names := []string{queue}
	for i := range RPCSubstitutes {
		names = append(names, fmt.Sprintf("%s.%d", queue, i+2))
	}
	return names
}

// declareRPCQueue declares and binds the queue of an RPC, or if its node is down a substitute, and returns its name. It is
// deleted with its last server, so that calls fail at once if no server is there. Its requests live no longer than their
// callers wait, so it is not replicated.
func declareRPCQueue(ctx context.Context, conn *amqp.Connection, route contract.Method) (name string, err error) {
	for _, name = range rpcQueues(route.Queue) {
		if err = declareRPCQueueAs(ctx, conn, route, name); !errors.Is(err, errNodeDown) {
			break
		}
	}
	return name, err
}

// awaitRPCQueue tries to declare and bind the queue of an RPC itself until it is there or ctx ends. It reports which.
func awaitRPCQueue(ctx context.Context, conn *amqp.Connection, route contract.Method) bool {
	tick := time.NewTicker(homeInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
		// Not bounded by ctx, which would close the connection.
		if declareRPCQueueAs(context.WithoutCancel(ctx), conn, route, route.Queue) == nil {
			return true
		}
	}
}

// errNodeDown means that a queue exists on a node of the cluster that is down.
var errNodeDown = errors.New("the queue's node is down")

func declareRPCQueueAs(ctx context.Context, conn *amqp.Connection, route contract.Method, name string) error {
	args := amqp.Table{amqp.QueueTypeArg: amqp.QueueTypeClassic}
	if name != route.Queue {
		args["x-expires"] = substituteExpiry.Milliseconds()
	}
	return bounded(ctx, conn, declareTimeout, func() error {
		ch, err := conn.Channel()
		if err != nil {
			return fmt.Errorf("opening a channel to declare queue %s: %w", name, err)
		}
		_, err = ch.QueueDeclare(name, true, true, false, false, args)
		if isNotFound(err) { // there is no other reason for this answer
			return fmt.Errorf("%w: %w", errNodeDown, err)
		}
		if err != nil {
			return declareError("queue", name, err)
		}
		if err := ch.QueueBind(name, route.RoutingKey, route.Exchange, false, nil); err != nil {
			return fmt.Errorf("binding queue %s to %s: %w", name, route.RoutingKey, err)
		}
		return ch.Close()
	})
}

// declareOwn declares a queue that the broker names and deletes with the connection.
func declareOwn(ctx context.Context, conn *amqp.Connection, ch *amqp.Channel, args amqp.Table) (q amqp.Queue, err error) {
	err = bounded(ctx, conn, declareTimeout, func() (err error) {
		q, err = ch.QueueDeclare("", false, true, true, false, args)
		return err
	})
	return q, err
}

// ErrTopology means that the broker has an exchange or a queue whose name is in the topology but whose type or arguments
// differ.
var ErrTopology = errors.New("the broker's topology is not the shop's")

func declareError(kind, name string, err error) error {
	if e, ok := errors.AsType[*amqp.Error](err); ok && e.Code == amqp.PreconditionFailed {
		return fmt.Errorf("%w: %s %s is another one: %s; delete it in the broker, a queue once it is empty, and start again", ErrTopology, kind, name, difference(e))
	}
	return fmt.Errorf("declaring %s %s: %w", kind, name, err)
}

// difference returns the broker's explanation without its preamble: "inequivalent arg 'durable' for queue …".
func difference(e *amqp.Error) string {
	return strings.TrimPrefix(e.Reason, "PRECONDITION_FAILED - ")
}
