package stock

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"google.golang.org/protobuf/proto"

	"shop.example/db/dbtest"
	eventsv1 "shop.example/gen/shop/events/v1"
	inventoryv1 "shop.example/gen/shop/inventory/v1"
	"shop.example/platform/apierror"
	"shop.example/platform/contract"
	"shop.example/platform/messaging"
	"shop.example/platform/postgres"
)

// newTestStore returns the seeded catalogue in a database of the test's own. When the test ends, holds, movements and
// stock must add up.
func newTestStore(t testing.TB) *store {
	t.Helper()
	pool, err := postgres.Open(t.Context(), dbtest.New(t), schema, postgres.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		audit(t, pool)
		if err := pool.Close(); err != nil {
			t.Error(err)
		}
	})
	return &store{db: pool, log: slog.New(slog.DiscardHandler), currency: "USD", wake: func() {}}
}

// audit fails the test if a product's stock is not what its holds and movements say.
func audit(t testing.TB, db *sqlx.DB) {
	t.Helper()
	var wrong []string
	err := db.SelectContext(context.Background(), &wrong, `
		SELECT format('%s: on_hand %s, moved %s; reserved %s, held %s', name, on_hand, moved, reserved, held)
		FROM product
		CROSS JOIN LATERAL (SELECT coalesce(sum(quantity), 0) AS moved FROM stock_movement WHERE product_id = product.id) m
		CROSS JOIN LATERAL (SELECT coalesce(sum(quantity), 0) AS held FROM hold WHERE product_id = product.id AND state = 'HELD') h
		WHERE on_hand <> moved OR reserved <> held`)
	if err != nil {
		t.Error(err)
	}
	for _, st := range wrong {
		t.Errorf("does not add up: %s", st)
	}
}

func (st *store) stockOf(t testing.TB, id int32) (onHand, reserved int32) {
	t.Helper()
	if err := st.db.QueryRowContext(t.Context(), `SELECT on_hand, reserved FROM product WHERE id = $1`, id).Scan(&onHand, &reserved); err != nil {
		t.Fatal(err)
	}
	return onHand, reserved
}

func wantStock(t testing.TB, st *store, id, onHand, reserved int32) {
	t.Helper()
	if o, r := st.stockOf(t, id); o != onHand || r != reserved {
		t.Errorf("product %d: on_hand %d, reserved %d; want %d, %d", id, o, r, onHand, reserved)
	}
}

func (st *store) mustCheck(t testing.TB, orders ...order) []*inventoryv1.StockDecision {
	t.Helper()
	a, err := st.check(t.Context(), orders)
	if err != nil {
		t.Fatal(err)
	}
	decisions := make([]*inventoryv1.StockDecision, len(orders))
	for i, o := range orders {
		decisions[i] = a.decisions[o.id]
	}
	return decisions
}

// outbox returns the messages that wait to be published, in their order, and removes them.
func (st *store) announced(t testing.TB) []proto.Message {
	t.Helper()
	return slices.DeleteFunc(st.published(t), func(m proto.Message) bool {
		_, acted := m.(*eventsv1.OperatorActed)
		return acted
	})
}

// published takes everything out of the outbox.
func (st *store) published(t testing.TB) []proto.Message {
	t.Helper()
	var rows []struct {
		Key  string `db:"routing_key"`
		Body []byte `db:"body"`
	}
	err := st.db.SelectContext(t.Context(), &rows, `
		WITH taken AS (DELETE FROM outbox RETURNING id, routing_key, body) SELECT routing_key, body FROM taken ORDER BY id`)
	if err != nil {
		t.Fatal(err)
	}
	messages := make([]proto.Message, len(rows))
	for i, r := range rows {
		e, ok := contract.ByRoutingKey(r.Key)
		if !ok {
			t.Fatalf("no event has the routing key %s", r.Key)
		}
		messages[i] = e.New()
		if err := proto.Unmarshal(r.Body, messages[i]); err != nil {
			t.Fatal(err)
		}
		if err := contract.Validate(messages[i]); err != nil {
			t.Errorf("%s breaks its contract: %v", e.Name, err)
		}
	}
	return messages
}

