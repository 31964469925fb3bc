package e2e

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// largest is the largest order: 100 lines of products whose names are as long as the contracts allow, 200 characters of 4
// bytes each.
type largest struct {
	byID, byName string // its lines as the API and as the demo's interface have them
}

// stockLargest creates the products of largest, with enough stock for so many orders.
func (f *deployment) stockLargest(t *testing.T, orders int) largest {
	t.Helper()
	const lines = 100
	var items, byName, byID []string
	for i := range lines {
		name := fmt.Sprintf("%s%03d", strings.Repeat("\U0001F6D2", 197), i)
		items = append(items, fmt.Sprintf(`{"product_name":%q,"quantity":%d,"price":{"currency_code":"USD","units":"5"}}`, name, orders))
		byName = append(byName, fmt.Sprintf(`{"product_name":%q,"quantity":1,"price":5}`, name))
	}
	a := f.call(t, http.MethodPost, "/v1/inventory", `{"items":[`+strings.Join(items, ",")+`]}`, "Authorization", "Bearer "+operatorToken)
	if a.code != http.StatusOK {
		t.Fatalf("making products: %d %s", a.code, a.body)
	}
	var made struct{ Items []item }
	a.json(t, &made)
	for _, i := range made.Items {
		byID = append(byID, fmt.Sprintf(`{"product_id":%d,"quantity":1,"expected_unit_price":{"currency_code":"USD","units":"5"}}`, i.ID))
	}
	return largest{strings.Join(byID, ","), strings.Join(byName, ",")}
}

// place places so many of them, every other one through the demo's API, and returns their paths when all are accepted.
func (l largest) place(t *testing.T, f *deployment, orders int) []string {
	t.Helper()
	const who = `{"customer_name":"Ada","customer_email":"ada@example.org",`
	locations := make([]string, orders)
	var next atomic.Int64
	var buyers sync.WaitGroup
	for range 8 {
		buyers.Go(func() {
			for i := int(next.Add(1)) - 1; i < orders; i = int(next.Add(1)) - 1 {
				path, body, code := "/v1/orders", who+`"order_items":[`+l.byID+`]}`, http.StatusAccepted
				if i%2 == 1 {
					path, body, code = "/intermediary/order", who+`"order_items":[`+l.byName+`]}`, http.StatusOK
				}
				header, err := f.sendUntil(t, http.MethodPost, path, body, "", code)
				if err != nil {
					t.Error(err)
					continue
				}
				locations[i] = header.Get("Location")
			}
		})
	}
	buyers.Wait()
	return locations
}

// staysSmall fails the test if a service has used more memory than its limit in compose.yaml.
func (f *deployment) staysSmall(t *testing.T) {
	t.Helper()
	for _, name := range services {
		peak := f.replicas[name][0].peakMemory(t)
		t.Logf("%s: %d MiB at most", name, peak>>20)
		if peak > 256<<20 {
			t.Errorf("%s has taken %d MiB", name, peak>>20)
		}
	}
}

// Half of the orders are small and their answers large, 25 MB if they were one; half are large themselves. Everything that
// follows from them goes through each service, and to streams.
func TestSizes_TheLargestOrdersThatWaitedAreAllDecided(t *testing.T) {
	t.Parallel()
	const orders, streams = 300, 100
	f := newDeployment(t, deploymentOptions{})
	for _, name := range services {
		f.replicas[name][0].env = append(f.replicas[name][0].env, "GOMEMLIMIT=200MiB") // as in compose.yaml
	}
	f.up(t)
	l := f.stockLargest(t, orders)
	f.replicas["order"][0].term(t)
	locations := l.place(t, f, orders)

	// Who follows the whole log reads it, who follows an order does not.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	follow := func(path, token string) *liveEvents {
		live, err := openStream(ctx, f.url+path, token, "")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = live.body.Close() })
		return live
	}
	for i := range streams {
		follow(locations[2*i]+"/events:stream", "")
	}
	whole := follow("/v1/events:stream?from_beginning=true", operatorToken)
	whole.lines.Buffer(nil, 1<<20)
	confirmed := make(chan error, 1)
	go func() {
		for n := 0; n < orders; {
			e, err := whole.next()
			if err != nil {
				confirmed <- err
				return
			}
			if e.RoutingKey == "shop.order.confirmed" {
				n++
			}
		}
		confirmed <- nil
	}()

	f.replicas["order"][0].start(t)
	db := f.openDatabase(t)
	for decided := range orders / 50 { // all in all it may take longer than anything else does
		eventually(t, func() error {
			if n := texts(t, db, `SELECT count(*)::text FROM orders.orders HAVING count(*) >= $1`, 50*(decided+1)); n == nil {
				return fmt.Errorf("less than %d orders are decided", 50*(decided+1))
			}
			return nil
		})
	}
	select {
	case err := <-confirmed:
		if err != nil {
			t.Errorf("the stream of the whole log: %v", err)
		}
	case <-time.After(testTimeout):
		t.Error("the stream of the whole log stands still")
	}
	f.settled(t)
	f.staysSmall(t)
	cancel()
	f.comesToRest(t, orders)
}

// A message that cannot be decoded and is as large as the broker accepts becomes a dead letter, and does not affect orders.
func TestSizes_TheLargestMessagesAreDeadLetters(t *testing.T) {
	t.Parallel()
	f := newDeployment(t, deploymentOptions{})
	f.up(t)
	const messages, size = 4, 16 << 20
	body := make([]byte, size)
	for _, key := range []string{"shop.order.placed", "shop.inventory.create"} {
		for range messages / 2 {
			f.publish(t, key, body, 1)
		}
	}
	if o := f.decided(t, f.place(t, 1, 1)); o.State != "CONFIRMED" {
		t.Errorf("an order behind them is %+v", o)
	}
	var list struct {
		DeadLetters []struct{ ID, Reason string } `json:"dead_letters"`
	}
	eventually(t, func() error {
		f.get(t, "/v1/dead-letters").json(t, &list)
		if n := len(list.DeadLetters); n != messages {
			return fmt.Errorf("%d dead letters", n)
		}
		return nil
	})
	for _, letter := range list.DeadLetters {
		if letter.Reason != "the body has 16777216 bytes, and an event 1048576 at most" {
			t.Errorf("reason: %s", letter.Reason)
		}
		if shown := f.get(t, "/v1/dead-letters/"+letter.ID); shown.code != http.StatusOK || len(shown.body) < size {
			t.Errorf("dead letter %s is shown with %d and %d bytes", letter.ID, shown.code, len(shown.body))
		}
	}
}
