package e2e

import (
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	eventsv1 "shop.example/gen/shop/events/v1"
	"shop.example/shop/audit"
)

// schemaBackup is a backup of one service's data, as of a service with a database of its own.
type schemaBackup struct{ schema, file string }

func (f *deployment) backup(t *testing.T, schema string) schemaBackup {
	t.Helper()
	b := schemaBackup{schema, filepath.Join(t.TempDir(), schema+".dump")}
	f.postgres(t, "pg_dump", "--format=custom", "--schema="+schema, "--file="+b.file, f.database)
	return b
}

// lose loses what one service has stored, which stops, and restores the backup.
func (f *deployment) lose(t *testing.T, service string, b schemaBackup) {
	t.Helper()
	f.replicas[service][0].term(t)
	mustExec(t, f.openDatabase(t), "DROP SCHEMA "+b.schema+" CASCADE")
	f.postgres(t, "pg_restore", "--exit-on-error", "--dbname="+f.database, b.file)
	f.replicas[service][0].start(t)
	f.ready(t)
}

func (f *deployment) postgres(t *testing.T, program string, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), postgresProgram(t, program), args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", program, err, out)
	}
}

// keyed places an order under an idempotency key.
func (s *shop) keyed(t *testing.T, key string) (location string) {
	t.Helper()
	a := s.call(t, http.MethodPost, "/v1/orders", `{"customer_name":"Ada","customer_email":"ada@example.org","order_items":[{"product_id":2,"quantity":1}]}`,
		"Idempotency-Key", key)
	if a.code != http.StatusAccepted && a.code != http.StatusOK {
		t.Fatalf("placing an order: %d %s", a.code, a.body)
	}
	return a.header.Get("Location")
}

// finds is what an audit that waits for nothing says about an order.
func (f *deployment) finds(t *testing.T, location string) (details []string) {
	t.Helper()
	a := auditor(t, &f.shop)
	report, err := a.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range report.Violations {
		if location == "/v1/orders/"+v.OrderID {
			details = append(details, string(v.Check)+": "+v.Detail)
		}
	}
	return details
}

// makeOld has what an order left look as if nothing were on its way any more: the audit waits a minute.
func (f *deployment) makeOld(t *testing.T) {
	t.Helper()
	pool := f.openDatabase(t)
	for _, statement := range []string{
		`UPDATE orders.orders SET created_at = created_at - interval '3 min', updated_at = updated_at - interval '3 min'`,
		`UPDATE inventory.decision SET decided_at = decided_at - interval '3 min'`,
		`UPDATE logging.event_log SET published_at = published_at - interval '3 min', created_at = created_at - interval '3 min'`,
	} {
		mustExec(t, pool, statement)
	}
}

// The database of the order service is lost and restored, and those of the others are as they were: what it has forgotten is
// in the log. One command has it decided again, once, with the answer that inventory gave before.
func TestDisaster_OrdersThatTheLogStillHasAreDecidedAgainOnce(t *testing.T) {
	t.Parallel()
	f := newDeployment(t, deploymentOptions{})
	f.up(t)
	kept := f.keyed(t, "before the backup")
	f.decided(t, kept)
	f.settled(t)
	b := f.backup(t, "orders")
	var lost []string
	for i := range 5 {
		lost = append(lost, f.keyed(t, fmt.Sprintf("after the backup %d", i)))
		f.decided(t, lost[i])
	}
	sold := f.settled(t)["Phone"]
	f.makeOld(t)

	f.lose(t, "order", b)
	if o := f.state(t, lost[0]); o.State != "PENDING" {
		t.Errorf("an order that is lost is %s", o.State)
	}
	if got := f.finds(t, lost[0]); !slices.ContainsFunc(got, func(s string) bool { return strings.Contains(s, "but the order is not stored") }) {
		t.Errorf("of an order that is lost the audit says %q", got)
	}
	run := scenesOf(t, "docs/operations.md", append(shellTools(t), "DATABASE_URL="+f.database, "SHOP_SERVER="+strings.TrimPrefix(f.url, "http://"), "SHOP_OPERATOR_TOKEN="+operatorToken))
	run("repair")
	run("repair") // once more has no effect
	f.keyed(t, "after the backup 0")
	for _, location := range lost {
		if o := f.decided(t, location); o.State != "CONFIRMED" {
			t.Errorf("order %s is %s after it was decided again", o.ID, o.State)
		}
	}
	if now := f.settled(t)["Phone"]; now != sold {
		t.Errorf("the stock was %+v, and is %+v after the orders were decided again", sold, now)
	}
	f.comesToRest(t, 1+len(lost))
}

