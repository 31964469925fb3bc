package outbox_test

import (
	"testing"

	"github.com/google/uuid"

	statusv1 "shop.example/gen/shop/status/v1"
	"shop.example/platform/outbox"
)

func TestRelay_ReportsHowManyWaitAndForHowLong(t *testing.T) {
	t.Parallel()
	pool := open(t)
	relay := newRelay(t, pool, &recorder{}, outbox.Options{})
	report := func() *statusv1.Outbox {
		r := &statusv1.GetReportResponse{}
		relay.Report(t.Context(), r)
		return r.GetOutbox()
	}
	if o := report(); o == nil || o.GetPending() != 0 || o.GetOldestAgeMs() != 0 {
		t.Errorf("empty: %v", o)
	}
	add(t, pool, outbox.Entry{Message: confirmed(uuid.New())}, outbox.Entry{Message: confirmed(uuid.New())})
	pool.MustExec("UPDATE outbox SET created_at = now() - interval '100 s' WHERE id = (SELECT min(id) FROM outbox)")
	if o := report(); o.GetPending() != 2 || o.GetOldestAgeMs() < 100_000 || o.GetOldestAgeMs() > 160_000 {
		t.Errorf("two messages, the oldest 100 s old: %v", o)
	}
	if err := pool.Close(); err != nil {
		t.Fatal(err)
	}
	if o := report(); o != nil {
		t.Errorf("the database does not answer: %v", o)
	}
}
