package outbox_test

import (
	"context"
	"testing"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"

	eventsv1 "shop.example/gen/shop/events/v1"
	moneyv1 "shop.example/gen/shop/money/v1"
	"shop.example/platform/messaging"
	"shop.example/platform/outbox"
	"shop.example/platform/postgres"
	"shop.example/platform/testkit/brokertest"
)

// What the order service writes for a batch of 100 orders: two events each.
func BenchmarkAdd(b *testing.B) {
	pool := open(b)
	for b.Loop() {
		entries := events(100)
		add(b, pool, entries...)
	}
	perSecond(b, 200)
}

func BenchmarkClaim(b *testing.B) {
	pool := open(b)
	for b.Loop() {
		ids := make([]uuid.UUID, 100)
		for i := range ids {
			ids[i] = uuid.Must(uuid.NewV7())
		}
		err := postgres.InTx(b.Context(), pool, func(tx *sqlx.Tx) error {
			_, err := outbox.Claim(b.Context(), tx, ids)
			return err
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	perSecond(b, 100)
}

// One relay that empties a full outbox: into nothing, and into the broker, where the logging queue takes every message.
func BenchmarkRelay(b *testing.B) {
	b.Run("alone", func(b *testing.B) { benchmarkRelay(b, confirmer{}) })
	b.Run("broker", func(b *testing.B) {
		publisher := messaging.NewPublisher(dial(b, brokertest.New(b).URL))
		background(b, publisher.Run)
		benchmarkRelay(b, publisher)
	})
}

func benchmarkRelay(b *testing.B, sender outbox.Sender) {
	pool := open(b)
	const batch = 500
	for i := 0; i < b.N*batch; i += 1000 {
		add(b, pool, events(500)...)
	}
	counted := &counter{Sender: sender, want: b.N * batch, done: make(chan struct{})}
	relay := newRelay(b, pool, counted, outbox.Options{Batch: batch})
	b.ResetTimer()
	background(b, relay.Run)
	<-counted.done
	b.StopTimer()
	perSecond(b, batch)
}

func events(orders int) []outbox.Entry {
	entries := make([]outbox.Entry, 0, 2*orders)
	for range orders {
		id := uuid.Must(uuid.NewV7()).String()
		price := &moneyv1.Money{CurrencyCode: "USD", Units: 35}
		entries = append(entries,
			outbox.Entry{Message: &eventsv1.OrderConfirmed{OrderId: id, TotalItems: 7, TotalValue: price, Lines: []*eventsv1.PricedLine{
				{Line: 1, ProductId: 5, ProductName: "Laptop Stand", Quantity: 3, UnitPrice: price},
				{Line: 2, ProductId: 6, ProductName: "Mouse Pad", Quantity: 4, UnitPrice: price},
			}}},
			outbox.Entry{Message: &eventsv1.DecrementQuantity{OrderId: id}})
	}
	return entries
}

// confirmer is a broker that confirms at once.
type confirmer struct{}

func (confirmer) Send(context.Context, []messaging.Outgoing) error { return nil }

// counter tells when a broker has confirmed enough.
type counter struct {
	outbox.Sender
	seen, want int
	done       chan struct{}
}

func (c *counter) Send(ctx context.Context, messages []messaging.Outgoing) error {
	if err := c.Sender.Send(ctx, messages); err != nil {
		return err
	}
	before := c.seen
	c.seen += len(messages)
	if before < c.want && c.seen >= c.want {
		close(c.done)
	}
	return nil
}

func perSecond(b *testing.B, messages int) {
	b.ReportMetric(float64(b.N*messages)/b.Elapsed().Seconds(), "messages/s")
}
