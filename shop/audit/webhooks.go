package audit

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/lib/pq"

	"shop.example/domain/customer"
	"shop.example/platform/contract"
	"shop.example/platform/messaging"
)

// alwaysKept is how long an event that a webhook wants is kept, whatever else is kept for webhooks.
const alwaysKept = time.Hour

// webhook is one as the service that delivers events knows it.
type webhook struct {
	id, owner string // "" for an operator's, which is told of everybody's orders
	types     []string
	since     int64 // where the log was when it was made or changed: what it wants behind that is delivered
	silent    bool  // it gets nothing new
}

func (w webhook) wants(e *loggedEvent) bool {
	return !w.silent && e.id > w.since && (w.owner == "" || w.owner == e.owner && !e.late) &&
		slices.ContainsFunc(w.types, func(pattern string) bool { return messaging.Matches(pattern, e.key) })
}

// loggedEvent is an event of the log.
type loggedEvent struct {
	id         int64
	key, order string
	age        seconds // since it was logged
	owner      string  // of its order; "" for nobody
	late       bool    // the OrderPlaced of its order is not its first event: whose it is may have been known too late
	erased     bool    // nothing says any more whose the order is
}

// delivery is an event for a webhook.
type delivery struct {
	event   int64
	webhook string
}

// deliveries compares what webhooks want of the log with what is delivered to them. What is late is looked for once more after
// a pause, and counts if it is found again.
func (a *Auditor) deliveries(ctx context.Context) ([]finding, error) {
	found, err := a.findDeliveries(ctx)
	if err != nil || !slices.ContainsFunc(found, func(f finding) bool { return f.late }) {
		return found, err
	}
	if err := sleep(ctx, a.pause); err != nil {
		return nil, err
	}
	again, err := a.findDeliveries(ctx)
	return slices.DeleteFunc(again, func(f finding) bool {
		return f.late && !slices.ContainsFunc(found, func(before finding) bool {
			return before.late && before.Check == f.Check && before.delivery == f.delivery
		})
	}), err
}

func (a *Auditor) findDeliveries(ctx context.Context) ([]finding, error) {
	webhooks, err := a.readWebhooks(ctx)
	if err != nil {
		return nil, err
	}
	// Events are deleted with their deliveries when they are old: those before this one are gone.
	oldest := int64(math.MaxInt64)
	if err := a.webhooks.QueryRowContext(ctx, `SELECT coalesce(min(id), $1) FROM event`, oldest).Scan(&oldest); err != nil {
		return nil, fmt.Errorf("reading the oldest event for webhooks: %w", err)
	}
	next, last, err := a.compared(ctx, webhooks, oldest)
	if err != nil {
		return nil, err
	}
	found, err := a.overdue(ctx)
	for ; err == nil && next <= last; next += window {
		var wrong, disordered []finding
		if wrong, err = a.compareDeliveries(ctx, webhooks, oldest, next, min(next+window-1, last)); err == nil {
			disordered, err = a.disordered(ctx, next, next+window-1)
		}
		found = append(append(found, wrong...), disordered...)
	}
	return found, err
}

// compared returns the first and the last id of the part of the log that is compared with its deliveries: from the oldest event that
// is kept for webhooks on. What is older is looked for only if it is always kept and a webhook may want it.
func (a *Auditor) compared(ctx context.Context, webhooks map[string]*webhook, oldest int64) (from, to int64, err error) {
	first, to, err := a.logEnds(ctx)
	if err != nil {
		return 0, 0, err
	}
	wanted := oldest
	for _, w := range webhooks {
		if !w.silent {
			wanted = min(wanted, w.since+1)
		}
	}
	first = max(first, wanted)
	for from = max(first, min(oldest, to+1)); from > first; from = max(first, from-window) {
		var kept bool // the event before
		err := a.logging.QueryRowContext(ctx, `
			SELECT created_at > clock_timestamp() - $3 * interval '1 second' FROM event_log WHERE id < $1 AND published_at >= $2 ORDER BY id DESC LIMIT 1`,
			from, a.begin(), alwaysKept.Seconds()).Scan(&kept)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return 0, 0, fmt.Errorf("reading the log: %w", err)
		}
		if !kept {
			break
		}
	}
	return from, to, nil
}

func (a *Auditor) readWebhooks(ctx context.Context) (map[string]*webhook, error) {
	all := map[string]*webhook{}
	// Without since it was made by a release that did not say it.
	return all, rows(ctx, a.webhooks, "webhooks", `
		SELECT id, owner, event_types, coalesce(since, 0), state = 'DISABLED' OR since IS NULL FROM webhook`, nil, func(r *sql.Rows) error {
		w := &webhook{}
		err := r.Scan(&w.id, &w.owner, pq.Array(&w.types), &w.since, &w.silent)
		all[w.id] = w
		return err
	})
}

