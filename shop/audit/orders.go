package audit

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/lib/pq"

	"shop.example/topology"
)

// page is how many orders are read and compared together: no statement is long, and memory is bounded.
const page = 5000

// window is how many ids of the log are read at once. An order has three or four events.
const window = 4 * page

// allOrders compares every order that one of the services knows. Late inconsistencies are compared once more after a pause,
// and count only if they are found again.
func (a *Auditor) allOrders(ctx context.Context) (found []finding, orders int, err error) {
	late, err := a.lateEvents(ctx)
	if err != nil {
		return nil, 0, err
	}
	examine := func(ids []string) error {
		more, err := a.examine(ctx, ids, late)
		found = append(found, more...)
		return err
	}
	err = a.storedOrders(ctx, func(ids []string) error {
		orders += len(ids)
		return examine(ids)
	})
	if err != nil {
		return nil, 0, err
	}
	// What inventory or the log knows and the order service does not.
	lost := map[string]bool{}
	for _, source := range []func(context.Context, func([]string) error) error{a.decidedOrders, a.placedOrders} {
		err := source(ctx, func(ids []string) error {
			ids, err := a.notStored(ctx, ids, lost)
			if err != nil {
				return err
			}
			return examine(ids)
		})
		if err != nil {
			return nil, 0, err
		}
	}
	found, err = a.confirm(ctx, found)
	return found, orders + len(lost), err
}

// confirm drops the late inconsistencies that are not found again.
func (a *Auditor) confirm(ctx context.Context, found []finding) ([]finding, error) {
	type subject struct {
		check Check
		order string
	}
	candidates := map[subject]bool{}
	var ids []string
	var kept []finding
	seen := map[string]bool{}
	for _, f := range found {
		if !f.late {
			kept = append(kept, f)
			continue
		}
		candidates[subject{f.Check, f.OrderID}] = true
		if !seen[f.OrderID] {
			seen[f.OrderID] = true
			ids = append(ids, f.OrderID)
		}
	}
	if len(ids) == 0 {
		return kept, nil
	}
	if err := sleep(ctx, a.pause); err != nil {
		return nil, err
	}
	for begin := 0; begin < len(ids); begin += page {
		again, err := a.examine(ctx, ids[begin:min(begin+page, len(ids))], nil)
		if err != nil {
			return nil, err
		}
		for _, f := range again {
			if f.late && candidates[subject{f.Check, f.OrderID}] {
				kept = append(kept, f)
			}
		}
	}
	sortFindings(kept)
	return kept, nil
}

// storedOrders calls f with the ids of the order service's orders, from the oldest on. Orders that are placed after it
// began are left out, so that it ends however busy the shop is. One that is stored was not, although its gateway's clock may say so.
func (a *Auditor) storedOrders(ctx context.Context, f func([]string) error) error {
	// As text: the driver would round times that Go cannot hold.
	var lastTime, until string
	err := a.orders.QueryRowContext(ctx, `
		SELECT CASE WHEN $1::float8 > 0 THEN now() - $1::float8 * interval '1 second' ELSE '-infinity' END::text, now()::text`,
		a.since.Seconds()).Scan(&lastTime, &until)
	if err != nil {
		return fmt.Errorf("reading the time: %w", err)
	}
	lastID := "00000000-0000-0000-0000-000000000000"
	for {
		var ids []string
		err := rows(ctx, a.orders, "orders", `
			SELECT id, created_at::text AS place FROM orders
			WHERE (created_at, id) > ($1::timestamptz, $2::uuid) AND least(created_at, updated_at) <= $3::timestamptz
			ORDER BY created_at, id LIMIT $4`, []any{lastTime, lastID, until, page}, func(r *sql.Rows) error {
			if err := r.Scan(&lastID, &lastTime); err != nil {
				return err
			}
			ids = append(ids, lastID)
			return nil
		})
		if err != nil || len(ids) == 0 {
			return err
		}
		if err := f(ids); err != nil {
			return err
		}
	}
}

// decidedOrders calls f with the ids of the orders that inventory has decided.
func (a *Auditor) decidedOrders(ctx context.Context, f func([]string) error) error {
	for last := "00000000-0000-0000-0000-000000000000"; ; {
		var ids []string
		err := rows(ctx, a.inventory, "decisions", `
			SELECT order_id FROM decision
			WHERE order_id > $1 AND ($2::float8 = 0 OR decided_at >= now() - $2::float8 * interval '1 second')
			ORDER BY order_id LIMIT $3`, []any{last, a.since.Seconds(), page}, func(r *sql.Rows) error {
			if err := r.Scan(&last); err != nil {
				return err
			}
			ids = append(ids, last)
			return nil
		})
		if err != nil || len(ids) == 0 {
			return err
		}
		if err := f(ids); err != nil {
			return err
		}
	}
}

