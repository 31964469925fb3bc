// Package outbox ties messages to transactions, so that a message handled twice has one effect and what a transaction
// made true is published.
//
// A handler claims the ids of its messages in the inbox and adds the messages that follow to the outbox, both in the
// transaction of its effect. After the commit a Relay publishes the outbox in its order and deletes what the broker has
// confirmed. A message can be published twice, if the confirm or the delete is lost: the inbox of whoever takes it
// tells that it has come before.
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

// Schema is the SQL that makes the tables. A service whose own rows say what it has handled needs no inbox.
//
//go:embed schema.sql
var Schema string

// Entry is an event to publish.
type Entry struct {
	Message proto.Message
	// Trace is the span that the event belongs to, if it is not that of the context: a batch has one of each message.
	Trace trace.SpanContext
}

// ORDER BY: ids are given in the order of the entries.
const insertOutbox = postgres.Prepared + `
	INSERT INTO outbox (message_id, exchange, routing_key, type, correlation_id, traceparent, body)
	SELECT message_id, exchange, routing_key, type, correlation_id, traceparent, body
	FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bytea[]) WITH ORDINALITY
		AS entry (message_id, exchange, routing_key, type, correlation_id, traceparent, body, place)
	ORDER BY place`

// Add stores events in tx, to be published after its commit, in the order of entries. Two transactions that tell of
// the same order have to lock it before they call Add: the events are published in the order of the calls. Errors: a
// message that is no event, and those of package postgres.
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

// Claim records in tx that the messages are handled by it, and says of each whether that is new: fresh[i] is false
// if ids[i] was handled before, or stands earlier in ids. It waits for a transaction that has claimed one of them
// and is still open. Errors are those of package postgres.
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

// Duplicates counts the messages that had been handled before, and so had no effect. A nil one counts nothing.
type Duplicates struct{ counter metric.Int64Counter }

// NewDuplicates returns the counter of a service, the metric inbox.repeats.
func NewDuplicates(meters metric.MeterProvider) (*Duplicates, error) {
	counter, err := meters.Meter(scope).Int64Counter("inbox.repeats",
		metric.WithDescription("Messages that had been handled before, and so had no effect."))
	if err != nil {
		return nil, fmt.Errorf("registering the metrics of the inbox: %w", err)
	}
	counter.Add(context.Background(), 0)
	return &Duplicates{counter}, nil
}

// Add adds n, after the commit of the transaction that has found them.
func (r *Duplicates) Add(ctx context.Context, n int) {
	if r != nil && n > 0 {
		r.counter.Add(ctx, int64(n))
	}
}
