package measure

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// requestTimeout bounds one order: far more than any that is accepted takes.
const requestTimeout = 30 * time.Second

// client places one order after the other. i numbers the orders of the run and chooses the products.
type client interface {
	// place returns the id of the order once it is accepted; it is valid until the next call.
	place(ctx context.Context, i int) (id []byte, err error)
	close()
}

// load is the clients of a run, connected.
type load struct {
	clients  []client
	idle     []net.Conn
	accepted atomic.Int64
	// onAccept is called with the id of an order that was accepted, from many goroutines. It may be nil.
	onAccept func(id string, at time.Time)
}

func dial(ctx context.Context, r *run) (*load, error) {
	l := &load{}
	front := r.front()
	orders := ordersOf(r.env.products, r.Lines)
	for n := range r.Clients {
		addr := front[n%len(front)]
		var c client
		var err error
		switch overGRPC := r.GRPC && r.pipeline == Shop; {
		case overGRPC && r.Connections > 0 && n >= r.Connections:
			c = l.clients[n%r.Connections]
		case overGRPC:
			c, err = dialGRPC(addr, orders)
		default:
			c, err = dialREST(ctx, addr, orders)
		}
		if err != nil {
			l.close()
			return nil, fmt.Errorf("connecting to %s: %w", addr, err)
		}
		l.clients = append(l.clients, c)
	}
	for n := range r.Idle {
		conn, err := dialIdle(ctx, front[n%len(front)])
		if err != nil {
			l.close()
			return nil, fmt.Errorf("idle connection %d: %w", n+1, err)
		}
		l.idle = append(l.idle, conn)
	}
	return l, nil
}

