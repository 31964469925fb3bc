package messaging_test

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"
	"google.golang.org/protobuf/types/known/timestamppb"

	eventsv1 "shop.example/gen/shop/events/v1"
	"shop.example/platform/messaging"
	"shop.example/platform/testkit/brokertest"
)

func rejected(orderID string) *eventsv1.OrderRejected {
	return &eventsv1.OrderRejected{OrderId: orderID, Reason: eventsv1.OrderRejected_OUT_OF_STOCK, RejectedAt: timestamppb.Now()}
}

// subscribe returns a subscription to rejections, and what comes of the orders that are wanted.
func subscribe(t *testing.T, p *party, wanted func(string) bool) (*messaging.Subscription, <-chan string) {
	t.Helper()
	came := make(chan string, 100)
	s := messaging.NewSubscription(p.consume, wanted, messaging.Handle(
		func(_ context.Context, batch []messaging.Message[*eventsv1.OrderRejected]) error {
			for _, m := range batch {
				came <- m.Body.GetOrderId()
			}
			return nil
		}))
	messaging.SetLinger(s, 0)
	p.run(s.Run)
	return s, came
}

// isBound waits until events come, after the gap that ended a generation.
func isBound(t *testing.T, s *messaging.Subscription, after uint64) (generation uint64) {
	t.Helper()
	eventually(t, func() error {
		if generation, _ = s.Bound(); generation == 0 || generation == after {
			return fmt.Errorf("not bound again: generation %d", generation)
		}
		return nil
	})
	return generation
}

// bindings are those of queues without a name of the shop's.
func bindings(t *testing.T, broker *brokertest.Broker) (keys []string) {
	t.Helper()
	all, err := broker.Manage.ListBindingsIn(broker.Vhost)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range all {
		if strings.HasPrefix(b.Destination, "amq.gen-") && b.Source != "" {
			keys = append(keys, b.RoutingKey)
		}
	}
	return keys
}

func TestSubscription_IsBoundOnlyWhileSomebodyWantsIt(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	p := join(t, broker.Services(t, brokertest.Topology())["gateway"], "gateway") // with no more rights than it needs
	others := join(t, broker.URL, "order")
	mine := uuid.NewString()
	s, came := subscribe(t, p, func(id string) bool { return id == mine })
	for generation := range uint64(2) {
		eventually(t, func() error {
			if keys := bindings(t, broker); len(keys) > 0 {
				return fmt.Errorf("bound to %v although nobody wants it", keys)
			}
			return nil
		})
		if bound, _ := s.Bound(); bound != 0 {
			t.Errorf("bound although nobody wants it: generation %d", bound)
		}
		first, second := s.Want(), s.Want()
		if got := isBound(t, s, generation); got != generation+1 {
			t.Errorf("generation %d, want %d", got, generation+1)
		}
		if keys := bindings(t, broker); len(keys) != 1 || keys[0] != "shop.order.rejected" {
			t.Errorf("bound to %v", keys)
		}
		first()
		first() // counts once
		publish(t, others, rejected(uuid.NewString()))
		publish(t, others, rejected(mine))
		if got := next(t, came, "the rejection"); got != mine {
			t.Errorf("the rejection of %s came, which is not wanted", got)
		}
		second()
	}
}

// Each look after the binding, every second, began the ten seconds anew: who had waited once got all events from then on.
func TestSubscription_AQueueThatIsLookedAfterMeanwhileIsUnbound(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	p := join(t, broker.URL, "gateway")
	s := messaging.NewSubscription(p.consume, func(string) bool { return true }, messaging.Handle(
		func(context.Context, []messaging.Message[*eventsv1.OrderRejected]) error { return nil }))
	messaging.SetLinger(s, 3*messaging.KeepInterval/2)
	p.run(s.Run)
	release := s.Want()
	isBound(t, s, 0)
	release()
	eventually(t, func() error {
		if keys := bindings(t, broker); len(keys) > 0 {
			return fmt.Errorf("bound to %v although nobody wants it", keys)
		}
		return nil
	})
}

func TestSubscription_TellsOfTheGapAfterACut(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	proxy := broker.Proxy(t)
	p, others := join(t, proxy.URL, "gateway"), join(t, broker.URL, "order")
	s, came := subscribe(t, p, func(string) bool { return true })
	defer s.Want()()
	before := isBound(t, s, 0)
	proxy.Down()
	eventually(t, func() error {
		if generation, _ := s.Bound(); generation != 0 {
			return fmt.Errorf("generation %d", generation)
		}
		return nil
	})
	publish(t, others, rejected(uuid.NewString())) // which is lost
	proxy.Up(t)
	isBound(t, s, before)
	after := uuid.NewString()
	publish(t, others, rejected(after))
	if got := next(t, came, "the rejection after the cut"); got != after {
		t.Errorf("the rejection of %s came, want %s", got, after)
	}
}

// An exchange that is deleted and declared again takes the bindings with it, and the queue does not notice.
func TestSubscription_ABindingThatIsGoneComesBack(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	p, others := join(t, broker.Services(t, brokertest.Topology())["gateway"], "gateway"), join(t, broker.URL, "order")
	s, came := subscribe(t, p, func(string) bool { return true })
	defer s.Want()()
	isBound(t, s, 0)
	ch := openChannel(t, broker.URL)
	if err := ch.ExchangeDelete("shop.topic", false, false); err != nil {
		t.Fatal(err)
	}
	if err := ch.ExchangeDeclare("shop.topic", amqp.ExchangeTopic, true, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if keys := bindings(t, broker); len(keys) != 1 {
			return fmt.Errorf("bound to %v", keys)
		}
		return nil
	})
	after := uuid.NewString()
	publish(t, others, rejected(after))
	if got := next(t, came, "the rejection"); got != after {
		t.Errorf("the rejection of %s came, want %s", got, after)
	}
}

func TestSubscription_DecodesOnlyWhatIsWantedAndOneBadEventCostsNobody(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	p := join(t, broker.URL, "gateway")
	var asked atomic.Int64
	mine := uuid.NewString()
	s, came := subscribe(t, p, func(id string) bool { asked.Add(1); return id == mine })
	defer s.Want()()
	isBound(t, s, 0)
	bad := rejected(mine)
	out, err := messaging.NewOutgoing(t.Context(), bad)
	if err != nil {
		t.Fatal(err)
	}
	out.Body = []byte("no protobuf")
	messages := []messaging.Outgoing{out}
	for range 1000 {
		other, err := messaging.NewOutgoing(t.Context(), rejected(uuid.NewString()))
		if err != nil {
			t.Fatal(err)
		}
		messages = append(messages, other)
	}
	if err := p.pub.Send(within(t), messages); err != nil {
		t.Fatal(err)
	}
	publish(t, p, rejected(mine))
	if got := next(t, came, "the rejection behind a bad one"); got != mine || len(came) > 0 || asked.Load() != 1002 {
		t.Errorf("%s came, and %d more, of %d", got, len(came), asked.Load())
	}
}
