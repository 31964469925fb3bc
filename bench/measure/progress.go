package measure

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/lib/pq"
	amqp "github.com/rabbitmq/amqp091-go"

	eventsv1 "shop.example/gen/shop/events/v1"
	"shop.example/topology"
)

const (
	// pollInterval is how precisely the end of a run is known. A query costs the database a tenth of a millisecond.
	pollInterval = 20 * time.Millisecond
	// quietFor is how long nothing may happen before a pipeline counts as finished.
	quietFor = 200 * time.Millisecond
	// stallTimeout is how long a run may make no progress.
	stallTimeout = 30 * time.Second
)

// progressReader reads from the database how far a pipeline has got, at little cost to it.
type progressReader struct {
	db       *sql.DB
	products []int64
	since    time.Time // what is older is not counted: a large shop would take longer to count than its clients stay connected
	rested   time.Time // when the last event of the run was logged
}

func newProgressReader(ctx context.Context, e *environment) (*progressReader, error) {
	p := &progressReader{db: e.db, products: e.products}
	// The baseline's events have the time of their messages, which is in whole seconds.
	if err := p.db.QueryRowContext(ctx, `SELECT now() - interval '1 second'`).Scan(&p.since); err != nil {
		return nil, fmt.Errorf("asking the database for the time: %w", err)
	}
	return p, nil
}

// state is what grows while orders are settled.
type state struct {
	sold   int64 // pieces that have left the stock
	logged int64 // the last id that the event log has given out
	quiet  bool  // nothing is left to be published
}

// state reads a row for each product, and of the log its sequence alone: counting would cost what is measured.
//
// A piece leaves product.on_hand in the transaction that settles its hold and writes its movement, after a message that
// the order service sends when the order is stored as CONFIRMED. So an order whose pieces are gone is settled.
func (p *progressReader) state(ctx context.Context) (s state, err error) {
	err = p.db.QueryRowContext(ctx, `SELECT -sum(on_hand) FROM inventory.product WHERE id = ANY ($1)`, pq.Array(p.products)).Scan(&s.sold)
	if err == nil {
		err = p.db.QueryRowContext(ctx, `
			SELECT last_value, NOT EXISTS (SELECT FROM orders.outbox) AND NOT EXISTS (SELECT FROM inventory.outbox)
			FROM logging.event_log_id_seq`).Scan(&s.logged, &s.quiet)
	}
	if err != nil {
		return s, fmt.Errorf("looking how far it is: %w", err)
	}
	return s, nil
}

