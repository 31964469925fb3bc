package audit

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/lib/pq"
	"google.golang.org/protobuf/proto"

	"shop.example/domain/customer"
	"shop.example/domain/money"
	eventsv1 "shop.example/gen/shop/events/v1"
	inventoryv1 "shop.example/gen/shop/inventory/v1"
	"shop.example/platform/contract"
	"shop.example/platform/messaging"
	"shop.example/topology"
)

// orderView is everything that the services know about one order.
type orderView struct {
	id       string
	order    *order
	decision *decision
	holds    []hold
	events   map[string]int // by routing key
	// placedAge is the age of the order's first event in the log; 0 if there is none.
	placedAge seconds
	// discarded is the dead letter that its OrderPlaced became and an operator has discarded, so that the order is rejected; 0 if
	// there is none.
	discarded int64
	// erased says that its OrderPlaced has no personal data any more, so it cannot be sent again.
	erased bool
	// sent is how often an event of it was sent again, and sentAge how long ago last.
	sent    int
	sentAge seconds
	// logged is false if the order is older than the log.
	logged bool
}

type order struct {
	state, reason string
	items         int64
	value         int64 // minor units
	currency      string
	lines         []line
	createdAt     time.Time
	age           seconds // of its state
}

// line is one line of a confirmed order, comparable.
type line struct {
	number, productID int32
	name              string
	quantity          int32
	price             int64 // minor units
	currency          string
}

type decision struct {
	reason string // "" if the stock was held
	lines  []line
	age    seconds
}

type hold struct {
	productID, quantity int32
	state               string
	age                 seconds // of its state, or since it was last relied on
}

// logBegins returns the day of the oldest partition of the log; older events have been dropped. The zero time if there is
// none.
func (a *Auditor) logBegins(ctx context.Context) (begin time.Time, err error) {
	var day sql.NullString
	err = a.logging.QueryRowContext(ctx, `
		SELECT substring(min(relname::text) FROM '\d{8}$') FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
		WHERE inhparent = 'event_log'::regclass AND relname ~ '^event_log_\d{8}$'`).Scan(&day)
	if err == nil && day.Valid {
		begin, err = time.Parse("20060102", day.String)
	}
	if err != nil {
		return begin, fmt.Errorf("reading the partitions of the log: %w", err)
	}
	return begin, nil
}

// examine reads what is known about the orders and compares it. The order service is read first and the log last, in the
// direction in which things happen: what is read later is newer. Where the log begins is read after it: it may have dropped
// events meanwhile.
//
// Of orders that are not in late only the events of their days are read; if late is nil all events of all are.
func (a *Auditor) examine(ctx context.Context, ids []string, late map[string]bool) ([]finding, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	byID := make(map[string]*orderView, len(ids))
	for _, id := range ids {
		byID[id] = &orderView{id: id, events: map[string]int{}}
	}
	array := pq.Array(ids)
	for _, read := range []func(context.Context, map[string]*orderView, any) error{
		a.readOrders, a.readLines, a.readDecisions, a.readHolds,
		func(ctx context.Context, byID map[string]*orderView, _ any) error {
			return a.readEvents(ctx, byID, late)
		},
		a.readDiscarded, a.readSent,
	} {
		if err := read(ctx, byID, array); err != nil {
			return nil, err
		}
	}
	horizon, err := a.logBegins(ctx)
	if err != nil {
		return nil, err
	}
	var found []finding
	for _, id := range ids {
		f := byID[id]
		switch {
		case f.order != nil:
			f.logged = !f.began().Before(horizon)
		case f.decision != nil:
			f.logged = !f.decision.age.ago().Before(horizon)
		default:
			f.logged = true
		}
		found = append(found, a.compare(f)...)
	}
	return found, nil
}

func (a *Auditor) readOrders(ctx context.Context, byID map[string]*orderView, ids any) error {
	return rows(ctx, a.orders, "orders", `
		SELECT id, state, coalesce(reason, ''), total_items, coalesce(total_value, 0), coalesce(currency, ''), created_at,
		       extract(epoch FROM clock_timestamp() - updated_at)
		FROM orders WHERE id = ANY($1::uuid[])`, []any{ids}, func(r *sql.Rows) error {
		var id string
		o := &order{}
		if err := r.Scan(&id, &o.state, &o.reason, &o.items, &o.value, &o.currency, &o.createdAt, &o.age); err != nil {
			return err
		}
		o.reason = reasonName(o.reason)
		byID[id].order = o
		return nil
	})
}

