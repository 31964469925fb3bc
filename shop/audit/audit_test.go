package audit

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"

	"shop.example/db"
	"shop.example/db/dbtest"
	"shop.example/domain/money"
	"shop.example/domain/orderstate"
	eventsv1 "shop.example/gen/shop/events/v1"
	inventoryv1 "shop.example/gen/shop/inventory/v1"
	"shop.example/platform/testkit/postgrestest"
)

// shop is a database with a confirmed, a cancelled and a rejected order in it, decided ten minutes ago, which add up.
type shop struct {
	*sql.DB
	*Auditor
	confirmed, cancelled, rejected string
}

func newShop(t *testing.T) *shop {
	t.Helper()
	url := dbtest.New(t)
	pool, err := sql.Open("postgres", url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = pool.Close() })
	urls := map[string]string{}
	for _, schema := range db.Schemas() {
		urls[schema] = url
	}
	auditor, err := Open(t.Context(), Config{DatabaseURLs: urls, Pause: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := auditor.Close(); err != nil {
			t.Error(err)
		}
	})
	s := &shop{DB: pool, Auditor: auditor}
	s.confirmed, s.cancelled, s.rejected = s.store(t, "CONFIRMED"), s.store(t, "CANCELLED"), s.store(t, "REJECTED")
	return s
}

// store writes what there is of an order of 3 Laptop Stands at 35.00 and 4 Mouse Pads at 25.00 once all is done.
func (s *shop) store(t *testing.T, state string) (id string) {
	t.Helper()
	id = uuid.Must(uuid.NewV7()).String()
	for _, event := range eventsOf(orderstate.Parse(state)) {
		s.log(t, id, event)
	}
	answer := &inventoryv1.StockDecision{OrderId: id}
	if state == "REJECTED" {
		s.exec(t, `INSERT INTO orders.orders (id, customer_name, customer_email, state, reason, total_items, created_at, updated_at)
			VALUES ($1, 'Ada', 'ada@example.org', 'REJECTED', 'OUT_OF_STOCK', 7, now() - interval '10 min', now() - interval '10 min')`, id)
		s.exec(t, `INSERT INTO orders.order_item (order_id, line, product_id, product_name, quantity) VALUES ($1, 1, 5, '', 7)`, id)
		s.exec(t, `INSERT INTO inventory.decision (order_id, lines_hash, reason, answer, decided_at)
			VALUES ($1, '', 'OUT_OF_STOCK', '', now() - interval '10 min')`, id)
		return id
	}
	s.exec(t, `INSERT INTO orders.orders (id, customer_name, customer_email, state, total_items, total_value, currency, created_at, updated_at)
		VALUES ($1, 'Ada', 'ada@example.org', $2, 7, 20500, 'USD', now() - interval '10 min', now() - interval '10 min')`, id, state)
	s.exec(t, `INSERT INTO orders.order_item (order_id, line, product_id, product_name, quantity, unit_price)
		VALUES ($1, 1, 5, 'Laptop Stand', 3, 3500), ($1, 2, 6, 'Mouse Pad', 4, 2500)`, id)
	answer.Lines = []*eventsv1.PricedLine{
		{Line: 1, ProductId: 5, ProductName: "Laptop Stand", Quantity: 3, UnitPrice: money.FromMinor(3500, "USD")},
		{Line: 2, ProductId: 6, ProductName: "Mouse Pad", Quantity: 4, UnitPrice: money.FromMinor(2500, "USD")},
	}
	body, err := proto.Marshal(answer)
	if err != nil {
		t.Fatal(err)
	}
	s.exec(t, `INSERT INTO inventory.decision (order_id, lines_hash, answer, decided_at) VALUES ($1, '', $2, now() - interval '10 min')`, id, body)
	s.exec(t, `INSERT INTO inventory.hold (order_id, product_id, quantity, state) VALUES ($1, 5, 3, $2), ($1, 6, 4, $2)`, id,
		holdsOf[orderstate.StockOf(orderstate.Parse(state))])
	s.exec(t, `INSERT INTO inventory.stock_movement (product_id, order_id, quantity, reason) VALUES (5, $1, -3, 'SOLD'), (6, $1, -4, 'SOLD')`, id)
	if orderstate.StockOf(orderstate.Parse(state)) == orderstate.Released {
		s.exec(t, `INSERT INTO inventory.stock_movement (product_id, order_id, quantity, reason) VALUES (5, $1, 3, 'RESTOCKED'), (6, $1, 4, 'RESTOCKED')`, id)
		return id
	}
	s.exec(t, `UPDATE inventory.product SET on_hand = on_hand - id + 2 WHERE id IN (5, 6)`)
	return id
}

func (s *shop) log(t *testing.T, order, event string) {
	t.Helper()
	payload := `{}` // only that of OrderPlaced is read
	if event == placed {
		payload = `{"order_id": "` + order + `", "customer_name": "Ada", "customer_email": "ada@example.org", "lines": [{"product_id": 5, "quantity": 7}], "placed_at": "2026-01-01T00:00:00Z"}`
	}
	s.exec(t, `INSERT INTO logging.event_log (routing_key, exchange, payload, status, message_id, order_id, published_at)
		VALUES ($2, 'shop.topic', $3, 'success', gen_random_uuid(), $1, now() - interval '10 min')`, order, event, payload)
}

