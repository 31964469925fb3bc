package e2e

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"shop.example/db"
	"shop.example/platform/telemetry"
	"shop.example/services/inventory/stock"
	"shop.example/shop/audit"
)

// keepRunning runs until the test ends.
func keepRunning(t *testing.T, run func(context.Context) error) {
	t.Helper()
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

func auditor(t *testing.T, s *shop) *audit.Auditor {
	t.Helper()
	urls := map[string]string{}
	for _, schema := range db.Schemas() {
		urls[schema] = cmp.Or(s.apart[schema], s.database)
	}
	a, err := audit.Open(t.Context(), audit.Config{DatabaseURLs: urls, Pause: 200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	return a
}

// Audits run one after the other while orders are placed, refused and cancelled as fast as possible.
func TestAudit_ABusyShopGivesNoFalseAlarm(t *testing.T) {
	t.Parallel()
	s := start(t)
	a := auditor(t, s)
	const orders = 600
	var left, accepted atomic.Int64
	left.Store(orders)
	var clients sync.WaitGroup
	for range 6 {
		clients.Go(func() {
			for left.Add(-1) >= 0 {
				location := s.place(t, rand.IntN(8)+1, rand.IntN(3)+1) // more than there is
				accepted.Add(1)
				if rand.IntN(4) == 0 && s.decided(t, location).State == "CONFIRMED" {
					if got := s.call(t, http.MethodPost, location+":cancel", ""); got.code != http.StatusOK {
						t.Errorf("cancelling: %d %s", got.code, got.body)
					}
				}
			}
		})
	}
	idle := make(chan struct{})
	go func() { clients.Wait(); close(idle) }()
	audits, inFlight := 0, 0
	for busy := true; busy; {
		select {
		case <-idle:
			busy = false
		default:
		}
		r, err := a.Run(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		audits, inFlight = audits+1, inFlight+r.InFlight()
		for _, v := range r.Violations {
			t.Errorf("%s: %s", v.Check, v)
		}
	}
	r, err := a.RunWhenQuiet(t.Context(), testTimeout)
	if err != nil {
		t.Fatal(err)
	}
	if r.Count() != 0 || r.InFlight() != 0 || int64(r.Orders) != accepted.Load() {
		t.Errorf("at last: %d orders of %d, %d in flight, violations %v", r.Orders, accepted.Load(), r.InFlight(), r.Violations)
	}
	t.Logf("%d audits saw %d things in flight", audits, inFlight)
}

// Stock that was held for an order which was never stored is released by the next replica that starts, after it has asked
// the order service. Stock of a stored order is not.
func TestSweeper_GivesBackWhatTheOrderServiceDoesNotKnow(t *testing.T) {
	t.Parallel()
	s := start(t)
	lost := uuid.Must(uuid.NewV7()).String()
	s.holds(t, lost, 1, 50)
	if o := s.decided(t, s.place(t, 1, 1)); o.Reason != "OUT_OF_STOCK" {
		t.Errorf("all is held, and the order is %s %s", o.State, o.Reason)
	}
	kept := s.decided(t, s.place(t, 2, 1))
	database := s.openDatabase(t)
	for _, query := range []string{
		`UPDATE inventory.hold SET created_at = created_at - interval '16 min', updated_at = updated_at - interval '16 min'`,
		`UPDATE inventory.decision SET decided_at = decided_at - interval '16 min' WHERE order_id = '` + lost + `'`,
	} {
		if _, err := database.ExecContext(t.Context(), query); err != nil {
			t.Fatal(err)
		}
	}
	r, err := auditor(t, s).Run(t.Context())
	if err != nil || r.Count() != 1 || r.Violations[0].OrderID != lost || r.Violations[0].Check != audit.Undecided {
		t.Errorf("before: %+v, %v", r, err)
	}

	quiet, err := telemetry.New(t.Context(), telemetry.Config{Service: "inventory", Output: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	replica, err := stock.New(t.Context(), stock.Config{
		AMQPURL: s.broker.URL, DatabaseURL: s.database, GRPCAddr: "127.0.0.1:0", AdminAddr: "127.0.0.1:0",
		OrderAddr: s.Order.GRPCAddr(), Currency: "USD",
	}, quiet)
	if err != nil {
		t.Fatal(err)
	}
	keepRunning(t, replica.Run)
	eventually(t, func() error {
		if i := s.stock(t)["Laptop"]; i.Quantity != 50 || i.Reserved != 0 {
			return fmt.Errorf("Laptop: %+v", i)
		}
		return nil
	})
	if o := s.decided(t, s.place(t, 1, 50)); o.State != "CONFIRMED" {
		t.Errorf("the stock is back, and the order is %s %s", o.State, o.Reason)
	}
	if i := s.settled(t)["Phone"]; i.OnHand != 199 {
		t.Errorf("of order %s: %+v", kept.ID, i)
	}
	if r, err := auditor(t, s).RunWhenQuiet(t.Context(), testTimeout); err != nil || r.Count() != 0 {
		t.Errorf("after: %+v, %v", r, err)
	}
}
