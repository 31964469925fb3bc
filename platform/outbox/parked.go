package outbox

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"

	"shop.example/platform/messaging"
	"shop.example/platform/postgres"
)

// parkedMessage is a message that the broker refuses to take.
type parkedMessage struct {
	messaging.Outgoing
	reason string
}

// Parked is a message that the broker has refused and that was moved out of the outbox, as operators see it.
type Parked struct {
	MessageID     string    `db:"message_id"`
	RoutingKey    string    `db:"routing_key"`
	Type          string    `db:"type"`
	CorrelationID string    `db:"correlation_id"`
	Size          int       `db:"size"` // of its body, in bytes
	CreatedAt     time.Time `db:"created_at"`
	ParkedAt      time.Time `db:"parked_at"`
	Reason        string    `db:"reason"`
}

// park stores what tx has taken out of the outbox and the broker refuses. There are few of them.
func park(ctx context.Context, tx *sqlx.Tx, messages []parkedMessage) error {
	for _, m := range messages {
		_, err := tx.ExecContext(ctx, `
			INSERT INTO outbox_parked (message_id, exchange, routing_key, type, correlation_id, traceparent, body, created_at, reason)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)`,
			m.MessageID, m.Exchange, m.RoutingKey, m.Type, m.CorrelationID, m.TraceParent, m.Body, m.Timestamp, m.reason)
		if err != nil {
			return fmt.Errorf("parking a message: %w", err)
		}
	}
	return nil
}

func countParked(ctx context.Context, pool *sqlx.DB) (n int64, err error) {
	if err := pool.GetContext(ctx, &n, "SELECT count(*) FROM outbox_parked"); err != nil {
		return 0, fmt.Errorf("counting parked messages: %w", postgres.Classify(err))
	}
	return n, nil
}

// ListParked returns the parked messages of the schema that pool uses, the oldest first.
func ListParked(ctx context.Context, pool *sqlx.DB) (parked []Parked, err error) {
	err = pool.SelectContext(ctx, &parked, `
		SELECT message_id, routing_key, type, correlation_id, octet_length(body) AS size, created_at, parked_at, reason
		FROM outbox_parked ORDER BY id`)
	if err != nil {
		return nil, fmt.Errorf("listing parked messages: %w", postgres.Classify(err))
	}
	return parked, nil
}

// Unpark moves parked messages back to the outbox, in tx, to be published unchanged and in the order in which they were
// parked, and returns the ids of those that there are. The relay publishes them within a second of the commit; if the broker
// refuses one again, it is parked again.
func Unpark(ctx context.Context, tx *sqlx.Tx, messageIDs []string) (sent []string, err error) {
	err = tx.SelectContext(ctx, &sent, `
		WITH back AS (
			DELETE FROM outbox_parked WHERE message_id::text = ANY ($1) RETURNING *
		)
		INSERT INTO outbox (message_id, exchange, routing_key, type, correlation_id, traceparent, body, created_at)
		SELECT message_id, exchange, routing_key, type, correlation_id, traceparent, body, created_at FROM back ORDER BY id
		RETURNING message_id`, postgres.Array(messageIDs, strings.ToLower))
	if err != nil {
		return nil, fmt.Errorf("sending parked messages: %w", postgres.Classify(err))
	}
	return sent, nil
}
