package eventlog

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"

	"shop.example/platform/postgres"
)

// The outcomes of an event that was not handled, as the database spells them.
const (
	outcomeHandled    = "handled"
	outcomeDiscarded  = "discarded"
	outcomeUnreadable = "unreadable"
	outcomeLost       = "lost"
)

// entry is an event of the log, with what the comparison needs.
type entry struct {
	EventID     int64     `db:"event_id"`
	MessageID   uuid.UUID `db:"message_id"`
	OrderID     uuid.UUID `db:"order_id"`
	PublishedAt time.Time `db:"published_at"`
	// Since is when the event was logged or last sent again; by the database's clock, as Now.
	Since time.Time `db:"since"`
	Now   time.Time `db:"now"`
}

func (e entry) age() time.Duration { return e.Now.Sub(e.Since) }

// logPosition is a position in the log.
type logPosition struct {
	EventID  int64     `db:"event_id"`
	LoggedAt time.Time `db:"logged_at"`
}

// readLogEnd returns the current end of the log.
func readLogEnd(ctx context.Context, db *sqlx.DB) (h logEnd, err error) {
	h.at = time.Now() // before: what is added meanwhile is younger
	err = db.GetContext(ctx, &h.logPosition, postgres.Prepared+`SELECT coalesce(max(id), 0) AS event_id, clock_timestamp() AS logged_at FROM event_log`)
	if err != nil {
		return h, fmt.Errorf("reading the end of the log: %w", postgres.Classify(err))
	}
	return h, nil
}

// checkedUpTo returns the position from which the comparison of the events with this routing key continues.
func checkedUpTo(ctx context.Context, db *sqlx.DB, key string) (m logPosition, err error) {
	err = db.GetContext(ctx, &m, postgres.Prepared+`
		SELECT event_id, logged_at FROM event_check WHERE routing_key IN ($1, '') ORDER BY routing_key DESC LIMIT 1`, key)
	if err != nil {
		return m, fmt.Errorf("reading up to where the log was compared: %w", postgres.Classify(err))
	}
	return m, nil
}

// beginChecking has the comparison of the events with this routing key begin at the end of the log, if it has not begun.
func beginChecking(ctx context.Context, db *sqlx.DB, key string) error {
	_, err := db.ExecContext(ctx, `
		INSERT INTO event_check SELECT $1, coalesce(max(id), 0), clock_timestamp() FROM event_log ON CONFLICT DO NOTHING`, key)
	if err != nil {
		return fmt.Errorf("noting where the comparison of the log begins: %w", postgres.Classify(err))
	}
	return nil
}

// published returns the time of publishing from which partitions are read for what was logged after m: events that were
// published long before are not searched for. For the zero position it returns the beginning of time.
func (m logPosition) published() time.Time {
	if m.LoggedAt.IsZero() {
		return m.LoggedAt
	}
	return m.LoggedAt.Add(-day)
}

// ordersAfter returns the orders of the next events between two positions, at most limit of them, and the position of the
// last one.
func ordersAfter(ctx context.Context, db *sqlx.DB, key string, from, upTo logPosition, limit int) (orders []uuid.UUID, last logPosition, err error) {
	var ids []byte // in one value, because there may be many
	err = db.QueryRowxContext(ctx, postgres.Prepared+`
		SELECT coalesce(string_agg(uuid_send(order_id), '' ORDER BY id), ''), coalesce(max(id), 0), coalesce(max(created_at), now()) FROM (
		    SELECT id, order_id, created_at FROM event_log
		    WHERE routing_key = $1 AND id > $2 AND id <= $3 AND published_at >= $4 AND order_id IS NOT NULL ORDER BY id LIMIT $5) AS next`,
		key, from.EventID, upTo.EventID, from.published(), limit).Scan(&ids, &last.EventID, &last.LoggedAt)
	if err != nil {
		return nil, last, fmt.Errorf("reading the log: %w", postgres.Classify(err))
	}
	for id := range slices.Chunk(ids, len(uuid.UUID{})) {
		orders = append(orders, uuid.UUID(id))
	}
	return orders, last, nil
}

// entriesOf reads the events of orders between two positions, each once, in the order of the log.
func entriesOf(ctx context.Context, db *sqlx.DB, key string, orders []uuid.UUID, from, upTo logPosition) (entries []entry, err error) {
	if len(orders) == 0 {
		return nil, nil
	}
	err = db.SelectContext(ctx, &entries, `
		SELECT DISTINCT ON (message_id) id AS event_id, message_id, order_id, published_at, created_at AS since, clock_timestamp() AS now FROM event_log
		WHERE order_id = ANY ($1::uuid[]) AND routing_key = $2 AND id > $3 AND id <= $4 AND published_at >= $5 ORDER BY message_id, id`,
		postgres.ArrayOf(orders), key, from.EventID, upTo.EventID, latest(from.published(), oldestOf(orders)))
	if err != nil {
		return nil, fmt.Errorf("reading the log of %d orders: %w", len(orders), postgres.Classify(err))
	}
	slices.SortFunc(entries, func(a, b entry) int { return cmp.Compare(a.EventID, b.EventID) })
	return entries, nil
}