// compareDeliveries compares a part of the log with its deliveries. Deliveries are read after the webhooks, and the log last:
// what is read later is newer.
func (a *Auditor) compareDeliveries(ctx context.Context, webhooks map[string]*webhook, oldest, from, to int64) (found []finding, err error) {
	kept := map[delivery]bool{}
	err = rows(ctx, a.webhooks, "deliveries", `SELECT event_id, webhook_id FROM delivery WHERE event_id BETWEEN $1 AND $2`, []any{from, to}, func(r *sql.Rows) error {
		var d delivery
		err := r.Scan(&d.event, &d.webhook)
		kept[d] = true
		return err
	})
	if err != nil {
		return nil, err
	}
	events, err := a.readLogged(ctx, webhooks, from, to)
	if err != nil {
		return nil, err
	}
	var missing []delivery
	for _, e := range events {
		for _, w := range webhooks {
			d := delivery{e.id, w.id}
			if w.wants(e) && !kept[d] && (e.id >= oldest || e.age.duration() < alwaysKept) {
				missing = append(missing, d)
			}
		}
	}
	broken, err := a.undeliverable(ctx, missing)
	if err != nil {
		return nil, err
	}
	add := func(d delivery, late, slow bool, format string, args ...any) {
		f := finding{Violation: Violation{Check: Deliveries, Detail: fmt.Sprintf(format, args...)}, late: late, slow: slow, delivery: d}
		if e := events[d.event]; e != nil {
			f.OrderID = e.order
		}
		found = append(found, f)
	}
	for _, d := range missing {
		if e := events[d.event]; !broken[d.event] {
			add(d, a.isLate(e.age), true, "webhook %s wants %s, event %d of the log, which is not kept for it", d.webhook, e.key, e.id)
		}
	}
	for d := range kept {
		w, e := webhooks[d.webhook], events[d.event]
		switch {
		case w == nil:
			add(d, true, false, "event %d of the log is kept for webhook %s, which has been deleted", d.event, d.webhook)
		case w.owner != "" && e != nil && !e.erased && e.owner != w.owner:
			add(d, true, false, "webhook %s gets %s, event %d of the log, although the order is not its owner's", w.id, e.key, e.id)
		}
	}
	sortFindings(found)
	return found, nil
}

// readLogged reads a part of the log, by id; whose orders they are only if a webhook is a customer's.
func (a *Auditor) readLogged(ctx context.Context, webhooks map[string]*webhook, from, to int64) (map[int64]*loggedEvent, error) {
	events, orders := map[int64]*loggedEvent{}, map[string][]*loggedEvent{}
	err := rows(ctx, a.logging, "the log", `
		SELECT id, routing_key, coalesce(order_id::text, ''), extract(epoch FROM clock_timestamp() - created_at)
		FROM event_log WHERE id BETWEEN $1 AND $2 AND published_at >= $3`, []any{from, to, a.begin()}, func(r *sql.Rows) error {
		e := &loggedEvent{}
		err := r.Scan(&e.id, &e.key, &e.order, &e.age)
		events[e.id] = e
		if e.order != "" {
			orders[e.order] = append(orders[e.order], e)
		}
		return err
	})
	owned := func(w *webhook) bool { return w.owner != "" }
	if err != nil || !slices.ContainsFunc(slices.Collect(maps.Values(webhooks)), owned) {
		return events, err
	}
	// From the day before the oldest order was made: looking for it in each of some hundred partitions would take longer than all else.
	var dated, undated []string
	oldest := time.Now()
	for order := range orders {
		made := madeAt(order)
		if made.IsZero() { // its id has no time, because it has an idempotency key
			undated = append(undated, order)
			continue
		}
		dated = append(dated, order)
		oldest = earlier(oldest, made)
	}
	err = a.readOwners(ctx, orders, dated, oldest.AddDate(0, 0, -1))
	if err == nil {
		err = a.readOwners(ctx, orders, undated, time.Time{})
	}
	return events, err
}

