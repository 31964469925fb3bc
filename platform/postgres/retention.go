package postgres

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/jmoiron/sqlx"
)

const (
	// firstDelete is how long after its start KeepDeletingOlder deletes first, about: a service that is restarted again and
	// again cleans up, too.
	firstDelete = 4 * time.Second
	// deleteInterval is how often it deletes then, about.
	deleteInterval = 10 * time.Minute
)

// KeepDeletingOlder does what DeleteOlder does, soon and then every ten minutes until ctx ends. What fails is logged, and
// tried again. It returns nil.
func KeepDeletingOlder(ctx context.Context, pool *sqlx.DB, table, column string, age time.Duration, log *slog.Logger) error {
	for interval := firstDelete; ; interval = deleteInterval {
		// Replicas that were started together do not delete together.
		pause := time.NewTimer(interval/2 + rand.N(interval)) //nolint:gosec // jitter needs no secret
		select {
		case <-ctx.Done():
			pause.Stop()
			return nil
		case <-pause.C:
		}
		if _, err := DeleteOlder(ctx, pool, table, column, age); err != nil && ctx.Err() == nil {
			log.WarnContext(ctx, "old rows were not deleted, will be tried again", "table", table, "error", err)
		}
	}
}

// deleteSlice is how many rows DeleteOlder deletes in one transaction.
const deleteSlice = 5000

// DeleteOlder deletes the rows of table in which column, a timestamptz with an index, is older than age, and returns how
// many. It works in slices of 5,000 rows, each in a transaction of its own, so that it never holds locks for long. If two
// run at the same time, one may leave the work to the other. table and column become part of the statement: they must be
// constants.
func DeleteOlder(ctx context.Context, pool *sqlx.DB, table, column string, age time.Duration) (deleted int64, err error) {
	for {
		result, err := pool.ExecContext(ctx, fmt.Sprintf(`
			DELETE FROM %[1]s WHERE ctid = ANY (ARRAY(
				SELECT ctid FROM %[1]s
				WHERE %[2]s < now() - $1 * interval '1 second'
				ORDER BY %[2]s LIMIT $2))`, table, column), age.Seconds(), deleteSlice)
		if err != nil {
			return deleted, fmt.Errorf("deleting old rows of %s: %w", table, Classify(err))
		}
		n, err := result.RowsAffected()
		deleted += n
		if err != nil || n < deleteSlice {
			return deleted, err
		}
	}
}
