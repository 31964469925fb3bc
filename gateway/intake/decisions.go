package intake

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	eventsv1 "shop.example/gen/shop/events/v1"
	orderv1 "shop.example/gen/shop/order/v1"
	"shop.example/platform/messaging"
)

const (
	// maxWait bounds how long a client may wait for the outcome of its order.
	maxWait = 30 * time.Second
	// bindTimeout bounds the wait for the subscription before an order is published. Without a subscription the order is
	// looked up.
	bindTimeout = time.Second
	// pollInterval is how often a waiting client's order is looked up while there is no subscription, or while it is not
	// known what was missed. maxLookups is how many lookups run at a time, so that waiting clients do not slow down the order
	// service.
	pollInterval = 2 * time.Second
	maxLookups   = 4
	// recheckInterval is how often an order is looked up although nothing seems to have been missed: the broker does not
	// tell when somebody has deleted a binding, or when the queue was full. Nearly all orders are decided before.
	recheckInterval = 10 * time.Second
)

// Decisions tells waiting clients how their orders were decided. It does not ask the order service: while a client waits,
// the gateway subscribes to the order service's events. It is safe for concurrent use.
type Decisions struct {
	events   subscription
	lookup   func(ctx context.Context, orderID string) (*orderv1.Order, error) // nil if it is not decided
	lookups  *semaphore.Weighted
	stopping <-chan struct{} // closed when the gateway stops

	mu      sync.Mutex // guards what follows
	awaited map[string]*awaited
}

// subscription is what Decisions uses of a messaging.Subscription.
type subscription interface {
	Run(ctx context.Context) error
	Want() (release func())
	Bound() (generation uint64, changed <-chan struct{})
}

// awaited is an order whose decision some clients wait for.
type awaited struct {
	waiting int
	decided chan struct{}
	event   proto.Message // the decision, once decided is closed
}

// NewDecisions returns Decisions that work while Run runs. lookup reads an order from the order service, for when events
// were missed; it returns nil if the order is not decided, and an error if that is not known. All waits end when stopping is
// closed.
func NewDecisions(conn *messaging.Connection, lookup func(context.Context, string) (*orderv1.Order, error), stopping <-chan struct{}) *Decisions {
	d := &Decisions{lookup: lookup, lookups: semaphore.NewWeighted(maxLookups), stopping: stopping, awaited: map[string]*awaited{}}
	d.events = messaging.NewSubscription(conn, d.isAwaited, onDecision[*eventsv1.OrderConfirmed](d), onDecision[*eventsv1.OrderRejected](d))
	return d
}

// Run receives events, while clients wait, until ctx ends.
func (d *Decisions) Run(ctx context.Context) error { return d.events.Run(ctx) }

func (d *Decisions) isAwaited(orderID string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.awaited[orderID] != nil
}

func onDecision[T interface {
	proto.Message
	GetOrderId() string
}](d *Decisions) messaging.Handler {
	return messaging.Handle(func(_ context.Context, batch []messaging.Message[T]) error {
		d.mu.Lock()
		defer d.mu.Unlock()
		for _, m := range batch {
			if a := d.awaited[m.Body.GetOrderId()]; a != nil && a.event == nil {
				a.event = m.Body
				close(a.decided)
			}
		}
		return nil
	})
}

// await begins a wait, before the order is published. The caller must close it.
func (d *Decisions) await(ctx context.Context) *wait {
	w := &wait{Decisions: d, release: d.events.Want()}
	timeout := time.NewTimer(bindTimeout)
	defer timeout.Stop()
	for {
		generation, changed := d.events.Bound()
		if generation != 0 {
			w.generation = generation
			return w
		}
		select {
		case <-changed:
		case <-timeout.C:
			return w
		case <-ctx.Done():
			return w
		}
	}
}

// wait is one client's wait for one order.
type wait struct {
	*Decisions
	release    func()
	generation uint64 // of the subscription, since when no event of the order was missed; 0 if some may have been missed
	orderID    string
	order      *awaited
}

// setOrder sets the id of the order to wait for. It is called once.
func (w *wait) setOrder(orderID string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.orderID, w.order = orderID, w.awaited[orderID]
	if w.order == nil {
		w.order = &awaited{decided: make(chan struct{})}
		w.awaited[orderID] = w.order
	}
	w.order.waiting++
}

func (w *wait) close() {
	w.release()
	if w.order == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.order.waiting--; w.order.waiting == 0 {
		delete(w.awaited, w.orderID)
	}
}

// outcome returns the order once it is decided, or pending when the time is up.
func (w *wait) outcome(ctx context.Context, pending *orderv1.Order, atMost time.Duration) *orderv1.Order {
	ctx, cancel := context.WithTimeout(ctx, atMost)
	defer cancel()
	look := w.generation == 0 // events may have been missed already
	again := time.NewTimer(recheckInterval)
	defer again.Stop()
	for {
		generation, changed := w.events.Bound()
		if look || generation != w.generation {
			decided, err := w.lookUpUntilHeard(ctx)
			if decided != nil {
				return decided
			}
			w.generation, look = generation, false
			if generation == 0 || err != nil {
				again.Reset(pollInterval)
			} else {
				again.Reset(recheckInterval)
			}
		}
		select {
		case <-w.order.decided:
			return w.decided(ctx, pending)
		case <-changed:
		case <-again.C:
			look = true
		case <-ctx.Done():
			return pending
		case <-w.stopping:
			return pending
		}
	}
}

// lookUpUntilHeard is lookUp, but fails once the event has come: many clients may wait for their turn to ask.
func (w *wait) lookUpUntilHeard(ctx context.Context) (*orderv1.Order, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-w.order.decided:
			cancel()
		case <-ctx.Done():
		}
	}()
	return w.lookUp(ctx)
}

func (w *wait) lookUp(ctx context.Context) (*orderv1.Order, error) {
	if err := w.lookups.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	defer w.lookups.Release(1)
	return w.lookup(ctx, w.orderID)
}

// decided returns the order as it was decided. Under an idempotency key it may have been placed earlier than the pending
// one says; then it is read from the order service.
func (w *wait) decided(ctx context.Context, pending *orderv1.Order) *orderv1.Order {
	if len(metadata.ValueFromIncomingContext(ctx, idempotencyKey)) > 0 {
		if stored, _ := w.lookUp(ctx); stored != nil {
			return stored
		}
	}
	return decide(pending, w.order.event)
}

// decide applies the event of the decision to a pending order: the result is what the order service stores.
func decide(order *orderv1.Order, event proto.Message) *orderv1.Order {
	switch e := event.(type) {
	case *eventsv1.OrderConfirmed:
		order.State, order.UpdatedAt = orderv1.Order_CONFIRMED, e.GetConfirmedAt()
		order.TotalItems, order.TotalValue = e.GetTotalItems(), e.GetTotalValue()
		order.OrderItems = make([]*orderv1.OrderItem, len(e.GetLines()))
		for i, l := range e.GetLines() {
			order.OrderItems[i] = &orderv1.OrderItem{
				Line: l.GetLine(), ProductId: l.GetProductId(), ProductName: l.GetProductName(), Quantity: l.GetQuantity(), UnitPrice: l.GetUnitPrice(),
			}
		}
	case *eventsv1.OrderRejected:
		order.State, order.Reason, order.UpdatedAt = orderv1.Order_REJECTED, e.GetReason().Enum(), e.GetRejectedAt()
		order.RejectionDetail = &e.Detail
	}
	return order
}
