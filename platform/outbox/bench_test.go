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

// One relay that empties a full outbox, without a broker.
func BenchmarkRelay(b *testing.B) {
	pool := open(b)
	const batch = 500
	for i := 0; i < b.N*batch; i += 1000 {
		add(b, pool, events(500)...)
	}
	sender := &counter{want: b.N * batch, done: make(chan struct{})}
	relay := newRelay(b, pool, sender, outbox.Options{Batch: batch})
	ctx, cancel := context.WithCancel(b.Context())
	stopped := make(chan error, 1)
	b.ResetTimer()
	go func() { stopped <- relay.Run(ctx) }()
	<-sender.done
	b.StopTimer()
	cancel()
	if err := <-stopped; err != nil {
		b.Fatal(err)
	}
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

// counter is a broker that confirms at once.
type counter struct {
	seen, want int
	done       chan struct{}
}

func (c *counter) Send(_ context.Context, messages []messaging.Outgoing) error {
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