// logEnds returns the ids between which the log has what was published since the audit's beginning; first is larger than last if
// that is nothing. Ids follow the time at which events were stored, by which the first is searched for: no index has that time.
func (a *Auditor) logEnds(ctx context.Context) (first, last int64, err error) {
	begin := a.begin().Add(-time.Hour)           // clocks differ
	monday := begin.Truncate(7 * 24 * time.Hour) // partitions begin with it, so all of their events are as young, or none
	err = a.logging.QueryRowContext(ctx, `SELECT coalesce(min(id), 1), coalesce(max(id), 0) FROM event_log WHERE published_at >= $1`, monday).Scan(&first, &last)
	for end := last + 1; err == nil && a.since > 0 && first < end; {
		middle := first + (end-first)/2
		var stored time.Time
		err = a.logging.QueryRowContext(ctx, `SELECT created_at FROM event_log WHERE id >= $1 AND published_at >= $2 ORDER BY id LIMIT 1`, middle, monday).Scan(&stored)
		if stored.Before(begin) {
			first = middle + 1
		} else {
			end = middle
		}
	}
	if err != nil {
		return 0, 0, fmt.Errorf("looking for the beginning in the log: %w", err)
	}
	return first, last, nil
}

// placedOrders calls f with the ids of the orders whose OrderPlaced is in the log.
func (a *Auditor) placedOrders(ctx context.Context, f func([]string) error) error {
	next, last, err := a.logEnds(ctx)
	if err != nil {
		return err
	}
	// By windows of ids: a page of the right events could lie anywhere, and the server would have to look for its end.
	for ; next <= last; next += window {
		var ids []string
		err := rows(ctx, a.logging, "placed orders", `
			SELECT order_id FROM event_log
			WHERE routing_key = $1 AND id BETWEEN $2 AND $3 AND order_id IS NOT NULL AND published_at >= $4`,
			[]any{placed, next, min(next+window-1, last), a.begin()}, func(r *sql.Rows) error {
				var id string
				if err := r.Scan(&id); err != nil {
					return err
				}
				ids = append(ids, id)
				return nil
			})
		if err != nil {
			return err
		}
		if err := f(ids); err != nil {
			return err
		}
	}
	return nil
}

// begin is the time from which orders are looked at.
func (a *Auditor) begin() time.Time {
	if a.since == 0 {
		return time.Time{}
	}
	return time.Now().Add(-a.since)
}

// notStored returns those of the ids that the order service does not know and that are not in lost, and adds them to lost.
func (a *Auditor) notStored(ctx context.Context, ids []string, lost map[string]bool) (unknown []string, err error) {
	if len(ids) == 0 {
		return nil, nil
	}
	err = rows(ctx, a.orders, "orders", `
		SELECT DISTINCT id FROM unnest($1::uuid[]) AS id WHERE NOT EXISTS (SELECT FROM orders WHERE orders.id = id.id)`,
		[]any{pq.Array(ids)}, func(r *sql.Rows) error {
			var id string
			if err := r.Scan(&id); err != nil {
				return err
			}
			if !lost[id] {
				lost[id] = true
				unknown = append(unknown, id)
			}
			return nil
		})
	return unknown, err
}

// lateEvents returns the orders that have an event of a later partition of the log than that of their ids, which begin with the time
// at which they were made. In each partition an index leads to those alone.
func (a *Auditor) lateEvents(ctx context.Context) (late map[string]bool, err error) {
	late = map[string]bool{}
	add := func(r *sql.Rows) error {
		var id string
		err := r.Scan(&id)
		late[id] = true
		return err
	}
	var partitions [][2]time.Time // from and to
	err = rows(ctx, a.logging, "the partitions of the log", `
		SELECT bound[1]::timestamptz, bound[2]::timestamptz
		FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid,
		     regexp_match(pg_get_expr(c.relpartbound, c.oid), 'FROM \(''(.*)''\) TO \(''(.*)''\)') AS bound
		WHERE inhparent = 'event_log'::regclass AND relname ~ '^event_log_\d{8}$' AND bound IS NOT NULL -- NULL while it is dropped`, nil, func(r *sql.Rows) error {
		var p [2]time.Time
		err := r.Scan(&p[0], &p[1])
		partitions = append(partitions, p)
		return err
	})
	if err == nil {
		err = rows(ctx, a.logging, "the log", `SELECT DISTINCT order_id FROM event_log_default WHERE order_id IS NOT NULL`, nil, add)
	}
	for _, p := range partitions {
		if err != nil {
			return nil, err
		}
		ms := fmt.Sprintf("%012x", p[0].UnixMilli())
		err = rows(ctx, a.logging, "the log", `
			SELECT DISTINCT order_id FROM event_log WHERE published_at >= $1 AND published_at < $2 AND order_id < $3`,
			[]any{p[0], p[1], ms[:8] + "-" + ms[8:] + "-0000-0000-000000000000"}, add)
	}
	return late, err
}

// resent adds to the report the events that were lost and sent again. What was lost in the log's queue is the OrderPlaced of an
// order of which the log has the decision.
func (a *Auditor) resent(ctx context.Context, r *Report) error {
	r.Resent = []Resent{} // an empty list in JSON
	return rows(ctx, a.logging, "events that were sent again", `
		SELECT order_id, CASE queue WHEN $3 THEN $4 ELSE routing_key END, sent, sent_at, coalesce(outcome, ''), count(*) OVER () FROM unhandled_event
		WHERE sent > 0 AND sent_at >= $1 ORDER BY sent_at DESC, message_id LIMIT $2`, []any{a.begin(), MaxListed, topology.Logging, placed}, func(row *sql.Rows) error {
		var e Resent
		if err := row.Scan(&e.OrderID, &e.RoutingKey, &e.Times, &e.At, &e.Outcome, &r.ResentCount); err != nil {
			return err
		}
		r.Resent = append(r.Resent, e)
		return nil
	})
}
