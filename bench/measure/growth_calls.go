package measure

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	eventsv1 "shop.example/gen/shop/events/v1"
	loggingv1 "shop.example/gen/shop/logging/v1"
	"shop.example/platform/pagetoken"
	"shop.example/topology"
)

// CallFigures are how long a call took, in milliseconds.
type CallFigures struct {
	Call  string  `json:"call"`
	Place string  `json:"place"` // of the page
	Calls int     `json:"calls"`
	P50   float64 `json:"p50_ms"`
	P99   float64 `json:"p99_ms"`
}

// growthCall is a call that lists, searches or reads.
type growthCall struct {
	about, path string
	// token makes the page token for what SQL finds at offset; nil if the pages are walked instead, one after the other.
	position string
	token    func(row []byte) string
	walk     bool
}

// maxWalk is how many pages of one search are read.
const maxWalk = 100

// growthCalls are the lists and searches of the API. The pages in the middle and at the end are found by making their tokens: a client
// would get there after thousands of calls.
func growthCalls(orderID, product string) []growthCall {
	ids := func(table, where string) string {
		return `SELECT int8send(id) FROM ` + table + where + ` ORDER BY id DESC`
	}
	orders := func(where string) string {
		return `SELECT int8send((extract(epoch FROM created_at) * 1000000)::bigint) || uuid_send(id) FROM orders.orders` + where + ` ORDER BY created_at DESC, id DESC`
	}
	plain := func(list string) func([]byte) string {
		return func(position []byte) string { return pagetoken.New(position, list) }
	}
	request := func(m proto.Message) func([]byte) string { return plain(pagetoken.ListOf(m)) }
	const eventLog = "logging.event_log"
	confirmed, rejected := topology.RoutingKey(&eventsv1.OrderConfirmed{}), topology.RoutingKey(&eventsv1.OrderRejected{})
	return []growthCall{
		{about: "orders", path: "/v1/orders", position: orders(""), token: plain(" ")},
		{about: "orders, 1,000 a page", path: "/v1/orders?page_size=1000", position: orders(""), token: plain(" ")},
		{about: "orders that were rejected", path: "/v1/orders?state=REJECTED", position: orders(" WHERE state = 'REJECTED'"), token: plain("REJECTED ")},
		{about: "search: orders of an address", path: "/v1/orders?customer_email=ada.lovelace77@example.org", walk: true},
		{about: "search: orders with a product", path: "/v1/orders?product_id=" + product, walk: true},
		{about: "search: orders by the end of their id", path: "/v1/orders?id_suffix=abcdef", walk: true},
		{about: "an order", path: "/v1/orders/" + orderID},
		{about: "an order's events", path: "/v1/orders/" + orderID + "/events"},
		{about: "events", path: "/v1/events", position: ids(eventLog, ""), token: request(&loggingv1.ListEventsRequest{})},
		{about: "events, 1,000 a page", path: "/v1/events?page_size=1000", position: ids(eventLog, ""), token: request(&loggingv1.ListEventsRequest{})},
		{about: "events of one type", path: "/v1/events?routing_key=" + confirmed, position: ids(eventLog, " WHERE routing_key = '"+confirmed+"'"),
			token: request(&loggingv1.ListEventsRequest{RoutingKey: confirmed})},
		{about: "events of a rare type", path: "/v1/events?routing_key=" + rejected, position: ids(eventLog, " WHERE routing_key = '"+rejected+"'"),
			token: request(&loggingv1.ListEventsRequest{RoutingKey: rejected})},
		{about: "events of a type that none has", path: "/v1/events?routing_key=shop.inventory.delete"},
		{about: "events of a pattern", path: "/v1/events?routing_key=" + url.QueryEscape("shop.stock.#"), position: ids(eventLog, " WHERE routing_key LIKE 'shop.stock.%'"),
			token: request(&loggingv1.ListEventsRequest{RoutingKey: "shop.stock.#"})},
		{about: "events of a pattern that none has", path: "/v1/events?routing_key=" + url.QueryEscape("#.delete"), walk: true},
		{about: "events that failed", path: "/v1/events?status=error", position: ids(eventLog, " WHERE status = 'error'"),
			token: request(&loggingv1.ListEventsRequest{Status: loggingv1.Event_error})},
		{about: "events before a time", path: "/v1/events?published_before=%MIDDAY%", walk: true},
		{about: "events after a time and before another", path: "/v1/events?published_after=%MORNING%&published_before=%MIDDAY%"},
		{about: "events of one type before a time", path: "/v1/events?routing_key=" + rejected + "&published_before=%MIDDAY%"},
		{about: "products", path: "/v1/inventory", position: `SELECT int8send(id) FROM inventory.product ORDER BY id`, token: plain("items")},
		{about: "products, 1,000 a page", path: "/v1/inventory?page_size=1000", position: `SELECT int8send(id) FROM inventory.product ORDER BY id`, token: plain("items")},
		{about: "a product's movements", path: "/v1/inventory/" + product + "/movements", position: `SELECT int8send(id) FROM inventory.stock_movement ORDER BY id DESC`, token: plain("movements of " + product)},
		{about: "dead letters", path: "/v1/dead-letters", position: ids("logging.dead_letter", ""), token: request(&loggingv1.ListDeadLettersRequest{})},
		{about: "operators' actions", path: "/v1/operator-actions", position: ids("logging.operator_action", ""), token: request(&loggingv1.ListOperatorActionsRequest{})},
		{about: "status", path: "/v1/status"},
	}
}