// dialIdle returns a connection that has had an answer, as one of a browser that is kept for the next page has.
func dialIdle(ctx context.Context, addr string) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	_, err = fmt.Fprintf(conn, "GET /v1/inventory HTTP/1.1\r\nHost: %s\r\n\r\n", addr)
	if err == nil {
		var res *http.Response
		if res, err = http.ReadResponse(bufio.NewReader(conn), nil); err == nil {
			_, err = io.Copy(io.Discard, res.Body)
			err = errors.Join(err, res.Body.Close())
		}
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

func (l *load) close() {
	for _, conn := range l.idle {
		_ = conn.Close()
	}
	for _, c := range l.clients {
		c.close()
	}
}

// ordersOf returns the products of the lines of each different order; order i of a run is number i modulo how many there are.
func ordersOf(products []int64, lines int) [][]int64 {
	orders := make([][]int64, len(products))
	for i := range orders {
		for line := range lines {
			orders[i] = append(orders[i], products[(i+line)%len(products)])
		}
	}
	return orders
}

// loadResult is what the clients saw.
type loadResult struct {
	begin, end time.Time
	// latencies are from the moment a request was sent, or in open loop from the moment it was due, to its answer, in
	// microseconds.
	latencies *hdrhistogram.Histogram
}

func newHistogram() *hdrhistogram.Histogram {
	return hdrhistogram.New(1, 2*time.Minute.Microseconds(), 3)
}

// closedLoop places orders with all clients at once; each places the next one when its last was accepted.
func (l *load) closedLoop(ctx context.Context, orders int) (*loadResult, error) {
	return l.drive(ctx, orders, func(context.Context, time.Time, int) (time.Time, error) { return time.Now(), nil })
}

// openLoop places rate orders a second, however long each takes. A latency counts from the moment the order was due, so it
// includes the wait for a client that is free.
func (l *load) openLoop(ctx context.Context, orders, rate int) (*loadResult, error) {
	interval := float64(time.Second) / float64(rate)
	return l.drive(ctx, orders, func(ctx context.Context, begin time.Time, i int) (time.Time, error) {
		due := begin.Add(time.Duration(float64(i) * interval))
		if wait := time.Until(due); wait > 0 {
			timer := time.NewTimer(wait)
			defer timer.Stop()
			select {
			case <-timer.C:
			case <-ctx.Done():
				return due, ctx.Err()
			}
		}
		return due, nil
	})
}

// drive has the clients place all orders. due waits until order i is to be placed and returns from when it counts.
func (l *load) drive(ctx context.Context, orders int, due func(context.Context, time.Time, int) (time.Time, error)) (*loadResult, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var (
		next    atomic.Int64
		clients sync.WaitGroup
		all     = &loadResult{begin: time.Now(), latencies: newHistogram()}
		mu      sync.Mutex
	)
	for _, c := range l.clients {
		clients.Go(func() {
			latencies := newHistogram()
			for i := int(next.Add(1)) - 1; i < orders && ctx.Err() == nil; i = int(next.Add(1)) - 1 {
				from, err := due(ctx, all.begin, i)
				var id []byte
				if err == nil {
					id, err = c.place(ctx, i)
				}
				if err != nil {
					cancel(fmt.Errorf("placing an order: %w", err))
					return
				}
				at := time.Now()
				_ = latencies.RecordValue(at.Sub(from).Microseconds()) // no request takes longer than it can hold
				if l.accepted.Add(1); l.onAccept != nil {
					l.onAccept(string(id), at)
				}
			}
			mu.Lock()
			defer mu.Unlock()
			all.latencies.Merge(latencies)
		})
	}
	clients.Wait()
	all.end = time.Now()
	return all, context.Cause(ctx)
}

// restClient speaks HTTP/1.1 on one connection. It shares the machine with what it measures, so requests are prepared
// and of an answer only what counts is read.
type restClient struct {
	conn     net.Conn
	in       *bufio.Reader
	requests [][]byte
	id       []byte
}

func dialREST(ctx context.Context, addr string, orders [][]int64) (*restClient, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	c := &restClient{conn: conn, in: bufio.NewReader(conn)}
	for _, products := range orders {
		body := restOrder(products)
		c.requests = append(c.requests, fmt.Appendf(nil,
			"POST /v1/orders HTTP/1.1\r\nHost: %s\r\nUser-Agent: shop-bench\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
			addr, len(body), body))
	}
	return c, nil
}

func restOrder(products []int64) []byte {
	body := fmt.Appendf(nil, `{"customer_name":%q,"customer_email":%q,"order_items":[`, customerName, customerEmail)
	for i, id := range products {
		if i > 0 {
			body = append(body, ',')
		}
		body = fmt.Appendf(body, `{"product_id":%d,"quantity":1}`, id)
	}
	return append(body, "]}"...)
}

const (
	customerName  = "Ada Lovelace"
	customerEmail = "ada.lovelace@example.org"
)

func (c *restClient) close() { _ = c.conn.Close() }

func (c *restClient) place(_ context.Context, i int) ([]byte, error) {
	if err := c.conn.SetDeadline(time.Now().Add(requestTimeout)); err != nil {
		return nil, err
	}
	if _, err := c.conn.Write(c.requests[i%len(c.requests)]); err != nil {
		return nil, err
	}
	status, err := c.line()
	if err != nil {
		return nil, err
	}
	accepted := bytes.HasPrefix(status, []byte("HTTP/1.1 202 "))
	answer := string(status)
	length := -1 // of a body in chunks
	for {
		header, err := c.line()
		if err != nil {
			return nil, err
		}
		if len(header) == 0 {
			break
		}
		name, value, _ := bytes.Cut(header, []byte(": "))
		switch {
		case bytes.EqualFold(name, []byte("Content-Length")):
			if length, err = strconv.Atoi(string(value)); err != nil {
				return nil, fmt.Errorf("the answer's length is %q", value)
			}
		case bytes.EqualFold(name, []byte("Location")):
			c.id = append(c.id[:0], value[bytes.LastIndexByte(value, '/')+1:]...)
		}
	}
	if !accepted {
		text, _ := c.in.Peek(min(max(length, 0), 500))
		return nil, fmt.Errorf("%s: %s", answer, text)
	}
	return c.id, c.skip(length)
}

// line reads a line without its end.
func (c *restClient) line() ([]byte, error) {
	line, err := c.in.ReadSlice('\n')
	return bytes.TrimRight(line, "\r\n"), err
}

// skip reads to the end of a body.
func (c *restClient) skip(length int) error {
	if length >= 0 {
		_, err := c.in.Discard(length)
		return err
	}
	for {
		line, err := c.line()
		if err != nil {
			return err
		}
		size, err := strconv.ParseInt(string(line), 16, 32)
		if err != nil {
			return errors.New("the answer's body has neither a length nor chunks")
		}
		if _, err := c.in.Discard(int(size) + len("\r\n")); err != nil || size == 0 {
			return err
		}
	}
}
