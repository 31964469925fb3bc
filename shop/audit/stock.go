package audit

import (
	"context"
	"database/sql"
	"fmt"
)

// stockSums is one statement, so that all sums are of one moment: a transaction that moves stock changes everything that is
// compared.
const stockSums = `
SELECT p.id || ' (' || p.name || ')', p.on_hand, p.reserved, coalesce(m.moved, 0), coalesce(m.for_orders, 0), coalesce(h.held, 0), coalesce(h.settled, 0)
FROM product p
LEFT JOIN (
    SELECT product_id, sum(quantity) AS moved, sum(quantity) FILTER (WHERE order_id IS NOT NULL) AS for_orders
    FROM stock_movement GROUP BY product_id
) m ON m.product_id = p.id
LEFT JOIN (
    SELECT product_id, sum(quantity) FILTER (WHERE state = 'HELD') AS held, sum(quantity) FILTER (WHERE state = 'SETTLED') AS settled
    FROM hold GROUP BY product_id
) h ON h.product_id = p.id
WHERE p.on_hand <> coalesce(m.moved, 0) OR p.reserved <> coalesce(h.held, 0) OR -coalesce(m.for_orders, 0) <> coalesce(h.settled, 0)
ORDER BY p.id`

func (a *Auditor) stock(ctx context.Context) (found []finding, err error) {
	err = rows(ctx, a.inventory, "the stock", stockSums, nil, func(r *sql.Rows) error {
		var product string
		var onHand, reserved, moved, forOrders, held, settled int64
		if err := r.Scan(&product, &onHand, &reserved, &moved, &forOrders, &held, &settled); err != nil {
			return err
		}
		add := func(wrong bool, check Check, format string, args ...any) {
			if wrong {
				found = append(found, finding{Violation: Violation{Check: check, Product: product, Detail: fmt.Sprintf(format, args...)}, late: true})
			}
		}
		add(onHand != moved, OnHand, "%d on hand, its movements sum up to %d", onHand, moved)
		add(reserved != held, Reserved, "%d reserved, its open holds sum up to %d", reserved, held)
		add(-forOrders != settled, Sold, "%d left the stock for orders, its settled holds sum up to %d", -forOrders, settled)
		return nil
	})
	return found, err
}

func (a *Auditor) deadLetters(ctx context.Context) (found []finding, err error) {
	err = rows(ctx, a.logging, "dead letters", `
		SELECT id, routing_key, source_queue, attempts, reason, coalesce(order_id::text, '') FROM dead_letter WHERE state = 'OPEN' ORDER BY id`,
		nil, func(r *sql.Rows) error {
			var id, attempts int64
			var key, queue, reason, order string
			if err := r.Scan(&id, &key, &queue, &attempts, &reason, &order); err != nil {
				return err
			}
			found = append(found, finding{Violation: Violation{Check: DeadLetters, OrderID: order,
				Detail: fmt.Sprintf("dead letter %d, %s of queue %q (attempts: %d): %s", id, key, queue, attempts, reason)}, late: true})
			return nil
		})
	return found, err
}

// outboxes reports the messages that wait; those that wait too long are one violation for each outbox.
func (a *Auditor) outboxes(ctx context.Context) (found []finding, err error) {
	for _, outbox := range []struct {
		owner string
		pool  *sql.DB
	}{{"orders", a.orders}, {"inventory", a.inventory}, {"webhooks", a.webhooks}} {
		err = rows(ctx, outbox.pool, "the outbox of "+outbox.owner, `
			SELECT age > $1, count(*), max(age) FROM (SELECT extract(epoch FROM clock_timestamp() - created_at) AS age FROM outbox) AS waiting
			GROUP BY 1`, []any{a.late.Seconds()}, func(r *sql.Rows) error {
			var late bool
			var n int
			var oldest seconds
			if err := r.Scan(&late, &n, &oldest); err != nil {
				return err
			}
			f := finding{Violation: Violation{Check: Outbox, Detail: fmt.Sprintf("the outbox of %s has %d messages that are older than %s, the oldest %s",
				outbox.owner, n, a.late, oldest)}, late: late, slow: true}
			found = append(found, f)
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return found, nil
}
