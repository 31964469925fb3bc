package ordering

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"shop.example/db/dbtest"
	eventsv1 "shop.example/gen/shop/events/v1"
	inventoryv1 "shop.example/gen/shop/inventory/v1"
	orderv1 "shop.example/gen/shop/order/v1"
	"shop.example/platform/postgres"
	"shop.example/platform/testkit/brokertest"
)

// keyed is an order under an idempotency key.
func keyed(key byte, fingerprint byte, lines ...*eventsv1.RequestedLine) *eventsv1.OrderPlaced {
	m := newPlaced(lines...)
	m.KeyHash = bytes.Repeat([]byte{key}, 32)
	m.Fingerprint = bytes.Repeat([]byte{fingerprint}, 32)
	return m
}

// noInventoryFor fails the test if inventory is asked about one of the orders.
func noInventoryFor(t *testing.T, losers ...*eventsv1.OrderPlaced) func(*inventoryv1.CheckStockRequest) (*inventoryv1.CheckStockResponse, error) {
	return func(req *inventoryv1.CheckStockRequest) (*inventoryv1.CheckStockResponse, error) {
		for _, o := range req.GetOrders() {
			if slices.ContainsFunc(losers, func(m *eventsv1.OrderPlaced) bool { return m.GetOrderId() == o.GetOrderId() }) {
				t.Errorf("inventory was asked about order %s, whose key is another order's", o.GetOrderId())
			}
		}
		return each(held)(req)
	}
}

func TestIdempotencyKey_TheSecondOrderOfABatchIsRejected(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	n := newFakePeers(t, broker)
	first, second, other := keyed(1, 1), keyed(1, 2), keyed(2, 3)
	n.inventory(noInventoryFor(t, second))
	n.publish(t, first, second, other, first) // in the queue before the service: one batch
	s, _, _ := start(t, broker, dbtest.New(t))
	n.until(t, "shop.order.confirmed", 2)
	for _, m := range []*eventsv1.OrderPlaced{first, other} {
		if o := mustGet(t, s, m.GetOrderId()); o.GetState() != orderv1.Order_CONFIRMED {
			t.Errorf("order %s is %s", m.GetOrderId(), o.GetState())
		}
	}
	if o := mustGet(t, s, second.GetOrderId()); o.GetState() != orderv1.Order_REJECTED || o.GetReason() != eventsv1.OrderRejected_IDEMPOTENCY_KEY_REUSED {
		t.Errorf("the second order under the key is %s %s", o.GetState(), o.GetReason())
	}
	// A redelivery finds its own claim, and a third order finds that of the first.
	third := keyed(1, 4)
	n.publish(t, first, second, third)
	n.until(t, "shop.order.rejected", 1)
	if o := mustGet(t, s, third.GetOrderId()); o.GetReason() != eventsv1.OrderRejected_IDEMPOTENCY_KEY_REUSED {
		t.Errorf("the third order under the key is %s %s", o.GetState(), o.GetReason())
	}
	if o := mustGet(t, s, first.GetOrderId()); o.GetState() != orderv1.Order_CONFIRMED {
		t.Errorf("the first order is %s after it came again", o.GetState())
	}
	if keys := count(t, s, "idempotency_key"); keys != 2 || len(n.dead) != 0 {
		t.Errorf("%d keys are claimed, %d dead letters", keys, len(n.dead))
	}
}