// calls measures each call: of a list the first page, one in the middle and the last.
func (g *grower) calls(ctx context.Context) ([]CallFigures, error) {
	var order, product string
	var at time.Time
	err := g.env.db.QueryRowContext(ctx, `
		SELECT id, created_at, (SELECT max(id) / 2 + 5 FROM inventory.product)
		FROM orders.orders ORDER BY created_at, id OFFSET (SELECT count(*) / 2 FROM orders.orders) LIMIT 1`).Scan(&order, &at, &product)
	if err != nil {
		return nil, fmt.Errorf("looking for an order and a product: %w", err)
	}
	times := strings.NewReplacer("%MIDDAY%", at.UTC().Format(time.RFC3339), "%MORNING%", at.UTC().Add(-time.Hour).Format(time.RFC3339))
	reader := &listReader{base: "http://" + g.processes[0].addrs.HTTP, token: g.token, client: &http.Client{Timeout: requestTimeout}}
	defer reader.client.CloseIdleConnections()
	var all []CallFigures
	for _, c := range growthCalls(order, product) {
		g.tell("reading: %s", c.about)
		c.path = times.Replace(c.path)
		figures, err := g.measureCall(ctx, reader, c)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.about, err)
		}
		all = append(all, figures...)
	}
	return all, nil
}

func (g *grower) measureCall(ctx context.Context, reader *listReader, c growthCall) (all []CallFigures, err error) {
	if c.walk {
		f, err := reader.walk(ctx, c.about, c.path)
		return []CallFigures{f}, err
	}
	f, err := reader.repeat(ctx, c.about, "first", c.path, g.growth.Calls)
	if err != nil || c.token == nil {
		return append(all, f), err
	}
	all = append(all, f)
	var rows int
	if err := g.env.db.QueryRowContext(ctx, `SELECT count(*) FROM (`+c.position+`) AS list`).Scan(&rows); err != nil {
		return nil, err
	}
	const page = 50
	for _, at := range []struct {
		place  string
		offset int
	}{{"middle", rows / 2}, {"last", rows - page}} {
		if at.offset < page {
			continue
		}
		var position []byte
		if err := g.env.db.QueryRowContext(ctx, c.position+` OFFSET $1 LIMIT 1`, at.offset-1).Scan(&position); err != nil {
			return nil, err
		}
		separator := "?"
		if strings.Contains(c.path, "?") {
			separator = "&"
		}
		f, err := reader.repeat(ctx, c.about, at.place, c.path+separator+"page_token="+c.token(position), g.growth.Calls)
		if err != nil {
			return nil, err
		}
		all = append(all, f)
	}
	return all, nil
}

// listReader makes calls as an operator, one after the other.
type listReader struct {
	base, token string
	client      *http.Client
}

// repeat makes the same call n times.
func (c *listReader) repeat(ctx context.Context, about, place, path string, n int) (CallFigures, error) {
	h := newHistogram()
	for range n {
		took, _, err := c.get(ctx, path)
		if err != nil {
			return CallFigures{}, err
		}
		_ = h.RecordValue(took.Microseconds()) // no request takes longer than it can hold
	}
	return CallFigures{about, place, n, milliseconds(h.ValueAtQuantile(50)), milliseconds(h.ValueAtQuantile(99))}, nil
}

// walk reads all pages, at most maxWalk.
func (c *listReader) walk(ctx context.Context, about, path string) (CallFigures, error) {
	h := newHistogram()
	next := ""
	for range maxWalk {
		took, body, err := c.get(ctx, path+next)
		if err != nil {
			return CallFigures{}, err
		}
		_ = h.RecordValue(took.Microseconds()) // as above
		var page struct {
			NextPageToken string `json:"next_page_token"`
		}
		if err := json.Unmarshal(body, &page); err != nil {
			return CallFigures{}, fmt.Errorf("reading the answer: %w", err)
		}
		if page.NextPageToken == "" {
			break
		}
		next = "&page_token=" + page.NextPageToken
	}
	return CallFigures{about, "all", int(h.TotalCount()), milliseconds(h.ValueAtQuantile(50)), milliseconds(h.ValueAtQuantile(99))}, nil
}

func (c *listReader) get(ctx context.Context, path string) (time.Duration, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+path, nil)
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	begin := time.Now()
	resp, err := c.client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	took := time.Since(begin)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("GET %s: %s: %.300s", path, resp.Status, body)
	}
	return took, body, err
}