// oldestOf returns a time before which none of the orders has an event: a day before their ids were made, so that clocks may
// differ; the zero time if one of them does not say when that was. It keeps the log's old partitions, hundreds of them,
// out of a search for a thousand orders.
func oldestOf(orders []uuid.UUID) time.Time {
	oldest := time.Now()
	for _, id := range orders {
		if id.Version() != 7 {
			return time.Time{}
		}
		if made := time.Unix(id.Time().UnixTime()); made.Before(oldest) {
			oldest = made
		}
	}
	return oldest.Add(-day)
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// samplesAfter reads a sample of the events after an id: ten at each of ten places, the last ones among them.
func samplesAfter(ctx context.Context, db *sqlx.DB, key string, from int64) (entries []entry, err error) {
	err = db.SelectContext(ctx, &entries, `
		WITH last AS (SELECT max(id) AS id FROM event_log WHERE routing_key = $1)
		SELECT e.id AS event_id, e.message_id, e.order_id, e.published_at, e.created_at AS since, clock_timestamp() AS now
		FROM last, generate_series(0, 9) AS place, LATERAL (
		    SELECT * FROM event_log
		    WHERE routing_key = $1 AND id > $2 + (last.id - $2) * place / 10 AND order_id IS NOT NULL
		    ORDER BY id LIMIT 10) AS e
		UNION
		(SELECT id, message_id, order_id, published_at, created_at, clock_timestamp() FROM event_log
		 WHERE routing_key = $1 AND id > $2 AND order_id IS NOT NULL ORDER BY id DESC LIMIT 10)`, key, from)
	if err != nil {
		return nil, fmt.Errorf("reading samples of the log: %w", postgres.Classify(err))
	}
	return entries, nil
}

// deadLetterStates returns the states of the newest dead letters of the entries, for those that have any.
func deadLetterStates(ctx context.Context, db *sqlx.DB, queue string, entries []entry) (map[uuid.UUID]string, error) {
	if len(entries) == 0 {
		return nil, nil
	}
	var rows []struct {
		MessageID uuid.UUID `db:"message_id"`
		State     string    `db:"state"`
	}
	err := db.SelectContext(ctx, &rows, `
		SELECT DISTINCT ON (message_id) message_id, state FROM dead_letter
		WHERE message_id = ANY ($1::uuid[]) AND source_queue = $2 ORDER BY message_id, id DESC`,
		postgres.Array(entries, func(e entry) uuid.UUID { return e.MessageID }), queue)
	if err != nil {
		return nil, fmt.Errorf("reading dead letters: %w", postgres.Classify(err))
	}
	states := make(map[uuid.UUID]string, len(rows))
	for _, row := range rows {
		states[row.MessageID] = row.State
	}
	return states, nil
}

// saveChecked stores up to which position the log was compared, and which events were found unhandled.
func saveChecked(ctx context.Context, db *sqlx.DB, key string, upTo logPosition, queue string, unhandled []entry) error {
	return postgres.InTx(ctx, db, func(tx *sqlx.Tx) error {
		if err := insertUnhandled(ctx, tx, key, queue, unhandled, "NOTHING"); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, postgres.Prepared+`
			INSERT INTO event_check (routing_key, event_id, logged_at) VALUES ($1, $2, $3)
			ON CONFLICT (routing_key) DO UPDATE SET event_id = excluded.event_id, logged_at = excluded.logged_at`, key, upTo.EventID, upTo.LoggedAt)
		if err != nil {
			return fmt.Errorf("noting up to where the log was compared: %w", err)
		}
		return nil
	})
}

