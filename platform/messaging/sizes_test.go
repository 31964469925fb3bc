package messaging_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	rabbithole "github.com/michaelklishin/rabbit-hole/v3"
	amqp "github.com/rabbitmq/amqp091-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	eventsv1 "shop.example/gen/shop/events/v1"
	inventoryv1 "shop.example/gen/shop/inventory/v1"
	"shop.example/platform/messaging"
	"shop.example/platform/testkit/brokertest"
)

// large is a message for the order queue with a body of this size, which no handler can read.
func large(size int) messaging.Outgoing {
	return messaging.Outgoing{Exchange: "shop.topic", RoutingKey: "shop.order.placed", MessageID: uuid.NewString(), Body: make([]byte, size)}
}

// raw returns a channel of its own to the broker, beside the shop's.
func raw(t *testing.T, url string) *amqp.Channel {
	t.Helper()
	conn, err := amqp.Dial(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	ch, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	return ch
}

func TestSend_WhatTheBrokerRefusesForItsSizeIsTooLargeAndCostsNoOther(t *testing.T) {
	t.Parallel()
	p := join(t, brokertest.New(t).URL, "gateway")
	for range 2 { // the first time the broker says so, the second time it is known
		var others sync.WaitGroup
		for range 20 {
			others.Go(func() {
				if err := p.pub.Publish(within(t), placed()); err != nil {
					t.Errorf("another message: %v", err)
				}
			})
		}
		if err := p.pub.Send(within(t), []messaging.Outgoing{large(16<<20 + 1)}); !errors.Is(err, messaging.ErrTooLarge) {
			t.Errorf("got %v, want ErrTooLarge", err)
		}
		others.Wait()
	}
	if err := p.pub.Send(within(t), []messaging.Outgoing{large(16 << 20)}); err != nil {
		t.Errorf("as large as it may be: %v", err)
	}
}

func TestPublish_AnEventThatIsTooLargeIsRefusedWhereItIsMade(t *testing.T) {
	t.Parallel()
	m := placed()
	m.CustomerName = strings.Repeat("x", messaging.MaxEvent)
	if _, err := messaging.NewOutgoing(t.Context(), m); !errors.Is(err, messaging.ErrTooLarge) {
		t.Errorf("got %v, want ErrTooLarge", err)
	}
}

func TestRPC_WhatIsTooLargeIsRefusedAndCostsNoOtherCall(t *testing.T) {
	t.Parallel()
	waiting, release := make(chan struct{}), make(chan struct{})
	client := call(t, brokertest.New(t).URL, func(_ context.Context, r *inventoryv1.CheckStockRequest) (*inventoryv1.CheckStockResponse, error) {
		switch r.GetOrders()[0].GetOrderId() {
		case "other":
			close(waiting)
			<-release
		case "reply":
			return &inventoryv1.CheckStockResponse{Decisions: []*inventoryv1.StockDecision{{OrderId: strings.Repeat("x", messaging.MaxCall)}}}, nil
		case "failure":
			return nil, status.Error(codes.FailedPrecondition, strings.Repeat("x", 200_000)) // more than a frame of headers
		}
		return &inventoryv1.CheckStockResponse{}, nil
	})
	other := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
		defer cancel()
		_, err := client.CheckStock(ctx, check("other"))
		other <- err
	}()
	next(t, waiting, "the other call")
	for id, want := range map[string]codes.Code{
		strings.Repeat("x", messaging.MaxCall): codes.ResourceExhausted, "reply": codes.ResourceExhausted, "failure": codes.FailedPrecondition,
	} {
		if _, err := client.CheckStock(within(t), check(id)); status.Code(err) != want {
			t.Errorf("%.10s: got %.200v, want %s", id, err, want)
		}
	}
	close(release)
	if err := next(t, other, "the other call's answer"); err != nil {
		t.Errorf("the other call: %v", err)
	}
}