func delivered[T proto.Message](bodies ...T) []messaging.Message[T] {
	batch := make([]messaging.Message[T], len(bodies))
	for i, b := range bodies {
		batch[i] = messaging.Message[T]{ID: contract.MessageID(b), Body: b}
	}
	return batch
}

func decrementOf(orders ...order) (messages []*eventsv1.DecrementQuantity) {
	for _, o := range orders {
		messages = append(messages, &eventsv1.DecrementQuantity{OrderId: o.id.String()})
	}
	return messages
}

func cancelOf(orders ...order) (messages []*eventsv1.OrderCancelled) {
	for _, o := range orders {
		messages = append(messages, &eventsv1.OrderCancelled{OrderId: o.id.String()})
	}
	return messages
}

func (st *store) settleNow(t testing.TB, orders ...order) {
	t.Helper()
	if err := st.onDecrementQuantity(t.Context(), delivered(decrementOf(orders...)...)); err != nil {
		t.Fatal(err)
	}
}

func (st *store) cancelNow(t testing.TB, orders ...order) {
	t.Helper()
	if err := st.onOrderCancelled(t.Context(), delivered(cancelOf(orders...)...)); err != nil {
		t.Fatal(err)
	}
}

func reasonOf(err error) string {
	if e := (*apierror.Error)(nil); errors.As(err, &e) {
		return e.Reason()
	}
	if err != nil {
		return err.Error()
	}
	return ""
}

// Ids of the seeded products.
const (
	laptop      = 1 // 50 pieces
	phone       = 2 // 200
	keyboard    = 3 // 100
	laptopStand = 5 // 150
)

func TestCheckStock_TwoLinesOfOneProductAreSummed(t *testing.T) {
	t.Parallel()
	st := newTestStore(t)
	fits, tooMany := orderFor(byName("Laptop", 20), byID(laptop, 20)), orderFor(byName("Laptop", 6), byName("Laptop", 6))
	d := st.mustCheck(t, fits, tooMany)
	if d[0].GetRejection() != nil || len(d[0].GetLines()) != 2 {
		t.Errorf("40 of 50 pieces: %v", d[0])
	}
	if got := d[1].GetRejection(); got.GetReason() != eventsv1.OrderRejected_OUT_OF_STOCK || got.GetDetail() != "Laptop: you asked for 12, only 10 available" {
		t.Errorf("12 of 10 pieces: %v", d[1])
	}
	wantStock(t, st, laptop, 50, 40)
	st.settleNow(t, fits)
	wantStock(t, st, laptop, 10, 0)
}

