package intake

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sync/semaphore"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	eventsv1 "shop.example/gen/shop/events/v1"
	moneyv1 "shop.example/gen/shop/money/v1"
	orderv1 "shop.example/gen/shop/order/v1"
)

func TestDecide_IsWhatTheOrderServiceStores(t *testing.T) {
	t.Parallel()
	at, later := timestamppb.New(time.Unix(1, 1000)), timestamppb.New(time.Unix(2, 2000))
	usd := func(units int64) *moneyv1.Money { return &moneyv1.Money{CurrencyCode: "USD", Units: units} }
	placed := func() *orderv1.Order {
		return pending(&eventsv1.OrderPlaced{
			OrderId: "00000000-0000-4000-8000-000000000001", CustomerName: "Ada", CustomerEmail: "ada@example.org", PlacedAt: at,
			Lines: []*eventsv1.RequestedLine{{ProductName: "Laptop Stand", Quantity: 3}, {ProductId: 6, Quantity: 4}},
		})
	}
	for event, want := range map[proto.Message]*orderv1.Order{
		&eventsv1.OrderConfirmed{
			OrderId: "00000000-0000-4000-8000-000000000001", TotalItems: 7, TotalValue: usd(205), ConfirmedAt: later,
			Lines: []*eventsv1.PricedLine{
				{Line: 1, ProductId: 5, ProductName: "Laptop Stand", Quantity: 3, UnitPrice: usd(35)},
				{Line: 2, ProductId: 6, ProductName: "Mouse Pad", Quantity: 4, UnitPrice: usd(25)},
			},
		}: {
			Id: "00000000-0000-4000-8000-000000000001", State: orderv1.Order_CONFIRMED, CustomerName: "Ada", CustomerEmail: "ada@example.org", CreatedAt: at, UpdatedAt: later,
			TotalItems: 7, TotalValue: usd(205), OrderItems: []*orderv1.OrderItem{
				{Line: 1, ProductId: 5, ProductName: "Laptop Stand", Quantity: 3, UnitPrice: usd(35)},
				{Line: 2, ProductId: 6, ProductName: "Mouse Pad", Quantity: 4, UnitPrice: usd(25)},
			},
		},
		&eventsv1.OrderRejected{OrderId: "00000000-0000-4000-8000-000000000001", Reason: eventsv1.OrderRejected_PRICE_CHANGED, Detail: "Laptop Stand: 36.00 USD", RejectedAt: later}: {
			Id: "00000000-0000-4000-8000-000000000001", State: orderv1.Order_REJECTED, Reason: eventsv1.OrderRejected_PRICE_CHANGED.Enum(), RejectionDetail: proto.String("Laptop Stand: 36.00 USD"),
			CustomerName: "Ada", CustomerEmail: "ada@example.org", CreatedAt: at, UpdatedAt: later,
			TotalItems: 7, OrderItems: []*orderv1.OrderItem{{Line: 1, ProductName: "Laptop Stand", Quantity: 3}, {Line: 2, ProductId: 6, Quantity: 4}},
		},
	} {
		if got := decide(placed(), event); !proto.Equal(got, want) {
			t.Errorf("after %T: %v\nwant %v", event, got, want)
		}
	}
}

// subscribed is a subscription whose generation is what it says.
type subscribed struct{ generation atomic.Uint64 }

func (*subscribed) Run(context.Context) error { return nil }

func (*subscribed) Want() func() { return func() {} }

func (s *subscribed) Bound() (uint64, <-chan struct{}) { return s.generation.Load(), nil }

// waitWith waits for an order as long as a client may, and returns it and how long it took. lookup is called with the number of
// the lookup, from 0; meanwhile runs after the order is published.
func waitWith(ctx context.Context, events *subscribed, meanwhile func(), lookup func(n int) (*orderv1.Order, error)) (*orderv1.Order, time.Duration) {
	asked := 0
	d := &Decisions{
		events: events, lookups: semaphore.NewWeighted(maxLookups), awaited: map[string]*awaited{},
		lookup: func(context.Context, string) (*orderv1.Order, error) {
			asked++
			return lookup(asked - 1)
		},
	}
	w := d.await(ctx)
	defer w.close()
	w.setOrder("00000000-0000-4000-8000-000000000001")
	meanwhile()
	begin := time.Now()
	return w.outcome(ctx, &orderv1.Order{State: orderv1.Order_PENDING}, maxWait), time.Since(begin)
}

// When the order service did not answer after a gap, the order counted as not decided, and nobody asked again.
func TestWait_ALookupThatFailsIsMadeAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		events := &subscribed{}
		events.generation.Store(1)
		got, took := waitWith(t.Context(), events, func() { events.generation.Store(2) }, func(n int) (*orderv1.Order, error) {
			if n < 2 {
				return nil, errors.New("the order service is away")
			}
			return &orderv1.Order{State: orderv1.Order_CONFIRMED}, nil
		})
		if got.GetState() != orderv1.Order_CONFIRMED || took != 2*pollInterval {
			t.Errorf("%s after %s", got.GetState(), took)
		}
	})
}

// Clients that waited for their turn to ask did not hear the event meanwhile.
func TestWait_TheEventIsHeardDuringALookup(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := &Decisions{events: &subscribed{}, lookups: semaphore.NewWeighted(0), awaited: map[string]*awaited{}} // nobody's turn comes
		w := d.await(t.Context())
		defer w.close()
		w.setOrder("00000000-0000-4000-8000-000000000001")
		heard := time.AfterFunc(time.Second, func() {
			w.order.event = &eventsv1.OrderRejected{}
			close(w.order.decided)
		})
		defer heard.Stop()
		begin := time.Now()
		if got := w.outcome(t.Context(), &orderv1.Order{}, maxWait); got.GetState() != orderv1.Order_REJECTED || time.Since(begin) != time.Second {
			t.Errorf("%s after %s", got.GetState(), time.Since(begin))
		}
	})
}

// An event that went nowhere, because somebody had deleted the binding, was waited for until the end.
func TestWait_AnOrderWhoseEventIsLostIsFound(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		events := &subscribed{}
		events.generation.Store(1)
		got, took := waitWith(t.Context(), events, func() {}, func(int) (*orderv1.Order, error) {
			return &orderv1.Order{State: orderv1.Order_CONFIRMED}, nil
		})
		if got.GetState() != orderv1.Order_CONFIRMED || took != recheckInterval {
			t.Errorf("%s after %s", got.GetState(), took)
		}
	})
}
