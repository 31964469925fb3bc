package outbox

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/jmoiron/sqlx"

	"shop.example/platform/postgres"
)

// cleanInterval is how often an inbox is cleaned, on average.
const cleanInterval = 10 * time.Minute

// KeepInboxClean deletes from the inbox, every ten minutes until ctx ends, the messages that were handled longer ago than
// retention. Failures are logged and tried again; it returns nil. A Relay does this for a service that has one; a service
// that only consumes runs it itself.
func KeepInboxClean(ctx context.Context, pool *sqlx.DB, retention time.Duration, log *slog.Logger) error {
	return keepInboxClean(ctx, pool, retention, log, cleanInterval)
}

func keepInboxClean(ctx context.Context, pool *sqlx.DB, retention time.Duration, log *slog.Logger, interval time.Duration) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(interval/2 + rand.N(interval)): // replicas that were started together do not clean together
		}
		if _, err := CleanInbox(ctx, pool, retention); err != nil && ctx.Err() == nil {
			log.WarnContext(ctx, "the inbox was not cleaned", "error", err)
		}
	}
}

// CleanInbox deletes from the inbox the messages that were handled longer ago than retention, and returns how many. See
// postgres.DeleteOlder.
func CleanInbox(ctx context.Context, pool *sqlx.DB, retention time.Duration) (deleted int64, err error) {
	return postgres.DeleteOlder(ctx, pool, "inbox", "received_at", retention)
}