// state is what the shop says about an order.
func (s *shop) state(t *testing.T, location string) (o order) {
	t.Helper()
	eventually(t, func() error { // a gateway finds a service that was restarted again
		a := s.call(t, http.MethodGet, location, "")
		if a.code != http.StatusOK {
			return fmt.Errorf("GET %s: %d %s", location, a.code, a.body)
		}
		a.json(t, &o)
		return nil
	})
	return o
}

// What an operator has discarded was passed over by all that repairs: an order that was rejected by it and lost stayed PENDING for ever.
func TestDisaster_AnOrderThatWasDiscardedIsRejectedAgain(t *testing.T) {
	t.Parallel()
	f := newDeployment(t, deploymentOptions{})
	f.up(t)
	b := f.backup(t, "orders")
	refused := &eventsv1.OrderPlaced{
		OrderId: uuid.Must(uuid.NewV7()).String(), CustomerName: "Ada", CustomerEmail: "ada@example.org", PlacedAt: timestamppb.Now(),
		Lines: []*eventsv1.RequestedLine{{ProductId: 1, Quantity: -1}},
	}
	location := "/v1/orders/" + refused.GetOrderId()
	body, err := proto.Marshal(refused)
	if err != nil {
		t.Fatal(err)
	}
	f.send(t, f.confirming(t), "shop.topic", "shop.order.placed", amqp.Publishing{Body: body, MessageId: uuid.NewString(), CorrelationId: refused.GetOrderId()})
	letter := f.open(t, 1)[0].ID
	discard := func() {
		t.Helper()
		if a := f.call(t, http.MethodGet, location, ""); a.code != http.StatusNotFound { // PENDING, if a gateway had made its id
			t.Errorf("before: %d %s", a.code, a.body)
		}
		if a := f.call(t, http.MethodPost, "/v1/dead-letters/"+letter+":discard", "{}", "Authorization", "Bearer "+operatorToken); a.code != http.StatusOK {
			t.Fatalf("discarding: %d %s", a.code, a.body)
		}
		if o := f.state(t, location); o.State != "REJECTED" || o.Reason != "DISCARDED" {
			t.Errorf("the order is %s (%s)", o.State, o.Reason)
		}
	}
	discard()
	f.settled(t)
	f.logged(t, "shop.order.rejected", 1)
	f.makeOld(t)
	f.lose(t, "order", b)
	if got := f.finds(t, location); !slices.ContainsFunc(got, func(s string) bool { return strings.HasSuffix(s, "discard dead letter "+letter+" again") }) {
		t.Errorf("the audit says %q", got)
	}
	discard()
	f.comesToRest(t, 1)
}

// Of the log and of inventory alone nothing can be made again: the audit says so. Orders stay as they were decided.
func TestDisaster_WhatNoOtherServiceHasIsFoundByTheAudit(t *testing.T) {
	t.Parallel()
	for service, d := range map[string]struct {
		schema string
		check  audit.Check
		says   string
	}{
		"logging":   {"logging", audit.Events, "but the log has no shop.order.placed"},
		"inventory": {"inventory", audit.Decisions, "but inventory has no decision about it"},
	} {
		t.Run(service, func(t *testing.T) {
			t.Parallel()
			f := newDeployment(t, deploymentOptions{})
			f.up(t)
			b := f.backup(t, d.schema)
			lost := f.keyed(t, "after the backup")
			before := f.decided(t, lost)
			f.settled(t)
			f.makeOld(t)
			f.lose(t, service, b)
			if o := f.state(t, lost); o.State != before.State {
				t.Errorf("the order was %s and is %s", before.State, o.State)
			}
			if got := f.finds(t, lost); !slices.ContainsFunc(got, func(s string) bool { return strings.HasPrefix(s, string(d.check)+": ") && strings.Contains(s, d.says) }) {
				t.Errorf("the audit says %q, want %q", got, d.says)
			}
			if o := f.decided(t, f.keyed(t, "afterwards")); o.State != "CONFIRMED" {
				t.Errorf("an order afterwards is %s", o.State)
			}
		})
	}
}