func TestConsumer_ABatchIsBoundedInBytes(t *testing.T) {
	t.Parallel()
	p := join(t, brokertest.New(t).URL, "order")
	const messages, size, bound = 30, 300_000, 2 << 20
	for range messages {
		if err := p.pub.Send(within(t), []messaging.Outgoing{large(size)}); err != nil {
			t.Fatal(err)
		}
	}
	sizes := make(chan int, messages)
	p.run(messaging.NewConsumer(p.consume, p.pub, "order", messaging.ConsumerOptions{Linger: 50 * time.Millisecond},
		messaging.HandleRaw(func(_ context.Context, batch []messaging.Delivery) error {
			sizes <- len(batch)
			return nil
		})).Run)
	for handled, most := 0, 0; handled < messages; {
		n := next(t, sizes, "a batch")
		if handled, most = handled+n, max(most, n); n*size > bound {
			t.Errorf("a batch has %d bytes", n*size)
		}
		if handled == messages && most < bound/size/2 {
			t.Errorf("the largest batch has %d messages", most)
		}
	}
}

func TestConsumer_ABatchIsBoundedByWhatComesOfIt(t *testing.T) {
	t.Parallel()
	p := join(t, brokertest.New(t).URL, "order")
	const orders, each = 40, 1 << 20
	for range orders {
		publish(t, p, placed())
	}
	sizes := make(chan int, orders)
	p.run(messaging.NewConsumer(p.consume, p.pub, "order", messaging.ConsumerOptions{Linger: 50 * time.Millisecond},
		messaging.HandleWeighed(func(*eventsv1.OrderPlaced) int { return each },
			func(_ context.Context, batch []messaging.Message[*eventsv1.OrderPlaced]) error {
				sizes <- len(batch)
				return nil
			})).Run)
	for handled := 0; handled < orders; {
		n := next(t, sizes, "a batch")
		if handled += n; n > 2 {
			t.Errorf("a batch of %d orders comes to %d MiB", n, n)
		}
	}
}

// What a dependency cannot do with many messages, in the time that it has for example, it may do with few.
func TestConsumer_ABatchThatFailsTwiceIsMadeSmaller(t *testing.T) {
	t.Parallel()
	p := join(t, brokertest.New(t).URL, "order")
	const orders, most = 100, 8
	want := map[string]bool{}
	var all []messaging.Outgoing
	for range orders {
		m := placed()
		want[m.GetOrderId()] = true
		out, err := messaging.NewOutgoing(t.Context(), m)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, out)
	}
	if err := p.pub.Send(within(t), all); err != nil {
		t.Fatal(err)
	}
	handled := make(chan messaging.Message[*eventsv1.OrderPlaced], orders)
	p.run(messaging.NewConsumer(p.consume, p.pub, "order", messaging.ConsumerOptions{},
		messaging.Handle(func(_ context.Context, batch []messaging.Message[*eventsv1.OrderPlaced]) error {
			if len(batch) > most {
				return messaging.Unavailable(fmt.Errorf("%d are too many", len(batch)))
			}
			for _, m := range batch {
				handled <- m
			}
			return nil
		})).Run)
	for len(want) > 0 {
		m := next(t, handled, fmt.Sprintf("%d orders", len(want)))
		if m.Attempt != 0 {
			t.Errorf("it cost an attempt: %d", m.Attempt)
		}
		delete(want, m.Body.GetOrderId())
	}
}

func TestConsumer_AnEventThatIsTooLargeIsADeadLetterUnread(t *testing.T) {
	t.Parallel()
	p := join(t, brokertest.New(t).URL, "order")
	p.orders(func(context.Context, []messaging.Message[*eventsv1.OrderPlaced]) error {
		t.Error("it was handled")
		return nil
	})
	m := large(messaging.MaxEvent + 1) // no error but its size is seen: a body of zeros cannot be read
	if err := p.pub.Send(within(t), []messaging.Outgoing{m}); err != nil {
		t.Fatal(err)
	}
	d := next(t, p.deadLetters(), "the dead letter")
	if d.Reason != "the body has 1048577 bytes, and an event 1048576 at most" || len(d.Body) != len(m.Body) {
		t.Errorf("reason %q, %d bytes", d.Reason, len(d.Body))
	}
}

