package e2e

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"shop.example/db"
)

// kept is a row of the table of retention in docs/operations.md.
type kept struct {
	limit  string // as an interval of PostgreSQL; "" if it is not bounded by time
	column string // that it is counted from
}

var (
	retentionRow = regexp.MustCompile("(?m)^\\| (`(?:orders|inventory|logging|webhooks)\\.[^|]*)\\|([^|]*)\\|([^|]*)\\|[^|]*\\|$")
	timeLimit    = regexp.MustCompile(`^\d+ (days|years)\b`)
)

// retentionTable is the table of retention, by the name of each table with its schema.
func retentionTable(t *testing.T) map[string]kept {
	t.Helper()
	text, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]kept{}
	for _, row := range retentionRow.FindAllStringSubmatch(string(text), -1) {
		for _, table := range strings.Split(strings.TrimSpace(row[1]), ", ") {
			table = strings.Trim(table, "`")
			if _, twice := rows[table]; twice {
				t.Errorf("docs/operations.md has %s twice", table)
			}
			rows[table] = kept{limit: timeLimit.FindString(strings.TrimSpace(row[2])), column: strings.Trim(row[3], "` ")}
		}
	}
	return rows
}

// What is an hour older than its table says is gone soon after the services have started, and what is an hour younger is
// there. A table that docs/operations.md does not have fails.
func TestRetention_EveryTableKeepsWhatThisSaysAndNoMore(t *testing.T) {
	t.Parallel()
	f := newDeployment(t, deploymentOptions{})
	f.up(t)
	table, pool := retentionTable(t), f.openDatabase(t)
	tables := texts(t, pool, `
		SELECT n.nspname || '.' || c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND n.nspname = ANY (string_to_array($1, ',')) AND c.relname <> 'goose_db_version'`,
		strings.Join(db.Schemas(), ","))
	slices.Sort(tables)
	if documented := slices.Sorted(maps.Keys(table)); !slices.Equal(documented, tables) {
		t.Fatalf("docs/operations.md says how long these are kept:\n%q\nThe tables are:\n%q", documented, tables)
	}

	f.live(t)
	f.age(t, pool, table, "2 hours", "")
	f.live(t)
	f.age(t, pool, table, "-1 hour", "limit")
	mustExec(t, pool, `CREATE TABLE logging.event_log_20200101 PARTITION OF logging.event_log FOR VALUES FROM ('2020-01-01 00:00:00+00') TO ('2020-01-02 00:00:00+00')`)
	books := countRows(t, pool, `SELECT count(*) FROM orders.orders`)
	younger := map[string]int{}
	for name, k := range table {
		if k.limit == "" {
			continue
		}
		older := 0
		if older, younger[name] = countRows(t, pool, k.query(name, "<")), countRows(t, pool, k.query(name, ">=")); older == 0 || younger[name] == 0 {
			t.Errorf("%s has %d rows that are older than %s, and %d that are not: nothing is shown", name, older, k.limit, younger[name])
		}
	}
	if len(younger) < 8 {
		t.Errorf("only %d tables are bounded by time", len(younger))
	}

	f.up(t)
	for name := range younger {
		eventually(t, func() error {
			if n := countRows(t, pool, table[name].query(name, "<")); n > 0 {
				return fmt.Errorf("%s still has %d rows that are older than %s", name, n, table[name].limit)
			}
			return nil
		})
	}
	for name, want := range younger {
		if n := countRows(t, pool, table[name].query(name, ">=")); n < want {
			t.Errorf("%s had %d rows that are not older than %s, and has %d", name, want, table[name].limit, n)
		}
	}
	if n := countRows(t, pool, `SELECT count(*) FROM orders.orders`); n != books {
		t.Errorf("there were %d orders, and there are %d", books, n)
	}
	partitions := texts(t, pool, `SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'logging.event_log'::regclass ORDER BY 1`)
	for day := range 8 {
		monday := time.Now().UTC().AddDate(0, 0, day).Truncate(7 * 24 * time.Hour)
		if name := "logging.event_log_" + monday.Format("20060102"); !slices.Contains(partitions, name) {
			t.Errorf("partition %s was not made ahead: there are %q", name, partitions)
		}
	}
	if slices.Contains(partitions, "logging.event_log_20200101") {
		t.Error("a partition of 2020 was not dropped")
	}
}

// query counts the rows of a table that are older than its limit, with "<", or not.
func (k kept) query(table, than string) string {
	if table == "webhooks.delivery" { // goes with its event
		return fmt.Sprintf(`SELECT count(*) FROM webhooks.delivery JOIN webhooks.event e ON e.id = event_id WHERE e.created_at %s now() - interval '%s'`, than, k.limit)
	}
	return fmt.Sprintf(`SELECT count(*) FROM %s WHERE %s %s now() - interval '%s'`, table, k.column, than, k.limit)
}

