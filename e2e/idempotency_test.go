package e2e

import (
	"fmt"
	"net/http"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"shop.example/db/dbtest"
	"shop.example/platform/testkit/brokertest"
)

func orderOf(productID, quantity int) string {
	return fmt.Sprintf(`{"customer_name":"Ada","customer_email":"ada@example.org","order_items":[{"product_id":%d,"quantity":%d}]}`, productID, quantity)
}

func TestPreferWait_AnswersWithTheOutcome(t *testing.T) {
	t.Parallel()
	s := start(t)
	a := s.call(t, http.MethodPost, "/v1/orders", orderOf(1, 2), "Prefer", "wait=20")
	var o order
	a.json(t, &o)
	if a.code != http.StatusOK || o.State != "CONFIRMED" || o.TotalValue.Units != "2000" || a.header.Get("Location") != "/v1/orders/"+o.ID {
		t.Errorf("%d %s", a.code, a.body)
	}
	if tag := s.get(t, "/v1/orders/"+o.ID).header.Get("ETag"); tag == "" || a.header.Get("ETag") != tag || a.header.Get("Preference-Applied") != "wait=20" {
		t.Errorf("its ETag is %s, headers %v", tag, a.header)
	}
	a = s.call(t, http.MethodPost, "/v1/orders", orderOf(1, 2000), "Prefer", "wait=20")
	if a.json(t, &o); a.code != http.StatusOK || o.State != "REJECTED" || o.Reason != "OUT_OF_STOCK" {
		t.Errorf("%d %s", a.code, a.body)
	}
}

// The response is made from what was placed and from the event of the decision, without reading the order.
func TestPreferWait_AnswersWithTheOrderAsItIsStored(t *testing.T) {
	t.Parallel()
	s := start(t)
	const body = `{"customer_name":"Ada","customer_email":"ada@example.org","order_items":[%s]}`
	for what, items := range map[string]string{
		"confirmed":         `{"product_id":5,"quantity":3,"expected_unit_price":{"currency_code":"USD","units":"35"}},{"product_id":6,"quantity":4},{"product_id":5,"quantity":1}`,
		"out of stock":      `{"product_id":5,"quantity":3},{"product_id":6,"quantity":99999}`,
		"an unknown one":    `{"product_id":5,"quantity":3},{"product_id":1000,"quantity":1}`,
		"at another price":  `{"product_id":5,"quantity":3,"expected_unit_price":{"currency_code":"USD","units":"1"}}`,
		"with a price of 0": `{"product_id":6,"quantity":3,"expected_unit_price":{"currency_code":"USD"}}`,
	} {
		a := s.call(t, http.MethodPost, "/v1/orders", fmt.Sprintf(body, items), "Prefer", "wait=20")
		if a.code != http.StatusOK {
			t.Errorf("%s: %d %s", what, a.code, a.body)
			continue
		}
		var answered, stored map[string]any
		a.json(t, &answered)
		s.get(t, a.header.Get("Location")).json(t, &stored)
		if !reflect.DeepEqual(answered, stored) {
			t.Errorf("%s: answered with\n%v\nbut stored is\n%v", what, answered, stored)
		}
	}
}

func TestPreferWait_NeedsNothingButTheBroker(t *testing.T) {
	t.Parallel()
	alone := gatewayAlone(t, start(t)) // the others decide its orders, but it cannot call them
	a := alone.call(t, http.MethodPost, "/v1/orders", orderOf(1, 1), "Prefer", "wait=20")
	if a.code != http.StatusOK || !strings.Contains(string(a.body), `"CONFIRMED"`) {
		t.Errorf("%d %s", a.code, a.body)
	}
}

func TestPreferWait_EndsWithAPendingOrderIfNobodyDecides(t *testing.T) {
	t.Parallel()
	alone := gatewayAlone(t, &shop{database: dbtest.New(t), broker: brokertest.New(t)})
	begin := time.Now()
	a := alone.call(t, http.MethodPost, "/v1/orders", orderOf(1, 1), "Prefer", "wait=1")
	if took := time.Since(begin); a.code != http.StatusAccepted || !strings.Contains(string(a.body), `"PENDING"`) || took < time.Second || took > testTimeout/2 {
		t.Errorf("after %s: %d %s", took, a.code, a.body)
	}
}