// A message keeps its headers when it is parked, and these are one frame together: with a few words more the broker closed the connection,
// each time anew, and with it went what others published on it.
func TestConsumer_ADeadLetterWithLongHeadersCostsNobody(t *testing.T) {
	t.Parallel()
	url := brokertest.New(t).URL
	p := join(t, url, "order")
	before, after := placed(), placed()
	publish(t, p, before) // all is declared then
	nearlyAFrame := strings.Repeat("0", 130_500)
	for _, headers := range []amqp.Table{
		{"traceparent": nearlyAFrame},
		{"traceparent": "01-" + strings.Repeat("1", 32) + "-" + strings.Repeat("2", 16) + "-01-" + nearlyAFrame}, // of a later version, which may have more parts
		{"shop-user": nearlyAFrame}, {"shop-exchange": nearlyAFrame, "shop-routing-key": "x"}, {"shop-routing-key": nearlyAFrame},
	} {
		m := amqp.Publishing{Headers: headers, Body: []byte("garbage"), MessageId: uuid.NewString()}
		ch := raw(t, url)
		if err := ch.Confirm(false); err != nil {
			t.Fatal(err)
		}
		confirm, err := ch.PublishWithDeferredConfirmWithContext(within(t), "shop.topic", "shop.order.placed", false, false, m)
		if err != nil {
			t.Fatal(err)
		}
		if taken, err := confirm.WaitContext(within(t)); err != nil || !taken {
			t.Fatalf("the broker did not take it: %v", err)
		}
	}
	publish(t, p, after)
	handled := make(chan string, 2)
	p.orders(func(_ context.Context, batch []messaging.Message[*eventsv1.OrderPlaced]) error {
		for _, m := range batch {
			handled <- m.Body.GetOrderId()
		}
		return nil
	})
	for _, order := range []*eventsv1.OrderPlaced{before, after} {
		if id := next(t, handled, "a good order"); id != order.GetOrderId() {
			t.Errorf("handled %s, want %s", id, order.GetOrderId())
		}
	}
	for dead, n := p.deadLetters(), 0; n < 5; n++ {
		if d := next(t, dead, fmt.Sprintf("dead letter %d", n)); d.SourceQueue != "order" || string(d.Body) != "garbage" {
			t.Errorf("dead letter %d: %q from %q", n, d.Body, d.SourceQueue)
		}
	}
}

// What a consumer has been given it holds in memory. What it does not hold is another's.
func TestConsumer_IsGivenFewerMessagesWhileTheyAreLarge(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	p := join(t, broker.URL, "order")
	const size, before, waiting, bound = 1 << 20, 12, 60, 16 << 20
	send := func(n int) {
		for range n {
			if err := p.pub.Send(within(t), []messaging.Outgoing{large(size)}); err != nil {
				t.Fatal(err)
			}
		}
	}
	handled, block, release := make(chan int, before+waiting), make(chan struct{}), make(chan struct{})
	p.run(messaging.NewConsumer(p.consume, p.pub, "order", messaging.ConsumerOptions{},
		messaging.HandleRaw(func(_ context.Context, batch []messaging.Delivery) error {
			select {
			case <-block:
				<-release
			default:
			}
			handled <- len(batch)
			return nil
		})).Run)
	for range before { // one after the other: its prefetch grows with each, as far as it goes
		send(1)
		next(t, handled, "a large message")
	}
	close(block)
	send(waiting)

	ch := raw(t, broker.URL)
	others, err := ch.ConsumeWithContext(t.Context(), "order", "", true, false, false, false, nil) // of lower priority
	if err != nil {
		t.Fatal(err)
	}
	for i := range waiting - bound/size {
		next(t, others, fmt.Sprintf("message %d that the consumer has no room for", i))
	}
	close(release)
	for left := bound / size; left > 0; {
		select {
		case n := <-handled:
			left -= n
		case <-others: // one that it had no room for before
			left--
		case <-time.After(testTimeout):
			t.Fatalf("%d messages are with nobody", left)
		}
	}
}