// live has each table that is bounded by time get rows, and stops the services.
func (f *deployment) live(t *testing.T) {
	t.Helper()
	f.up(t)
	operator := []string{"Authorization", "Bearer " + operatorToken}
	name := "Product " + uuid.NewString()
	a := f.call(t, http.MethodPost, "/v1/inventory", fmt.Sprintf(`{"items":[{"product_name":%q,"quantity":10,"price":{"currency_code":"USD","units":"5"}}]}`, name),
		append(operator, "Idempotency-Key", name)...)
	if a.code != http.StatusOK {
		t.Fatalf("making a product: %d %s", a.code, a.body)
	}
	f.deliveredWebhook(t)
	a = f.call(t, http.MethodPost, "/v1/orders", `{"customer_name":"Ada","customer_email":"ada@example.org","order_items":[{"product_id":1,"quantity":1}]}`,
		"Idempotency-Key", name)
	if a.code != http.StatusAccepted {
		t.Fatalf("placing an order: %d %s", a.code, a.body)
	}
	f.decided(t, a.header.Get("Location"))
	f.send(t, f.confirming(t), "shop.topic", "shop.order.placed", amqp.Publishing{Body: []byte("\xff garbage"), MessageId: uuid.NewString(), DeliveryMode: amqp.Persistent})
	f.post(t, f.open(t, 1)[0].path()+":discard")
	f.send(t, f.confirming(t), "shop.topic", "shop.inventory.create", amqp.Publishing{
		Body: encode(t, products("By message "+uuid.NewString(), 1)), MessageId: uuid.NewString(), DeliveryMode: amqp.Persistent,
	})
	pool := f.openDatabase(t)
	mustExec(t, pool, `INSERT INTO logging.unhandled_event (message_id, event_id, routing_key, queue, order_id, published_at, closed_at, outcome)
		VALUES (gen_random_uuid(), 1, 'shop.order.placed', 'order', gen_random_uuid(), now(), now(), 'handled')`)
	eventually(t, func() error {
		if n := countRows(t, pool, `SELECT count(*) FROM logging.operator_action WHERE recorded_at > now() - interval '1 hour'`); n < 2 {
			return fmt.Errorf("%d actions of operators are recorded", n)
		}
		if n := countRows(t, pool, `SELECT count(*) FROM inventory.inbox WHERE received_at > now() - interval '1 hour'`); n < 1 {
			return fmt.Errorf("the inbox has %d messages", n)
		}
		return nil
	})
	f.settled(t)
	for _, name := range services {
		f.replicas[name][0].term(t)
	}
}

// age makes all rows older by an interval, and the limit of their table if that is to be added.
func (f *deployment) age(t *testing.T, pool *sql.DB, table map[string]kept, by, limit string) {
	t.Helper()
	conn, err := pool.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	// What operators did is kept from being changed by a trigger.
	statements := []string{"SET session_replication_role = replica"}
	for name, k := range table {
		if k.limit == "" || name == "webhooks.delivery" {
			continue
		}
		statement := fmt.Sprintf("UPDATE %s SET %[2]s = %[2]s - interval '%s'", name, k.column, by)
		if limit != "" {
			statement += fmt.Sprintf(" - interval '%s'", k.limit)
		}
		statements = append(statements, statement)
	}
	for _, statement := range statements {
		if _, err := conn.ExecContext(t.Context(), statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
}

func mustExec(t *testing.T, pool *sql.DB, statement string) {
	t.Helper()
	if _, err := pool.ExecContext(t.Context(), statement); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

func countRows(t *testing.T, pool *sql.DB, query string) (n int) {
	t.Helper()
	if err := pool.QueryRowContext(context.WithoutCancel(t.Context()), query).Scan(&n); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return n
}

// A queue that docs/operations.md does not have fails.
func TestRetention_EveryQueueIsInTheTable(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	definitions, err := os.ReadFile("../topology/definitions.json")
	if err != nil {
		t.Fatal(err)
	}
	var broker struct {
		Queues []struct{ Name string } `json:"queues"`
	}
	if err := json.Unmarshal(definitions, &broker); err != nil || len(broker.Queues) == 0 {
		t.Fatalf("%d queues, %v", len(broker.Queues), err)
	}
	_, section, _ := strings.Cut(string(text), "| queue | kept until |")
	section, _, _ = strings.Cut(section, "\n## ")
	for _, q := range broker.Queues {
		name := q.Name
		if _, delay, retry := strings.Cut(name, ".retry."); retry {
			name = "NAME.retry." + delay
		}
		if !strings.Contains(section, "`"+name+"`") {
			t.Errorf("docs/operations.md does not say how long a message stays in queue %s", q.Name)
		}
	}
}
