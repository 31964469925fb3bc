package stock

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"go.opentelemetry.io/otel/metric/noop"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"shop.example/domain/orderstate"
	eventsv1 "shop.example/gen/shop/events/v1"
	orderv1 "shop.example/gen/shop/order/v1"
	"shop.example/platform/apierror"
	"shop.example/platform/telemetry"
)

// orderService is the order service as far as the sweeper meets it: it knows the orders that the test says, and before
// it answers it does what the test wants to happen at that moment.
type orderService struct {
	orderv1.UnimplementedOrderServiceServer
	mu     sync.Mutex
	states map[uuid.UUID]orderv1.Order_State
	asked  []uuid.UUID
	before func(id uuid.UUID) error // an error is the answer
}

func (s *orderService) GetOrder(_ context.Context, req *orderv1.GetOrderRequest) (*orderv1.GetOrderResponse, error) {
	id := uuid.MustParse(req.GetOrderId())
	s.mu.Lock()
	s.asked = append(s.asked, id)
	state, known := s.states[id]
	s.mu.Unlock()
	if s.before != nil {
		if err := s.before(id); err != nil {
			return nil, err
		}
	}
	if !known {
		return nil, apierror.New(codes.NotFound, "ORDER_NOT_FOUND", "there is no order %s", id)
	}
	return &orderv1.GetOrderResponse{Order: &orderv1.Order{Id: id.String(), State: state}}, nil
}

func (s *orderService) set(state orderv1.Order_State, orders ...order) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range orders {
		s.states[o.id] = state
	}
}