// To change the prefetch the subscription has to end. What was handed out must not be handed out again, and nothing may
// overtake it.
func TestConsumer_AnotherPrefetchCostsNoMessageItsPlace(t *testing.T) {
	t.Parallel()
	p := join(t, brokertest.New(t).URL, "order")
	var want []string
	for range 3 {
		for size, n := range map[int]int{1: 600, 200_000: 120} {
			messages := make([]messaging.Outgoing, n)
			for i := range messages {
				messages[i] = large(size)
				want = append(want, messages[i].MessageID)
			}
			if err := p.pub.Send(within(t), messages); err != nil {
				t.Fatal(err)
			}
		}
	}
	handled := make(chan messaging.Delivery, len(want))
	p.run(messaging.NewConsumer(p.consume, p.pub, "order", messaging.ConsumerOptions{Batch: 100},
		messaging.HandleRaw(func(ctx context.Context, batch []messaging.Delivery) error {
			for _, d := range batch {
				handled <- d
			}
			return p.pub.Publish(ctx, confirmedOrder()) // takes a moment, in which all that may come has come
		})).Run)
	for i, id := range want {
		d := next(t, handled, fmt.Sprintf("message %d", i))
		if d.MessageID != id || d.Redelivered {
			t.Fatalf("message %d: redelivered %v, it is %s, want %s", i, d.Redelivered, d.MessageID, id)
		}
	}
}

func TestSend_ALeftoverReturnDoesNotFailTheSameMessageLater(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	proxy := broker.Proxy(t)
	p := join(t, proxy.URL, "order")
	lost := func() messaging.Outgoing {
		return messaging.Outgoing{Exchange: "shop.direct", RoutingKey: "nobody.listens", MessageID: uuid.NewString()}
	}
	first, second, third := lost(), lost(), lost()
	if err := p.pub.Send(within(t), []messaging.Outgoing{first, second}); !errors.Is(err, messaging.ErrUnroutable) {
		t.Fatalf("got %v, want ErrUnroutable", err)
	}
	// The broker's word about this one comes when nobody waits for it any more.
	proxy.Delay(200 * time.Millisecond)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := p.pub.Send(ctx, []messaging.Outgoing{third}); !errors.Is(err, messaging.ErrUnconfirmed) {
		t.Fatalf("got %v, want ErrUnconfirmed", err)
	}

	ch := raw(t, broker.URL)
	q, err := ch.QueueDeclare("", false, true, true, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := ch.QueueBind(q.Name, third.RoutingKey, third.Exchange, false, nil); err != nil {
		t.Fatal(err)
	}
	for i, m := range []messaging.Outgoing{third, second} {
		if err := p.pub.Send(within(t), []messaging.Outgoing{m}); err != nil {
			t.Errorf("message %d, which now has a queue: %v", i, err)
		}
	}
}

func TestSend_WhatFollowsANackedMessageIsSentAgainAfterIt(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	p := join(t, broker.URL, "order")
	eventually(t, func() error { return p.consume.Ready(t.Context()) }) // the queues are there
	res, err := broker.Manage.PutPolicy(broker.Vhost, "full", rabbithole.Policy{
		Pattern: "^order$", ApplyTo: "queues", Definition: rabbithole.PolicyDefinition{"max-length": 1, "overflow": "reject-publish"},
	})
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	ch := raw(t, broker.URL)
	if err := ch.Confirm(false); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error { // it becomes full a moment after the policy
		confirm, err := ch.PublishWithDeferredConfirmWithContext(t.Context(), "", "order", true, false, amqp.Publishing{})
		if err != nil {
			t.Fatal(err)
		}
		if acked, err := confirm.WaitContext(within(t)); err != nil || acked {
			return fmt.Errorf("the queue is not full: %w", err)
		}
		return nil
	})
	log, err := raw(t, broker.URL).ConsumeWithContext(t.Context(), "logging", "", true, false, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}

	// The order queue has no room for the first of them; the log gets both.
	var both []messaging.Outgoing
	for _, m := range []func() (messaging.Outgoing, error){
		func() (messaging.Outgoing, error) { return messaging.NewOutgoing(t.Context(), placed()) },
		func() (messaging.Outgoing, error) { return messaging.NewOutgoing(t.Context(), confirmedOrder()) },
	} {
		out, err := m()
		if err != nil {
			t.Fatal(err)
		}
		both = append(both, out)
	}
	sent := make(chan error, 1)
	go func() { sent <- p.pub.Send(within(t), both) }()
	names := map[string]string{both[0].MessageID: "first", both[1].MessageID: "second"}
	var came []string
	for range both {
		came = append(came, names[next(t, log, "both in the log").MessageId])
	}
	if _, err := ch.QueuePurge("order", false); err != nil {
		t.Fatal(err)
	}
	if err := next(t, sent, "all to be confirmed"); err != nil {
		t.Fatal(err)
	}
	for last := ""; last != "second" || len(came) < 4; {
		last = names[next(t, log, fmt.Sprintf("the second after %v", came)).MessageId]
		came = append(came, last)
	}
	if before := came[len(came)-2]; before != "first" {
		t.Errorf("they came in this order: %v", came)
	}
}