const sent = `INSERT INTO logging.unhandled_event (message_id, event_id, routing_key, queue, order_id, published_at, sent, sent_at)
	VALUES (gen_random_uuid(), 1, 'shop.order.placed', 'order', '%o', now(), 2, now() - interval '3 min')`

func (s *shop) exec(t *testing.T, query string, args ...any) {
	t.Helper()
	if _, err := s.ExecContext(t.Context(), query, args...); err != nil {
		t.Fatalf("%v in %s", err, query)
	}
}

func (s *shop) audit(t *testing.T) *Report {
	t.Helper()
	r, err := s.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestRun_WhatAddsUpHasNoViolation(t *testing.T) {
	t.Parallel()
	r := newShop(t).audit(t)
	if len(r.Violations) != 0 || r.Count() != 0 || r.InFlight() != 0 || r.Orders != 3 || len(r.Checks) != len(checks) {
		t.Errorf("%+v", r)
	}
}

func TestStates_AnOrderInEachThatAddsUpHasNoViolation(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	for _, state := range orderstate.Stored() {
		s.store(t, state.String())
	}
	if r := s.audit(t); len(r.Violations) != 0 || r.InFlight() != 0 || r.Orders != 3+len(orderstate.Stored()) {
		t.Errorf("%+v", r)
	}
}

// A new state or reason of the contract has to be one that the audit can compare.
func TestStates_TheAuditKnowsEveryStateAndReasonOfTheContract(t *testing.T) {
	t.Parallel()
	for _, state := range orderstate.Stored() {
		if !isKnownState(state.String()) {
			t.Errorf("Order.State %s: say in package orderstate which events such an order has had, and in holdsOf how its holds are", state)
		}
	}
	values := eventsv1.OrderRejected_REASON_UNSPECIFIED.Descriptor().Values()
	for i := range values.Len() {
		reason := string(values.Get(i).Name())
		f := &orderView{id: "o", order: &order{state: "REJECTED", reason: reason}}
		if !decidedAlone[reason] {
			f.decision = &decision{reason: reason}
		}
		if found := (&Auditor{late: time.Minute}).compare(f); len(found) > 0 {
			t.Errorf("an order that was rejected for %s: %v", reason, found)
		}
		f.decision = &decision{reason: "ANOTHER"}
		if found := (&Auditor{late: time.Minute}).compare(f); len(found) > 0 == decidedAlone[reason] {
			t.Errorf("an order that was rejected for %s, and by inventory for another reason: %v", reason, found)
		}
	}
}

// An order in a state of a newer release was compared as if its events and holds had been lost.
func TestStates_OneThatTheAuditDoesNotKnowIsAViolationAndNothingElse(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	s.exec(t, `ALTER TABLE orders.orders DROP CONSTRAINT orders_state_check`)
	s.exec(t, `UPDATE orders.orders SET state = 'OF_A_NEWER_RELEASE' WHERE id = $1`, s.confirmed)
	r := s.audit(t)
	want := "it is OF_A_NEWER_RELEASE, a state that this audit does not know"
	if len(r.Violations) != 1 || r.Violations[0].Check != States || !strings.Contains(r.Violations[0].String(), want) || len(r.Lost()) != 0 {
		t.Errorf("%v, lost %v; want one violation: %s", r.Violations, r.Lost(), want)
	}
}

// While a release with a new reason was rolled out, services that had no name for it stored its number: each such order was a
// contradiction for good.
func TestRun_AReasonThatWasStoredAsItsNumberIsTheSame(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	s.exec(t, `UPDATE orders.orders SET reason = '1' WHERE id = $1`, s.rejected)
	if r := s.audit(t); r.Count() != 0 {
		t.Errorf("a reason that this audit knows: %v", r.Violations)
	}
	answer, err := proto.Marshal(&inventoryv1.StockDecision{OrderId: s.rejected, Rejection: &inventoryv1.StockDecision_Rejection{Reason: 99}})
	if err != nil {
		t.Fatal(err)
	}
	s.exec(t, `UPDATE inventory.decision SET reason = 'OF_A_NEWER_RELEASE', answer = $2 WHERE order_id = $1`, s.rejected, answer)
	if r := s.audit(t); r.Count() != 1 || r.Violations[0].Detail != "it is REJECTED for OUT_OF_STOCK, inventory refused it for 99" {
		t.Errorf("another reason: %v", r.Violations)
	}
	s.exec(t, `UPDATE orders.orders SET reason = '99' WHERE id = $1`, s.rejected)
	if r := s.audit(t); r.Count() != 0 {
		t.Errorf("a reason of a newer release: %v", r.Violations)
	}
}

const (
	letter = `INSERT INTO logging.dead_letter (state, reason, source_queue, exchange, routing_key, message_id, order_id, attempts, headers, body, published_at)
		VALUES ($2, 'it is too late', 'order', 'shop.topic', 'shop.order.placed', gen_random_uuid(), $1, 4, '{}', '', now())`
	outbox = `INSERT INTO %s.outbox (message_id, exchange, routing_key, type, correlation_id, traceparent, body, created_at)
		VALUES (gen_random_uuid(), '', '', '', '', '', '', now() - interval '%d s')`
)

// %o stands for an order that is not stored, %c, %x and %r for the confirmed, the cancelled and the rejected one.
func TestRun_FindsWhatIsWrongAndNamesIt(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		wrong []string
		want  []string // check and what the violation says, all of them
	}{
		"stock that moved without a movement": {
			[]string{`UPDATE inventory.product SET on_hand = on_hand - 1 WHERE id = 1`},
			[]string{"on_hand product 1 (Laptop): 49 on hand, its movements sum up to 50"},
		},
		"stock that was sold twice": {
			[]string{`INSERT INTO inventory.stock_movement (product_id, order_id, quantity, reason) VALUES (5, '%c', -3, 'SOLD')`,
				`UPDATE inventory.product SET on_hand = on_hand - 3 WHERE id = 5`},
			[]string{"sold product 5 (Laptop Stand): 6 left the stock for orders, its settled holds sum up to 3"},
		},
		"a reservation that nobody holds": {
			[]string{`UPDATE inventory.product SET reserved = 2 WHERE id = 1`},
			[]string{"reserved product 1 (Laptop): 2 reserved, its open holds sum up to 0"},
		},
		"an order that was placed and never decided": {
			[]string{`INSERT INTO logging.event_log (routing_key, exchange, payload, status, message_id, order_id, published_at)
				VALUES ('shop.order.placed', 'shop.topic', '{"order_id": "%o", "customer_name": "Ada", "customer_email": "a@b", "lines": [{"product_id": 1, "quantity": 1}],
				"placed_at": "2026-01-01T00:00:00Z"}', 'success', gen_random_uuid(), '%o', now() - interval '2 min')`},
			[]string{"undecided order %o: it was placed 2m0s ago, but is neither decided nor stored"},
		},
		"a hold without an order": {
			[]string{`INSERT INTO inventory.decision (order_id, lines_hash, answer, decided_at) VALUES ('%o', '', '', now() - interval '3 min')`,
				`INSERT INTO inventory.hold (order_id, product_id, quantity) VALUES ('%o', 1, 2)`,
				`UPDATE inventory.product SET reserved = 2 WHERE id = 1`},
			[]string{"undecided order %o: its stock was held 3m0s ago, but the order is not stored"},
		},
		"a refusal without an order": {
			[]string{`INSERT INTO inventory.decision (order_id, lines_hash, reason, answer, decided_at) VALUES ('%o', '', 'PRICE_CHANGED', '', now() - interval '3 min')`},
			[]string{"undecided order %o: it was refused (PRICE_CHANGED) 3m0s ago, but the order is not stored"},
		},
		"a rejected order without a decision": {
			[]string{`DELETE FROM inventory.decision WHERE order_id = '%r'`},
			[]string{"decisions order %r: it is REJECTED, but inventory has no decision about it"},
		},
		"a confirmed order without decision and holds": {
			[]string{`DELETE FROM inventory.hold WHERE order_id = '%c'`, `DELETE FROM inventory.decision WHERE order_id = '%c'`,
				`DELETE FROM inventory.stock_movement WHERE order_id = '%c'`, `UPDATE inventory.product SET on_hand = on_hand + id - 2 WHERE id IN (5, 6)`},
			[]string{"decisions order %c: it is CONFIRMED, but inventory has no decision about it",
				"holds order %c: it is CONFIRMED, but none of its 3 pieces of product 5 were held",
				"holds order %c: it is CONFIRMED, but none of its 4 pieces of product 6 were held"},
		},
		"an order that was refused and confirmed": {
			[]string{`UPDATE inventory.decision SET reason = 'OUT_OF_STOCK' WHERE order_id = '%c'`},
			[]string{"decisions order %c: it is CONFIRMED, but inventory refused it (OUT_OF_STOCK)"},
		},
		"an order that was granted and rejected": {
			[]string{`UPDATE inventory.decision SET reason = NULL WHERE order_id = '%r'`},
			[]string{"decisions order %r: it is REJECTED (OUT_OF_STOCK), but inventory held its stock"},
		},
		"another reason": {
			[]string{`UPDATE inventory.decision SET reason = 'UNKNOWN_PRODUCT' WHERE order_id = '%r'`},
			[]string{"decisions order %r: it is REJECTED for OUT_OF_STOCK, inventory refused it for UNKNOWN_PRODUCT"},
		},
		"a settlement that is lost": {
			[]string{`UPDATE inventory.hold SET state = 'HELD' WHERE order_id = '%c' AND product_id = 5`, `DELETE FROM inventory.stock_movement WHERE order_id = '%c' AND product_id = 5`,
				`UPDATE inventory.product SET reserved = 3, on_hand = on_hand + 3 WHERE id = 5`},
			[]string{"holds order %c: it is CONFIRMED for 10m0s, but 3 pieces of product 5 are HELD"},
		},
		"a confirmed order whose stock went back": {
			[]string{`UPDATE inventory.hold SET state = 'RELEASED' WHERE order_id = '%c' AND product_id = 5`, `DELETE FROM inventory.stock_movement WHERE order_id = '%c' AND product_id = 5`,
				`UPDATE inventory.product SET on_hand = on_hand + 3 WHERE id = 5`},
			[]string{"holds order %c: it is CONFIRMED for 10m0s, but 3 pieces of product 5 are RELEASED"},
		},
		"a cancelled order whose stock did not go back": {
			[]string{`UPDATE inventory.hold SET state = 'SETTLED' WHERE order_id = '%x' AND product_id = 5`, `DELETE FROM inventory.stock_movement WHERE order_id = '%x' AND reason = 'RESTOCKED' AND product_id = 5`,
				`UPDATE inventory.product SET on_hand = on_hand - 3 WHERE id = 5`},
			[]string{"holds order %x: it is CANCELLED for 10m0s, but 3 pieces of product 5 are SETTLED"},
		},
		"a rejected order that holds stock": {
			[]string{`INSERT INTO inventory.hold (order_id, product_id, quantity) VALUES ('%r', 1, 2)`, `UPDATE inventory.product SET reserved = 2 WHERE id = 1`},
			[]string{"holds order %r: it is REJECTED, but 2 pieces of product 1 are HELD"},
		},
		"a hold of another quantity": {
			[]string{`UPDATE orders.order_item SET quantity = 2 WHERE order_id = '%c' AND line = 1`, `UPDATE orders.orders SET total_items = 6, total_value = 17000 WHERE id = '%c'`},
			[]string{"lines order %c: 2 pieces of product 5 are ordered, 3 are SETTLED",
				"lines order %c: its line 1: 2 of product 5 (Laptop Stand) at 35.00 USD was decided as 1: 3 of product 5 (Laptop Stand) at 35.00 USD"},
		},
		"another price": {
			[]string{`UPDATE orders.order_item SET unit_price = 1 WHERE order_id = '%x' AND line = 2`, `UPDATE orders.orders SET total_value = 10504 WHERE id = '%x'`},
			[]string{"lines order %x: its line 2: 4 of product 6 (Mouse Pad) at 0.01 USD was decided as 2: 4 of product 6 (Mouse Pad) at 25.00 USD"},
		},
		"another total": {
			[]string{`UPDATE orders.orders SET total_value = 20499 WHERE id = '%c'`},
			[]string{"lines order %c: its totals are 7 pieces and 204.99 USD, its lines sum up to 7 and 205.00 USD"},
		},
		"events that are missing": {
			[]string{`DELETE FROM logging.event_log WHERE routing_key IN ('shop.order.placed', 'shop.inventory.decrement.quantity') AND order_id = '%c'`},
			[]string{"events order %c: it is CONFIRMED for 10m0s, but the log has no shop.inventory.decrement.quantity",
				"events order %c: it is CONFIRMED for 10m0s, but the log has no shop.order.placed"},
		},
		"an event of another outcome": {
			[]string{`INSERT INTO logging.event_log (routing_key, exchange, payload, status, message_id, order_id, published_at)
				VALUES ('shop.order.confirmed', 'shop.topic', '{}', 'success', gen_random_uuid(), '%r', now())`},
			[]string{"events order %r: it is REJECTED, but the log has shop.order.confirmed"},
		},
		"an order that is lost": {
			[]string{`DELETE FROM orders.order_item WHERE order_id = '%r'`, `DELETE FROM orders.orders WHERE id = '%r'`},
			[]string{"undecided order %r: it was refused (OUT_OF_STOCK) 10m0s ago, but the order is not stored",
				"events order %r: it is not stored, but the log has shop.order.rejected"},
		},
		"an event that is logged twice": {
			[]string{`INSERT INTO logging.event_log (routing_key, exchange, payload, status, message_id, order_id, published_at)
				SELECT routing_key, exchange, payload, status, message_id, order_id, now() FROM logging.event_log WHERE order_id = '%x' AND routing_key = 'shop.order.cancelled'`},
			[]string{"duplicates order %x: the log has shop.order.cancelled 2 times"},
		},
		"a message that waits for a person": {
			[]string{strings.NewReplacer("$1", "'%c'", "$2", "'OPEN'").Replace(letter)},
			[]string{`dead_letters order %c: dead letter 1, shop.order.placed of queue "order" (attempts: 4): it is too late`},
		},
		"messages that wait for the broker": {
			[]string{fmt.Sprintf(outbox, "orders", 90), fmt.Sprintf(outbox, "orders", 10), fmt.Sprintf(outbox, "inventory", 90), fmt.Sprintf(outbox, "inventory", 125), fmt.Sprintf(outbox, "webhooks", 70)},
			[]string{"outbox the outbox of orders has 1 messages that are older than 1m0s, the oldest 1m0s",
				"outbox the outbox of inventory has 2 messages that are older than 1m0s, the oldest 2m0s",
				"outbox the outbox of webhooks has 1 messages that are older than 1m0s, the oldest 1m0s"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newShop(t)
			names := strings.NewReplacer("%o", uuid.NewString(), "%c", s.confirmed, "%x", s.cancelled, "%r", s.rejected)
			for _, query := range tt.wrong {
				s.exec(t, names.Replace(query))
			}
			r := s.audit(t)
			var got []string
			for _, v := range r.Violations {
				got = append(got, fmt.Sprintf("%s %s", v.Check, v))
			}
			want := names.Replace(strings.Join(tt.want, "\n"))
			if strings.Join(got, "\n") != want || r.Count() != len(tt.want) {
				t.Errorf("found %d violations:\n%s\nwant\n%s", r.Count(), strings.Join(got, "\n"), want)
			}
		})
	}
}

