package measure

import (
	"context"
	"fmt"

	"github.com/lib/pq"
)

// preloadStep is how many orders one transaction stores.
const preloadStep = 50_000

// What the services leave behind of settled orders, in the order of their foreign keys, made by the database itself.
// $1 is how many orders, $2 how many lines, $3 the products. Orders are spread over the hour before.
const (
	preloadOrders = `
	CREATE TEMPORARY TABLE past ON COMMIT DROP AS
	SELECT (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7' || left(md5(random()::text), 3)
	        || '8' || left(md5(random()::text), 15))::uuid AS id, n, at
	FROM (SELECT n, now() - random() * interval '1 hour' AS at FROM generate_series(1, $1::int) AS n) AS orders`
	preloadLines = `
	CREATE TEMPORARY TABLE past_line ON COMMIT DROP AS
	SELECT o.id, o.at, line, p.id AS product_id, p.name, p.unit_price
	FROM past o, generate_series(1, $1::int) AS line,
	     (SELECT id, name, unit_price, row_number() OVER (ORDER BY id) - 1 AS place, count(*) OVER () AS products
	      FROM inventory.product WHERE id = ANY ($2::int[])) AS p
	WHERE p.place = (o.n + line) % p.products`
	preloadStored = `
	INSERT INTO orders.orders (id, customer_name, customer_email, state, total_items, total_value, currency, created_at, updated_at)
	SELECT id, 'Ada Lovelace', 'ada.lovelace@example.org', 'CONFIRMED', count(*), sum(unit_price), 'USD', at, at + interval '10 ms'
	FROM past_line GROUP BY id, at`
	preloadItems = `
	INSERT INTO orders.order_item (order_id, line, product_id, product_name, quantity, unit_price)
	SELECT id, line, product_id, name, 1, unit_price FROM past_line`
	preloadDecisions = `
	INSERT INTO inventory.decision (order_id, lines_hash, answer, decided_at)
	SELECT id, sha256(id::text::bytea), convert_to(string_agg(line || id::text || name, '' ORDER BY line), 'UTF8'), at
	FROM past_line GROUP BY id, at`
	preloadHolds = `
	INSERT INTO inventory.hold (order_id, product_id, quantity, state, created_at, updated_at)
	SELECT id, product_id, count(*), 'SETTLED', at, at FROM past_line GROUP BY id, product_id, at`
	preloadMovements = `
	INSERT INTO inventory.stock_movement (product_id, order_id, quantity, reason, created_at)
	SELECT product_id, id, -count(*), 'SOLD', at FROM past_line GROUP BY product_id, id, at`
	preloadStock = `
	UPDATE inventory.product p SET on_hand = on_hand - sold
	FROM (SELECT product_id, count(*) AS sold FROM past_line GROUP BY product_id) AS s WHERE p.id = s.product_id`
	preloadEvents = `
	INSERT INTO logging.event_log (routing_key, exchange, payload, status, message_id, order_id, trace_id, source, published_at)
	SELECT routing_key, 'shop.topic', jsonb_build_object('order_id', id) || CASE routing_key
	           WHEN 'shop.order.placed' THEN jsonb_build_object('customer_name', 'Ada Lovelace',
	               'customer_email', 'ada.lovelace@example.org', 'lines', asked, 'placed_at', at)
	           WHEN 'shop.order.confirmed' THEN jsonb_build_object('lines', priced, 'total_items', items,
	               'total_value', jsonb_build_object('currency_code', 'USD', 'units', total / 100), 'confirmed_at', at)
	           ELSE jsonb_build_object('lines', priced)
	       END, 'success', gen_random_uuid(), id, md5(id::text), source, at + delay * interval '1 ms'
	FROM (
	    SELECT id, at, count(*) AS items, sum(unit_price) AS total,
	           jsonb_agg(jsonb_build_object('product_id', product_id, 'quantity', 1)) AS asked,
	           jsonb_agg(jsonb_build_object('line', line, 'product_id', product_id, 'product_name', name, 'quantity', 1,
	               'unit_price', jsonb_build_object('currency_code', 'USD', 'units', unit_price / 100))) AS priced
	    FROM past_line GROUP BY id, at
	) AS o, (VALUES ('shop.order.placed', 'gateway', 0), ('shop.order.confirmed', 'order', 10),
	    ('shop.inventory.decrement.quantity', 'order', 11)) AS event (routing_key, source, delay)`
)

// preload stores so many orders of the past, as the services would have, and brings the planner's statistics up to date.
func (e *environment) preload(ctx context.Context, orders, lines int, progress func(done int)) error {
	for done := 0; done < orders; done += preloadStep {
		progress(done)
		if err := e.preloadSome(ctx, min(preloadStep, orders-done), lines); err != nil {
			return fmt.Errorf("storing orders of the past: %w", err)
		}
	}
	if orders == 0 {
		return nil
	}
	// Freezes too: the server would do both some time later, in the middle of a run.
	if _, err := e.db.ExecContext(ctx, "VACUUM (FREEZE, ANALYZE)"); err != nil {
		return fmt.Errorf("analyzing the orders of the past: %w", err)
	}
	return nil
}

func (e *environment) preloadSome(ctx context.Context, orders, lines int) error {
	tx, err := e.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	products := pq.Array(e.products)
	for _, step := range []struct {
		statement string
		args      []any
	}{
		{preloadOrders, []any{orders}},
		{preloadLines, []any{lines, products}},
		{preloadStored, nil}, {preloadItems, nil},
		{preloadDecisions, nil}, {preloadHolds, nil}, {preloadMovements, nil}, {preloadStock, nil},
		{preloadEvents, nil},
	} {
		if _, err := tx.ExecContext(ctx, step.statement, step.args...); err != nil {
			return err
		}
	}
	return tx.Commit()
}