// reasonName returns a reason as it is spelled here. A service stores one that it has no name for as its number.
func reasonName(reason string) string {
	if number, err := strconv.ParseInt(reason, 10, 32); err == nil {
		return eventsv1.OrderRejected_Reason(number).String()
	}
	return reason
}

func (a *Auditor) readLines(ctx context.Context, byID map[string]*orderView, ids any) error {
	return rows(ctx, a.orders, "the lines of orders", `
		SELECT order_id, line, product_id, product_name, quantity, coalesce(unit_price, 0)
		FROM order_item WHERE order_id = ANY($1::uuid[]) ORDER BY order_id, line`, []any{ids}, func(r *sql.Rows) error {
		var id string
		var l line
		if err := r.Scan(&id, &l.number, &l.productID, &l.name, &l.quantity, &l.price); err != nil {
			return err
		}
		if o := byID[id].order; o != nil { // an order that was stored a moment ago has lines only
			l.currency = o.currency
			o.lines = append(o.lines, l)
		}
		return nil
	})
}

func (a *Auditor) readDecisions(ctx context.Context, byID map[string]*orderView, ids any) error {
	return rows(ctx, a.inventory, "decisions", `
		SELECT order_id, coalesce(reason, ''), answer, extract(epoch FROM clock_timestamp() - decided_at)
		FROM decision WHERE order_id = ANY($1::uuid[])`, []any{ids}, func(r *sql.Rows) error {
		var id string
		var answer sql.RawBytes
		d := &decision{}
		if err := r.Scan(&id, &d.reason, &answer, &d.age); err != nil {
			return err
		}
		m := &inventoryv1.StockDecision{}
		if err := proto.Unmarshal(answer, m); err != nil {
			return fmt.Errorf("order %s: %w", id, err)
		}
		if _, known := eventsv1.OrderRejected_Reason_value[d.reason]; !known && d.reason != "" && m.GetRejection() != nil {
			d.reason = m.GetRejection().GetReason().String() // its number: it is of a newer release
		}
		for _, l := range m.GetLines() {
			d.lines = append(d.lines, line{l.GetLine(), l.GetProductId(), l.GetProductName(), l.GetQuantity(),
				money.Minor(l.GetUnitPrice()), l.GetUnitPrice().GetCurrencyCode()})
		}
		byID[id].decision = d
		return nil
	})
}

func (a *Auditor) readHolds(ctx context.Context, byID map[string]*orderView, ids any) error {
	return rows(ctx, a.inventory, "holds", `
		SELECT order_id, product_id, quantity, state, extract(epoch FROM clock_timestamp() - updated_at) FROM hold WHERE order_id = ANY($1::uuid[])
		ORDER BY order_id, product_id`, []any{ids}, func(r *sql.Rows) error {
		var id string
		var h hold
		if err := r.Scan(&id, &h.productID, &h.quantity, &h.state, &h.age); err != nil {
			return err
		}
		byID[id].holds = append(byID[id].holds, h)
		return nil
	})
}

// daysOfEvents is for how many days after an order was changed last its events are looked for, if it has none of a later partition: as
// many as a partition has, and one for clocks.
const daysOfEvents = 8

// readEvents reads the events of the orders, from the day of the oldest one on: partitions that can have none are not touched,
// because looking for thousands of orders in each of some hundred partitions would take longer than everything else. late
// is that of examine.
func (a *Auditor) readEvents(ctx context.Context, byID map[string]*orderView, late map[string]bool) error {
	var bounded, unbounded []string
	first, last, ever := time.Now(), time.Time{}, time.Now() // of the bounded; and from when on there can be some of the others
	for id, f := range byID {
		made := madeAt(id)
		switch {
		case f.order == nil:
			unbounded = append(unbounded, id)
			if !made.IsZero() {
				made = made.AddDate(0, 0, -1) // a clock may be as fast as logging lets it be
			}
			ever = earlier(ever, made)
		case made.IsZero() || late == nil || late[id]: // the id of an order with an idempotency key has no time
			unbounded = append(unbounded, id)
			ever = earlier(ever, f.began())
		default:
			bounded = append(bounded, id)
			first = earlier(first, f.began())
			if changed := f.order.age.ago(); changed.After(last) {
				last = changed
			}
		}
	}
	if err := a.readEventsBetween(ctx, byID, bounded, first, last.AddDate(0, 0, daysOfEvents)); err != nil {
		return err
	}
	return a.readEventsBetween(ctx, byID, unbounded, ever, time.Now().AddDate(1, 0, 0))
}