func TestIdempotencyKey_RepeatedIsTheSameOrderAndAnotherOrderIsAConflict(t *testing.T) {
	t.Parallel()
	s := start(t)
	const key = "Idempotency-Key"
	first := s.call(t, http.MethodPost, "/v1/orders", orderOf(1, 3), key, "basket 7")
	if first.code != http.StatusAccepted {
		t.Fatalf("%d %s", first.code, first.body)
	}
	location := first.header.Get("Location")
	s.decided(t, location)
	again := s.call(t, http.MethodPost, "/v1/orders", orderOf(1, 3), key, "basket 7")
	var o order
	const replayed = "Idempotent-Replayed"
	if again.json(t, &o); again.code != http.StatusOK || o.State != "CONFIRMED" || again.header.Get("Location") != location || again.header.Get(replayed) != "true" || first.header.Get(replayed) != "" {
		t.Errorf("the same order again: %d %s", again.code, again.body)
	}
	for what, body := range map[string]string{
		"another quantity": orderOf(1, 4), "another product": orderOf(2, 3),
		"another customer": strings.Replace(orderOf(1, 3), "Ada", "Bob", 1),
	} {
		a := s.call(t, http.MethodPost, "/v1/orders", body, key, "basket 7")
		if a.code != http.StatusConflict || !strings.Contains(string(a.body), "IDEMPOTENCY_KEY_REUSED") || strings.Contains(string(a.body), o.ID) {
			t.Errorf("%s: %d %s", what, a.code, a.body)
		}
	}
	if stock := s.settled(t)["Laptop"]; stock.OnHand != 47 {
		t.Errorf("%d laptops left", stock.OnHand)
	}
}

// Of requests that are sent at the same time, equal ones are one order, and of different ones only one is confirmed.
func TestIdempotencyKey_SentManyTimesAtOnceIsOneOrder(t *testing.T) {
	t.Parallel()
	s := start(t)
	var wg sync.WaitGroup
	locations := make(chan string, 40)
	for i := range cap(locations) {
		wg.Go(func() {
			a := s.call(t, http.MethodPost, "/v1/orders", orderOf(1, 1+i%2), "Idempotency-Key", "one basket", "Prefer", "wait=20")
			if a.code < 300 {
				locations <- a.header.Get("Location")
			} else if a.code != http.StatusConflict {
				t.Errorf("%d %s", a.code, a.body)
			}
		})
	}
	wg.Wait()
	close(locations)
	orders := map[string]order{}
	for location := range locations {
		orders[location] = s.decided(t, location)
	}
	var confirmed order
	for _, o := range orders {
		switch {
		case o.State == "CONFIRMED":
			confirmed = o
		case o.Reason != "IDEMPOTENCY_KEY_REUSED":
			t.Errorf("order %+v", o)
		}
	}
	if len(orders) > 2 || confirmed.ID == "" {
		t.Fatalf("the orders are %+v", orders)
	}
	if stock := s.settled(t)["Laptop"]; stock.OnHand != 50-confirmed.TotalItems {
		t.Errorf("%d laptops left after an order of %d", stock.OnHand, confirmed.TotalItems)
	}
	var letters struct {
		DeadLetters []any `json:"dead_letters"`
	}
	if s.get(t, "/v1/dead-letters").json(t, &letters); len(letters.DeadLetters) != 0 {
		t.Errorf("dead letters: %v", letters.DeadLetters)
	}
}

// Two customers who used the same key at the same time, or while the order service was away, once got one order between
// them.
func TestIdempotencyKey_TwoCustomersWithOneKeyHaveAnOrderEach(t *testing.T) {
	t.Parallel()
	s := start(t)
	bob := strings.NewReplacer("Ada", "Bob", "ada@", "bob@").Replace(orderOf(2, 1))
	alone := gatewayAlone(t, s)
	for what, via := range map[string]*shop{"at once": s, "while the order service is away": alone} {
		var wg sync.WaitGroup
		var answers [2]answer
		for i, body := range []string{orderOf(1, 1), bob} {
			wg.Go(func() { answers[i] = via.call(t, http.MethodPost, "/v1/orders", body, "Idempotency-Key", "1 "+what) })
		}
		wg.Wait()
		for i, customer := range []string{"Ada", "Bob"} {
			if answers[i].code != http.StatusAccepted {
				t.Fatalf("%s: %s's order: %d %s", what, customer, answers[i].code, answers[i].body)
			}
			if o := s.decided(t, answers[i].header.Get("Location")); o.State != "CONFIRMED" || o.Name != customer {
				t.Errorf("%s: %s's order is %s of %s", what, customer, o.State, o.Name)
			}
		}
		if answers[0].header.Get("Location") == answers[1].header.Get("Location") {
			t.Errorf("%s: both orders are at %s", what, answers[0].header.Get("Location"))
		}
	}
}

