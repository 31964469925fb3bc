package eventlog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	eventsv1 "shop.example/gen/shop/events/v1"
	"shop.example/platform/contract"
	"shop.example/platform/postgres"
)

const (
	day = 24 * time.Hour
	// daysAhead is how many days ahead partitions are created: maintenance may fail for this many days before rows go to
	// the default partition.
	daysAhead        = 7
	maintainInterval = time.Hour
	// requestRetention is how long requests stay in the log, whatever its retention is: anybody can make them, and they
	// change nothing. Requests that became dead letters stay.
	requestRetention = day
	// expireBatch is how many are deleted at once.
	expireBatch = 10_000
)

// requestRoutingKey returns the routing key of the one event that is a request and changes nothing.
var requestRoutingKey = sync.OnceValue(func() string {
	event, _ := contract.EventOf(&eventsv1.ListInventory{})
	return event.RoutingKey
})

// partitions maintains the daily partitions of event_log. Days are those of UTC.
type partitions struct {
	db        *sqlx.DB
	log       *slog.Logger
	retention time.Duration // 0 keeps everything
	horizon   time.Duration // for how long a dead letter can be redriven
}

// run maintains the partitions every hour until ctx ends.
func (p *partitions) run(ctx context.Context) error {
	tick := time.NewTicker(maintainInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			p.tryMaintain(ctx)
		}
	}
}

// tryMaintain calls maintain and logs a failure; the next call makes up for it. Rows always have a place, if only in the
// default partition.
func (p *partitions) tryMaintain(ctx context.Context) {
	now := time.Now()
	if err := errors.Join(p.maintain(ctx, now), p.expireRequests(ctx, now), p.expireDeadLetters(ctx), p.expireActions(ctx)); err != nil && ctx.Err() == nil {
		p.log.WarnContext(ctx, "maintaining the partitions of event_log failed, will be tried again", "in", maintainInterval, "error", err)
	}
}

// maintain creates missing partitions, and drops those older than the retention. If another replica is doing so, it does
// nothing.
func (p *partitions) maintain(ctx context.Context, now time.Time) error {
	today := now.UTC().Truncate(day)
	var made, dropped []string
	err := postgres.InTx(ctx, p.db, func(tx *sqlx.Tx) error {
		var mine bool
		err := tx.GetContext(ctx, &mine, `SELECT pg_try_advisory_xact_lock(hashtextextended('event_log.partitions', 0))`)
		if err != nil || !mine {
			return err
		}
		existing, err := existingPartitions(ctx, tx)
		if err != nil {
			return err
		}
		var missing []time.Time
		for at := today; !at.After(today.Add(daysAhead * day)); at = at.Add(day) {
			if !existing[at] {
				missing = append(missing, at)
			}
		}
		var over []time.Time
		for at := range existing {
			if p.retention > 0 && !at.Add(day).After(now.Add(-p.retention)) {
				over = append(over, at)
			}
		}
		if len(missing)+len(over) > 0 {
			if err := lockEventLog(ctx, tx); err != nil {
				return err
			}
		}
		for _, at := range missing {
			if err := createPartition(ctx, tx, at); err != nil {
				return fmt.Errorf("making partition %s: %w", partitionName(at), err)
			}
			made = append(made, partitionName(at))
		}
		for _, at := range over {
			if _, err := tx.ExecContext(ctx, "DROP TABLE "+partitionName(at)); err != nil {
				return fmt.Errorf("dropping partition %s: %w", partitionName(at), err)
			}
			dropped = append(dropped, partitionName(at))
		}
		if p.retention > 0 {
			_, err = tx.ExecContext(ctx, "DELETE FROM event_log_default WHERE published_at < $1", now.Add(-p.retention))
		}
		return err
	})
	if err == nil && len(made)+len(dropped) > 0 {
		p.log.InfoContext(ctx, "partitions of event_log", "made", made, "dropped", dropped)
	}
	return err
}

// expireRequests deletes the requests that are older than requestRetention, in slices, from the partitions that can have
// any. It finds them by the index on the routing key, without reading other rows.
func (p *partitions) expireRequests(ctx context.Context, now time.Time) error {
	before := now.Add(-requestRetention)
	existing, err := existingPartitions(ctx, p.db)
	if err != nil {
		return err
	}
	tables := []string{"event_log_default"}
	for at := range existing {
		if at.Before(before) {
			tables = append(tables, partitionName(at))
		}
	}
	for _, table := range tables {
		for {
			result, err := p.db.ExecContext(ctx, fmt.Sprintf(`
				DELETE FROM %[1]s WHERE ctid = ANY (ARRAY(
				    SELECT ctid FROM %[1]s WHERE routing_key = $1 AND published_at < $2 AND status = 'success' LIMIT %[2]d))`,
				table, expireBatch), requestRoutingKey(), before)
			if err != nil {
				return fmt.Errorf("deleting old requests from %s: %w", table, err)
			}
			if n, err := result.RowsAffected(); err != nil || n < expireBatch {
				break
			}
		}
	}
	return nil
}

// lockEventLog locks everybody else out of event_log until the transaction ends, for the short time in which rows are moved
// or a partition is dropped. Without it, a reader that has planned its query before would look for moved rows in their old
// partition and miss them. It gives up after two seconds, because everybody who comes after this lock waits for it too.
func lockEventLog(ctx context.Context, tx *sqlx.Tx) error {
	if _, err := tx.ExecContext(ctx, "SET LOCAL lock_timeout = '2s'"); err != nil {
		return err
	}
	_, err := tx.ExecContext(ctx, "LOCK TABLE ONLY event_log IN ACCESS EXCLUSIVE MODE")
	return err
}

// createPartition creates the partition of a day. The day's rows in the default partition are moved into it, because the
// server refuses to create a partition while the default one has rows for it.
func createPartition(ctx context.Context, tx *sqlx.Tx, at time.Time) error {
	name, from, to := partitionName(at), pq.QuoteLiteral(at.Format(time.RFC3339)), pq.QuoteLiteral(at.Add(day).Format(time.RFC3339))
	for _, statement := range []string{
		"CREATE TABLE " + name + " (LIKE event_log INCLUDING DEFAULTS INCLUDING CONSTRAINTS)",
		fmt.Sprintf(`WITH moved AS (DELETE FROM event_log_default WHERE published_at >= %s AND published_at < %s RETURNING *)
			INSERT INTO %s SELECT * FROM moved`, from, to, name),
		fmt.Sprintf("ALTER TABLE event_log ATTACH PARTITION %s FOR VALUES FROM (%s) TO (%s)", name, from, to),
	} {
		if _, err := tx.ExecContext(ctx, statement); err != nil {
			return err
		}
	}
	return nil
}

const partitionPrefix = "event_log_"

func partitionName(at time.Time) string { return partitionPrefix + at.Format("20060102") }

// existingPartitions returns the days that have a partition.
func existingPartitions(ctx context.Context, q sqlx.QueryerContext) (map[time.Time]bool, error) {
	var names []string
	err := sqlx.SelectContext(ctx, q, &names, `
		SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = 'event_log'::regclass`)
	if err != nil {
		return nil, fmt.Errorf("reading the partitions: %w", err)
	}
	days := make(map[time.Time]bool, len(names))
	for _, name := range names {
		if at, err := time.Parse("20060102", strings.TrimPrefix(name, partitionPrefix)); err == nil {
			days[at] = true
		}
	}
	return days, nil
}
