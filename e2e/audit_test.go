package e2e

import (
	"database/sql"
	"fmt"
	"net/http"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// violations are queries of what must not be; each row is one violation.
var violations = []string{
	// The stock is what moved.
	`SELECT format('%s: %s on hand, movements sum up to %s', name, on_hand, moved)
	 FROM inventory.product p CROSS JOIN LATERAL (
	     SELECT coalesce(sum(quantity), 0) AS moved FROM inventory.stock_movement m WHERE m.product_id = p.id) AS m
	 WHERE on_hand <> moved`,
	// What is reserved is held.
	`SELECT format('%s: %s reserved, open holds sum up to %s', name, reserved, held)
	 FROM inventory.product p CROSS JOIN LATERAL (
	     SELECT coalesce(sum(quantity), 0) AS held FROM inventory.hold h WHERE h.product_id = p.id AND h.state = 'HELD') AS h
	 WHERE reserved <> held`,
	// A decision has its order, and the order is what was decided.
	`SELECT format('order %s is %s, its decision is %s', coalesce(o.id, d.order_id), coalesce(o.state, 'not there'),
	               CASE WHEN d.order_id IS NULL THEN 'not there' ELSE coalesce(d.reason, 'a hold') END)
	 FROM orders.orders o FULL JOIN inventory.decision d ON d.order_id = o.id
	 WHERE o.id IS NULL OR d.order_id IS NULL OR o.reason IS DISTINCT FROM d.reason`,
	// What a confirmed order bought left the stock, what a cancelled one bought did not, and nothing else was held.
	`SELECT format('order %s (%s) has %s pieces of product %s, and %s %s', coalesce(id, h.order_id), coalesce(o.state, 'not confirmed'),
	               coalesce(o.quantity, 0), coalesce(o.product_id, h.product_id), coalesce(h.quantity, 0), coalesce(h.state, 'held'))
	 FROM (SELECT o.id, o.state, i.product_id, sum(i.quantity) AS quantity
	       FROM orders.orders o JOIN orders.order_item i ON i.order_id = o.id WHERE o.state <> 'REJECTED' GROUP BY 1, 2, 3) AS o
	 FULL JOIN inventory.hold h ON h.order_id = o.id AND h.product_id = o.product_id
	 WHERE o.quantity IS DISTINCT FROM h.quantity
	    OR h.state IS DISTINCT FROM CASE o.state WHEN 'CONFIRMED' THEN 'SETTLED' ELSE 'RELEASED' END`,
	// Stock is sold once, and returns at most once.
	`SELECT format('order %s: %s movements %s of product %s', order_id, count(*), reason, product_id)
	 FROM inventory.stock_movement WHERE order_id IS NOT NULL GROUP BY order_id, reason, product_id HAVING count(*) > 1`,
	// The log has what must have been said about an order, once, and nothing else about it.
	`SELECT format('order %s (%s): %s events %s in the log', coalesce(e.id, l.order_id), e.state, coalesce(l.n, 0), coalesce(e.key, l.routing_key))
	 FROM (SELECT o.id, o.state, unnest('{shop.order.placed}'::text[] || CASE o.state
	           WHEN 'REJECTED' THEN '{shop.order.rejected}'::text[]
	           WHEN 'CONFIRMED' THEN '{shop.order.confirmed,shop.inventory.decrement.quantity}'
	           ELSE '{shop.order.confirmed,shop.inventory.decrement.quantity,shop.order.cancelled}' END) AS key
	       FROM orders.orders o) AS e
	 FULL JOIN (SELECT order_id, routing_key, count(*) AS n FROM logging.event_log WHERE order_id IS NOT NULL GROUP BY 1, 2) AS l
	     ON l.order_id = e.id AND l.routing_key = e.key
	 WHERE e.id IS NULL OR coalesce(l.n, 0) <> 1`,
	`SELECT format('%s messages in the outbox of orders', count(*)) FROM orders.outbox HAVING count(*) > 0`,
	`SELECT format('%s messages in the outbox of inventory', count(*)) FROM inventory.outbox HAVING count(*) > 0`,
	`SELECT format('dead letter %s of queue %s: %s', id, source_queue, reason) FROM logging.dead_letter WHERE state = 'OPEN'`,
	// Locks taken in one order never wait for each other in a circle.
	`SELECT format('%s deadlocks', deadlocks) FROM pg_stat_database WHERE datname = current_database() AND deadlocks > 0`,
}

// auditDatabase returns an error that lists violations.
func auditDatabase(t *testing.T, db *sql.DB) error {
	t.Helper()
	var found []string
	for _, query := range violations {
		found = append(found, texts(t, db, query)...)
	}
	if len(found) > 0 {
		return fmt.Errorf("%d violations, among them %q", len(found), found[:min(5, len(found))])
	}
	return nil
}

// texts are the rows of a query of one text column.
func texts(t *testing.T, db *sql.DB, query string, args ...any) []string {
	t.Helper()
	rows, err := db.QueryContext(t.Context(), query, args...)
	if err != nil {
		t.Fatalf("%v in %s", err, query)
	}
	defer rows.Close()
	var all []string
	for rows.Next() {
		var s string
		if err := rows.Scan(&s); err != nil {
			t.Fatal(err)
		}
		all = append(all, s)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return all
}

// openDatabase returns the test's database, as its administrator.
func (s *shop) openDatabase(t *testing.T) *sql.DB {
	t.Helper()
	db, err := sql.Open("postgres", s.database)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

// openChannel returns a channel to the test's virtual host.
func (s *shop) openChannel(t *testing.T) *amqp.Channel {
	t.Helper()
	conn, err := amqp.Dial(s.broker.URL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.CloseDeadline(time.Now().Add(time.Second)) })
	ch, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	return ch
}

var queues = []string{
	"order", "order.retry.1s", "order.retry.10s", "order.retry.60s",
	"inventory", "inventory.retry.1s", "inventory.retry.10s", "inventory.retry.60s",
	"logging", "logging.retry.1s", "logging.retry.10s", "logging.retry.60s", "dead-letter",
}

// emptyQueues says which queues have messages that no consumer has taken.
func emptyQueues(t *testing.T, ch *amqp.Channel) error {
	t.Helper()
	for _, name := range queues {
		q, err := ch.QueueDeclarePassive(name, true, false, false, false, nil)
		if err != nil {
			t.Fatalf("queue %s: %v", name, err)
		}
		if q.Messages > 0 {
			return fmt.Errorf("queue %s has %d messages", name, q.Messages)
		}
	}
	return nil
}

// comesToRest waits until orders orders are decided and all that follows from them is done, stops the fleet, and then
// finds that nothing was left in anybody's hands and that the books balance.
func (f *fleet) comesToRest(t *testing.T, orders int) {
	t.Helper()
	db, ch := f.openDatabase(t), f.openChannel(t)
	atRest := func() error {
		if n := texts(t, db, `SELECT count(*)::text FROM orders.orders`)[0]; n != fmt.Sprint(orders) {
			return fmt.Errorf("%s orders are decided of %d", n, orders)
		}
		if err := emptyQueues(t, ch); err != nil {
			return err
		}
		return auditDatabase(t, db)
	}
	eventually(t, atRest)
	// A server that stops waits for connections that were made and never used.
	f.client.CloseIdleConnections()
	http.DefaultClient.CloseIdleConnections()
	for _, name := range services {
		for _, r := range f.replicas[name] {
			r.term(t)
			if r.log.contains("deadlock") {
				t.Errorf("%s speaks of a deadlock", r.name)
			}
		}
	}
	// What a stopped service had not acknowledged is in its queue again.
	if err := atRest(); err != nil {
		t.Errorf("after the shop has stopped: %v", err)
	}
}
