package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"shop.example/platform/testkit/netproxy"
)

const (
	// buyers is how many clients order at the same time.
	buyers = 8
	// buyersPause is between two orders of one client.
	buyersPause = 100 * time.Millisecond
	// lastOrders is how long clients go on trying to get their last orders accepted, when the faults are over.
	lastOrders = time.Minute
)

// traffic is a steady load of orders over REST. Each order has an idempotency key of its own and is sent, to one gateway
// after the other, until it is accepted. Some are cancelled as soon as possible.
type traffic struct {
	gateways []string
	client   *http.Client
	products [2]int        // that there is enough of
	large    string        // the lines of the largest order, of which some are placed; "" for none
	next     atomic.Int64  // number of the next order
	turn     atomic.Int64  // of the gateways
	ids      atomic.Int64  // of calls
	pause    atomic.Int64  // of each buyer between two orders; buyersPause at first
	closed   chan struct{} // when no new orders are to be placed
	giveUp   context.CancelFunc
	buyers   sync.WaitGroup

	mu       sync.Mutex
	accepted map[string]string // the paths of orders, by their keys
	unsent   []error           // orders that were not accepted to the end
	refused  map[string]int    // by status
	calls    map[int64]bool    // that are not answered yet
	last     time.Time         // when an order was accepted
	longest  time.Duration     // without one
}

// traffic begins to send orders of products to gateways; limit bounds each call.
func (s *shop) traffic(t *testing.T, products [2]int, limit time.Duration, gateways ...string) *traffic {
	t.Helper()
	return s.mixedTraffic(t, products, "", limit, gateways...)
}

// mixedTraffic is traffic in which some orders have the lines in large.
func (s *shop) mixedTraffic(t *testing.T, products [2]int, large string, limit time.Duration, gateways ...string) *traffic {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	tr := &traffic{
		gateways: gateways, products: products, large: large, closed: make(chan struct{}), giveUp: cancel,
		client:   &http.Client{Timeout: limit, Transport: &http.Transport{MaxIdleConnsPerHost: buyers}},
		accepted: map[string]string{}, refused: map[string]int{}, calls: map[int64]bool{}, last: time.Now(),
	}
	tr.pause.Store(int64(buyersPause))
	for i := range buyers {
		random := rand.New(rand.NewPCG(uint64(i), 0)) //nolint:gosec // no secret
		tr.buyers.Go(func() { tr.buy(ctx, random) })
	}
	t.Cleanup(func() { cancel(); tr.buyers.Wait() })
	return tr
}

// unlimitedStock creates two products with more stock than any load can order.
func (s *shop) unlimitedStock(t *testing.T) (ids [2]int) {
	t.Helper()
	names := [2]string{"Cable", "Adapter"}
	price := `"quantity":1000000,"price":{"currency_code":"USD","units":"5"}}`
	body := fmt.Sprintf(`{"items":[{"product_name":%q,%s,{"product_name":%q,%s]}`, names[0], price, names[1], price)
	if a := s.call(t, http.MethodPost, "/v1/inventory", body, "Authorization", "Bearer "+operatorToken); a.code != http.StatusOK {
		t.Fatalf("making products: %d %s", a.code, a.body)
	}
	stock := s.stock(t)
	return [2]int{stock[names[0]].ID, stock[names[1]].ID}
}

func (tr *traffic) buy(ctx context.Context, random *rand.Rand) {
	for {
		select {
		case <-tr.closed:
			return
		case <-time.After(time.Duration(tr.pause.Load())):
		}
		if ctx.Err() != nil {
			return
		}
		key := fmt.Sprintf("order-%d", tr.next.Add(1))
		body := fmt.Sprintf(`{"customer_name":%q,"customer_email":"ada@example.org","order_items":[%s]}`, key, tr.lines(random))
		location := tr.sendUntil(ctx, "/v1/orders", body, key, http.StatusAccepted, http.StatusOK) // 200: it was accepted before, and is decided
		tr.accept(key, location)
		if location != "" && random.IntN(20) == 0 {
			tr.buyers.Go(func() { tr.sendUntil(ctx, location+":cancel", "{}", "", http.StatusOK, http.StatusBadRequest) }) // or already rejected
		}
	}
}

// lines returns the lines of a random order: usually both products in any order, sometimes one of the seeded products,
// which run out, and rarely the largest order.
func (tr *traffic) lines(random *rand.Rand) string {
	if tr.large != "" && random.IntN(50) == 0 {
		return tr.large
	}
	const line = `{"product_id":%d,"quantity":%d}`
	if random.IntN(5) == 0 {
		return fmt.Sprintf(line, 1+random.IntN(8), 1)
	}
	first := random.IntN(2)
	return fmt.Sprintf(line+","+line, tr.products[first], 1+random.IntN(3), tr.products[1-first], 1)
}

