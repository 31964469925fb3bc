package measure

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"time"

	"github.com/lib/pq"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"shop.example/domain/money"
	eventsv1 "shop.example/gen/shop/events/v1"
	inventoryv1 "shop.example/gen/shop/inventory/v1"
)

const (
	day  = 24 * time.Hour
	week = 7 * day
	// pastDays is over how many days the orders of the past were placed: nearly all that the log keeps by default.
	pastDays = 390
	// logRowsOfAnOrder are OrderPlaced, what was decided, DecrementQuantity, and two changes of the stock.
	logRowsOfAnOrder = 5
	// fillInterval is how often it is told how far filling is.
	fillInterval = 10 * time.Second
)

// An order of the past has one of as many forms as there are products: two lines, of a product and the next one. What an order's form
// decides is made once: the lines as JSON and protobuf.
const (
	createForms = `
	CREATE SCHEMA IF NOT EXISTS growth;
	DROP TABLE IF EXISTS growth.form;
	CREATE TABLE growth.form (
	    n integer PRIMARY KEY, product_ids integer[] NOT NULL, names text[] NOT NULL, prices bigint[] NOT NULL,
	    asked jsonb NOT NULL, priced jsonb NOT NULL, answer bytea NOT NULL)`
	insertForms = `
	INSERT INTO growth.form
	SELECT n, ARRAY[p.id, next_id], ARRAY[p.name, next_name], ARRAY[p.unit_price, next_price],
	    jsonb_build_array(jsonb_build_object('product_id', p.id, 'quantity', 1), jsonb_build_object('product_id', next_id, 'quantity', 1)),
	    jsonb_build_array(
	        jsonb_build_object('line', 1, 'product_id', p.id, 'product_name', p.name, 'quantity', 1,
	            'unit_price', jsonb_build_object('currency_code', 'USD', 'units', (p.unit_price / 100)::text, 'nanos', p.unit_price % 100 * 10000000)),
	        jsonb_build_object('line', 2, 'product_id', next_id, 'product_name', next_name, 'quantity', 1,
	            'unit_price', jsonb_build_object('currency_code', 'USD', 'units', (next_price / 100)::text, 'nanos', next_price % 100 * 10000000))),
	    answer
	FROM unnest($1::integer[], $2::integer[], $3::bytea[]) AS f (n, id, answer)
	JOIN LATERAL (SELECT id, name, unit_price FROM inventory.product WHERE product.id = f.id) AS p ON true
	JOIN LATERAL (SELECT id AS next_id, name AS next_name, unit_price AS next_price FROM inventory.product WHERE product.id = f.id + 1) AS next ON true`
)

// What the services leave behind of orders. $1 and $2 are the numbers of the first and the last, $3 and $4 when these were placed, $5
// is how many forms there are. Their ids and rows are in the order of their times, as they would be; an order has the same id each
// time it is made.
const growthOrders = `
	CREATE TEMPORARY TABLE past ON COMMIT DROP AS
	SELECT (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7' || left(md5(o.n::text), 3)
	        || '8' || right(md5(o.n::text), 15))::uuid AS id, o.n, at, o.n % 100 = 0 AS rejected, f.product_ids, f.names, f.prices, f.asked, f.priced, f.answer
	FROM (SELECT n, $3::timestamptz + (n - $1::bigint) * ($4::timestamptz - $3::timestamptz) / ($2::bigint - $1::bigint + 1) AS at
	      FROM generate_series($1::bigint, $2::bigint) AS n) AS o
	JOIN growth.form f ON f.n = o.n % $5::integer
	ORDER BY o.n`

