package command

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"shop.example/db/dbtest"
	eventsv1 "shop.example/gen/shop/events/v1"
	"shop.example/platform/contract"
	"shop.example/platform/postgres"
	"shop.example/topology"
)

func TestOutboxResend_SaysWhoHasSentAnEventAgain(t *testing.T) {
	t.Parallel()
	const id = "0192f3a1-5ad9-8e4f-b0a7-6d3c8f5a2b10"
	pool, err := postgres.Open(t.Context(), dbtest.New(t), "orders", postgres.Options{Application: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pool.Close() })
	pool.MustExecContext(t.Context(), `
		INSERT INTO outbox_parked (message_id, exchange, routing_key, type, correlation_id, traceparent, body, created_at, reason)
		VALUES ($1, 'shop.topic', 'shop.order.confirmed', 'shop.events.v1.OrderConfirmed', '', '', '', now(), 'no route')`, id)
	for _, want := range [][]string{{id}, nil} { // what is not parked any more is neither sent nor recorded
		if sent, err := resend(t.Context(), pool, []string{strings.ToUpper(id)}); err != nil || !slices.Equal(sent, want) {
			t.Errorf("sent %q, %v; want %q", sent, err, want)
		}
	}
	var rows []struct {
		Type string `db:"type"`
		Body []byte `db:"body"`
	}
	if err := pool.SelectContext(t.Context(), &rows, "SELECT type, body FROM outbox ORDER BY id"); err != nil || len(rows) != 2 {
		t.Fatalf("%d messages are in the outbox, %v", len(rows), err)
	}
	var acted eventsv1.OperatorActed
	if err := proto.Unmarshal(rows[1].Body, &acted); err != nil || rows[1].Type != "shop.events.v1.OperatorActed" {
		t.Fatalf("the second one is a %s, %v", rows[1].Type, err)
	}
	if acted.GetTarget() != "event "+id || acted.GetMethod() != "shop outbox resend" || acted.GetOperator() == "user of the database " {
		t.Errorf("recorded is %v", &acted)
	}
}

// While the broker refuses what is recorded as well, each attempt doubled what is parked.
func TestOutboxResend_OfManyIsRecordedOnce(t *testing.T) {
	t.Parallel()
	pool, err := postgres.Open(t.Context(), dbtest.New(t), "orders", postgres.Options{Application: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pool.Close() })
	pool.MustExecContext(t.Context(), `
		INSERT INTO outbox_parked (message_id, exchange, routing_key, type, correlation_id, traceparent, body, created_at, reason)
		SELECT gen_random_uuid(), 'shop.topic', 'shop.order.confirmed', 'shop.events.v1.OrderConfirmed', '', '', '', now(), 'no route' FROM generate_series(1, $1::int)`, resentAtOnce)
	ids, err := parkedIDs(t.Context(), pool)
	if err != nil || len(ids) != resentAtOnce {
		t.Fatalf("parked are %d, %v", len(ids), err)
	}
	if sent, err := resend(t.Context(), pool, ids); err != nil || !slices.Equal(sent, ids) {
		t.Errorf("sent %q, %v; want %q", sent, err, ids)
	}
	var bodies [][]byte
	if err := pool.SelectContext(t.Context(), &bodies, "SELECT body FROM outbox WHERE type = 'shop.events.v1.OperatorActed'"); err != nil || len(bodies) != 1 {
		t.Fatalf("recorded %d times, %v", len(bodies), err)
	}
	var acted eventsv1.OperatorActed
	if err := proto.Unmarshal(bodies[0], &acted); err != nil || acted.GetDetail() != "sent again: "+strings.Join(ids, ", ") {
		t.Errorf("recorded is %q, %v", acted.GetDetail(), err)
	}
}

// Who sends parked events again is recorded by an event from the same outbox.
func TestOutbox_EachServiceThatHasOneMayRecordWhatOperatorsDo(t *testing.T) {
	t.Parallel()
	acted, _ := contract.EventOf(&eventsv1.OperatorActed{})
	schemas := outboxSchemas()
	if len(schemas) < 2 {
		t.Errorf("the schemas with an outbox are %q", schemas)
	}
	for _, s := range topology.Services() {
		if slices.Contains(schemas, s.Schema) && !slices.Contains(acted.PublishedBy, s.Name) {
			t.Errorf("%s is not in published_by of %s", s.Name, acted.Name)
		}
	}
}