// began returns when the first event of a stored order was published: when it was placed, by the clock of its gateway, or when it
// was decided, if that clock is fast.
func (f *orderView) began() time.Time {
	began := earlier(f.order.createdAt, f.order.age.ago())
	if f.decision != nil {
		began = earlier(began, f.decision.age.ago())
	}
	return began
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// madeAt returns when the id was made, or the zero time if it does not say so.
func madeAt(id string) time.Time {
	parsed, err := uuid.Parse(id)
	if err != nil || parsed.Version() != 7 {
		return time.Time{}
	}
	return time.Unix(parsed.Time().UnixTime())
}

// readEventsBetween reads the events of orders that were published from begin to end. A client that repeats itself with its
// idempotency key places the same order again; after a day that is another event.
func (a *Auditor) readEventsBetween(ctx context.Context, byID map[string]*orderView, ids []string, begin, end time.Time) error {
	if len(ids) == 0 {
		return nil
	}
	if !begin.IsZero() {
		begin = begin.Add(-time.Hour) // clocks differ
	}
	return rows(ctx, a.logging, "the log", `
		SELECT order_id, routing_key,
		       CASE WHEN routing_key = $3 AND max(published_at) - min(published_at) >= interval '1 day' THEN 1 ELSE count(*) END,
		       extract(epoch FROM clock_timestamp() - min(published_at)),
		       coalesce(bool_or(routing_key = $3 AND payload ->> 'customer_name' = $4 AND NOT payload ? 'customer_email'), false)
		FROM event_log WHERE order_id = ANY($1::uuid[]) AND published_at >= $2 AND published_at < $5
		GROUP BY order_id, routing_key`, []any{pq.Array(ids), begin, placed, customer.Erased, end}, func(r *sql.Rows) error {
		var id, key string
		var n int
		var age seconds
		var erased bool
		if err := r.Scan(&id, &key, &n, &age, &erased); err != nil {
			return err
		}
		byID[id].events[key] = n
		byID[id].erased = byID[id].erased || erased
		byID[id].placedAge = max(byID[id].placedAge, age)
		return nil
	})
}

func (a *Auditor) readSent(ctx context.Context, byID map[string]*orderView, ids any) error {
	return rows(ctx, a.logging, "events that were sent again", `
		SELECT order_id, sum(sent), extract(epoch FROM clock_timestamp() - max(sent_at)) FROM unhandled_event
		WHERE order_id = ANY($1::uuid[]) AND sent > 0 GROUP BY order_id`, []any{ids}, func(r *sql.Rows) error {
		var id string
		var n int
		var age seconds
		if err := r.Scan(&id, &n, &age); err != nil {
			return err
		}
		byID[id].sent, byID[id].sentAge = n, age
		return nil
	})
}

// readDiscarded reads the dead letters after whose discarding the order service was told to reject their orders. What else was
// discarded decides nothing: an OrderPlaced in another queue, or of somebody who may not place orders.
func (a *Auditor) readDiscarded(ctx context.Context, byID map[string]*orderView, ids any) error {
	return rows(ctx, a.logging, "discarded dead letters", `
		SELECT order_id, id, headers::text FROM dead_letter
		WHERE order_id = ANY($1::uuid[]) AND state = 'DISCARDED' AND routing_key = $2 AND source_queue = $3 ORDER BY id`,
		[]any{ids, placed, topology.Order}, func(r *sql.Rows) error {
			var id string
			var letter int64
			var headers sql.RawBytes
			if err := r.Scan(&id, &letter, &headers); err != nil {
				return err
			}
			if mayPlace(headers) {
				byID[id].discarded = letter
			}
			return nil
		})
}

// mayPlace reports whether the publisher of a dead letter with these headers may place orders. Users of the broker are named as
// their services, after a prefix that ends with "-" if several shops share it; an unknown one may.
func mayPlace(letterHeaders []byte) bool {
	var headers map[string]json.RawMessage // one that is not text is nobody's
	var user string
	if json.Unmarshal(letterHeaders, &headers) == nil {
		_ = json.Unmarshal(headers[messaging.HeaderUser], &user)
	}
	event, _ := contract.EventOf(&eventsv1.OrderPlaced{})
	return user == "" || slices.ContainsFunc(event.PublishedBy, func(service string) bool {
		return user == service || strings.HasSuffix(user, "-"+service)
	})
}