// growthRows are what order and inventory have of them, and growthLog what the log has. No row of the one needs one of the other.
var growthRows = []string{
	`INSERT INTO orders.orders (id, customer_name, customer_email, state, reason, detail, total_items, total_value, currency, created_at, updated_at, fingerprint)
	SELECT id, 'Ada Lovelace', 'ada.lovelace' || n % 20000 || '@example.org', CASE WHEN rejected THEN 'REJECTED' ELSE 'CONFIRMED' END,
	    CASE WHEN rejected THEN 'OUT_OF_STOCK' END, CASE WHEN rejected THEN 'not enough of ' || names[1] ELSE '' END, 2,
	    CASE WHEN NOT rejected THEN prices[1] + prices[2] END, CASE WHEN NOT rejected THEN 'USD' END, at, at + interval '10 ms', sha256(uuid_send(id))
	FROM past ORDER BY n`,
	`INSERT INTO orders.order_item (order_id, line, product_id, product_name, quantity, unit_price)
	SELECT id, line, product_ids[line], names[line], 1, CASE WHEN NOT rejected THEN prices[line] END
	FROM past, generate_series(1, 2) AS line ORDER BY n, line`,
	// A message is the fields of its bytes one after the other: the order's id, and what the form has.
	`INSERT INTO inventory.decision (order_id, lines_hash, reason, answer, decided_at)
	SELECT id, sha256(uuid_send(id)), CASE WHEN rejected THEN 'OUT_OF_STOCK' END,
	    '\x0a24'::bytea || convert_to(id::text, 'UTF8') || CASE WHEN rejected THEN '\x1a020801'::bytea ELSE answer END, at
	FROM past ORDER BY n`,
	`INSERT INTO inventory.hold (order_id, product_id, quantity, state, created_at, updated_at)
	SELECT id, product_ids[line], 1, 'SETTLED', at, at FROM past, generate_series(1, 2) AS line WHERE NOT rejected ORDER BY n, line`,
	`INSERT INTO inventory.stock_movement (product_id, order_id, quantity, reason, created_at)
	SELECT product_ids[line], id, -1, 'SOLD', at FROM past, generate_series(1, 2) AS line WHERE NOT rejected ORDER BY n, line`,
	`UPDATE inventory.product p SET on_hand = on_hand - sold
	FROM (SELECT product_ids[line] AS product_id, count(*) AS sold FROM past, generate_series(1, 2) AS line WHERE NOT rejected GROUP BY 1) AS s
	WHERE p.id = s.product_id`,
}

// The changes of the stock belong to no order. One in a thousand was an error.
var growthLog = []string{
	`INSERT INTO logging.event_log (routing_key, exchange, payload, status, error_message, message_id, order_id, trace_id, source, published_at, created_at)
	SELECT CASE WHEN rejected AND event = 2 THEN 'shop.order.rejected' WHEN rejected AND event = 3 THEN 'shop.stock.depleted' ELSE routing_key END, 'shop.topic',
	    CASE
	        WHEN event = 1 THEN jsonb_build_object('order_id', id, 'customer_name', 'Ada Lovelace',
	            'customer_email', 'ada.lovelace' || n % 20000 || '@example.org', 'lines', asked, 'placed_at', at)
	        WHEN event = 2 AND rejected THEN jsonb_build_object('order_id', id, 'reason', 'OUT_OF_STOCK', 'detail', 'not enough of ' || names[1], 'rejected_at', at)
	        WHEN event = 2 THEN jsonb_build_object('order_id', id, 'lines', priced, 'total_items', 2,
	            'total_value', jsonb_build_object('currency_code', 'USD', 'units', ((prices[1] + prices[2]) / 100)::text), 'confirmed_at', at)
	        WHEN event = 3 AND NOT rejected THEN jsonb_build_object('order_id', id, 'lines', priced)
	        ELSE jsonb_build_object('item_id', product_ids[1], 'available', n)
	    END,
	    CASE WHEN event = 4 AND n % 1000 = 1 THEN 'error' ELSE 'success' END, CASE WHEN event = 4 AND n % 1000 = 1 THEN 'it came too late' ELSE '' END,
	    gen_random_uuid(), CASE WHEN event <= 2 OR event = 3 AND NOT rejected THEN id END, md5(id::text), source,
	    at + delay * interval '1 ms', at + (delay + 5) * interval '1 ms'
	FROM past, (VALUES (1, 'shop.order.placed', 'gateway', 0), (2, 'shop.order.confirmed', 'order', 10),
	    (3, 'shop.inventory.decrement.quantity', 'order', 11), (4, 'shop.stock.changed', 'inventory', 20), (5, 'shop.stock.changed', 'inventory', 30))
	    AS e (event, routing_key, source, delay)
	ORDER BY n, event`,
}

// fill stores what is missing to the sizes: what the services would have stored, with the same content. The shop does not
// run meanwhile. What is placed between two sizes was placed after what is there.
func (g *grower) fill(ctx context.Context, to sizes) error {
	if to.Orders == g.has.Orders {
		return nil
	}
	forms, err := g.fillProducts(ctx, to.Products)
	if err != nil {
		return err
	}
	if err := g.makePartitions(ctx, to.Orders); err != nil {
		return err
	}
	both, bothCtx := errgroup.WithContext(ctx)
	for what, rows := range map[string][]string{"orders and stock": growthRows, "the log": growthLog} {
		both.Go(func() error { return g.fillDays(bothCtx, what, rows, to.Orders, forms) })
	}
	if err := both.Wait(); err != nil {
		return err
	}
	if err := g.fillRest(ctx, to); err != nil {
		return err
	}
	g.has = to
	// What has been logged was handled: the log has been compared with the services up to its end.
	return g.execute(ctx,
		`INSERT INTO logging.event_check (routing_key, event_id, logged_at)
		SELECT key, (SELECT max(id) FROM logging.event_log), now() FROM unnest('{"",shop.order.placed,shop.inventory.decrement.quantity,shop.order.cancelled}'::text[]) AS key
		ON CONFLICT (routing_key) DO UPDATE SET event_id = excluded.event_id, logged_at = excluded.logged_at`,
		// Freezes too: the server would do both some time later, in the middle of a run.
		`VACUUM (FREEZE, ANALYZE)`)
}

