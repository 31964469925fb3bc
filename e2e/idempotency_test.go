package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
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
	a = s.call(t, http.MethodPost, "/v1/orders", orderOf(1, 2000), "Prefer", "wait=20")
	if a.json(t, &o); a.code != http.StatusOK || o.State != "REJECTED" || o.Reason != "OUT_OF_STOCK" {
		t.Errorf("%d %s", a.code, a.body)
	}
}

func TestPreferWait_EndsWithAPendingOrderWhereNobodyDecides(t *testing.T) {
	t.Parallel()
	s := start(t)
	alone := gatewayAlone(t, s)
	begin := time.Now()
	a := alone.call(t, http.MethodPost, "/v1/orders", orderOf(1, 1), "Prefer", "wait=1")
	if took := time.Since(begin); a.code != http.StatusAccepted || !strings.Contains(string(a.body), `"PENDING"`) || took < time.Second || took > patience/2 {
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
	if again.json(t, &o); again.code != http.StatusOK || o.State != "CONFIRMED" || again.header.Get("Location") != location {
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

// Sent at once, before anything is known, equal requests are one order and unequal ones never two.
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
	for location := range locations {
		if o := s.decided(t, location); o.State != "CONFIRMED" {
			t.Errorf("order %+v", o)
		}
	}
	var list struct{ Orders []order }
	if s.get(t, "/v1/orders").json(t, &list); len(list.Orders) != 1 {
		t.Fatalf("%d orders", len(list.Orders))
	}
	if stock := s.settled(t)["Laptop"]; stock.OnHand != 50-list.Orders[0].TotalItems {
		t.Errorf("%d laptops left after an order of %d", stock.OnHand, list.Orders[0].TotalItems)
	}
	var letters struct {
		DeadLetters []any `json:"dead_letters"`
	}
	if s.get(t, "/v1/dead-letters").json(t, &letters); len(letters.DeadLetters) != 0 {
		t.Errorf("dead letters: %v", letters.DeadLetters)
	}
}
