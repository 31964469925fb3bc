package outbox

import (
	"context"
	"log/slog"
	"time"

	"github.com/jmoiron/sqlx"

	"shop.example/platform/postgres"
)

// KeepInboxClean has the inbox forget what was handled longer ago than retention, see Retention, until ctx ends. It returns
// nil. A Relay does it for a service that has one; a service that only consumes runs it by itself.
func KeepInboxClean(ctx context.Context, pool *sqlx.DB, retention time.Duration, log *slog.Logger) error {
	return postgres.KeepDeletingOlder(ctx, pool, "inbox", "received_at", retention, log)
}