func (g *grower) execute(ctx context.Context, statements ...string) error {
	for _, statement := range statements {
		if _, err := g.env.db.ExecContext(ctx, statement); err != nil {
			return fmt.Errorf("%.60s: %w", statement, err)
		}
	}
	return nil
}

// fillProducts adds products, and returns how many forms of orders there are: one for each product but those of the load and the last.
func (g *grower) fillProducts(ctx context.Context, products int) (forms int, err error) {
	_, err = g.env.db.ExecContext(ctx, `
		WITH made AS (
			INSERT INTO inventory.product (name, on_hand, unit_price, currency, created_at)
			SELECT 'Product of the past ' || n, $3, 1000 + n % 5000 * 100, 'USD', $4::timestamptz FROM generate_series($1::integer, $2::integer) AS n
			RETURNING id, on_hand, created_at
		)
		INSERT INTO inventory.stock_movement (product_id, quantity, reason, created_at) SELECT id, on_hand, 'CREATED', created_at FROM made`,
		g.has.Products+1, products, unlimitedStock, g.began)
	if err != nil {
		return 0, fmt.Errorf("adding products: %w", err)
	}
	if err := g.execute(ctx, createForms); err != nil {
		return 0, err
	}
	rows, err := g.env.db.QueryContext(ctx, `
		SELECT id, name, unit_price, lead(id) OVER w, lead(name) OVER w, lead(unit_price) OVER w
		FROM inventory.product WHERE name LIKE 'Product of the past %' WINDOW w AS (ORDER BY id)`)
	if err != nil {
		return 0, fmt.Errorf("reading products: %w", err)
	}
	defer rows.Close()
	var numbers, ids []int64
	var answers [][]byte
	for rows.Next() {
		var a, b pastProduct
		if err := rows.Scan(&a.id, &a.name, &a.price, &b.id, &b.name, &b.price); err != nil {
			return 0, fmt.Errorf("reading products: %w", err)
		}
		if !b.id.Valid {
			continue
		}
		answer, err := proto.Marshal(&inventoryv1.StockDecision{Lines: []*eventsv1.PricedLine{a.line(1), b.line(2)}})
		if err != nil {
			return 0, err
		}
		numbers, ids, answers = append(numbers, int64(len(ids))), append(ids, a.id.Int64), append(answers, answer)
	}
	if err := rows.Err(); err != nil {
		return 0, fmt.Errorf("reading products: %w", err)
	}
	_, err = g.env.db.ExecContext(ctx, insertForms, pq.Array(numbers), pq.Array(ids), pq.Array(answers))
	if err == nil {
		err = g.execute(ctx, `ANALYZE growth.form`)
	}
	return len(ids), err
}

type pastProduct struct {
	id, price sql.NullInt64
	name      sql.NullString
}

func (p pastProduct) line(number int32) *eventsv1.PricedLine {
	return &eventsv1.PricedLine{
		Line: number, ProductId: int32(p.id.Int64), ProductName: p.name.String, Quantity: 1, //nolint:gosec // an integer of the database
		UnitPrice: money.FromMinor(p.price.Int64, "USD"),
	}
}

// placedAt is when the order with this number was placed, from 1.
func (g *grower) placedAt(n int) time.Time {
	perDay := float64(g.growth.Orders) / pastDays
	return g.began.Add(time.Duration(float64(n-1) / perDay * float64(day)))
}

// makePartitions makes the log's partitions for the orders that are missing, each of a week.
func (g *grower) makePartitions(ctx context.Context, orders int) error {
	end := g.placedAt(orders + 1).Add(time.Second)
	for monday := g.placedAt(g.has.Orders + 1).UTC().Truncate(week); !monday.After(end); monday = monday.Add(week) {
		err := g.execute(ctx, fmt.Sprintf(`CREATE TABLE IF NOT EXISTS logging.event_log_%s PARTITION OF logging.event_log FOR VALUES FROM ('%s') TO ('%s')`,
			monday.Format("20060102"), monday.Format(time.RFC3339), monday.Add(week).Format(time.RFC3339)))
		if err != nil {
			return err
		}
	}
	return nil
}