// insertUnhandled records unhandled events. conflict is the SQL for those that are recorded already.
func insertUnhandled(ctx context.Context, db sqlx.ExecerContext, key, queue string, entries []entry, conflict string) error {
	if len(entries) == 0 {
		return nil
	}
	_, err := db.ExecContext(ctx, `
		INSERT INTO unhandled_event (message_id, event_id, routing_key, queue, order_id, published_at)
		SELECT DISTINCT ON (message_id) message_id, event_id, $1, $2, order_id, published_at
		FROM unnest($3::uuid[], $4::bigint[], $5::uuid[], $6::timestamptz[]) AS e (message_id, event_id, order_id, published_at)
		ON CONFLICT (message_id) DO `+conflict, key, queue,
		postgres.Array(entries, func(e entry) uuid.UUID { return e.MessageID }),
		postgres.Array(entries, func(e entry) int64 { return e.EventID }),
		postgres.Array(entries, func(e entry) uuid.UUID { return e.OrderID }),
		postgres.Array(entries, func(e entry) time.Time { return e.PublishedAt }))
	if err != nil {
		return fmt.Errorf("noting %d events that were not handled: %w", len(entries), postgres.Classify(err))
	}
	return nil
}

// unhandledRow is a row of unhandled_event.
type unhandledRow struct {
	entry
	Sent       int    `db:"sent"`
	DeadLetter string `db:"letter"` // the state of its newest dead letter, "" if there is none
}

// openUnhandled reads the recorded events that are not handled yet, those that were not sent first. Open dead letters are
// left out, because they wait for a person. A dead letter that was redriven counts as sent at that time.
func openUnhandled(ctx context.Context, db *sqlx.DB, key string, limit int) (rows []unhandledRow, err error) {
	err = db.SelectContext(ctx, &rows, postgres.Prepared+`
		SELECT u.event_id, u.message_id, u.order_id, u.published_at, u.sent, coalesce(letter.state, '') AS letter,
		       greatest(coalesce(u.sent_at, u.noticed_at), letter.updated_at) AS since, clock_timestamp() AS now
		FROM unhandled_event u LEFT JOIN LATERAL (
		    SELECT state, updated_at FROM dead_letter
		    WHERE message_id = u.message_id AND source_queue = u.queue ORDER BY id DESC LIMIT 1) AS letter ON true
		WHERE u.closed_at IS NULL AND u.routing_key = $1 AND letter.state IS DISTINCT FROM 'OPEN'
		ORDER BY u.sent_at NULLS FIRST, u.noticed_at LIMIT $2`, key, limit)
	if err != nil {
		return nil, fmt.Errorf("reading events that were not handled: %w", postgres.Classify(err))
	}
	return rows, nil
}

func closeUnhandled(ctx context.Context, db *sqlx.DB, outcome string, ids []uuid.UUID) error {
	if len(ids) == 0 {
		return nil
	}
	_, err := db.ExecContext(ctx, `UPDATE unhandled_event SET closed_at = clock_timestamp(), outcome = $1 WHERE message_id = ANY ($2::uuid[])`,
		outcome, postgres.ArrayOf(ids))
	if err != nil {
		return fmt.Errorf("closing %d events: %w", len(ids), postgres.Classify(err))
	}
	return nil
}

func markSent(ctx context.Context, db *sqlx.DB, ids []uuid.UUID) error {
	_, err := db.ExecContext(ctx, `UPDATE unhandled_event SET sent = sent + 1, sent_at = clock_timestamp() WHERE message_id = ANY ($1::uuid[])`,
		postgres.ArrayOf(ids))
	if err != nil {
		return fmt.Errorf("noting that %d events were sent: %w", len(ids), postgres.Classify(err))
	}
	return nil
}

// loggedEvent is an event of the log, to be sent again.
type loggedEvent struct {
	EventID     int64     `db:"id"`
	MessageID   uuid.UUID `db:"message_id"`
	OrderID     uuid.UUID `db:"order_id"`
	Payload     []byte    `db:"payload"` // JSON, nil if the message could not be read
	TraceID     string    `db:"trace_id"`
	Source      string    `db:"source"`
	PublishedAt time.Time `db:"published_at"`
}

// loggedEvents reads the events of entries, as far as they are still in the log.
func loggedEvents(ctx context.Context, db *sqlx.DB, entries []entry) (events []loggedEvent, err error) {
	first, last := entries[0].PublishedAt, entries[0].PublishedAt
	for _, e := range entries {
		if e.PublishedAt.Before(first) {
			first = e.PublishedAt
		}
		if e.PublishedAt.After(last) {
			last = e.PublishedAt
		}
	}
	err = db.SelectContext(ctx, &events, postgres.Prepared+`
		SELECT id, message_id, order_id, payload, trace_id, source, published_at FROM event_log
		WHERE id = ANY ($1::bigint[]) AND published_at BETWEEN $2 AND $3 ORDER BY id`,
		postgres.Array(entries, func(e entry) int64 { return e.EventID }), first, last)
	if err != nil {
		return nil, fmt.Errorf("reading %d events: %w", len(entries), postgres.Classify(err))
	}
	return events, nil
}
