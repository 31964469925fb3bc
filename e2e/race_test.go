package e2e

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/uuid"
	"google.golang.org/protobuf/types/known/timestamppb"

	eventsv1 "shop.example/gen/shop/events/v1"
	moneyv1 "shop.example/gen/shop/money/v1"
)

// pairs is two replicas of each service that decides something.
var pairs = deploymentOptions{replicas: map[string]int{"order": 2, "inventory": 2}}

// racers is how many orders of a few lines are sent at the same time.
const racers = 500

func TestRace_TheLastPiecesAreSoldOnceEach(t *testing.T) {
	t.Parallel()
	const orders, pieces = 1000, 10
	f := newDeployment(t, pairs)
	f.up(t)
	product := f.stockUp(t, 1, pieces)[0]
	f.race(t, orders, func(int) string { return fmt.Sprintf(`{"product_id":%d,"quantity":1}`, product) })
	f.comesToRest(t, orders)

	db := f.openDatabase(t)
	outcome := texts(t, db, `SELECT concat_ws(' ', state, reason, count(*)) FROM orders.orders GROUP BY state, reason ORDER BY state`)
	if want := []string{fmt.Sprintf("CONFIRMED %d", pieces), fmt.Sprintf("REJECTED OUT_OF_STOCK %d", orders-pieces)}; !slices.Equal(outcome, want) {
		t.Errorf("the orders are %q, want %q", outcome, want)
	}
	stock := texts(t, db, `SELECT concat_ws(' ', on_hand, reserved) FROM inventory.product WHERE id = $1`, product)
	if stock[0] != "0 0" {
		t.Errorf("on hand and reserved are %s, want nothing", stock[0])
	}
}

// Each order locks all products, and asks for them in another order. None of them waits for one that waits for it.
func TestRace_OrdersOfAHundredLinesInAnyOrderTakeAllOrNothing(t *testing.T) {
	t.Parallel()
	const orders, lines, pieces = 100, 100, 40
	f := newDeployment(t, pairs)
	f.up(t)
	products := f.stockUp(t, lines, pieces)
	f.race(t, orders, func(int) string {
		var list []string
		for _, i := range rand.Perm(lines) { //nolint:gosec // no secret
			list = append(list, fmt.Sprintf(`{"product_id":%d,"quantity":1}`, products[i]))
		}
		return strings.Join(list, ",")
	})
	f.comesToRest(t, orders) // it counts deadlocks, too

	db := f.openDatabase(t)
	outcome := texts(t, db, `SELECT concat_ws(' ', state, reason, count(*)) FROM orders.orders GROUP BY state, reason ORDER BY state`)
	if want := []string{fmt.Sprintf("CONFIRMED %d", pieces), fmt.Sprintf("REJECTED OUT_OF_STOCK %d", orders-pieces)}; !slices.Equal(outcome, want) {
		t.Errorf("the orders are %q, want %q", outcome, want)
	}
	if left := texts(t, db, `SELECT id::text FROM inventory.product WHERE name LIKE 'Contended %' AND (on_hand, reserved) <> (0, 0)`); len(left) > 0 {
		t.Errorf("%d of %d products are not sold out", len(left), lines)
	}
}

// stockUp creates products of so many pieces each and returns their ids.
func (f *deployment) stockUp(t *testing.T, products, pieces int) (ids []int) {
	t.Helper()
	var items []string
	for i := range products {
		items = append(items, fmt.Sprintf(`{"product_name":"Contended %d","quantity":%d,"price":{"currency_code":"USD","units":"5"}}`, i, pieces))
	}
	a := f.call(t, http.MethodPost, "/v1/inventory", `{"items":[`+strings.Join(items, ",")+`]}`, "Authorization", "Bearer "+operatorToken)
	if a.code != http.StatusOK {
		t.Fatalf("making products: %d %s", a.code, a.body)
	}
	var made struct{ Items []item }
	a.json(t, &made)
	for _, i := range made.Items {
		ids = append(ids, i.ID)
	}
	return ids
}

