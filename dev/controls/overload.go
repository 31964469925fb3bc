package controls

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"shop.example/dev/local"
	inventoryv1 "shop.example/gen/shop/inventory/v1"
	"shop.example/platform/apierror"
	"shop.example/topology"
)

type overloadAnswer struct {
	Orders int   `json:"orders"`
	Room   int64 `json:"room"` // how many orders may wait for the broker at a time
	attempts
	StockBefore int32   `json:"stock_before"`
	StockAfter  int32   `json:"stock_after"`
	Seconds     float64 `json:"seconds"` // until all were settled
	Audit       verdict `json:"audit"`
}

// overload sends more orders at once than a gateway has room for. Clients do as they are told: they try again after
// Retry-After, under the same idempotency key.
func (e *experiment) overload(ctx context.Context, body []byte) (any, error) {
	if err := read(body); err != nil {
		return nil, err
	}
	answer := overloadAnswer{Orders: 120, Room: 12}
	begin := time.Now()
	product, err := e.newProduct(ctx, "Ordered by many", 2*answer.Orders)
	if err != nil {
		return nil, err
	}
	// A gateway of its own: that of the page stays free for everybody else.
	gateway, err := e.shop.Replica(ctx, topology.Gateway, func(cfg *local.Config) { cfg.Ingress.OrdersInFlight = answer.Room })
	if err != nil {
		return nil, err
	}
	if err := e.runReplica(ctx, topology.Gateway, gateway); err != nil {
		return nil, err
	}
	e.say("A second gateway is started, with room for %d orders that wait for the broker's confirm. %d clients place an order at once.", answer.Room, answer.Orders)
	clients := newClient(gateway, product, answer.Orders, &answer.attempts, func(after int64) {
		e.say("The first is refused: 503, Retry-After: %d. That gateway keeps no more than it has room for; each client waits as it is told.", after)
	})
	defer clients.http.CloseIdleConnections()
	var placing errgroup.Group
	for range answer.Orders {
		placing.Go(func() error { _, err := clients.place(ctx); return err })
	}
	if err := placing.Wait(); err != nil {
		return nil, err
	}
	e.say("%d attempts: %d answers 202, %d answers 503 with Retry-After. Nobody waited in vain, and no order was sent under two ids.",
		answer.Attempts, answer.Accepted, answer.Refused)
	answer.StockBefore = product.GetOnHand()
	if err := e.settled(ctx, product.GetId(), product.GetOnHand()-int32(answer.Orders)); err != nil {
		return nil, err
	}
	answer.Seconds = time.Since(begin).Seconds()
	after, err := e.item(ctx, product.GetId())
	if err != nil {
		return nil, err
	}
	answer.StockAfter = after.GetOnHand()
	answer.Audit, err = e.verdict(ctx, time.Since(begin))
	return answer, err
}

// attempts counts attempts to place orders over REST.
type attempts struct {
	Attempts   int64 `json:"attempts"`
	Refused    int64 `json:"refused"` // of them, with 503 and Retry-After
	RetryAfter int64 `json:"retry_after"`
	Accepted   int64 `json:"accepted"` // with 202
}

// client places orders over REST, and counts what it is answered. It may be used concurrently.
type client struct {
	http       *http.Client
	url, order string
	counts     *attempts
	first      sync.Once
	refused    func(after int64) // called with the first Retry-After
}

// newClient returns a client of a gateway that orders one piece each time, and so many at a time. Close its connections.
func newClient(gateway *local.Service, product *inventoryv1.Item, atATime int, counts *attempts, refused func(after int64)) *client {
	return &client{
		http: &http.Client{Transport: &http.Transport{MaxConnsPerHost: atATime, MaxIdleConnsPerHost: atATime}},
		url:  "http://" + gateway.GRPCAddr() + "/v1/orders",
		order: fmt.Sprintf(`{"customer_name":"Demo","customer_email":"demo@example.org","order_items":[{"product_id":%d,"quantity":1}]}`,
			product.GetId()),
		counts: counts, refused: refused,
	}
}

// place places an order, tries again for as long as it is told to, and returns the order's id.
func (c *client) place(ctx context.Context) (id string, err error) {
	key := uuid.NewString()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url, bytes.NewBufferString(c.order))
		if err != nil {
			return "", err
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Idempotency-Key", key)
		atomic.AddInt64(&c.counts.Attempts, 1)
		res, err := c.http.Do(req)
		if err != nil {
			return "", apierror.Unavailable("EXPERIMENT_UNAVAILABLE", time.Second, "placing an order: %v", err)
		}
		var answer struct{ ID, Message string } // an order, or why there is none
		err = errors.Join(json.NewDecoder(res.Body).Decode(&answer), res.Body.Close())
		after, noDelay := strconv.ParseInt(res.Header.Get("Retry-After"), 10, 64)
		switch {
		case err != nil:
			return "", fmt.Errorf("reading an answer: %w", err)
		case res.StatusCode == http.StatusAccepted:
			atomic.AddInt64(&c.counts.Accepted, 1)
			return answer.ID, nil
		case res.StatusCode != http.StatusServiceUnavailable || noDelay != nil:
			return "", fmt.Errorf("placing an order: %s without Retry-After: %s", res.Status, answer.Message)
		}
		atomic.AddInt64(&c.counts.Refused, 1)
		atomic.StoreInt64(&c.counts.RetryAfter, after)
		c.first.Do(func() { c.refused(after) })
		wait := time.Duration(after)*time.Second + rand.N(time.Second) //nolint:gosec // no secret: clients that come back together meet again
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
}