// sendUntil repeats a call, to the next gateway each time, until the response has one of the codes, and returns its
// Location. Calls without a key are repeated less often.
func (tr *traffic) sendUntil(ctx context.Context, path, body, key string, codes ...int) (location string) {
	pause := 50 * time.Millisecond
	if key == "" {
		pause = 500 * time.Millisecond
	}
	again := time.NewTicker(pause)
	defer again.Stop()
	for i := tr.turn.Add(1); ; i++ {
		header, code, err := tr.post(ctx, tr.gateways[i%int64(len(tr.gateways))]+path, body, key)
		if err == nil && slices.Contains(codes, code) {
			return header.Get("Location")
		}
		tr.refuse(key, code)
		select {
		case <-ctx.Done():
			tr.fail(fmt.Errorf("%s %s: %d %w", path, key, code, errors.Join(err, ctx.Err())))
			return ""
		case <-again.C:
		}
	}
}

func (tr *traffic) fail(err error) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.unsent = append(tr.unsent, err)
}

func (tr *traffic) post(ctx context.Context, url, body, key string) (http.Header, int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		return nil, 0, err
	}
	req.Header.Set("Content-Type", "application/json")
	if key != "" {
		req.Header.Set("Idempotency-Key", key)
	}
	defer tr.answered(tr.call())
	res, err := tr.client.Do(req)
	if err != nil {
		return nil, 0, err
	}
	defer res.Body.Close()
	if _, err := io.Copy(io.Discard, res.Body); err != nil {
		return nil, 0, err
	}
	return res.Header, res.StatusCode, nil
}

func (tr *traffic) call() (id int64) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	id = tr.ids.Add(1)
	tr.calls[id] = true
	return id
}

func (tr *traffic) answered(id int64) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	delete(tr.calls, id)
}

// isAnswered waits until every call that is in progress now has been answered.
func (tr *traffic) isAnswered(t *testing.T) {
	t.Helper()
	tr.mu.Lock()
	asked := maps.Clone(tr.calls)
	tr.mu.Unlock()
	eventually(t, func() error {
		tr.mu.Lock()
		defer tr.mu.Unlock()
		maps.DeleteFunc(asked, func(id int64, _ bool) bool { return !tr.calls[id] })
		if len(asked) > 0 {
			return fmt.Errorf("%d calls hang", len(asked))
		}
		return nil
	})
}

func (tr *traffic) accept(key, location string) {
	if location == "" {
		return
	}
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.accepted[key] = location
	tr.longest, tr.last = max(tr.longest, time.Since(tr.last)), time.Now()
}

// refuse counts an order that was not accepted; code 0 stands for no response.
func (tr *traffic) refuse(key string, code int) {
	if key == "" {
		return // a cancellation waits for the order to be decided
	}
	status := "no answer"
	if code != 0 {
		status = fmt.Sprint(code)
	}
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.refused[status]++
}

// orders returns how many orders were accepted.
func (tr *traffic) orders() int {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return len(tr.accepted)
}

// figures returns how many calls to place an order were refused so far, by status, and the longest time without an accepted
// order.
func (tr *traffic) figures() (refused map[string]int, longest time.Duration) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return maps.Clone(tr.refused), tr.longest
}

// flows waits until n more orders are accepted.
func (tr *traffic) flows(t *testing.T, n int) {
	t.Helper()
	before := tr.orders()
	eventually(t, func() error {
		if now := tr.orders(); now < before+n {
			return fmt.Errorf("%d orders accepted of %d that are to be awaited", now-before, n)
		}
		return nil
	})
}

// end stops the traffic once every order that was begun is accepted, and returns how many there are.
func (tr *traffic) end(t *testing.T) int {
	t.Helper()
	close(tr.closed)
	late := time.AfterFunc(lastOrders, tr.giveUp)
	defer late.Stop()
	tr.buyers.Wait()
	tr.client.CloseIdleConnections()
	for _, err := range tr.unsent {
		t.Errorf("an order was not accepted or could not be cancelled: %v", err)
	}
	return len(tr.accepted)
}

// isDecided fails unless exactly the accepted orders are stored, and decided.
func (tr *traffic) isDecided(t *testing.T, s *shop) {
	t.Helper()
	places := map[string]string{}
	for key, location := range tr.accepted {
		places[strings.TrimPrefix(location, "/v1/orders/")] = key
	}
	if len(places) != len(tr.accepted) {
		t.Errorf("%d keys have %d orders", len(tr.accepted), len(places))
	}
	for _, row := range texts(t, s.openDatabase(t), `SELECT id || ' ' || customer_name FROM orders.orders`) {
		id, key, _ := strings.Cut(row, " ")
		if places[id] != key {
			t.Errorf("order %s is of key %q, answered was %q", id, key, places[id])
		}
		delete(places, id)
	}
	if len(places) > 0 {
		t.Errorf("%d accepted orders are not in the books: %v", len(places), places)
	}
}

// proxies puts proxies between the services and both servers. Call it before the services start.
func (f *deployment) proxies(t *testing.T) (broker, database *netproxy.Proxy) {
	t.Helper()
	broker, database = f.broker.Proxy(t), netproxy.New(t, f.database)
	f.servers(t, broker.URL, database.URL)
	return broker, database
}

// servers makes the services use these servers from their next start on.
func (f *deployment) servers(t *testing.T, amqp, database string) {
	t.Helper()
	for _, name := range services {
		for _, r := range f.replicas[name] {
			r.env = append(r.env, "AMQP_URL="+f.login(t, name, amqp), "DATABASE_URL="+database)
		}
	}
}