func TestRun_WhatIsOnItsWayIsInFlight(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	waits, held, refused := uuid.NewString(), uuid.NewString(), uuid.NewString()
	s.log(t, waits, placed)
	s.exec(t, `UPDATE logging.event_log SET published_at = now() WHERE order_id = $1`, waits)
	s.exec(t, `INSERT INTO inventory.decision (order_id, lines_hash, answer) VALUES ($1, '', '')`, held)
	s.exec(t, `INSERT INTO inventory.decision (order_id, lines_hash, reason, answer) VALUES ($1, '', 'OUT_OF_STOCK', '')`, refused)
	// Confirmed and cancelled a moment ago: the holds do not know yet, nor does the log.
	s.exec(t, `UPDATE orders.orders SET updated_at = now()`)
	s.exec(t, `UPDATE inventory.hold SET state = 'HELD' WHERE order_id = $1`, s.confirmed)
	s.exec(t, `DELETE FROM inventory.stock_movement WHERE order_id = $1`, s.confirmed)
	s.exec(t, `UPDATE inventory.product SET on_hand = on_hand + id - 2, reserved = id - 2 WHERE id IN (5, 6)`)
	s.exec(t, `UPDATE inventory.hold SET state = 'SETTLED' WHERE order_id = $1`, s.cancelled)
	s.exec(t, `DELETE FROM inventory.stock_movement WHERE order_id = $1 AND reason = 'RESTOCKED'`, s.cancelled)
	s.exec(t, `UPDATE inventory.product SET on_hand = on_hand - id + 2 WHERE id IN (5, 6)`)
	s.exec(t, `DELETE FROM logging.event_log WHERE order_id = $1`, s.rejected)
	s.exec(t, fmt.Sprintf(outbox, "orders", 5))

	r := s.audit(t)
	for _, c := range r.Checks {
		if want := map[Check]int{Undecided: 3, Holds: 2, Events: 2, Outbox: 1}[c.Check]; c.Violations != 0 || c.InFlight != want {
			t.Errorf("%s: %d violations and %d in flight, want none and %d", c.Check, c.Violations, c.InFlight, want)
		}
	}
	if r.Orders != 6 {
		t.Errorf("%d orders", r.Orders)
	}
	for _, v := range r.Violations {
		t.Log(v)
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.RunWhenQuiet(ctx, time.Minute); err == nil {
		t.Error("it was quiet")
	}
}

// Between two reads an order moved on.
func TestRun_WhatIsRightTheSecondTimeIsNoViolation(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	s.exec(t, `UPDATE inventory.decision SET reason = 'UNKNOWN_PRODUCT' WHERE order_id = $1`, s.rejected)
	suspect := func(check Check, order string) finding {
		return finding{Violation: Violation{Check: check, OrderID: order}, late: true}
	}
	found, err := s.confirm(t.Context(), []finding{suspect(Holds, s.confirmed), suspect(Decisions, s.rejected), suspect(Events, s.rejected)})
	if err != nil {
		t.Fatal(err)
	}
	if len(found) != 1 || found[0].OrderID != s.rejected || found[0].Check != Decisions {
		t.Errorf("found %+v", found)
	}
}

func TestRun_TheBeginningOfAnOrderIsLostAndCanBeSentAgain(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	s.exec(t, `DELETE FROM logging.event_log WHERE routing_key = 'shop.order.placed' AND order_id = $1`, s.confirmed)
	if r := s.audit(t); r.Count() != 1 || !slices.Equal(r.Lost(), []string{s.confirmed}) {
		t.Errorf("%v, lost %v", r.Violations, r.Lost())
	}
	// The record of what was sent again is about the decision.
	s.exec(t, `INSERT INTO logging.unhandled_event (message_id, routing_key, queue, order_id, event_id, published_at, sent, sent_at)
		VALUES (gen_random_uuid(), 'shop.order.confirmed', 'logging', $1, 1, now(), 1, now())`, s.confirmed)
	if r := s.audit(t); len(r.Resent) != 1 || r.Resent[0].RoutingKey != placed {
		t.Errorf("sent again: %+v", r.Resent)
	}
}

// A person has decided that the order comes to nothing.
func TestRun_AnOrderThatWasDiscardedIsNotUndecided(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	id := uuid.NewString()
	s.log(t, id, placed)
	if n := s.audit(t).Count(); n != 1 {
		t.Fatalf("%d violations before", n)
	}
	s.exec(t, letter, id, "DISCARDED")
	if r := s.audit(t); r.Count() != 0 {
		t.Errorf("%+v", r.Violations)
	}
	// It was rejected, and that was lost with the database of the order service.
	s.log(t, id, routingKey(&eventsv1.OrderRejected{}))
	if r := s.audit(t); r.Count() != 1 || !strings.HasSuffix(r.Violations[0].Detail, "it is not stored, but the log has shop.order.rejected; discard dead letter 1 again") {
		t.Errorf("%+v", r.Violations)
	}
}

// A letter of another queue, or a forged one, was discarded: that rejects no order, and hid one that was lost.
func TestRun_AnOrderOfWhichAnotherLetterWasDiscardedIsUndecided(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	id := uuid.NewString()
	s.log(t, id, placed)
	for what, change := range map[string]string{
		"of another queue":                    `source_queue = 'logging'`,
		"of another service":                  `headers = '{"shop-user": "inventory"}'`,
		"of another service, with a prefix":   `headers = '{"shop-user": "shop2-webhooks"}'`,
		"of a user whose name ends similarly": `headers = '{"shop-user": "nogateway"}'`,
	} {
		s.exec(t, `DELETE FROM logging.dead_letter`)
		s.exec(t, letter, id, "DISCARDED")
		s.exec(t, `UPDATE logging.dead_letter SET `+change)
		if r := s.audit(t); r.Count() != 1 || r.Violations[0].Check != Undecided || !slices.Equal(r.Lost(), []string{id}) {
			t.Errorf("%s: %v, lost %v", what, r.Violations, r.Lost())
		}
	}
	for _, headers := range []string{`{"shop-user": "gateway"}`, `{"shop-user": "shop2-gateway"}`, `{"shop-user": "", "other": "\u0000"}`} {
		s.exec(t, `DELETE FROM logging.dead_letter`)
		s.exec(t, letter, id, "DISCARDED")
		s.exec(t, `UPDATE logging.dead_letter SET headers = $1`, headers)
		if r := s.audit(t); r.Count() != 0 {
			t.Errorf("%s: %v", headers, r.Violations)
		}
	}
}

// What was erased is no loss, and neither is what was refused before the log begins.
func TestRun_AnOrderThatWasErasedIsNotUndecided(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	erased, old := uuid.NewString(), uuid.NewString()
	s.log(t, erased, placed)
	s.exec(t, `INSERT INTO inventory.decision (order_id, lines_hash, reason, answer, decided_at) VALUES ($1, '', 'OUT_OF_STOCK', '', '2026-01-01')`, old)
	if r := s.audit(t); r.Count() != 2 || len(r.Lost()) != 2 {
		t.Fatalf("before: %v, lost %v", r.Violations, r.Lost())
	}
	s.exec(t, `UPDATE logging.event_log SET payload = '{"customer_name": "(erased)"}' WHERE order_id = $1`, erased)
	s.exec(t, `CREATE TABLE logging.event_log_20260601 PARTITION OF logging.event_log FOR VALUES FROM ('2026-06-01') TO ('2026-06-02')`)
	if r := s.audit(t); r.Count() != 0 || len(r.Lost()) != 0 {
		t.Errorf("%v, lost %v", r.Violations, r.Lost())
	}
	// What could not be read from the start is somebody's order.
	s.exec(t, `UPDATE logging.event_log SET status = 'error', payload = NULL, body = '\xff' WHERE order_id = $1`, erased)
	if r := s.audit(t); r.Count() != 1 {
		t.Errorf("%v", r.Violations)
	}
}

func TestRun_WhatADiscardedOrderHoldsIsOnItsWayUntilTheSweeperHasHadItsTime(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	s.exec(t, `UPDATE orders.orders SET reason = 'DISCARDED' WHERE id = $1`, s.rejected)
	s.exec(t, `UPDATE inventory.decision SET reason = NULL WHERE order_id = $1`, s.rejected)
	s.exec(t, `INSERT INTO inventory.hold (order_id, product_id, quantity, updated_at) VALUES ($1, 1, 2, now() - interval '16 min')`, s.rejected)
	s.exec(t, `UPDATE inventory.product SET reserved = 2 WHERE id = 1`)
	if r := s.audit(t); r.Count() != 0 || r.InFlight() != 1 {
		t.Errorf("%d in flight, %v", r.InFlight(), r.Violations)
	}
	s.exec(t, `UPDATE inventory.hold SET updated_at = now() - interval '18 min' WHERE order_id = $1`, s.rejected)
	if r := s.audit(t); r.Count() != 1 || r.Violations[0].Check != Holds {
		t.Errorf("after the sweeper's time: %v", r.Violations)
	}
	s.holdLimit = time.Hour
	if r := s.audit(t); r.Count() != 0 {
		t.Errorf("with a limit of an hour: %v", r.Violations)
	}
}

func TestRun_SaysWhatWasLostAndSentAgain(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	if r := s.audit(t); r.ResentCount != 0 || r.Resent == nil {
		t.Errorf("%+v", r)
	}
	s.exec(t, strings.ReplaceAll(sent, "%o", s.rejected))
	s.exec(t, `UPDATE logging.unhandled_event SET closed_at = now(), outcome = 'handled'`)
	lost := uuid.NewString()
	s.exec(t, strings.ReplaceAll(sent, "%o", lost))
	s.log(t, lost, placed)
	r := s.audit(t)
	if r.ResentCount != 2 || len(r.Resent) != 2 {
		t.Fatalf("%+v", r.Resent)
	}
	for _, e := range r.Resent {
		if want := map[string]string{lost: "", s.rejected: "handled"}[e.OrderID]; e.Outcome != want || e.Times != 2 || e.RoutingKey != placed || time.Since(e.At) < 2*time.Minute {
			t.Errorf("%+v", e)
		}
	}
	if r.Count() != 1 || !strings.HasSuffix(r.Violations[0].Detail, "is neither decided nor stored; it was sent again 2 times, 3m0s ago last") {
		t.Errorf("%v", r.Violations)
	}
	s.since = 2 * time.Minute
	if r := s.audit(t); r.ResentCount != 0 {
		t.Errorf("of the last two minutes: %+v", r.Resent)
	}
}

func TestRun_ErasedOrdersAreNoViolations(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	erase := func(id string) {
		s.exec(t, `UPDATE orders.orders SET customer_name = '(erased)', customer_email = '(erased)', owner = NULL, fingerprint = NULL WHERE id = $1`, id)
		s.exec(t, `UPDATE logging.event_log SET payload = '{"customer_name": "(erased)"}' WHERE order_id = $1 AND routing_key = 'shop.order.placed'`, id)
	}
	undecided, lost := uuid.NewString(), uuid.NewString()
	s.log(t, undecided, placed)
	s.log(t, lost, placed)
	for _, id := range []string{s.confirmed, s.cancelled, s.rejected, undecided} {
		erase(id)
	}
	if r := s.audit(t); len(r.Violations) != 1 || r.Violations[0].OrderID != lost || r.Violations[0].Check != Undecided {
		t.Errorf("%+v, want the one that was not erased", r.Violations)
	}
}

func TestRun_OrdersOlderThanTheLogNeedNoEvents(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	s.exec(t, `DELETE FROM logging.event_log`)
	if n := s.audit(t).Count(); n == 0 {
		t.Fatal("no violations, although nothing is logged")
	}
	tomorrow := time.Now().UTC().AddDate(0, 0, 1)
	s.exec(t, fmt.Sprintf(`CREATE TABLE logging.event_log_%s PARTITION OF logging.event_log FOR VALUES FROM ('%s') TO ('%s')`,
		tomorrow.Format("20060102"), tomorrow.Format("2006-01-02T00:00:00Z"), tomorrow.AddDate(0, 0, 1).Format("2006-01-02T00:00:00Z")))
	if r := s.audit(t); r.Count() != 0 {
		t.Errorf("%+v", r.Violations)
	}
}

// Its orders are decided hours before they are placed: the audit did not find the events of the decision, for good, or did not look
// at the orders at all.
func TestRun_OrdersOfAGatewayWhoseClockIsAheadAddUp(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	for _, of := range []struct{ decided, placed string }{{"10 h", "5 h"}, {"10 min", "-5 h"}} {
		s.exec(t, `UPDATE orders.orders SET created_at = now() - $1::interval, updated_at = now() - $2::interval`, of.placed, of.decided)
		s.exec(t, `UPDATE inventory.decision SET decided_at = now() - $1::interval`, of.decided)
		s.exec(t, `UPDATE logging.event_log SET published_at = now() - CASE WHEN routing_key = $1 THEN $2::interval ELSE $3::interval END`, placed, of.placed, of.decided)
		if r := s.audit(t); r.Count() != 0 || r.Orders != 3 {
			t.Errorf("decided %s ago, placed %s ago: %d orders, %v", of.decided, of.placed, r.Orders, r.Violations)
		}
	}
	// It cancels one of them.
	s.exec(t, `UPDATE orders.orders SET updated_at = now() - interval '30 s' WHERE id = $1`, s.cancelled)
	if r := s.audit(t); r.Count() != 0 {
		t.Errorf("cancelled before it is placed: %v", r.Violations)
	}
	s.exec(t, `DELETE FROM logging.event_log WHERE order_id = $1 AND routing_key = 'shop.order.cancelled'`, s.cancelled)
	if r := s.audit(t); r.Count() != 0 || r.InFlight() != 1 {
		t.Errorf("an event that is on its way: %d in flight, %v", r.InFlight(), r.Violations)
	}
}

// The audit had read where the log begins, and took what was dropped after that for lost.
func TestRun_WhatTheLogDropsMeanwhileIsNotLost(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	s.exec(t, `DELETE FROM logging.event_log`)
	today := time.Now().UTC().Truncate(24 * time.Hour)
	partition := func(from, to time.Time) string {
		name := "logging.event_log_" + from.Format("20060102")
		s.exec(t, fmt.Sprintf(`CREATE TABLE %s PARTITION OF logging.event_log FOR VALUES FROM ('%s') TO ('%s')`, name, from.Format(time.RFC3339), to.Format(time.RFC3339)))
		return name
	}
	oldest := partition(today.AddDate(0, 0, -1), today.AddDate(0, 0, 1))
	partition(today.AddDate(0, 0, 1), today.AddDate(0, 0, 2))
	for order, state := range map[string]string{s.confirmed: "CONFIRMED", s.cancelled: "CANCELLED", s.rejected: "REJECTED"} {
		for _, event := range eventsOf(orderstate.Parse(state)) {
			s.log(t, order, event)
		}
	}
	if r := s.audit(t); r.Count() != 0 {
		t.Fatalf("before: %v", r.Violations)
	}
	tx, err := s.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }()
	if _, err := tx.ExecContext(t.Context(), `DROP TABLE `+oldest); err != nil {
		t.Fatal(err)
	}
	var r *Report
	done := make(chan error, 1)
	go func() {
		var err error
		r, err = s.Run(t.Context())
		done <- err
	}()
	for waits := false; !waits; {
		select {
		case err := <-done:
			t.Fatalf("it did not wait for the log: %v", err)
		default:
		}
		err := s.QueryRowContext(t.Context(), `SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))`).Scan(&waits)
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if r.Count() != 0 || len(r.Lost()) != 0 {
		t.Errorf("%v, lost %v", r.Violations, r.Lost())
	}
}

// The audit of each minute read the week up to the day that it looks at, to find where that begins.
func TestLogEnds_AreFoundByTheTimeOfStoring(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	s.exec(t, `DELETE FROM logging.event_log`)
	s.exec(t, `
		INSERT INTO logging.event_log (routing_key, exchange, payload, status, message_id, published_at, created_at)
		SELECT 'shop.order.placed', 'shop.topic', '{}', 'success', gen_random_uuid(), at, at
		FROM generate_series(1, 1000) AS n, LATERAL (SELECT now() - (1000 - n) * interval '1 h' AS at) AS times WHERE n % 7 <> 0`)
	for since, want := range map[time.Duration]int{0: 858, time.Hour / 2: 2, 24*time.Hour + time.Hour/2: 23, 2000 * time.Hour: 858} {
		s.since = since
		first, last, err := s.logEnds(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var n int
		if err := s.QueryRow(`SELECT count(*) FROM logging.event_log WHERE id BETWEEN $1 AND $2`, first, last).Scan(&n); err != nil || n != want {
			t.Errorf("of %s there are %d events, %v, want %d: those of an hour more", since, n, err, want)
		}
	}
}

func TestRun_SinceLeavesOutOlderOrders(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	s.exec(t, `UPDATE inventory.decision SET reason = 'UNKNOWN_PRODUCT' WHERE order_id = $1`, s.rejected)
	s.since = 5 * time.Minute
	if r := s.audit(t); r.Count() != 0 || r.Orders != 0 {
		t.Errorf("%d violations in %d orders", r.Count(), r.Orders)
	}
	s.since = 15 * time.Minute
	if r := s.audit(t); r.Count() != 1 || r.Orders != 3 {
		t.Errorf("%d violations in %d orders", r.Count(), r.Orders)
	}
}

// On a slow machine the orders that an audit was about became too old while it waited: it looked at none, and passed.
func TestRunWhenQuiet_WhatItLooksAtStaysWhileItWaits(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	s.since, s.opened = 5*time.Minute, time.Now().Add(-6*time.Minute) // when the orders were four minutes old
	for range 2 {
		if r, err := s.RunWhenQuiet(t.Context(), 0); err != nil || r.Orders != 3 {
			t.Errorf("%v, %v", r, err)
		}
	}
}

func TestRun_MoreOrdersThanAPageAreAllLookedAt(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	const more = 2*page + 10
	s.exec(t, `INSERT INTO orders.orders (id, customer_name, customer_email, state, reason, total_items, created_at, updated_at)
		SELECT gen_random_uuid(), '', '', 'REJECTED', 'OUT_OF_STOCK', 1, '2026-01-01', '2026-01-01' FROM generate_series(1, $1)`, more)
	s.exec(t, `INSERT INTO inventory.decision (order_id, lines_hash, reason, answer, decided_at)
		SELECT gen_random_uuid(), '', 'OUT_OF_STOCK', '', '2026-01-01' FROM generate_series(1, $1)`, more)
	r := s.audit(t)
	for _, c := range r.Checks {
		if want := map[Check]int{Decisions: more, Undecided: more, Events: 2 * more}[c.Check]; c.Violations != want {
			t.Errorf("%s: %d violations, want %d", c.Check, c.Violations, want)
		}
	}
	if r.Orders != 2*more+3 || len(r.Violations) != 3*MaxListed {
		t.Errorf("%d orders, %d violations listed", r.Orders, len(r.Violations))
	}
}

func TestOpen_SaysWhatIsMissing(t *testing.T) {
	t.Parallel()
	url := postgrestest.NewEmpty(t)
	_, err := Open(t.Context(), Config{DatabaseURLs: map[string]string{"orders": url, "inventory": url, "logging": url, "webhooks": url}})
	if err == nil || !strings.Contains(err.Error(), "run shop migrate") {
		t.Errorf("an empty database: %v", err)
	}
}

func TestOpen_ChangesNothing(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	for _, pool := range []*sql.DB{s.orders, s.inventory, s.logging, s.webhooks} {
		if _, err := pool.ExecContext(t.Context(), `CREATE TABLE written ()`); err == nil || !strings.Contains(err.Error(), "read-only") {
			t.Errorf("writing: %v", err)
		}
	}
}

// The log was looked through from the day of the orders to its end: with some hundred partitions that took longer than everything
// else. Events of a later day are found by their orders' ids.
func TestRun_AnEventOfALaterDayIsFound(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	today := time.Now().UTC().Truncate(24 * time.Hour)
	day := today.AddDate(0, 0, daysOfEvents+1)
	for _, d := range []time.Time{today.AddDate(0, 0, -10), day.AddDate(0, 0, -5)} { // the log begins with the first
		s.exec(t, fmt.Sprintf(`CREATE TABLE logging.event_log_%s PARTITION OF logging.event_log FOR VALUES FROM ('%s') TO ('%s')`,
			d.Format("20060102"), d.Format(time.RFC3339), d.AddDate(0, 0, 7).Format(time.RFC3339)))
	}
	// One whose id begins with its time, and one whose id has none, as that of an order with an idempotency key.
	keyed := uuid.NewString()
	for _, table := range []string{"orders.order_item", "inventory.decision", "inventory.hold", "inventory.stock_movement", "logging.event_log"} {
		s.exec(t, `ALTER TABLE orders.order_item DROP CONSTRAINT IF EXISTS order_item_order_id_fkey`)
		s.exec(t, fmt.Sprintf(`UPDATE %s SET order_id = $1 WHERE order_id = $2`, table), keyed, s.cancelled)
	}
	s.exec(t, `UPDATE orders.orders SET id = $1 WHERE id = $2`, keyed, s.cancelled)
	for _, id := range []string{s.confirmed, keyed} {
		s.log(t, id, "shop.order.rejected")
	}
	s.exec(t, `UPDATE logging.event_log SET published_at = $1 WHERE routing_key = 'shop.order.rejected' AND order_id = ANY (ARRAY[$2, $3]::uuid[])`,
		day.Add(time.Hour), s.confirmed, keyed)
	r := s.audit(t)
	var found []string
	for _, v := range r.Violations {
		if strings.HasSuffix(v.Detail, ", but the log has shop.order.rejected") {
			found = append(found, v.OrderID)
		}
	}
	if len(found) != 2 || len(r.Violations) != 2 {
		t.Errorf("%v; want the events of the later day", r.Violations)
	}
}