// newSweeping returns a warehouse with a sweeper that asks an order service of the test's own, over gRPC.
func newSweeping(t *testing.T) (*store, *sweeper, *orderService) {
	t.Helper()
	st := newTestStore(t)
	orders := &orderService{states: map[uuid.UUID]orderv1.Order_State{}}
	server := grpc.NewServer()
	orderv1.RegisterOrderServiceServer(server, orders)
	lis, err := net.Listen("tcp", "localhost:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(lis) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	client, err := grpc.NewClient(lis.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	s, err := newSweeper(st, orderv1.NewOrderServiceClient(client), defaultHoldLimit, noop.NewMeterProvider())
	if err != nil {
		t.Fatal(err)
	}
	return st, s, orders
}

// age makes the holds that there are older than the limit.
func (st *store) age(t *testing.T) {
	t.Helper()
	_, err := st.db.ExecContext(t.Context(), `
		UPDATE hold SET created_at = created_at - interval '16 minutes', updated_at = updated_at - interval '16 minutes'`)
	if err != nil {
		t.Fatal(err)
	}
}

// When the database's clock jumps ahead, what was held a moment ago looks old. The order service may be about to store it.
func TestSweeper_AClockThatJumpsAheadReleasesNothingThatIsBeingStored(t *testing.T) {
	t.Parallel()
	st, s, _ := newSweeping(t)
	mustSweep(t, s)
	fresh := orderFor(byID(laptop, 1))
	st.mustCheck(t, fresh)
	st.age(t) // as it looks after the jump
	s.clock.database = s.clock.database.Add(-16 * time.Minute)
	for range 2 { // it does not jump again, and is not trusted yet
		if err := s.sweep(t.Context()); !errors.Is(err, errClockJumped) {
			t.Errorf("after the clock has jumped: %v", err)
		}
		if got := st.holds(t, fresh); !slices.Equal(got, []string{"HELD"}) {
			t.Fatalf("the holds of the order are %q", got)
		}
	}
	s.clock.trusted = time.Now()
	mustSweep(t, s)
	if got := st.holds(t, fresh); len(got) > 0 {
		t.Errorf("the holds of the order that was never stored are %q", got)
	}
}

// A process that starts knows nothing of jumps: it compares the database's clock with its own.
func TestClockWatch_AtTheStartADatabaseThatIsAheadIsNotTrusted(t *testing.T) {
	t.Parallel()
	st := newTestStore(t)
	w := clockWatch{}
	if jumped, err := w.jumped(t.Context(), st.db); jumped || err != nil {
		t.Errorf("clocks are the same: %t, %v", jumped, err)
	}
	for name, c := range map[string]struct {
		behind time.Duration
		want   bool
	}{"a minute is no jump": {50 * time.Second, false}, "an hour ahead": {time.Hour, true}, "an hour back": {-time.Hour, false}} {
		w := clockWatch{database: time.Now().Add(-c.behind), read: time.Now()}
		if jumped, err := w.jumped(t.Context(), st.db); jumped != c.want || err != nil {
			t.Errorf("%s: %t, %v", name, jumped, err)
		}
	}
}

func mustSweep(t *testing.T, s *sweeper) {
	t.Helper()
	if err := s.sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// holds returns the states of an order's holds.
func (st *store) holds(t *testing.T, o order) (states []string) {
	t.Helper()
	if err := st.db.SelectContext(t.Context(), &states, `SELECT state FROM hold WHERE order_id = $1`, o.id); err != nil {
		t.Fatal(err)
	}
	return states
}

// For each state of the contract the sweeper knows what to do with the holds.
func TestSweeper_KnowsEveryStateOfTheContract(t *testing.T) {
	t.Parallel()
	_, s, service := newSweeping(t)
	values := orderv1.Order_STATE_UNSPECIFIED.Descriptor().Values()
	for i := range values.Len() {
		state := orderv1.Order_State(values.Get(i).Number())
		o := orderFor(byID(laptop, 1))
		service.set(state, o)
		got, err := s.lookUp(t.Context(), o.id)
		if orderstate.IsStored(state) == (err != nil || got == outcomeUnknown) && state != orderv1.Order_STATE_UNSPECIFIED {
			t.Errorf("Order.State %s: outcome %q, %v", state, got, err)
		}
	}
}

// An order in a state of a newer release was in no metric.
func TestSweeper_AnUnknownStateIsReportedAndItsStockStaysHeld(t *testing.T) {
	t.Parallel()
	st, s, service := newSweeping(t)
	log := &lines{}
	st.log = slog.New(slog.NewTextHandler(log, nil))
	newer, cancelled := orderFor(byID(laptop, 1)), orderFor(byID(laptop, 2))
	service.set(orderv1.Order_State(99), newer)
	service.set(orderv1.Order_CANCELLED, cancelled)
	st.mustCheck(t, newer, cancelled)
	st.age(t)
	if err := s.sweep(t.Context()); err == nil || !strings.Contains(err.Error(), "its state is 99") {
		t.Errorf("the sweep says %v", err)
	}
	wantStock(t, st, laptop, 50, 1)
	if text := log.String(); !strings.Contains(text, "outcome=unknown_state") {
		t.Errorf("the log does not say so: %s", text)
	}
}

func TestSweeper_FollowsTheOrderService(t *testing.T) {
	t.Parallel()
	st, s, service := newSweeping(t)
	confirmed, cancelled, rejected, unknown, young := orderFor(byID(laptop, 1)), orderFor(byID(laptop, 2)), orderFor(byID(laptop, 4)),
		orderFor(byID(laptop, 8), byID(phone, 1)), orderFor(byID(laptop, 16))
	service.set(orderv1.Order_CONFIRMED, confirmed)
	service.set(orderv1.Order_CANCELLED, cancelled)
	service.set(orderv1.Order_REJECTED, rejected)
	st.mustCheck(t, confirmed, cancelled, rejected, unknown)
	st.age(t)
	st.mustCheck(t, young)
	st.announced(t)

	mustSweep(t, s)
	wantStock(t, st, laptop, 50, 1+16)
	wantStock(t, st, phone, 200, 0)
	for name, want := range map[string]struct {
		order  order
		states []string
	}{
		"confirmed": {confirmed, []string{"HELD"}}, "cancelled": {cancelled, []string{"RELEASED"}},
		"rejected": {rejected, []string{"RELEASED"}}, "unknown": {unknown, nil}, "young": {young, []string{"HELD"}},
	} {
		if got := st.holds(t, want.order); !slices.Equal(got, want.states) {
			t.Errorf("%s: holds are %v, want %v", name, got, want.states)
		}
	}
	if slices.Contains(service.asked, young.id) || len(service.asked) != 4 {
		t.Errorf("asked about %v", service.asked)
	}
	changed := st.announced(t)
	if len(changed) != 3 { // laptops released, laptops and phones forgotten
		t.Errorf("announced %v", changed)
	}

	// What comes late does what it would have done.
	st.settleNow(t, confirmed)
	st.cancelNow(t, cancelled)
	wantStock(t, st, laptop, 49, 16)
}

// OrderPlaced was still in the queue: the order service asks again, and the old yes must not be repeated.
func TestSweeper_AnOrderWhoseDecisionWasDeletedIsDecidedAgain(t *testing.T) {
	t.Parallel()
	st, s, _ := newSweeping(t)
	slow, quick := orderFor(byID(laptop, 30)), orderFor(byID(laptop, 30))
	st.mustCheck(t, slow)
	st.age(t)
	mustSweep(t, s)
	if d := st.mustCheck(t, quick, slow); d[0].GetRejection() != nil || d[1].GetRejection().GetReason() != eventsv1.OrderRejected_OUT_OF_STOCK {
		t.Errorf("decided %v", d)
	}
	wantStock(t, st, laptop, 50, 30)
}

// A settlement that could take stock from nobody's hold is never passed over in silence.
func TestSweeper_SettlingAnOrderWhoseHoldsWereDeletedIsRefused(t *testing.T) {
	t.Parallel()
	st, s, _ := newSweeping(t)
	o := orderFor(byID(laptop, 1))
	st.mustCheck(t, o)
	st.age(t)
	mustSweep(t, s)
	if err := st.onDecrementQuantity(t.Context(), delivered(decrementOf(o)...)); reasonOf(err) != "NO_HOLD" {
		t.Errorf("settling: %v, want NO_HOLD", err)
	}
}

// The order service asks again between the sweeper's question and its deed: it relies on the yes that it gets.
func TestSweeper_AnAnswerRepeatedMeanwhileKeepsTheHold(t *testing.T) {
	t.Parallel()
	st, s, service := newSweeping(t)
	byItsID, byItsName, renamed := orderFor(byID(laptop, 1)), orderFor(byName("Phone", 1)), orderFor(byName("Keyboard", 1))
	first := st.mustCheck(t, byItsID, byItsName, renamed)
	st.age(t)
	err := inTx(t, st, func(tx *sqlx.Tx) (catalogueChange, error) {
		name := "Clavier" // CheckStock finds no product to lock under the old one
		return updateItems(t.Context(), tx, []itemUpdate{{id: keyboard, name: &name}})
	})
	if err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	service.before = func(uuid.UUID) error {
		once.Do(func() {
			for i, d := range st.mustCheck(t, byItsID, byItsName, renamed) {
				if d.GetRejection() != nil || len(d.GetLines()) != 1 || d.GetLines()[0].GetProductName() != first[i].GetLines()[0].GetProductName() {
					t.Errorf("asked again: %v, before: %v", d, first[i])
				}
			}
		})
		return nil
	}
	mustSweep(t, s)
	wantStock(t, st, laptop, 50, 1)
	wantStock(t, st, phone, 200, 1)
	wantStock(t, st, keyboard, 100, 1)
	st.settleNow(t, byItsID, byItsName, renamed)
}

// The same race the other way round: CheckStock waits for the sweeper's locks, and then finds no decision.
func TestSweeper_CheckStockThatWaitsForItDecidesAgain(t *testing.T) {
	t.Parallel()
	st, s, _ := newSweeping(t)
	o := orderFor(byID(laptop, 50))
	st.mustCheck(t, o)
	st.age(t)
	decided := make(chan string, 1)
	err := st.changeStock(t.Context(), func(tx *sqlx.Tx) ([]stockChange, error) {
		gone, changes, err := deleteOrphansTx(t.Context(), tx, []uuid.UUID{o.id}, s.limit)
		if len(gone) != 1 {
			t.Errorf("forgot %v", gone)
		}
		go func() {
			a, err := st.check(context.WithoutCancel(t.Context()), []order{o})
			if err != nil {
				decided <- err.Error()
				return
			}
			decided <- a.decisions[o.id].GetRejection().GetReason().String()
			if len(a.fresh) != 1 {
				t.Error("the forgotten answer was repeated")
			}
		}()
		awaitWaiting(t, st)
		return changes, err
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := <-decided; got != eventsv1.OrderRejected_REASON_UNSPECIFIED.String() {
		t.Errorf("decided %s", got)
	}
	wantStock(t, st, laptop, 50, 50)
	if got := st.holds(t, o); !slices.Equal(got, []string{"HELD"}) {
		t.Errorf("holds are %v", got)
	}
}

// awaitWaiting returns once a session of the database waits for a lock.
func awaitWaiting(t *testing.T, st *store) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		var waiting bool
		err := st.db.GetContext(t.Context(), &waiting, `
			SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')`)
		if err != nil {
			t.Fatal(err)
		}
		if waiting {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("nobody waits for a lock")
		}
	}
}

// DecrementQuantity was late and comes between the question and the deed.
func TestSweeper_AnOrderSettledMeanwhileStaysSettled(t *testing.T) {
	t.Parallel()
	st, s, service := newSweeping(t)
	o := orderFor(byID(laptop, 1))
	st.mustCheck(t, o)
	st.age(t)
	// The answer is unknown all the same: the worst that a wrong order service could say.
	service.before = func(uuid.UUID) error { st.settleNow(t, o); return nil }
	mustSweep(t, s)
	wantStock(t, st, laptop, 49, 0)
	if got := st.holds(t, o); !slices.Equal(got, []string{"SETTLED"}) {
		t.Errorf("holds are %v", got)
	}
}

func TestSweeper_WithoutAClearAnswerHoldsStay(t *testing.T) {
	t.Parallel()
	st, s, service := newSweeping(t)
	o := orderFor(byID(laptop, 1))
	st.mustCheck(t, o)
	st.age(t)
	for name, answer := range map[string]error{
		"down":             status.Error(codes.Unavailable, "down"),
		"a proxy's answer": status.Error(codes.NotFound, "no such page"),
		"another's answer": apierror.New(codes.NotFound, "ITEM_NOT_FOUND", "there is no item"),
		"unauthenticated":  status.Error(codes.Unauthenticated, "no"),
		"not a service":    status.Error(codes.Unimplemented, "unknown service"),
	} {
		service.before = func(uuid.UUID) error { return answer }
		if err := s.sweep(t.Context()); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	service.before = nil
	for _, state := range []orderv1.Order_State{orderv1.Order_PENDING, orderv1.Order_STATE_UNSPECIFIED, 99} {
		service.set(state, o)
		if err := s.sweep(t.Context()); err == nil {
			t.Errorf("%s: no error", state)
		}
	}
	wantStock(t, st, laptop, 50, 1)
}

// One order that the order service could not answer for kept all old holds of its page, and those behind it.
func TestSweeper_AnOrderWithoutAnAnswerDoesNotBlockItsPage(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]error{
		"an internal error": status.Error(codes.Internal, "broken row"), "too late": status.Error(codes.DeadlineExceeded, "locked"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			st, s, service := newSweeping(t)
			broken, lost := orderFor(byID(laptop, 1)), orderFor(byID(phone, 1))
			st.mustCheck(t, broken)
			st.mustCheck(t, lost)
			st.age(t)
			service.before = func(id uuid.UUID) error {
				if id == broken.id {
					return answer
				}
				return nil
			}
			if err := s.sweep(t.Context()); err == nil || !strings.Contains(err.Error(), broken.id.String()) {
				t.Errorf("the error does not name the order: %v", err)
			}
			wantStock(t, st, laptop, 50, 1)
			wantStock(t, st, phone, 200, 0)
		})
	}
}

func TestSweeper_AnOrderServiceThatIsAwayIsNotAskedAboutEveryOrder(t *testing.T) {
	t.Parallel()
	st, s, service := newSweeping(t)
	orders := make([]order, 20)
	for i := range orders {
		orders[i] = orderFor(byID(phone, 1))
	}
	st.mustCheck(t, orders...)
	st.age(t)
	service.before = func(uuid.UUID) error { return status.Error(codes.Unavailable, "down") }
	if err := s.sweep(t.Context()); err == nil || len(service.asked) != maxUnanswered {
		t.Errorf("asked %d times: %v", len(service.asked), err)
	}
}

func TestSweeper_OneReplicaAtATime(t *testing.T) {
	t.Parallel()
	st, s, service := newSweeping(t)
	o := orderFor(byID(laptop, 1))
	st.mustCheck(t, o)
	st.age(t)
	other := &sweeper{store: s.store, orders: s.orders, limit: s.limit, swept: s.swept}
	service.before = func(uuid.UUID) error {
		if err := other.sweep(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
		return nil
	}
	mustSweep(t, s)
	if len(service.asked) != 1 {
		t.Errorf("asked %d times", len(service.asked))
	}
	wantStock(t, st, laptop, 50, 0)
	// The lock is given back.
	o = orderFor(byID(laptop, 1))
	st.mustCheck(t, o)
	st.age(t)
	service.before = nil
	mustSweep(t, other)
	wantStock(t, st, laptop, 50, 0)
}

// Confirmed orders whose settlement is lost stay; they must not keep the sweeper from those behind them.
func TestSweeper_HoldsThatStayDoNotHideOthers(t *testing.T) {
	t.Parallel()
	st, s, service := newSweeping(t)
	var log bytes.Buffer
	st.log = slog.New(slog.NewTextHandler(&log, nil))
	stuck := make([]order, sweepBatch+20)
	for i := range stuck {
		stuck[i] = orderFor(byID(phone, 1))
	}
	service.set(orderv1.Order_CONFIRMED, stuck...)
	st.mustCheck(t, stuck...)
	st.age(t)
	lost := orderFor(byID(laptop, 1))
	st.mustCheck(t, lost)
	st.age(t)
	mustSweep(t, s)
	wantStock(t, st, phone, 200, sweepBatch+20)
	wantStock(t, st, laptop, 50, 0)
	if len(service.asked) != len(stuck)+1 {
		t.Errorf("asked %d times about %d orders", len(service.asked), len(stuck)+1)
	}
	for id, outcome := range map[uuid.UUID]string{lost.id: "forgotten", stuck[0].id: "kept"} {
		if !strings.Contains(log.String(), "order_id="+telemetry.ShortID(id.String())+" outcome="+outcome) {
			t.Errorf("the log does not say that order %s was %s", id, outcome)
		}
	}
}