// fillDays stores rows of the orders that are missing, a day at a time.
func (g *grower) fillDays(ctx context.Context, what string, rows []string, orders, forms int) error {
	perDay := float64(g.growth.Orders) / pastDays
	var told time.Time
	for has := g.has.Orders; has < orders; {
		first := has + 1
		n := int(float64(has)/perDay) + 1 // the day, from 1
		last := min(max(int(float64(n)*perDay), first), orders)
		if time.Since(told) > fillInterval {
			told = time.Now()
			g.tell("filling: %s: %d of %d orders", what, has, g.growth.Orders)
		}
		if err := g.fillDay(ctx, rows, first, last, forms); err != nil {
			return err
		}
		has = last
	}
	return nil
}

// fillDay stores rows of the orders that were placed on one day.
func (g *grower) fillDay(ctx context.Context, rows []string, first, last, forms int) error {
	tx, err := g.env.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(ctx, growthOrders, first, last, g.placedAt(first), g.placedAt(last+1), forms); err != nil {
		return fmt.Errorf("making orders %d to %d: %w", first, last, err)
	}
	for _, statement := range slices.Concat([]string{`ANALYZE past`}, rows) {
		if _, err := tx.ExecContext(ctx, statement); err != nil {
			return fmt.Errorf("storing orders %d to %d: %.60s: %w", first, last, statement, err)
		}
	}
	return tx.Commit()
}

// fillRest stores what does not belong to orders of the past. Open holds are those of orders that are not stored yet.
func (g *grower) fillRest(ctx context.Context, to sizes) error {
	for what, statement := range map[string]struct {
		sql      string
		has, all int
	}{
		"open holds": {`
			WITH held AS (
			    SELECT now() - n * interval '6 hours' / $2::integer AS at, (lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint), 12, '0') || '7' || left(md5(random()::text), 3)
			            || '8' || left(md5(random()::text), 15))::uuid AS id, n
			    FROM generate_series($1::integer, $2::integer, 2) AS n
			), decided AS (
			    INSERT INTO inventory.decision (order_id, lines_hash, answer)
			    SELECT id, sha256(uuid_send(id)), '\x0a24'::bytea || convert_to(id::text, 'UTF8') || answer
			    FROM held JOIN growth.form f ON f.n = held.n % (SELECT count(*) FROM growth.form)
			), holding AS (
			    INSERT INTO inventory.hold (order_id, product_id, quantity, created_at, updated_at)
			    SELECT id, product_ids[line], 1, at, at FROM held JOIN growth.form f ON f.n = held.n % (SELECT count(*) FROM growth.form), generate_series(1, 2) AS line
			    RETURNING product_id
			)
			UPDATE inventory.product p SET reserved = reserved + held FROM (SELECT product_id, count(*) AS held FROM holding GROUP BY 1) AS h WHERE p.id = h.product_id`,
			g.has.OpenHolds, to.OpenHolds},
		// They are kept for 30 days.
		"idempotency keys": {`
			INSERT INTO orders.idempotency_key (key_hash, order_id, claimed_at)
			SELECT sha256(int8send(n)), gen_random_uuid(), now() - random() * interval '20 days' FROM generate_series($1::bigint, $2::bigint) AS n
			ORDER BY 1`, // as the index wants them: it is much larger than the server's memory
			g.has.Keys, to.Keys},
		"messages that were handled": {`
			INSERT INTO inventory.inbox (message_id, received_at)
			SELECT gen_random_uuid(), now() - random() * interval '5 days' FROM generate_series($1::bigint, $2::bigint) AS n`,
			g.has.Closed, to.Closed},
		"dead letters": {`
			INSERT INTO logging.dead_letter (state, reason, source_queue, exchange, routing_key, message_id, attempts, headers, body, published_at)
			SELECT CASE n % 2 WHEN 0 THEN 'REDRIVEN' ELSE 'DISCARDED' END, 'it is too late', 'inventory', 'shop.topic', 'shop.inventory.update', gen_random_uuid(), 4, '{}', '', now()
			FROM generate_series($1::bigint, $2::bigint) AS n`,
			g.has.Closed, to.Closed},
		"operators' actions": {`
			INSERT INTO logging.operator_action (action_id, operator, method, target, detail, service, acted_at)
			SELECT gen_random_uuid(), 'operator', '/shop.inventory.v1.InventoryService/UpdateItem', 'item ' || n % 1000, 'on hand 10, was 5', 'inventory', now()
			FROM generate_series($1::bigint, $2::bigint) AS n`,
			g.has.Closed, to.Closed},
	} {
		g.tell("filling: %s", what)
		if _, err := g.env.db.ExecContext(ctx, statement.sql, statement.has+1, statement.all); err != nil {
			return fmt.Errorf("storing %s: %w", what, err)
		}
	}
	return nil
}
