package outbox_test

import (
	"context"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/types/known/timestamppb"

	eventsv1 "shop.example/gen/shop/events/v1"
	"shop.example/platform/messaging"
	"shop.example/platform/outbox"
	"shop.example/platform/testkit/brokertest"
)

func TestRelay_WhatIsAddedReachesAConsumerThroughAnOutageOfTheBroker(t *testing.T) {
	t.Parallel()
	pool := open(t)
	broker := brokertest.New(t)
	proxy := broker.Proxy(t)

	publishing := dial(t, proxy.URL)
	publisher := messaging.NewPublisher(publishing)
	relay := newRelay(t, pool, publisher, outbox.Options{Batch: 10})

	var (
		mu   sync.Mutex
		got  = map[string]trace.TraceID{}
		all  = make(chan struct{})
		want = map[string]trace.TraceID{}
	)
	const orders = 60
	consuming := dial(t, broker.URL)
	consumer := messaging.NewConsumer(consuming, messaging.NewPublisher(consuming), "order", messaging.ConsumerOptions{},
		messaging.Handle(func(_ context.Context, batch []messaging.Message[*eventsv1.OrderPlaced]) error {
			mu.Lock()
			defer mu.Unlock()
			for _, m := range batch {
				if len(got) < orders {
					got[m.Body.GetOrderId()] = m.Trace.TraceID()
					if len(got) == orders {
						close(all)
					}
				}
			}
			return nil
		}))
	for _, run := range []func(context.Context) error{publisher.Run, relay.Run, consumer.Run} {
		background(t, run)
	}

	for i := range orders {
		if i == orders/3 {
			proxy.Down()
		}
		if i == 2*orders/3 {
			proxy.Up(t)
		}
		id, span := uuid.Must(uuid.NewV7()).String(), spanContext(byte(i+1))
		want[id] = span.TraceID()
		add(t, pool, outbox.Entry{Message: placed(id), Trace: span})
		relay.Wake()
	}
	receive(t, all)
	mu.Lock()
	defer mu.Unlock()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("orders and their traces (-want +got):\n%s", diff)
	}
}

func placed(id string) *eventsv1.OrderPlaced {
	return &eventsv1.OrderPlaced{
		OrderId: id, CustomerName: "Ada", CustomerEmail: "ada@example.com", PlacedAt: timestamppb.Now(),
		Lines: []*eventsv1.RequestedLine{{ProductId: 5, Quantity: 3}},
	}
}

func dial(t testing.TB, url string) *messaging.Connection {
	t.Helper()
	conn, err := messaging.Dial(url, messaging.Options{Topology: brokertest.Topology()})
	if err != nil {
		t.Fatal(err)
	}
	background(t, conn.Run)
	return conn
}

// background runs until the test ends.
func background(t testing.TB, run func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := receive(t, done); err != nil {
			t.Errorf("run: %v", err)
		}
	})
}
