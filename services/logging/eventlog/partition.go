package eventlog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	eventsv1 "shop.example/gen/shop/events/v1"
	"shop.example/platform/contract"
	"shop.example/platform/postgres"
)

const (
	day  = 24 * time.Hour
	week = 7 * day
	// dailyBelow is the retention below which partitions are those of days, so that no event stays for long after it. From there on
	// they are those of weeks: each statement on the log costs something for each partition (docs/adr/0024).
	dailyBelow = 60 * day
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

// partitions maintains the partitions of event_log. Days are those of UTC, and weeks begin with Monday.
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
		missing := missingPartitions(existing, today, today.Add((daysAhead+1)*day), p.span())
		var over []partition
		for _, e := range existing {
			if p.retention > 0 && !e.To.After(now.Add(-p.retention)) {
				over = append(over, e)
			}
		}
		if len(missing)+len(over) > 0 {
			if err := lockEventLog(ctx, tx); err != nil {
				return err
			}
		}
		for _, m := range missing {
			if err := m.create(ctx, tx); err != nil {
				return fmt.Errorf("making partition %s: %w", m.name(), err)
			}
			made = append(made, m.name())
		}
		for _, o := range over {
			if _, err := tx.ExecContext(ctx, "DROP TABLE "+o.name()); err != nil {
				return fmt.Errorf("dropping partition %s: %w", o.name(), err)
			}
			dropped = append(dropped, o.name())
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

// span is how much time a partition covers.
func (p *partitions) span() time.Duration {
	if p.retention > 0 && p.retention < dailyBelow {
		return day
	}
	return week
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
	for _, e := range existing {
		if e.From.Before(before) {
			tables = append(tables, e.name())
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

// partition is one for the events that were published from From on, and before To. It has the name of its first day.
type partition struct {
	From time.Time `db:"from"`
	To   time.Time `db:"to"`
}

func (p partition) name() string { return "event_log_" + p.From.UTC().Format("20060102") }

// create creates the partition. Its rows in the default partition are moved into it, because the server refuses to create a
// partition while the default one has rows for it.
func (p partition) create(ctx context.Context, tx *sqlx.Tx) error {
	name, from, to := p.name(), pq.QuoteLiteral(p.From.UTC().Format(time.RFC3339)), pq.QuoteLiteral(p.To.UTC().Format(time.RFC3339))
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

// missingPartitions returns partitions for the times from from to to that existing, in the order of time, does not cover. They
// begin and end at multiples of span, or where an existing one ends or begins: after the retention has changed, that of an
// earlier span.
func missingPartitions(existing []partition, from, to time.Time, span time.Duration) (missing []partition) {
	for at := from.Truncate(span); at.Before(to); {
		end := at.Truncate(span).Add(span)
		if i := slices.IndexFunc(existing, func(e partition) bool { return e.To.After(at) }); i >= 0 {
			next := existing[i]
			if !next.From.After(at) {
				at = next.To
				continue
			}
			if next.From.Before(end) {
				end = next.From
			}
		}
		missing = append(missing, partition{at, end})
		at = end
	}
	return missing
}

// existingPartitions returns the partitions but the default one, in the order of time.
func existingPartitions(ctx context.Context, q sqlx.QueryerContext) (existing []partition, err error) {
	err = sqlx.SelectContext(ctx, q, &existing, `
		SELECT bound[1]::timestamptz AS "from", bound[2]::timestamptz AS "to"
		FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid,
		     regexp_match(pg_get_expr(c.relpartbound, c.oid), 'FROM \(''(.*)''\) TO \(''(.*)''\)') AS bound
		WHERE i.inhparent = 'event_log'::regclass AND c.relname ~ '^event_log_\d{8}$' AND bound IS NOT NULL -- NULL while it is dropped
		ORDER BY 1`)
	if err != nil {
		return nil, fmt.Errorf("reading the partitions: %w", err)
	}
	return existing, nil
}
