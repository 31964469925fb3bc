package messaging_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	eventsv1 "shop.example/gen/shop/events/v1"
	"shop.example/platform/contract"
	"shop.example/platform/messaging"
	"shop.example/platform/postgres"
	"shop.example/platform/testkit/brokertest"
)

// testTimeout bounds every wait of these tests; none of them waits that long unless something is broken.
const testTimeout = 30 * time.Second

// party is a process of the shop as far as messaging goes: two connections and a publisher, all running.
type party struct {
	consume *messaging.Connection
	publish *messaging.Connection
	pub     *messaging.Publisher
	run     func(func(context.Context) error) (stop func())
}

func join(t testing.TB, url, service string) *party {
	t.Helper()
	return joinAs(t, url, messaging.Options{Topology: brokertest.Topology(), Service: service, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
}

func joinAs(t testing.TB, url string, o messaging.Options) *party {
	t.Helper()
	p := &party{}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	p.run = func(f func(context.Context) error) func() {
		ctx, stop := context.WithCancel(ctx)
		done := make(chan struct{})
		wg.Go(func() {
			defer close(done)
			if err := f(ctx); err != nil {
				t.Errorf("%s: %v", o.Service, err)
			}
		})
		return func() { stop(); <-done }
	}
	t.Cleanup(func() { cancel(); wg.Wait() })
	dial := func(role string) *messaging.Connection {
		o.Role, o.KeepTopology = role, role == "consume"
		c, err := messaging.Dial(url, o)
		if err != nil {
			t.Fatal(err)
		}
		p.run(c.Run)
		return c
	}
	p.consume = dial("consume")
	p.publish = dial("publish")
	p.pub = messaging.NewPublisher(p.publish)
	p.run(p.pub.Run)
	return p
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	t.Cleanup(cancel)
	return ctx
}

func placed() *eventsv1.OrderPlaced {
	return &eventsv1.OrderPlaced{
		OrderId: uuid.Must(uuid.NewV7()).String(), CustomerName: "Ada", CustomerEmail: "ada@example.org",
		Lines: []*eventsv1.RequestedLine{{ProductId: 1, Quantity: 2}}, PlacedAt: timestamppb.Now(),
	}
}

func publish(t *testing.T, p *party, m proto.Message) {
	t.Helper()
	if err := p.pub.Publish(within(t), m); err != nil {
		t.Fatalf("publishing %T: %v", m, err)
	}
}

// next takes from ch or fails.
func next[T any](t *testing.T, ch <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(testTimeout):
		t.Fatalf("waited %s for %s", testTimeout, what)
		panic("unreachable")
	}
}

// orders consumes the order queue with handle, one call a message of a batch.
func (p *party) orders(handle func(context.Context, []messaging.Message[*eventsv1.OrderPlaced]) error) (stop func()) {
	return p.run(messaging.NewConsumer(p.consume, p.pub, "order", messaging.ConsumerOptions{}, messaging.Handle(handle)).Run)
}

// deadLetters returns the dead letters as they come.
func (p *party) deadLetters() <-chan messaging.Delivery {
	out := make(chan messaging.Delivery, 100)
	p.run(messaging.NewConsumer(p.consume, p.pub, messaging.DeadLetterQueue, messaging.ConsumerOptions{},
		messaging.HandleRaw(func(_ context.Context, batch []messaging.Delivery) error {
			for _, d := range batch {
				out <- d
			}
			return nil
		})).Run)
	return out
}

func TestPublish_ArrivesAsItWasSent(t *testing.T) {
	t.Parallel()
	p := join(t, brokertest.New(t).URL, "gateway")
	got := make(chan messaging.Message[*eventsv1.OrderPlaced], 1)
	p.orders(func(_ context.Context, batch []messaging.Message[*eventsv1.OrderPlaced]) error {
		for _, m := range batch {
			got <- m
		}
		return nil
	})
	sent := placed()
	before := time.Now().Add(-time.Second)
	publish(t, p, sent)
	m := next(t, got, "the order")
	if !proto.Equal(m.Body, sent) {
		t.Errorf("got %v, sent %v", m.Body, sent)
	}
	if m.ID != contract.MessageID(sent) || m.CorrelationID != sent.GetOrderId() || m.RoutingKey != "shop.order.placed" ||
		m.Exchange != "shop.topic" || m.AppID != "gateway" || m.Attempt != 0 {
		t.Errorf("meta is %+v", m.Meta)
	}
	if m.Timestamp.Before(before) || m.Timestamp.After(time.Now()) {
		t.Errorf("timestamp %s is not the time of publishing", m.Timestamp)
	}
}

func TestSend_UnroutableIsAnError(t *testing.T) {
	t.Parallel()
	p := join(t, brokertest.New(t).URL, "gateway")
	good, err := messaging.NewOutgoing(t.Context(), placed())
	if err != nil {
		t.Fatal(err)
	}
	lost := good
	lost.MessageID, lost.Exchange, lost.RoutingKey = uuid.NewString(), "shop.direct", "nobody.listens"
	lostToo := lost
	lostToo.MessageID = uuid.NewString()
	err = p.pub.Send(within(t), []messaging.Outgoing{good, lost, good, lostToo, good})
	if !errors.Is(err, messaging.ErrUnroutable) {
		t.Errorf("got %v, want ErrUnroutable", err)
	}
	refused, ok := errors.AsType[*messaging.RefusedError](err)
	if !ok || len(refused.Refused) != 2 || refused.Refused[0].Index != 1 || refused.Refused[1].Index != 3 || refused.Done != 5 {
		t.Errorf("refused is %+v, want the second and the fourth of five", refused)
	}
	if err := p.pub.Send(within(t), []messaging.Outgoing{good}); err != nil {
		t.Errorf("the publisher works on after a return: %v", err)
	}
}

func TestSend_ManyAtOnceAreAllConfirmed(t *testing.T) {
	t.Parallel()
	p := join(t, brokertest.New(t).URL, "order")
	const senders, each = 8, 700 // more than one window
	seen := make(chan string, senders*each)
	p.orders(func(_ context.Context, batch []messaging.Message[*eventsv1.OrderPlaced]) error {
		for _, m := range batch {
			seen <- m.Body.GetOrderId()
		}
		return nil
	})
	var wg sync.WaitGroup
	for range senders {
		wg.Go(func() {
			var batch []messaging.Outgoing
			for range each {
				out, err := messaging.NewOutgoing(t.Context(), placed())
				if err != nil {
					t.Error(err)
					return
				}
				batch = append(batch, out)
			}
			if err := p.pub.Send(within(t), batch); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	ids := map[string]bool{}
	for len(ids) < senders*each {
		ids[next(t, seen, fmt.Sprintf("order %d", len(ids)))] = true
	}
}

// The library shows one delivery at a time: without room of its own the consumer would never see a second one.
func TestConsumer_WhatIsThereIsHandledTogether(t *testing.T) {
	t.Parallel()
	p := join(t, brokertest.New(t).URL, "order")
	const messages, batch = 300, 100
	var all []messaging.Outgoing
	for range messages {
		out, err := messaging.NewOutgoing(t.Context(), placed())
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, out)
	}
	if err := p.pub.Send(within(t), all); err != nil {
		t.Fatal(err)
	}
	sizes := make(chan int, messages)
	p.run(messaging.NewConsumer(p.consume, p.pub, "order", messaging.ConsumerOptions{Batch: batch},
		messaging.Handle(func(ctx context.Context, batch []messaging.Message[*eventsv1.OrderPlaced]) error {
			sizes <- len(batch)
			return p.pub.Publish(ctx, confirmedOrder()) // takes a moment, in which more deliveries come
		})).Run)
	calls, handled, largest := 0, 0, 0
	for handled < messages {
		n := next(t, sizes, "a batch")
		calls, handled, largest = calls+1, handled+n, max(largest, n)
	}
	if largest > batch || calls > messages/3 {
		t.Errorf("%d messages were handled in %d batches of at most %d", handled, calls, largest)
	}
}

func TestConsumer_MalformedMessagesAreDeadLettersAndCostNobody(t *testing.T) {
	t.Parallel()
	p := join(t, brokertest.New(t).URL, "order")
	base := func() messaging.Outgoing {
		out, err := messaging.NewOutgoing(t.Context(), placed())
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	undecodable, invalid, wrongType, bare, unknown := base(), base(), base(), base(), base()
	undecodable.Body = []byte("{\"garbage\":true}")
	invalid.Body, _ = proto.Marshal(&eventsv1.OrderPlaced{OrderId: "7"})
	wrongType.Type = "shop.events.v1.OrderConfirmed"
	bare = messaging.Outgoing{Exchange: bare.Exchange, RoutingKey: bare.RoutingKey, Body: []byte{0xff}} // no property at all
	unknown.Exchange, unknown.RoutingKey = "", "order"                                                  // a routing key no contract has
	good := placed()

	batch := []messaging.Outgoing{undecodable, invalid, wrongType, bare, unknown}
	if err := p.pub.Send(within(t), batch); err != nil {
		t.Fatal(err)
	}
	publish(t, p, good)

	handled := make(chan string, 10)
	p.orders(func(_ context.Context, batch []messaging.Message[*eventsv1.OrderPlaced]) error {
		for _, m := range batch {
			handled <- m.Body.GetOrderId()
		}
		return nil
	})
	if id := next(t, handled, "the good order"); id != good.GetOrderId() {
		t.Errorf("handled %s, want %s", id, good.GetOrderId())
	}
	dead := p.deadLetters()
	for i, want := range []string{"is not a shop.events.v1.OrderPlaced", "breaks its contract", "type property", "is not a shop.events.v1.OrderPlaced", "no message has the routing key"} {
		d := next(t, dead, "dead letter "+want)
		if !strings.Contains(d.Reason, want) || d.SourceQueue != "order" {
			t.Errorf("dead letter %d: reason %q from queue %q, want %q", i, d.Reason, d.SourceQueue, want)
		}
		if string(d.Body) != string(batch[i].Body) {
			t.Errorf("dead letter %d lost its body", i)
		}
		if i < 3 && (d.RoutingKey != "shop.order.placed" || d.Exchange != "shop.topic" || d.MessageID != batch[i].MessageID) {
			t.Errorf("dead letter %d lost where it came from: %+v", i, d.Meta)
		}
	}
}

func TestConsumer_OneBadMessageDoesNotCostItsBatch(t *testing.T) {
	t.Parallel()
	p := join(t, brokertest.New(t).URL, "order")
	var all []messaging.Outgoing
	var bad string
	want := map[string]bool{}
	for i := range 50 {
		m := placed()
		if i == 20 {
			bad = m.GetOrderId()
		} else {
			want[m.GetOrderId()] = true
		}
		out, err := messaging.NewOutgoing(t.Context(), m)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, out)
	}
	if err := p.pub.Send(within(t), all); err != nil {
		t.Fatal(err)
	}
	handled := make(chan string, 100)
	p.orders(func(_ context.Context, batch []messaging.Message[*eventsv1.OrderPlaced]) error {
		for _, m := range batch {
			if m.Body.GetOrderId() == bad {
				return messaging.Permanent(errors.New("this order is cursed"))
			}
		}
		for _, m := range batch {
			handled <- m.Body.GetOrderId()
		}
		return nil
	})
	d := next(t, p.deadLetters(), "the dead letter")
	if d.CorrelationID != bad || d.Reason != "this order is cursed" {
		t.Errorf("dead letter of order %s, reason %q", d.CorrelationID, d.Reason)
	}
	for len(want) > 0 {
		delete(want, next(t, handled, "the others"))
	}
}

func TestConsumer_AFailureIsTriedAgainLater(t *testing.T) {
	t.Parallel()
	p := join(t, brokertest.New(t).URL, "order")
	type try struct {
		meta messaging.Meta
		at   time.Time
	}
	tries := make(chan try, 10)
	p.orders(func(_ context.Context, batch []messaging.Message[*eventsv1.OrderPlaced]) error {
		for _, m := range batch {
			tries <- try{m.Meta, time.Now()}
			if m.Attempt == 0 {
				return errors.New("not this time")
			}
		}
		return nil
	})
	publish(t, p, placed())
	first, second := next(t, tries, "the first try"), next(t, tries, "the second try")
	if second.meta.Attempt != 1 || second.at.Sub(first.at) < 900*time.Millisecond {
		t.Errorf("attempt %d came %s after the first", second.meta.Attempt, second.at.Sub(first.at))
	}
	if second.meta.RoutingKey != "shop.order.placed" || second.meta.Exchange != "shop.topic" || !second.meta.Timestamp.Equal(first.meta.Timestamp) {
		t.Errorf("the detour changed the message: %+v, was %+v", second.meta, first.meta)
	}
}

func TestConsumer_ADependencyThatIsDownUsesUpNoAttempt(t *testing.T) {
	t.Parallel()
	p := join(t, brokertest.New(t).URL, "order")
	attempts := make(chan int, 20)
	calls := 0
	p.orders(func(_ context.Context, batch []messaging.Message[*eventsv1.OrderPlaced]) error {
		attempts <- batch[0].Attempt
		if calls++; calls < 6 { // more often than there are retries
			return fmt.Errorf("asking for stock: %w", messaging.Unavailable(errors.New("inventory is away")))
		}
		return nil
	})
	publish(t, p, placed())
	for i := range 6 {
		if n := next(t, attempts, "a try"); n != 0 {
			t.Errorf("try %d is attempt %d", i, n)
		}
	}
}

func TestConsumer_ABatchThatTakesTheDatabaseTooLongIsHandledInSmallerOnes(t *testing.T) {
	t.Parallel()
	p := join(t, brokertest.New(t).URL, "order")
	const orders = 20
	for range orders {
		publish(t, p, placed())
	}
	handled := make(chan messaging.Meta, orders)
	p.orders(func(_ context.Context, batch []messaging.Message[*eventsv1.OrderPlaced]) error {
		if len(batch) > 3 {
			return fmt.Errorf("storing %d orders: %w", len(batch), postgres.ErrExhausted)
		}
		for _, m := range batch {
			handled <- m.Meta
		}
		return nil
	})
	for range orders {
		if m := next(t, handled, "an order"); m.Attempt != 0 {
			t.Errorf("an order was handled at attempt %d", m.Attempt)
		}
	}
}

func TestConsumer_AMessageThatTakesTheDatabaseTooLongHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	p := join(t, brokertest.New(t).URL, "order")
	heavy := placed()
	attempts, others := make(chan int, 10), make(chan string, 10)
	p.orders(func(_ context.Context, batch []messaging.Message[*eventsv1.OrderPlaced]) error {
		for _, m := range batch {
			if m.Body.GetOrderId() == heavy.GetOrderId() {
				if len(batch) == 1 {
					attempts <- m.Attempt
				}
				return fmt.Errorf("storing it: %w", postgres.ErrExhausted)
			}
		}
		for _, m := range batch {
			others <- m.Body.GetOrderId()
		}
		return nil
	})
	publish(t, p, heavy)
	if n := next(t, attempts, "the heavy one"); n != 0 {
		t.Errorf("it begins with attempt %d", n)
	}
	light := placed()
	publish(t, p, light)
	if id := next(t, others, "the one behind it"); id != light.GetOrderId() {
		t.Errorf("handled %s, want %s", id, light.GetOrderId())
	}
	if n := next(t, attempts, "the heavy one again"); n != 1 {
		t.Errorf("it comes again as attempt %d", n)
	}
}

// The first one is held for the culprit; that it is the database shows with the second.
func TestConsumer_ADatabaseThatIsSlowForEverybodyUsesUpNoAttempt(t *testing.T) {
	t.Parallel()
	p := join(t, brokertest.New(t).URL, "order")
	var slow atomic.Bool
	slow.Store(true)
	orders := []*eventsv1.OrderPlaced{placed(), placed(), placed()}
	tries, handled := make(chan messaging.Meta, 100), make(chan messaging.Meta, 100)
	c := messaging.NewConsumer(p.consume, p.pub, "order", messaging.ConsumerOptions{Batch: 1},
		messaging.Handle(func(_ context.Context, batch []messaging.Message[*eventsv1.OrderPlaced]) error {
			if slow.Load() {
				tries <- batch[0].Meta
				return fmt.Errorf("storing it: %w", postgres.ErrExhausted)
			}
			handled <- batch[0].Meta
			return nil
		}))
	p.run(c.Run)
	for _, m := range orders {
		publish(t, p, m)
	}
	for range 6 { // the first of them waits for 10 s meanwhile
		m := next(t, tries, "a try")
		if first := m.CorrelationID == orders[0].GetOrderId(); m.Attempt > 0 && !first {
			t.Errorf("an order behind the first one is at attempt %d", m.Attempt)
		}
	}
	eventually(t, func() error {
		if err := c.Ready(t.Context()); !errors.Is(err, postgres.ErrExhausted) {
			return fmt.Errorf("ready: %w, want that the database is slow", err)
		}
		return nil
	})
	slow.Store(false)
	next(t, handled, "an order")
	next(t, handled, "another order")
	eventually(t, func() error { return c.Ready(t.Context()) })
}

// replica is a consumer of the order queue, and what it has handled.
type replica struct {
	orders <-chan string
	stop   func()
}

// replicas are two consumers of the order queue that are attached to it. Before they handle an order they ask allow.
func replicas(t *testing.T, url string, o messaging.ConsumerOptions, allow func(replica int) error) (publisher *party, both [2]replica) {
	t.Helper()
	for i := range both {
		p := join(t, url, "order")
		orders := make(chan string, 100)
		c := messaging.NewConsumer(p.consume, p.pub, "order", o,
			messaging.Handle(func(_ context.Context, batch []messaging.Message[*eventsv1.OrderPlaced]) error {
				if err := allow(i); err != nil {
					return err
				}
				for _, m := range batch {
					orders <- m.Body.GetOrderId()
				}
				return nil
			}))
		both[i] = replica{orders, p.run(c.Run)}
		eventually(t, func() error { return c.Ready(t.Context()) })
		publisher = p
	}
	for range 10 { // with their first orders they find that one is too small a prefetch, and leave one to the other meanwhile
		first(t, publisher, both)
	}
	return publisher, both
}

// first publishes an order and returns the replica that is given it, which is given all as long as it takes them.
func first(t *testing.T, p *party, both [2]replica) int {
	t.Helper()
	publish(t, p, placed())
	select {
	case <-both[0].orders:
		return 0
	case <-both[1].orders:
		return 1
	case <-time.After(testTimeout):
		t.Fatal("nobody has handled the order")
		panic("unreachable")
	}
}

func TestConsumer_OneReplicaIsGivenWhatItHasRoomForAndTheNextWhatIsLeft(t *testing.T) {
	t.Parallel()
	const batch = 4
	var block atomic.Pointer[chan struct{}]
	open := make(chan struct{})
	close(open)
	block.Store(&open)
	var leader atomic.Int32
	leader.Store(-1)
	p, both := replicas(t, brokertest.New(t).URL, messaging.ConsumerOptions{Batch: batch}, func(i int) error {
		if int32(i) == leader.Load() {
			<-*block.Load()
		}
		return nil
	})
	one := first(t, p, both)
	other := 1 - one
	for range 10 {
		if next := first(t, p, both); next != one {
			t.Fatal("two replicas take turns at a queue that is nearly empty")
		}
	}

	held := make(chan struct{})
	block.Store(&held)
	leader.Store(int32(one))
	const room, left = 2 * batch, 5
	for range room + left {
		publish(t, p, placed())
	}
	for range left {
		next(t, both[other].orders, "an order that the first replica has no room for")
	}
	close(held)
	for range room {
		next(t, both[one].orders, "an order that the first replica had in hand")
	}

	both[one].stop()
	if first(t, p, both) != other {
		t.Error("a replica that has stopped was given an order")
	}
}

func TestConsumer_LeavesTheQueueToTheOthersWhileADependencyIsDown(t *testing.T) {
	t.Parallel()
	var broken atomic.Int32
	broken.Store(-1)
	tried := make(chan int, 100)
	p, both := replicas(t, brokertest.New(t).URL, messaging.ConsumerOptions{}, func(i int) error {
		if int32(i) != broken.Load() {
			return nil
		}
		tried <- i
		return messaging.Unavailable(errors.New("its database is away"))
	})
	one := first(t, p, both)
	broken.Store(int32(one))
	inHand := placed()
	publish(t, p, inHand)
	for range 3 { // it leaves after the second time
		next(t, tried, "the replica to try")
	}
	for range 10 {
		if first(t, p, both) == one {
			t.Fatal("a replica whose dependency is down was given an order")
		}
	}
	broken.Store(-1)
	if id := next(t, both[one].orders, "the order that it had in hand"); id != inHand.GetOrderId() {
		t.Errorf("it handled %s, want %s", id, inHand.GetOrderId())
	}
	eventually(t, func() error {
		if first(t, p, both) != one {
			return errors.New("the replica does not come back")
		}
		return nil
	})
}

func TestConsumer_APanicIsTheMessagesFailure(t *testing.T) {
	t.Parallel()
	p := join(t, brokertest.New(t).URL, "order")
	attempts := make(chan int, 10)
	p.orders(func(_ context.Context, batch []messaging.Message[*eventsv1.OrderPlaced]) error {
		attempts <- batch[0].Attempt
		if batch[0].Attempt == 0 {
			panic("boom")
		}
		return nil
	})
	publish(t, p, placed())
	next(t, attempts, "the panic")
	if n := next(t, attempts, "the retry"); n != 1 {
		t.Errorf("attempt %d", n)
	}
}

func TestConsumer_StopFinishesTheBatchInHand(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	p := join(t, broker.URL, "order")
	entered, release := make(chan struct{}), make(chan struct{})
	var ctxErr error
	stop := p.orders(func(ctx context.Context, _ []messaging.Message[*eventsv1.OrderPlaced]) error {
		close(entered) // a second call would panic and show itself as a retry
		<-release
		ctxErr = ctx.Err()
		return nil
	})
	publish(t, p, placed())
	next(t, entered, "the handler")
	stopped := make(chan struct{})
	go func() { stop(); close(stopped) }()
	close(release)
	next(t, stopped, "the consumer to stop")
	if ctxErr != nil {
		t.Errorf("the batch in hand was cut off: %v", ctxErr)
	}
	// It was acknowledged: nobody gets it again.
	conn, err := amqp.Dial(broker.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	ch, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	if _, again, err := ch.Get("order", true); again || err != nil {
		t.Errorf("the message is still there: %v, %v", again, err)
	}
}

func TestConnection_CutsLoseNothing(t *testing.T) {
	t.Parallel()
	proxy := brokertest.New(t).Proxy(t)
	p := join(t, proxy.URL, "order")
	const senders, each, cuts = 4, 300, 5
	seen := make(chan string, 10*senders*each)
	p.orders(func(_ context.Context, batch []messaging.Message[*eventsv1.OrderPlaced]) error {
		for _, m := range batch {
			seen <- m.Body.GetOrderId()
		}
		return nil
	})
	confirmed := make(chan string, senders*each)
	var wg sync.WaitGroup
	for range senders {
		wg.Go(func() {
			for range each {
				m := placed()
				if err := p.pub.Publish(within(t), m); err != nil {
					t.Errorf("publishing through the cuts: %v", err)
					return
				}
				confirmed <- m.GetOrderId()
			}
		})
	}
	missing := map[string]bool{}
	for i := range senders * each {
		missing[next(t, confirmed, "a confirm")] = true
		if i%(senders*each/cuts) == 10 {
			proxy.Down()
			proxy.Up(t)
		}
	}
	wg.Wait()
	for len(missing) > 0 {
		delete(missing, next(t, seen, fmt.Sprintf("%d orders that the broker has confirmed", len(missing))))
	}
}