// readOwners reads whose orders those of the ids are, of which the log has nothing before begin, into their events.
func (a *Auditor) readOwners(ctx context.Context, orders map[string][]*loggedEvent, ids []string, begin time.Time) error {
	if len(ids) == 0 {
		return nil
	}
	return rows(ctx, a.logging, "whose orders they are", `
		SELECT order_id, coalesce(payload ->> 'owner', ''), NOT payload ? 'customer_email', EXISTS (
			SELECT FROM event_log before WHERE before.order_id = placed.order_id AND before.id < placed.id AND before.published_at >= $3)
		FROM event_log placed WHERE routing_key = $1 AND order_id = ANY($2::uuid[]) AND published_at >= $3 AND payload IS NOT NULL`,
		[]any{placed, pq.Array(ids), begin}, func(r *sql.Rows) error {
			var order, owner string
			var erased, late bool
			if err := r.Scan(&order, &owner, &erased, &late); err != nil {
				return err
			}
			for _, e := range orders[order] {
				e.owner, e.erased, e.late = owner, e.erased || erased, e.late || late
			}
			return nil
		})
}

// undeliverable are those of the events that do not keep their contract: requests, what could not be read, and what is left of
// an event after a person was erased in it.
func (a *Auditor) undeliverable(ctx context.Context, list []delivery) (map[int64]bool, error) {
	broken := map[int64]bool{}
	var ids []int64
	for _, d := range list {
		ids, broken[d.event] = append(ids, d.event), true
	}
	if len(ids) == 0 {
		return broken, nil
	}
	return broken, rows(ctx, a.logging, "events that webhooks want", `SELECT id, routing_key, payload::text FROM event_log WHERE id = ANY($1) AND payload IS NOT NULL`,
		[]any{pq.Array(ids)}, func(r *sql.Rows) error {
			var id int64
			var key, payload string
			if err := r.Scan(&id, &key, &payload); err != nil {
				return err
			}
			event, ok := contract.ByRoutingKey(key)
			if ok && !event.IsRequest() {
				_, err := event.FromJSON([]byte(payload))
				broken[id] = err != nil
			}
			return nil
		})
}

// disordered looks at the deliveries of a part of the log whose order has events before them: one that was tried before an
// earlier one. One that was tried more than once may have been sent again by hand, and so may what is left of an erased event.
func (a *Auditor) disordered(ctx context.Context, from, to int64) (found []finding, err error) {
	err = rows(ctx, a.webhooks, "the order of deliveries", `
		SELECT later.webhook_id, later.order_id, later.event_id, earlier.event_id
		FROM delivery later
		JOIN event before ON before.order_id = later.order_id AND before.id < later.event_id
		JOIN delivery earlier ON earlier.event_id = before.id AND earlier.webhook_id = later.webhook_id
		WHERE later.event_id BETWEEN $1 AND $2 AND before.payload NOT LIKE '%' || $3 || '%' AND (earlier.id > later.id OR later.attempts > 0 AND (
			earlier.state = 'PENDING' AND earlier.attempts = 0 OR earlier.attempts = 1 AND earlier.first_attempt_at > later.first_attempt_at))`,
		[]any{from, to, customer.Erased}, func(r *sql.Rows) error {
			f := finding{Violation: Violation{Check: DeliveryOrder}, late: true}
			var earlier int64
			if err := r.Scan(&f.delivery.webhook, &f.OrderID, &f.delivery.event, &earlier); err != nil {
				return err
			}
			f.Detail = fmt.Sprintf("webhook %s got event %d of the log before event %d", f.delivery.webhook, f.delivery.event, earlier)
			found = append(found, f)
			return nil
		})
	return found, err
}

// overdue are webhooks that nobody sends to, although something has been due for long.
func (a *Auditor) overdue(ctx context.Context) (found []finding, err error) {
	err = rows(ctx, a.webhooks, "what is due", `
		SELECT w.id, count(*), max(extract(epoch FROM clock_timestamp() - d.next_attempt_at))
		FROM webhook w JOIN delivery d ON d.webhook_id = w.id AND d.state = 'PENDING' AND d.next_attempt_at < clock_timestamp() - $1 * interval '1 second'
		WHERE w.state = 'ENABLED' AND greatest(w.retry_at, w.leased_until) < clock_timestamp() - $1 * interval '1 second'
		GROUP BY w.id`, []any{a.late.Seconds()}, func(r *sql.Rows) error {
		f := finding{Violation: Violation{Check: Deliveries}, late: true, slow: true}
		var n int
		var age seconds
		if err := r.Scan(&f.delivery.webhook, &n, &age); err != nil {
			return err
		}
		f.Detail = fmt.Sprintf("webhook %s: nobody sends %d events to it, the first of which has been due for %s", f.delivery.webhook, n, age)
		found = append(found, f)
		return nil
	})
	return found, err
}