func TestCheckStock_AHundredCallersNeverOversell(t *testing.T) {
	t.Parallel()
	st := newTestStore(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	confirmed := 0
	for range 100 {
		wg.Go(func() {
			orders := []order{orderFor(byName("Laptop", 1)), orderFor(byName("Laptop", 1), byName("Phone", 1))}
			a, err := st.check(t.Context(), orders)
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			for _, d := range a.decisions {
				if d.GetRejection() == nil {
					confirmed++
				}
			}
		})
	}
	wg.Wait()
	if confirmed != 50 {
		t.Errorf("%d orders got one of 50 Laptops", confirmed)
	}
	wantStock(t, st, laptop, 50, 50)
}

// Checks, settlements and cancellations of orders whose lines come in any order, all at once.
func TestCheckStock_RandomLineOrderDoesNotDeadlock(t *testing.T) {
	t.Parallel()
	st := newTestStore(t)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 5 {
				orders := make([]order, 20)
				for i := range orders {
					ids := rand.Perm(8)[:3]
					orders[i] = orderFor(byID(int32(ids[0])+1, 1), byID(int32(ids[1])+1, 1), byID(int32(ids[2])+1, 1))
				}
				a, err := st.check(t.Context(), orders)
				if err != nil {
					t.Error(err)
					return
				}
				held := slices.DeleteFunc(orders, func(o order) bool { return a.decisions[o.id].GetRejection() != nil })
				if err := st.onDecrementQuantity(t.Context(), delivered(decrementOf(held...)...)); err != nil {
					t.Error(err)
				}
				rand.Shuffle(len(held), func(i, j int) { held[i], held[j] = held[j], held[i] })
				if err := st.onOrderCancelled(t.Context(), delivered(cancelOf(held[:len(held)/2]...)...)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func TestCheckStock_AskedAgainSameAnswer(t *testing.T) {
	t.Parallel()
	st := newTestStore(t)
	yes, no, unknown := orderFor(byName("Laptop", 30)), orderFor(byName("Laptop", 30)), orderFor(byName("Tablet", 1))
	first := st.mustCheck(t, yes, no, unknown)

	// Now there would be enough, at another price, and Tablets.
	err := inTx(t, st, func(tx *sqlx.Tx) (catalogueChange, error) {
		onHand := int32(1000)
		return updateItems(t.Context(), tx, []itemUpdate{{id: laptop, onHand: &onHand, price: &price{1, "USD"}}})
	})
	if err != nil {
		t.Fatal(err)
	}
	if err = inTx(t, st, func(tx *sqlx.Tx) (catalogueChange, error) {
		return createItems(t.Context(), tx, []newItem{{"Tablet", 5, price{100, "USD"}}})
	}); err != nil {
		t.Fatal(err)
	}
	st.announced(t)
	again := st.mustCheck(t, unknown, no, yes, orderFor(byName("Tablet", 1)))
	for i, want := range []*inventoryv1.StockDecision{first[2], first[1], first[0]} {
		if !proto.Equal(again[i], want) {
			t.Errorf("asked again: %v, before: %v", again[i], want)
		}
	}
	if again[3].GetRejection() != nil {
		t.Errorf("the new order beside them: %v", again[3])
	}
	wantStock(t, st, laptop, 1000, 30)
	if got := st.announced(t); len(got) != 1 {
		t.Errorf("announced %v, want the Tablet alone", got)
	}
}

func TestCheckStock_TheSameOrderTwiceInABatchIsOneOrder(t *testing.T) {
	t.Parallel()
	st := newTestStore(t)
	o := orderFor(byName("Laptop", 30))
	d := st.mustCheck(t, o, o)
	if d[0].GetRejection() != nil || !proto.Equal(d[0], d[1]) {
		t.Errorf("answers %v and %v", d[0], d[1])
	}
	wantStock(t, st, laptop, 50, 30)
}

func TestCheckStock_OtherLinesUnderTheSameIDAreRefused(t *testing.T) {
	t.Parallel()
	st := newTestStore(t)
	o := orderFor(byName("Laptop", 1))
	st.mustCheck(t, o)
	other := order{id: o.id, lines: []line{byName("Laptop", 2)}}
	for name, batch := range map[string][]order{
		"alone":             {other},
		"beside a good one": {orderFor(byName("Laptop", 1)), other},
		"twice in a batch":  {order{id: uuid.Max, lines: o.lines}, order{id: uuid.Max, lines: other.lines}},
	} {
		if _, err := st.check(t.Context(), batch); reasonOf(err) != "ORDER_LINES_DIFFER" {
			t.Errorf("%s: %v", name, err)
		}
	}
	wantStock(t, st, laptop, 50, 1)
}

// Orders of unknown products lock no row, so only the stored decision keeps two replicas apart.
func TestCheckStock_AskedByReplicasAtOnceOneAnswer(t *testing.T) {
	t.Parallel()
	st := newTestStore(t)
	for range 10 {
		orders := make([]order, 20)
		for i := range orders {
			orders[i] = orderFor(byName(fmt.Sprint("Tablet ", i), 1))
		}
		orders = append(orders, orderFor(byName("Phone", 1)))
		var wg sync.WaitGroup
		for range 4 {
			shuffled := slices.Clone(orders)
			rand.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
			wg.Go(func() {
				a, err := st.check(t.Context(), shuffled)
				if err != nil {
					t.Error(err)
				}
				if len(a.decisions) != len(orders) {
					t.Errorf("%d answers", len(a.decisions))
				}
			})
		}
		wg.Wait()
	}
	wantStock(t, st, phone, 200, 10)
}

func TestCheckStock_AnnouncesEachProductOnce(t *testing.T) {
	t.Parallel()
	st := newTestStore(t)
	st.mustCheck(t, orderFor(byName("Phone", 1), byName("Laptop", 20)), orderFor(byName("Laptop", 30)), orderFor(byName("Laptop", 1)))
	got := st.announced(t)
	if len(got) != 3 {
		t.Fatalf("announced %v", got)
	}
	changed, depleted, other := got[0].(*eventsv1.StockChanged), got[1].(*eventsv1.StockDepleted), got[2].(*eventsv1.StockChanged)
	if changed.GetProductId() != laptop || changed.GetVersion() != 2 || changed.GetOnHand() != 50 || changed.GetReserved() != 50 {
		t.Errorf("StockChanged %v", changed)
	}
	if depleted.GetProductId() != laptop || depleted.GetVersion() != 2 || depleted.GetProductName() != "Laptop" {
		t.Errorf("StockDepleted %v", depleted)
	}
	if other.GetProductName() != "Phone" || other.GetReserved() != 1 {
		t.Errorf("StockChanged %v", other)
	}
	st.mustCheck(t, orderFor(byName("Laptop", 1)), orderFor(byName("Tablet", 1)))
	if got := st.announced(t); len(got) != 0 {
		t.Errorf("refusals announced %v", got)
	}
}

func TestSettle_TwiceIsOneEffect(t *testing.T) {
	t.Parallel()
	st := newTestStore(t)
	o := orderFor(byName("Laptop", 2), byName("Phone", 3), byName("Laptop", 1))
	st.mustCheck(t, o)
	st.announced(t)
	st.settleNow(t, o)
	wantStock(t, st, laptop, 47, 0)
	wantStock(t, st, phone, 197, 0)
	if got := st.announced(t); len(got) != 2 {
		t.Errorf("announced %v", got)
	}
	st.settleNow(t, o, o)
	st.settleNow(t, o)
	wantStock(t, st, laptop, 47, 0)
	wantStock(t, st, phone, 197, 0)
	if got := st.announced(t); len(got) != 0 {
		t.Errorf("announced again %v", got)
	}
}

func TestSettle_AnOrderWithoutHoldIsRefusedAndCostsTheOthersNothing(t *testing.T) {
	t.Parallel()
	st := newTestStore(t)
	good, refused, never := orderFor(byName("Laptop", 2)), orderFor(byName("Laptop", 51)), orderFor(byName("Laptop", 1))
	st.mustCheck(t, good, refused)
	batch := delivered(decrementOf(good, refused, never)...)
	if err := st.onDecrementQuantity(t.Context(), batch); reasonOf(err) != "NO_HOLD" {
		t.Errorf("the batch: %v", err)
	}
	wantStock(t, st, laptop, 50, 2)
	// As the consumer does after a failed batch.
	for i, want := range []string{"", "NO_HOLD", "NO_HOLD"} {
		if err := st.onDecrementQuantity(t.Context(), batch[i:i+1]); reasonOf(err) != want {
			t.Errorf("message %d alone: %v, want %q", i, err, want)
		}
	}
	wantStock(t, st, laptop, 48, 0)
}

func TestCancel_HasTheSameResultBeforeAndAfterSettling(t *testing.T) {
	t.Parallel()
	st := newTestStore(t)
	early, late := orderFor(byName("Laptop", 2)), orderFor(byName("Laptop", 3), byName("Phone", 1))
	st.mustCheck(t, early, late)

	st.cancelNow(t, early)
	wantStock(t, st, laptop, 50, 3)
	st.settleNow(t, early, late)
	wantStock(t, st, laptop, 47, 0)
	st.cancelNow(t, late, early)
	st.cancelNow(t, late)

	for _, id := range []int32{laptop, phone} {
		if onHand, reserved := st.stockOf(t, id); reserved != 0 || onHand%50 != 0 {
			t.Errorf("product %d: on_hand %d, reserved %d", id, onHand, reserved)
		}
	}
	var states []string
	if err := st.db.SelectContext(t.Context(), &states, `SELECT DISTINCT state FROM hold`); err != nil || !slices.Equal(states, []string{"RELEASED"}) {
		t.Errorf("holds are %v, %v", states, err)
	}
	var movements []string
	err := st.db.SelectContext(t.Context(), &movements, `
		SELECT reason || ' ' || quantity FROM stock_movement WHERE order_id = $1 AND product_id = 1 ORDER BY id`, late.id)
	if err != nil || !slices.Equal(movements, []string{"SOLD -3", "RESTOCKED 3"}) {
		t.Errorf("movements %v, %v", movements, err)
	}
	if err := st.onOrderCancelled(t.Context(), delivered(cancelOf(orderFor())...)); reasonOf(err) != "NO_HOLD" {
		t.Errorf("cancelling an order that holds nothing: %v", err)
	}
}

// Replicas may get the same orders at once: one settles them while another one is asked about them again and a third
// gives their stock back.
func TestHolds_SettledReleasedAndAskedAboutAtOnceAddUp(t *testing.T) {
	t.Parallel()
	st := newTestStore(t)
	orders := make([]order, 40)
	for i := range orders {
		orders[i] = orderFor(byName("Laptop", 1), byName("Phone", 2), byName("Mouse", 1))
	}
	first := st.mustCheck(t, orders...)
	shuffled := func() []order {
		s := slices.Clone(orders)
		rand.Shuffle(len(s), func(i, j int) { s[i], s[j] = s[j], s[i] })
		return s
	}
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for range 5 {
				if err := st.onDecrementQuantity(t.Context(), delivered(decrementOf(shuffled()...)...)); err != nil {
					t.Errorf("settling: %v", err)
				}
			}
		})
		wg.Go(func() {
			for range 5 {
				if err := st.onOrderCancelled(t.Context(), delivered(cancelOf(shuffled()...)...)); err != nil {
					t.Errorf("releasing: %v", err)
				}
			}
		})
		wg.Go(func() {
			for range 5 {
				again, err := st.check(t.Context(), shuffled())
				if err != nil {
					t.Errorf("asking again: %v", err)
					continue
				}
				for i, o := range orders {
					if !proto.Equal(again.decisions[o.id], first[i]) {
						t.Errorf("order %s: %v, was %v", o.id, again.decisions[o.id], first[i])
					}
				}
			}
		})
	}
	wg.Wait()
	wantStock(t, st, laptop, 50, 0)
	wantStock(t, st, phone, 200, 0)
}

func TestProduct_TheDatabaseItselfRefusesToOversell(t *testing.T) {
	t.Parallel()
	st := newTestStore(t)
	for _, by := range []stockDeltas{
		{laptop: {reserved: 51}}, {laptop: {onHand: -51}}, {laptop: {reserved: -1}}, {laptop: {onHand: -1, reserved: 50}},
	} {
		err := st.changeStock(t.Context(), func(tx *sqlx.Tx) ([]stockChange, error) { return updateStock(t.Context(), tx, by) })
		if !errors.Is(err, postgres.ErrCheck) {
			t.Errorf("%v: %v", by, err)
		}
	}
	wantStock(t, st, laptop, 50, 0)
}
