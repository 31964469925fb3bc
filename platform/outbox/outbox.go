// Package outbox makes messages part of transactions, so that a message which is handled twice has one effect, and every
// event that a transaction made true is published.
//
// A handler claims the ids of its messages in the inbox and adds the events that follow to the outbox, both in the
// transaction of its effect. After the commit a Relay publishes the outbox, in order, and deletes what the broker has
// confirmed. If a confirm or the delete is lost an event is published twice; the consumer's inbox then shows that it was
// handled before.
package outbox

import (
	"context"
	_ "embed"
	"fmt"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/proto"

	"shop.example/platform/messaging"
	"shop.example/platform/postgres"
)

// Schema is the SQL that creates the tables. A service whose own tables show what it has handled does not need the inbox.
//
//go:embed schema.sql
var Schema string

// Entry is an event to publish.
type Entry struct {
	Message proto.Message
	// Trace is the span that the event belongs to, if that is not the span in the context of Add: each message of a batch
	// has its own.
	Trace trace.SpanContext
}

// ORDER BY: ids are given in the order of the entries.
const insertOutbox = postgres.Prepared + `
	INSERT INTO outbox (message_id, exchange, routing_key, type, correlation_id, traceparent, body)
	SELECT message_id, exchange, routing_key, type, correlation_id, traceparent, body
	FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bytea[]) WITH ORDINALITY
		AS entry (message_id, exchange, routing_key, type, correlation_id, traceparent, body, place)
	ORDER BY place`

// Add stores events in tx, to be published after its commit, in the order of entries. Transactions with events about the
// same order must lock that order before they call Add, because events are published in the order of the calls. It fails if
// a message is no event of the contracts, and with the errors of package postgres. It does not wake the relay; call
// Relay.Wake after the commit.
func Add(ctx context.Context, tx *sqlx.Tx, entries []Entry) error {
	if len(entries) == 0 {
		return nil
	}
	messages := make([]messaging.Outgoing, len(entries))
	for i, e := range entries {
		entryCtx := ctx
		if e.Trace.IsValid() {
			entryCtx = trace.ContextWithSpanContext(ctx, e.Trace)
		}
		m, err := messaging.NewOutgoing(entryCtx, e.Message)
		if err != nil {
			return fmt.Errorf("adding to the outbox: %w", err)
		}
		messages[i] = m
	}
	_, err := tx.ExecContext(ctx, insertOutbox,
		postgres.Array(messages, func(m messaging.Outgoing) uuid.UUID { return uuid.MustParse(m.MessageID) }),
		postgres.Array(messages, func(m messaging.Outgoing) string { return m.Exchange }),
		postgres.Array(messages, func(m messaging.Outgoing) string { return m.RoutingKey }),
		postgres.Array(messages, func(m messaging.Outgoing) string { return m.Type }),
		postgres.Array(messages, func(m messaging.Outgoing) string { return m.CorrelationID }),
		postgres.Array(messages, func(m messaging.Outgoing) string { return m.TraceParent }),
		postgres.Array(messages, func(m messaging.Outgoing) []byte { return m.Body }))
	if err != nil {
		return fmt.Errorf("adding to the outbox: %w", postgres.Classify(err))
	}
	return nil
}

// ORDER BY: two transactions that claim the same ids wait for each other and never both ways.
const insertInbox = `
	INSERT INTO inbox (message_id)
	SELECT id FROM unnest($1::uuid[]) AS id ORDER BY id
	ON CONFLICT DO NOTHING
	RETURNING message_id`

// Claim records in tx that it handles the messages with these ids. fresh[i] is false if ids[i] was handled before, or is in
// ids a second time. If another open transaction has claimed one of them, it waits for that one to end. Errors are those of
// package postgres.
func Claim(ctx context.Context, tx *sqlx.Tx, ids []uuid.UUID) (fresh []bool, err error) {
	if len(ids) == 0 {
		return nil, nil
	}
	var inserted []uuid.UUID
	if err := tx.SelectContext(ctx, &inserted, insertInbox, postgres.ArrayOf(ids)); err != nil {
		return nil, fmt.Errorf("claiming messages in the inbox: %w", postgres.Classify(err))
	}
	unclaimed := make(map[uuid.UUID]bool, len(inserted))
	for _, id := range inserted {
		unclaimed[id] = true
	}
	fresh = make([]bool, len(ids))
	for i, id := range ids {
		fresh[i] = unclaimed[id]
		delete(unclaimed, id) // the second of two equal ids is a duplicate
	}
	return fresh, nil
}

// Duplicates counts messages that were handled before and so had no effect. A nil Duplicates counts nothing.
type Duplicates struct{ counter metric.Int64Counter }

// NewDuplicates returns the counter, the metric inbox.repeats.
func NewDuplicates(meters metric.MeterProvider) (*Duplicates, error) {
	counter, err := meters.Meter(scope).Int64Counter("inbox.repeats",
		metric.WithDescription("Messages that had been handled before, and so had no effect."))
	if err != nil {
		return nil, fmt.Errorf("registering the metrics of the inbox: %w", err)
	}
	counter.Add(context.Background(), 0)
	return &Duplicates{counter}, nil
}

// Add adds n. Call it after the commit of the transaction that has found the duplicates.
func (r *Duplicates) Add(ctx context.Context, n int) {
	if r != nil && n > 0 {
		r.counter.Add(ctx, int64(n))
	}
}