func TestRace_OrdersOfSeveralProductsInAnyOrderOfLinesNeverOversellNorDeadlock(t *testing.T) {
	t.Parallel()
	f := newDeployment(t, pairs)
	f.up(t)
	f.race(t, racers, func(int) string {
		var lines []string
		for _, product := range rand.Perm(8)[:2+rand.IntN(5)] { //nolint:gosec // no secret
			lines = append(lines, fmt.Sprintf(`{"product_id":%d,"quantity":%d}`, product+1, 1+rand.IntN(3))) //nolint:gosec // no secret
		}
		return strings.Join(lines, ",")
	})
	f.comesToRest(t, racers)

	db := f.openDatabase(t)
	if other := texts(t, db, `SELECT id::text FROM orders.orders WHERE reason <> 'OUT_OF_STOCK'`); len(other) > 0 {
		t.Errorf("%d orders were rejected for another reason than the stock", len(other))
	}
	// Of each product: what was there at first is what is left and what confirmed orders have.
	sums := texts(t, db, `
		SELECT format('%s: %s of %s left, %s sold', p.name, p.on_hand, m.quantity, i.quantity)
		FROM inventory.product p
		JOIN inventory.stock_movement m ON m.product_id = p.id AND m.reason = 'CREATED'
		JOIN (SELECT product_id, sum(quantity) AS quantity FROM orders.order_item JOIN orders.orders o ON o.id = order_id
		      WHERE o.state = 'CONFIRMED' GROUP BY 1) AS i ON i.product_id = p.id
		WHERE p.on_hand < 0 OR p.reserved <> 0 OR p.on_hand <> m.quantity - i.quantity`)
	if len(sums) > 0 {
		t.Errorf("sums: %q", sums)
	}
	if sold := texts(t, db, `SELECT count(*)::text FROM orders.orders WHERE state = 'CONFIRMED'`)[0]; sold == "0" || sold == strconv.Itoa(racers) {
		t.Errorf("%s of %d orders were confirmed: nobody competed", sold, racers)
	}
}

// race sends all orders at the same time, each on a connection of its own.
func (f *deployment) race(t *testing.T, orders int, lines func(i int) string) {
	t.Helper()
	errs := make(chan error, orders)
	begin := make(chan struct{})
	for i := range orders {
		body := lines(i)
		go func() {
			<-begin
			_, err := f.order(t, fmt.Sprintf("order-%d", i), body)
			errs <- err
		}()
	}
	close(begin)
	for range orders {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

// Whoever may publish an event may publish it again.
func TestEvents_DeliveredAThousandTimesHaveOneEffect(t *testing.T) {
	t.Parallel()
	const times = 1000
	f := newDeployment(t, pairs)
	f.up(t)
	placed := &eventsv1.OrderPlaced{
		OrderId: uuid.NewString(), CustomerName: "Ada", CustomerEmail: "ada@example.org", PlacedAt: timestamppb.Now(),
		Lines: []*eventsv1.RequestedLine{{ProductId: 1, Quantity: 2}, {ProductId: 4, Quantity: 3}},
	}
	lines := []*eventsv1.PricedLine{
		{Line: 1, ProductId: 1, ProductName: "Laptop", Quantity: 2, UnitPrice: &moneyv1.Money{CurrencyCode: "USD", Units: 1000}},
		{Line: 2, ProductId: 4, ProductName: "Mouse", Quantity: 3, UnitPrice: &moneyv1.Money{CurrencyCode: "USD", Units: 45}},
	}
	f.publish(t, "shop.order.placed", encode(t, placed), times)
	location := "/v1/orders/" + placed.GetOrderId()
	if o := f.decided(t, location); o.State != "CONFIRMED" || o.TotalItems != 5 {
		t.Fatalf("order %+v", o)
	}
	f.publish(t, "shop.inventory.decrement.quantity", encode(t, &eventsv1.DecrementQuantity{OrderId: placed.GetOrderId(), Lines: lines}), times)
	f.publish(t, "shop.inventory.create", createDesks(t, 5), times)
	stands := func(want map[string]int) error {
		got := map[string]int{}
		for name, i := range f.stock(t) {
			if _, asked := want[name]; asked && i.Reserved == 0 {
				got[name] = i.OnHand
			}
		}
		if !maps.Equal(got, want) {
			return fmt.Errorf("the stock is %v, want %v", got, want)
		}
		return nil
	}
	eventually(t, func() error { return stands(map[string]int{"Laptop": 48, "Mouse": 97, "Desk": 5}) })
	if err := f.cancel(t, location); err != nil {
		t.Fatal(err)
	}
	cancelled := &eventsv1.OrderCancelled{OrderId: placed.GetOrderId(), Lines: lines, CancelledAt: timestamppb.Now()}
	f.publish(t, "shop.order.cancelled", encode(t, cancelled), times)
	// An empty queue may have been handed out: what a service that stops had not begun would be in it again.
	eventually(t, func() error {
		handled := 0
		for _, r := range f.replicas["inventory"] {
			handled += consumed(t, r.admin, "inventory", "handled")
		}
		if handled < 3*times {
			return fmt.Errorf("inventory has handled %d of %d messages", handled, 3*times)
		}
		return nil
	})

	f.comesToRest(t, 1) // among others: each movement and each event of the order is there once
	db := f.openDatabase(t)
	stock := texts(t, db, `SELECT concat_ws(' ', name, on_hand) FROM inventory.product WHERE name IN ('Laptop', 'Mouse', 'Desk') ORDER BY id`)
	if want := []string{"Laptop 50", "Mouse 100", "Desk 5"}; !slices.Equal(stock, want) {
		t.Errorf("the stock is %q, want %q", stock, want)
	}
	if n := texts(t, db, `SELECT count(*)::text FROM logging.event_log WHERE routing_key = 'shop.inventory.create'`)[0]; n != "1" {
		t.Errorf("the log has the request for desks %s times", n)
	}
}