// If a customer uses one key for two orders while the order service cannot tell, both are decided under the ids that were
// returned: one of them is rejected.
func TestIdempotencyKey_TwoOrdersOfOneCustomerAreBothDecided(t *testing.T) {
	t.Parallel()
	s := start(t)
	alone := gatewayAlone(t, s)
	var states []string
	for _, body := range []string{orderOf(1, 3), orderOf(1, 4)} {
		a := alone.call(t, http.MethodPost, "/v1/orders", body, "Idempotency-Key", "a basket")
		if a.code != http.StatusAccepted {
			t.Fatalf("%d %s", a.code, a.body)
		}
		o := s.decided(t, a.header.Get("Location"))
		states = append(states, o.State+" "+o.Reason)
	}
	if states[0] != "CONFIRMED " || states[1] != "REJECTED IDEMPOTENCY_KEY_REUSED" {
		t.Errorf("the orders are %q", states)
	}
	if stock := s.settled(t)["Laptop"]; stock.OnHand != 47 {
		t.Errorf("%d laptops left", stock.OnHand)
	}
	if r, err := auditor(t, s).Run(t.Context()); err != nil || r.Count() > 0 {
		t.Errorf("the audit says %v, %v", r.Violations, err)
	}
}

// The demo's route and new products honour a key, too. What has the same effect however often it is done ignores one.
func TestIdempotencyKey_CountsIfSomethingIsCreated(t *testing.T) {
	t.Parallel()
	s := start(t)
	const key, replayed = "Idempotency-Key", "Idempotent-Replayed"
	const desk = `{"items":[{"product_name":"Desk","quantity":5,"price":{"currency_code":"USD","units":"250"}}]}`
	create := func(name, body, key string) answer {
		t.Helper()
		return s.call(t, http.MethodPost, "/v1/inventory", body, "Authorization", "Bearer "+operatorToken, name, key)
	}
	first, again := create(key, desk, "desks"), create(key, desk, "desks")
	if first.code != http.StatusOK || again.code != http.StatusOK || string(first.body) != string(again.body) || first.header.Get(replayed) != "" || again.header.Get(replayed) != "true" {
		t.Errorf("a product: %d %s %v, again: %d %s %v", first.code, first.body, first.header, again.code, again.body, again.header)
	}
	if a := create(key, strings.Replace(desk, "5", "6", 1), "desks"); a.code != http.StatusConflict || !strings.Contains(string(a.body), "IDEMPOTENCY_KEY_REUSED") {
		t.Errorf("other products under the key: %d %s", a.code, a.body)
	}
	if a := create("X-Other", desk, "none"); a.code != http.StatusConflict || !strings.Contains(string(a.body), "ITEM_EXISTS") {
		t.Errorf("without a key: %d %s", a.code, a.body)
	}
	if a := create(key, desk, ""); a.code != http.StatusBadRequest {
		t.Errorf("a key that is none: %d %s", a.code, a.body)
	}

	const sample = `{"customer_name":"Ada","customer_email":"ada@example.org","order_items":[{"id":1,"product_name":"Laptop Stand","quantity":3,"price":35}]}`
	placed := s.call(t, http.MethodPost, "/intermediary/order", sample, key, "sample")
	location := placed.header.Get("Location")
	s.decided(t, location)
	if a := s.call(t, http.MethodPost, "/intermediary/order", sample, key, "sample"); a.code != http.StatusOK || a.header.Get("Location") != location || a.header.Get(replayed) != "true" {
		t.Errorf("the demo's order again: %d %s %v", a.code, a.body, a.header)
	}
	for _, name := range []string{"one", "one", "schl\u00fcssel"} { // twice the same, and one that no key may have
		if a := s.call(t, http.MethodPost, location+":cancel", "{}", key, name); a.code != http.StatusOK || a.header.Get(replayed) != "" {
			t.Errorf("cancelling it with the key %s: %d %s %v", name, a.code, a.body, a.header)
		}
	}
}