func TestIdempotencyKey_OrdersOfOneKeyOnTwoReplicasAtOnce(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	n := newFakePeers(t, broker)
	n.inventory(each(held))
	database := dbtest.New(t)
	a, _, _ := start(t, broker, database)
	b, _, _ := start(t, broker, database)
	n.publish(t, keyed(99, 1))
	n.until(t, "shop.order.confirmed", 1) // inventory answers now; the calls below do not wait for it
	var orders []*eventsv1.OrderPlaced
	for key := range byte(50) {
		orders = append(orders, keyed(key, 1), keyed(key, 2))
	}
	var calls errgroup.Group
	for i, s := range []*Service{a, b} {
		calls.Go(func() error {
			for key := range 50 { // each replica gets one order of every key
				if err := s.handleOrderPlaced(t.Context(), messages(orders[2*key+i])); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := calls.Wait(); err != nil {
		t.Fatal(err)
	}
	for key := range 50 {
		states := []string{mustGet(t, a, orders[2*key].GetOrderId()).GetState().String(), mustGet(t, b, orders[2*key+1].GetOrderId()).GetState().String()}
		if slices.Sort(states); !slices.Equal(states, []string{"CONFIRMED", "REJECTED"}) {
			t.Errorf("the orders of key %d are %v", key, states)
		}
	}
}

// While the secret is changed an order may come under the hash of either; both are its own.
func TestIdempotencyKey_ThePreviousSecretsHashCountsToo(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	n := newFakePeers(t, broker)
	before, after := keyed(1, 1), keyed(2, 2)
	after.PreviousKeyHash = before.GetKeyHash()
	n.inventory(noInventoryFor(t, after))
	s, _, _ := start(t, broker, dbtest.New(t))
	n.publish(t, before)
	n.until(t, "shop.order.confirmed", 1)
	n.publish(t, after)
	n.until(t, "shop.order.rejected", 1)
	found, err := intakeServer{Service: s}.FindKey(t.Context(), &orderv1.FindKeyRequest{KeyHashes: [][]byte{before.GetKeyHash(), after.GetKeyHash()}})
	if err != nil || found.GetOrderId() != before.GetOrderId() {
		t.Errorf("the key belongs to %v, %v; want the order that came before", found, err)
	}
}

func TestOrderPlaced_TheSameIDWithOtherContentIsADeadLetter(t *testing.T) {
	t.Parallel()
	for what, oneBatch := range map[string]bool{"in one batch": true, "after it": false} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			broker := brokertest.New(t)
			n := newFakePeers(t, broker)
			n.inventory(each(held))
			first := newPlaced()
			first.Fingerprint = bytes.Repeat([]byte{1}, 32)
			second := proto.CloneOf(first)
			second.CustomerName, second.Fingerprint = "Bob", bytes.Repeat([]byte{2}, 32)
			database := dbtest.New(t)
			var s *Service
			if oneBatch {
				n.publish(t, first, second)
				s, _, _ = start(t, broker, database)
			} else {
				s, _, _ = start(t, broker, database)
				n.publish(t, first)
				n.until(t, "shop.order.confirmed", 1)
				n.publish(t, second)
			}
			if d := next(t, n.dead); d.CorrelationID != first.GetOrderId() || !strings.Contains(d.Reason, "other content") {
				t.Errorf("dead letter of %s: %s", d.CorrelationID, d.Reason)
			}
			if o := mustGet(t, s, first.GetOrderId()); o.GetCustomerName() != "Ada" || o.GetState() != orderv1.Order_CONFIRMED {
				t.Errorf("the order is %v", o)
			}
		})
	}
}

func TestFindKey_SaysWhoseAKeyIs(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	n := newFakePeers(t, broker)
	n.inventory(each(held))
	s, _, _ := start(t, broker, dbtest.New(t))
	find := func(former string, keys ...[]byte) *orderv1.FindKeyResponse {
		t.Helper()
		req := &orderv1.FindKeyRequest{KeyHashes: keys}
		if former != "" {
			req.FormerOrderIds = []string{former}
		}
		resp, err := intakeServer{Service: s}.FindKey(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	m := keyed(1, 1)
	if resp := find("", m.GetKeyHash()); resp.GetOrderId() != "" || resp.Order != nil {
		t.Errorf("a free key: %v", resp)
	}
	if _, err := claimKeys(t.Context(), s.db, []claim{{m.GetKeyHash(), mustPending(t, m).ID}}); err != nil {
		t.Fatal(err)
	}
	if resp := find("", m.GetKeyHash()); resp.GetOrderId() != m.GetOrderId() || resp.Order != nil {
		t.Errorf("a key whose order is being decided: %v", resp)
	}
	former := newPlaced()
	n.publish(t, m, former)
	n.until(t, "shop.order.confirmed", 2)
	if resp := find(former.GetOrderId(), m.GetKeyHash()); resp.GetOrder().GetId() != m.GetOrderId() {
		t.Errorf("a key whose order is decided: %v", resp)
	}
	if resp := find(former.GetOrderId(), bytes.Repeat([]byte{9}, 32)); resp.GetOrder().GetId() != former.GetOrderId() {
		t.Errorf("an id of the release before: %v", resp)
	}
}

func mustPending(t *testing.T, m *eventsv1.OrderPlaced) *Order {
	t.Helper()
	o, err := newOrder(m)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func TestIdempotencyKeys_AreFreedWhenTheirOrdersCannotComeAgain(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	s, _, _ := start(t, broker, dbtest.New(t))
	old, young := keyed(1, 1), keyed(2, 2)
	if _, err := claimKeys(t.Context(), s.db, []claim{{old.GetKeyHash(), mustPending(t, old).ID}, {young.GetKeyHash(), mustPending(t, young).ID}}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.db.ExecContext(t.Context(), `UPDATE idempotency_key SET claimed_at = now() - interval '31 days' WHERE key_hash = $1`, old.GetKeyHash()); err != nil {
		t.Fatal(err)
	}
	if n, err := postgres.DeleteOlder(t.Context(), s.db, "idempotency_key", "claimed_at", defaultKeyRetention); n != 1 || err != nil {
		t.Errorf("%d keys were deleted, %v", n, err)
	}
	if rows, err := keyOwners(t.Context(), s.db, postgres.ArrayOf([][]byte{old.GetKeyHash(), young.GetKeyHash()})); len(rows) != 1 || err != nil {
		t.Errorf("%v are left, %v", rows, err)
	}
}

func TestKeyRetention_IsLongerThanAnOrderCanComeAgain(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	if got, err := (Config{}).checkKeyRetention(); got != 30*day || err != nil {
		t.Errorf("the default is %s, %v", got, err)
	}
	for what, c := range map[string]struct {
		cfg   Config
		wrong string
	}{
		"shorter than the default horizon": {Config{KeyRetention: 7 * day}, "IDEMPOTENCY_KEY_RETENTION is 168h0m0s"},
		"a horizon of 30 days":             {Config{RedriveHorizon: 30 * day}, "can come again for 744h1m11s"},
		"a horizon in the past":            {Config{RedriveHorizon: -day}, "REDRIVE_HORIZON"},
		"both together":                    {Config{RedriveHorizon: 30 * day, KeyRetention: 32 * day}, ""},
	} {
		_, err := c.cfg.checkKeyRetention()
		if (err != nil) != (c.wrong != "") || err != nil && !strings.Contains(err.Error(), c.wrong) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// A reason that only a newer release knows is kept and told as it came, not turned into "not said".
func TestOrderRejected_AReasonOfANewerReleaseIsKept(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	n := newFakePeers(t, broker)
	const unknown = eventsv1.OrderRejected_Reason(4711)
	n.inventory(each(func(m *eventsv1.OrderPlaced) *inventoryv1.StockDecision {
		return &inventoryv1.StockDecision{OrderId: m.GetOrderId(), Rejection: &inventoryv1.StockDecision_Rejection{Reason: unknown}}
	}))
	s, _, _ := start(t, broker, dbtest.New(t))
	m := newPlaced()
	n.publish(t, m)
	for {
		d := next(t, n.events)
		if d.RoutingKey != "shop.order.rejected" {
			continue
		}
		var event eventsv1.OrderRejected
		if err := proto.Unmarshal(d.Body, &event); err != nil || event.GetReason() != unknown {
			t.Errorf("the event says %v, %v", &event, err)
		}
		break
	}
	if o := mustGet(t, s, m.GetOrderId()); o.GetReason() != unknown || o.GetState() != orderv1.Order_REJECTED {
		t.Errorf("the order is %v", o)
	}
}