// poll calls look every 20 ms until it says that it has seen what it waits for. It fails if what look returns has
// not changed for half a minute.
func poll[T comparable](ctx context.Context, look func() (now T, done bool, err error)) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	last, since := *new(T), time.Now()
	for {
		now, done, err := look()
		if done || err != nil {
			return err
		}
		if now != last {
			last, since = now, time.Now()
		}
		if time.Since(since) > stallTimeout {
			return fmt.Errorf("nothing has happened for %s: look at what the processes say", stallTimeout)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// settled waits until so many pieces more than before have left the stock and returns when that was.
func (p *progressReader) settled(ctx context.Context, before state, pieces int, sold func(int64)) (time.Time, error) {
	never := make(chan error)
	return p.settledUnless(ctx, never, before, pieces, sold)
}

// settledUnless is settled that ends with the first error of the load; nil from failed means that all orders are placed.
func (p *progressReader) settledUnless(ctx context.Context, failed <-chan error, before state, pieces int, sold func(int64)) (time.Time, error) {
	err := poll(ctx, func() (n int64, done bool, err error) {
		select {
		case err := <-failed:
			if err != nil {
				return 0, false, err
			}
			failed = nil
		default:
		}
		err = p.db.QueryRowContext(ctx, `SELECT -sum(on_hand) FROM inventory.product WHERE id = ANY ($1)`, pq.Array(p.products)).Scan(&n)
		n -= before.sold
		sold(n)
		return n, n >= int64(pieces), err
	})
	return time.Now(), err
}

// eventsOfAnOrder are placed, confirmed and the decrement; those of the stock come once a batch.
const eventsOfAnOrder = 3

// awaitQuiet waits until the events of so many orders are logged and nothing follows any more.
func (p *progressReader) awaitQuiet(ctx context.Context, before state, orders int) error {
	var last state
	p.rested = time.Now()
	return poll(ctx, func() (state, bool, error) {
		now, err := p.state(ctx)
		if now != last || !now.quiet || now.logged-before.logged < int64(orders*eventsOfAnOrder) {
			last, p.rested = now, time.Now()
		}
		return now, time.Since(p.rested) > quietFor, err
	})
}

// stored counts what the orders of a run leave behind.
type stored struct{ confirmed, settled, movements, events int }

func (p *progressReader) count(ctx context.Context) (s stored, err error) {
	err = p.db.QueryRowContext(ctx, `
		SELECT (SELECT count(*) FROM orders.orders WHERE state = 'CONFIRMED' AND created_at >= $1),
		       (SELECT count(*) FROM inventory.hold WHERE state = 'SETTLED' AND created_at >= $1),
		       (SELECT count(*) FROM inventory.stock_movement WHERE reason = 'SOLD' AND created_at >= $1),
		       (SELECT count(*) FROM logging.event_log WHERE order_id IS NOT NULL AND status = 'success' AND published_at >= $1)`, p.since).
		Scan(&s.confirmed, &s.settled, &s.movements, &s.events)
	if err != nil {
		return s, fmt.Errorf("counting what is stored: %w", err)
	}
	return s, nil
}

// awaitEvents waits until so many events of orders are in the log. On a busy machine nothing may happen for quietFor although some
// are still to come, and events of the stock count in what awaitQuiet sees.
func (p *progressReader) awaitEvents(ctx context.Context, events int) error {
	return poll(ctx, func() (int, bool, error) {
		now, err := p.count(ctx)
		return now.events, now.events >= events, err
	})
}

// check makes sure that the run did all its work: every order confirmed, its holds settled, each with its movement, and
// its events logged once.
func (p *progressReader) check(ctx context.Context, before stored, orders, holds int) error {
	now, err := p.count(ctx)
	if err != nil {
		return err
	}
	got := stored{now.confirmed - before.confirmed, now.settled - before.settled, now.movements - before.movements, now.events - before.events}
	want := stored{orders, orders * holds, orders * holds, orders * eventsOfAnOrder}
	if got != want {
		return fmt.Errorf("%d orders have left %+v, and should have left %+v", orders, got, want)
	}
	return nil
}

// decisions reads from the orders how long each took from being placed to being decided. In closed loop that is all:
// waiting for the event of each would cost the broker what is being measured.
func (p *progressReader) decisions(ctx context.Context, f Figures, since time.Time) error {
	var p50, p99 float64
	err := p.db.QueryRowContext(ctx, `
		SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY took), percentile_cont(0.99) WITHIN GROUP (ORDER BY took)
		FROM (SELECT extract(epoch FROM updated_at - created_at) * 1000 AS took FROM orders.orders WHERE created_at >= $1) orders`, since).
		Scan(&p50, &p99)
	if err != nil {
		return fmt.Errorf("reading when orders were decided: %w", err)
	}
	f[confirmP50], f[confirmP99] = p50, p99
	return nil
}

// confirms receives the OrderConfirmed of each order in a queue of its own, to measure how long after its acceptance the order
// was confirmed. It is for open loop, in which one more message for each order does not slow down the pipeline.
type confirms struct {
	conn *amqp.Connection
	done chan struct{}

	mu    sync.Mutex
	times map[string]*[2]time.Time // by order: accepted, confirmed; whichever is seen first
}

func listen(url string) (*confirms, error) {
	conn, err := amqp.Dial(url)
	if err != nil {
		return nil, fmt.Errorf("listening to the orders that are confirmed: %w", err)
	}
	c := &confirms{conn: conn, done: make(chan struct{}), times: map[string]*[2]time.Time{}}
	deliveries, err := consumeEvents(conn, topology.RoutingKey(&eventsv1.OrderConfirmed{}))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listening to the orders that are confirmed: %w", err), conn.Close())
	}
	go func() {
		defer close(c.done)
		for d := range deliveries {
			c.note(d.CorrelationId, 1, time.Now())
		}
	}()
	return c, nil
}

// consumeEvents takes the events with the routing key from a queue that goes with the connection.
func consumeEvents(conn *amqp.Connection, key string) (<-chan amqp.Delivery, error) {
	ch, err := conn.Channel()
	if err != nil {
		return nil, err
	}
	q, err := ch.QueueDeclare("", false, true, true, false, nil)
	if err != nil {
		return nil, err
	}
	if err := ch.QueueBind(q.Name, key, topology.Broker().EventExchange, false, nil); err != nil {
		return nil, err
	}
	return ch.Consume(q.Name, "", true, true, false, false, nil)
}

func (c *confirms) accepted(id string, at time.Time) { c.note(id, 0, at) }

func (c *confirms) note(id string, which int, at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.times[id] == nil {
		c.times[id] = &[2]time.Time{}
	}
	c.times[id][which] = at
}

func (c *confirms) close() {
	_ = c.conn.Close()
	<-c.done
}

// read is called when all orders are settled, and their events published before that.
func (c *confirms) read(f Figures, orders int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := newHistogram()
	for _, t := range c.times {
		if !t[0].IsZero() && !t[1].IsZero() {
			_ = h.RecordValue(max(t[1].Sub(t[0]).Microseconds(), 1)) // what a run takes fits in
		}
	}
	if int(h.TotalCount()) != orders {
		return fmt.Errorf("%d of %d orders were seen to be accepted and confirmed", h.TotalCount(), orders)
	}
	f[confirmP50], f[confirmP99] = milliseconds(h.ValueAtQuantile(50)), milliseconds(h.ValueAtQuantile(99))
	return nil
}