// A message that can neither be handled nor be parked stands before others. It must not take them back to the queue with
// it: each time is one of the 20 deliveries after which the broker gives a message up.
func TestConsumer_AMessageThatCannotBeParkedWhileTheBrokerIsBlockedHoldsTheQueueAndCostsItsNeighboursNothing(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	consuming, blocked := join(t, broker.URL, "order"), join(t, broker.URL, "order")
	poison, good := large(3), []messaging.Outgoing{}
	for range 20 {
		m := large(2)
		good = append(good, m)
	}
	tried := make(chan struct{}, 100)
	handled := make(chan messaging.Delivery, 100)
	consumer := messaging.NewConsumer(consuming.consume, blocked.pub, "order", messaging.ConsumerOptions{},
		messaging.HandleRaw(func(_ context.Context, batch []messaging.Delivery) error {
			for _, d := range batch {
				if d.MessageID == poison.MessageID {
					tried <- struct{}{}
					return messaging.Permanent(errors.New("this message is cursed"))
				}
			}
			for _, d := range batch {
				handled <- d
			}
			return nil
		}))
	consuming.run(consumer.Run)
	warm := make([]messaging.Outgoing, 40) // until its prefetch takes all that follows
	for i := range warm {
		warm[i] = large(1)
	}
	if err := consuming.pub.Send(within(t), warm); err != nil {
		t.Fatal(err)
	}
	for range warm {
		next(t, handled, "a message before")
	}

	eventually(t, func() error { return blocked.publish.Ready(t.Context()) })
	blocked.publish.SetBlocked(true)
	if err := consuming.pub.Send(within(t), append([]messaging.Outgoing{poison}, good...)); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if err := consumer.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "shop.dlx") {
			return fmt.Errorf("it is not said that the queue waits: %w", err)
		}
		return nil
	})
	for len(tried) > 0 {
		<-tried
	}
	select {
	case <-tried:
		t.Error("the message came again while it could not be parked")
	case d := <-handled:
		t.Errorf("another message overtook it: %+v", d.Meta)
	case <-time.After(2 * time.Second): // time for several rounds
	}
	blocked.publish.SetBlocked(false)
	for i := range good {
		d := next(t, handled, fmt.Sprintf("message %d behind it", i))
		if d.Redelivered || d.MessageID != good[i].MessageID {
			t.Errorf("message %d: redelivered %v, it is %s, want %s", i, d.Redelivered, d.MessageID, good[i].MessageID)
		}
	}
	if d := next(t, consuming.deadLetters(), "the dead letter"); d.MessageID != poison.MessageID || d.Reason != "this message is cursed" {
		t.Errorf("dead letter %+v", d)
	}
}
