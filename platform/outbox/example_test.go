package outbox_test

import (
	"context"
	"testing"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"

	"shop.example/platform/outbox"
	"shop.example/platform/postgres"
)

// confirm handles messages that confirm orders. One that was handled before has no second effect, and what it says is
// published if, and only if, the transaction is committed: a Relay that runs beside it does that.
func confirm(ctx context.Context, pool *sqlx.DB, relay *outbox.Relay, ids []uuid.UUID) error {
	err := postgres.InTx(ctx, pool, func(tx *sqlx.Tx) error {
		fresh, err := outbox.Claim(ctx, tx, ids)
		if err != nil {
			return err
		}
		var events []outbox.Entry
		for i, id := range ids {
			if fresh[i] { // and here is the effect itself
				events = append(events, outbox.Entry{Message: confirmed(id)})
			}
		}
		return outbox.Add(ctx, tx, events)
	})
	if err == nil {
		relay.Wake()
	}
	return err
}

// One relay runs in each replica of the service.
func ExampleRelay() {
	serve := func(ctx context.Context, pool *sqlx.DB, publisher outbox.Sender, received []uuid.UUID) error {
		relay, err := outbox.NewRelay(pool, publisher, outbox.Options{})
		if err != nil {
			return err
		}
		go func() { _ = relay.Run(ctx) }() // until ctx ends
		return confirm(ctx, pool, relay, received)
	}
	_ = serve // with a pool of postgres.Open and a messaging.Publisher
}

func TestExample_AMessageThatComesTwiceIsPublishedOnce(t *testing.T) {
	t.Parallel()
	pool := open(t)
	r := &recorder{arrived: make(chan int, 100)}
	relay := start(t, pool, r)
	first, second := uuid.New(), uuid.New()
	for _, ids := range [][]uuid.UUID{{first}, {first, second}} {
		if err := confirm(t.Context(), pool, relay, ids); err != nil {
			t.Fatal(err)
		}
	}
	for n := 0; n < 2; {
		n += receive(t, r.arrived)
	}
	if got := r.orders(); len(got) != 2 {
		t.Errorf("published %q, want both once", got)
	}
}
