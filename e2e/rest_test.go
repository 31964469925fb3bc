package e2e

import (
	"database/sql"
	"fmt"
	"net/http"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"shop.example/platform/messaging"
	"shop.example/shop/audit"
)

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
	conn, err := amqp.Dial(messaging.SplitURL(s.broker.URL)[0])
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

// comesToRest waits until so many orders are decided and everything that follows is done, stops the deployment, and then
// checks that no message is left in a queue or unacknowledged, and that the audit finds nothing.
func (f *deployment) comesToRest(t *testing.T, orders int) {
	t.Helper()
	ch, books := f.openChannel(t), auditor(t, &f.shop)
	f.decides(t, orders)
	eventually(t, func() error { return emptyQueues(t, ch) })
	f.balance(t, books)
	// A server that stops waits for connections that were made and never used.
	f.client.CloseIdleConnections()
	http.DefaultClient.CloseIdleConnections()
	for _, name := range services {
		for _, r := range f.replicas[name] {
			r.term(t)
		}
	}
	// What a stopped service had not acknowledged is in its queue again.
	if err := emptyQueues(t, ch); err != nil {
		t.Errorf("after the shop has stopped: %v", err)
	}
	f.balance(t, books)
	f.decides(t, orders)
	// Locks that are taken in one order never wait for each other in a circle.
	if n := texts(t, f.openDatabase(t), `SELECT deadlocks::text FROM pg_stat_database WHERE datname = current_database()`)[0]; n != "0" {
		t.Errorf("the database has seen %s deadlocks", n)
	}
}

// balance waits until an audit finds nothing in flight, and fails if it finds a violation.
func (f *deployment) balance(t *testing.T, books *audit.Auditor) {
	t.Helper()
	report, err := books.RunWhenQuiet(t.Context(), resendLimit)
	if err != nil {
		t.Fatalf("the audit: %v", err)
	}
	if report.Count() > 0 || report.InFlight() > 0 {
		t.Errorf("%d violations, %d on their way: %v %+v", report.Count(), report.InFlight(), report.Violations, report.Checks)
	}
}
