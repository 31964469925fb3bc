package eventlog

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"shop.example/domain/orderid"
	eventsv1 "shop.example/gen/shop/events/v1"
	loggingv1 "shop.example/gen/shop/logging/v1"
	"shop.example/platform/contract"
	"shop.example/platform/failpoint"
	"shop.example/platform/messaging"
	"shop.example/platform/postgres"
	"shop.example/platform/telemetry"
)

// logEvents writes a row for every message, whether or not it can be decoded. If the database refuses a single message, its
// row is written without the content, so that a message never leaves the queue without being in the log.
func (s *Service) logEvents(ctx context.Context, batch []messaging.Delivery) error {
	now := time.Now()
	records := make([]record, len(batch))
	for i, d := range batch {
		records[i] = readDelivery(d, now)
	}
	rows, err := insertRecords(ctx, s.db, records)
	if len(batch) == 1 && isRefusal(err) {
		records[0] = records[0].asUndecodable(batch[0], err)
		rows, err = insertRecords(ctx, s.db, records)
	}
	if err != nil {
		return err
	}
	failpoint.Hit("logging.inserted")
	s.tail.notifyWritten()
	if s.log.Enabled(ctx, slog.LevelInfo) {
		logRows(s.log, rows)
	}
	return nil
}

// isRefusal reports whether err is about the data, and not about the state of the database or the end of ctx.
func isRefusal(err error) bool {
	return err != nil && !postgres.IsTransient(err) && !errors.Is(err, context.Canceled)
}

func logRows(log *slog.Logger, rows []loggedRow) {
	for _, row := range rows {
		// The trace of the event, which the logger takes from the context, not that of the batch.
		ctx := trace.ContextWithRemoteSpanContext(context.Background(), row.trace)
		log.LogAttrs(ctx, slog.LevelInfo, "log created", slog.Int64("id", row.id), telemetry.RoutingKey(row.routingKey),
			telemetry.MessageID(row.messageID), orderid.Attr(row.orderID))
	}
}

// insertLock lets one writer at a time insert, until its commit. Ids are assigned under it, so they become visible in their
// order, and readers of the log by id never miss a row that is committed later. That is cheap, because rows come in
// batches.
const insertLock = postgres.Prepared + `
SELECT pg_advisory_xact_lock(hashtextextended('event_log.insert', 0))`

// duplicateWindow is how long the same event, published again by a client that repeats itself, is recognized by its message
// id alone, whichever of the two comes first. A redelivered message has the same time, too, and is recognized however old
// it is.
const duplicateWindow = 24 * time.Hour

// insertRows leaves out what is in the log already. Whoever inserts is alone, see insertLock, so nobody adds the same
// between the look and the insert. It looks for all messages of the batch at once: row by row it costs a fifth more. A
// message whose dead letter was stored first is an error from the start.
const insertRows = postgres.Prepared + `
INSERT INTO event_log (routing_key, exchange, payload, body, status, error_message, message_id, order_id, trace_id, source, attempt, published_at)
SELECT m.routing_key, m.exchange, m.payload, m.body,
       CASE WHEN coalesce(d.reason, m.problem) = '' THEN 'success' ELSE 'error' END, coalesce(d.reason, m.problem),
       message_id, m.order_id, m.trace_id, m.source, m.attempt, m.published_at
FROM unnest($1::text[], $2::text[], $3::jsonb[], $4::bytea[], $5::text[], $6::uuid[],
            $7::uuid[], $8::text[], $9::text[], $10::integer[], $11::timestamptz[]) WITH ORDINALITY
    AS m (routing_key, exchange, payload, body, problem, message_id, order_id, trace_id, source, attempt, published_at, n)
LEFT JOIN (` + deadLetterReasons + `) d USING (message_id)
WHERE message_id NOT IN (
    SELECT l.message_id FROM event_log l
    WHERE l.message_id = ANY ($6::uuid[]) AND l.published_at BETWEEN $12 AND $13)
ORDER BY n
RETURNING id, message_id`

// deadLetterReasons are why messages of the array $6 are errors: the reason of the newest dead letter of each that was
// not sent again.
const deadLetterReasons = `
        SELECT DISTINCT ON (message_id) message_id, reason FROM dead_letter
        WHERE message_id = ANY ($6::uuid[]) AND state <> 'REDRIVEN' ORDER BY message_id, id DESC`

// loggedRow is a record that has been written.
type loggedRow struct {
	*record
	id int64
}

// insertRecords writes the records that are not in the log yet, and returns those, in the order of their ids.
func insertRecords(ctx context.Context, db *sqlx.DB, records []record) ([]loggedRow, error) {
	byMessage := make(map[uuid.UUID]*record, len(records))
	fresh := make([]*record, 0, len(records))
	for n := range records {
		if r := &records[n]; byMessage[r.messageID] == nil {
			byMessage[r.messageID] = r
			fresh = append(fresh, r)
		}
	}
	rows := make([]loggedRow, 0, len(fresh))
	err := postgres.InTx(ctx, db, func(tx *sqlx.Tx) error {
		if _, err := tx.ExecContext(ctx, insertLock); err != nil {
			return fmt.Errorf("waiting for the lock on the log: %w", err)
		}
		inserted, err := tx.QueryContext(ctx, insertRows, insertParams(fresh)...)
		if err != nil {
			return err
		}
		defer inserted.Close()
		for inserted.Next() {
			var row loggedRow
			var messageID uuid.UUID
			if err := inserted.Scan(&row.id, &messageID); err != nil {
				return err
			}
			row.record = byMessage[messageID]
			rows = append(rows, row)
		}
		if err := inserted.Err(); err != nil {
			return err
		}
		return recordActions(ctx, tx, fresh)
	})
	if err != nil {
		return nil, fmt.Errorf("inserting %d events: %w", len(records), err)
	}
	return rows, nil
}

// insertParams returns the parameters of insertRows.
func insertParams(records []*record) []any {
	first, last := records[0].publishedAt, records[0].publishedAt
	for _, r := range records {
		if r.publishedAt.Before(first) {
			first = r.publishedAt
		}
		if r.publishedAt.After(last) {
			last = r.publishedAt
		}
	}
	return []any{
		postgres.Array(records, func(r *record) string { return r.routingKey }),
		postgres.Array(records, func(r *record) string { return r.exchange }),
		postgres.Array(records, func(r *record) postgres.JSON { return r.payload }),
		postgres.Array(records, func(r *record) []byte { return r.body }),
		postgres.Array(records, func(r *record) string { return r.errText }),
		postgres.Array(records, func(r *record) uuid.UUID { return r.messageID }),
		postgres.Array(records, func(r *record) uuid.NullUUID { return nullUUID(r.orderID) }),
		postgres.Array(records, func(r *record) string { return traceID(r.trace) }),
		postgres.Array(records, func(r *record) string { return r.source }),
		postgres.Array(records, func(r *record) int32 { return int32(r.attempt) }),
		postgres.Array(records, func(r *record) time.Time { return r.publishedAt }),
		first.Add(-duplicateWindow), last.Add(duplicateWindow),
	}
}

// nullUUID returns NULL if s is "".
func nullUUID(s string) (id uuid.NullUUID) {
	if s != "" {
		id.UUID, id.Valid = uuid.MustParse(s), true // canonicalUUID has made it
	}
	return id
}

// row is a row of event_log.
type row struct {
	ID           int64     `db:"id"`
	RoutingKey   string    `db:"routing_key"`
	Exchange     string    `db:"exchange"`
	Payload      []byte    `db:"payload"` // JSON, nil if the message could not be read
	Status       string    `db:"status"`
	ErrorMessage string    `db:"error_message"`
	MessageID    string    `db:"message_id"`
	OrderID      string    `db:"order_id"` // "" if it belongs to no order
	TraceID      string    `db:"trace_id"`
	Source       string    `db:"source"`
	Attempt      int32     `db:"attempt"`
	PublishedAt  time.Time `db:"published_at"`
	CreatedAt    time.Time `db:"created_at"`
	Body         []byte    `db:"body"` // the message as it came, if Payload is nil; nil if it was not asked for
}

const rowColumns = `
       id, routing_key, exchange, payload, status, error_message, message_id, coalesce(order_id::text, '') AS order_id,
       trace_id, source, attempt, published_at, created_at`

const selectRows = `
SELECT ` + rowColumns + `
FROM event_log`

func (r *row) message() (*loggingv1.Event, error) {
	e := &loggingv1.Event{
		Id:           r.ID,
		RoutingKey:   r.RoutingKey,
		Exchange:     r.Exchange,
		Status:       loggingv1.Event_Status(loggingv1.Event_Status_value[r.Status]),
		ErrorMessage: r.ErrorMessage,
		MessageId:    r.MessageID,
		OrderId:      r.OrderID,
		TraceId:      r.TraceID,
		Source:       r.Source,
		Attempt:      r.Attempt,
		PublishedAt:  timestamppb.New(r.PublishedAt),
		CreatedAt:    timestamppb.New(r.CreatedAt),
	}
	if r.Payload == nil {
		return e, nil
	}
	var err error
	if e.Payload, err = structOf(r.Payload); err != nil {
		return nil, fmt.Errorf("event %d: %w", r.ID, err)
	}
	return e, nil
}

func structOf(payload []byte) (*structpb.Struct, error) {
	s := &structpb.Struct{}
	if err := protojson.Unmarshal(payload, s); err != nil {
		return nil, fmt.Errorf("reading the payload: %w", err)
	}
	return s, nil
}

// maxReadBytes bounds what one read of the log returns, in bytes, however large its rows are: gRPC clients refuse more than
// 4 MiB.
const maxReadBytes = 1 << 20

// One call of a search reads searchLimit events, or scatteredLimit of one type: each lies on another page. That takes less than
// 60 ms on a machine that does nothing else, with 50,000,000 events.
const (
	searchLimit    = 20_000
	scatteredLimit = 5_000
)

// rowsAfter reads rows with an id above id, in the order of their ids. A search reads no more rows than its limit. next is the
// id above which others may follow, or 0 if none do.
func rowsAfter(ctx context.Context, db *sqlx.DB, f filter, id int64, limit int) (rows []*row, next int64, err error) {
	c := f.conditions()
	if f.searches() {
		if next, err = endOfSearch(ctx, db, f, id, false); err != nil {
			return nil, 0, err
		}
		if next > 0 {
			c.add("id <= %s", next)
		}
	}
	c.add("id > %s", id)
	rows, more, err := read(ctx, db, c, f.order(false), limit)
	if more {
		next = rows[len(rows)-1].ID
	}
	return rows, next, err
}

// rowsBefore reads rows with an id below id (0: from the newest on), the newest first. A search reads no more rows than
// its limit. next is the id below which others may follow, or 0 if none do.
func rowsBefore(ctx context.Context, db *sqlx.DB, f filter, id int64, limit int) (rows []*row, next int64, err error) {
	if id == 0 {
		id = math.MaxInt64
	}
	c := f.conditions()
	if f.searches() {
		if next, err = endOfSearch(ctx, db, f, id, true); err != nil {
			return nil, 0, err
		}
		c.add("id >= %s", next)
	}
	c.add("id < %s", id)
	rows, more, err := read(ctx, db, c, f.order(true), limit)
	if more {
		next = rows[len(rows)-1].ID
	}
	return rows, next, err
}

// endOfSearch returns the id of the last row that one call reads, of those with an id above id, or below it if desc, that an
// index finds for the filter; 0 if there are fewer.
func endOfSearch(ctx context.Context, db *sqlx.DB, f filter, id int64, desc bool) (end int64, err error) {
	c := f.indexed().conditions()
	c.add(map[bool]string{false: "id > %s", true: "id < %s"}[desc], id)
	query := fmt.Sprintf("%sSELECT id FROM event_log%s%s OFFSET %d LIMIT 1", postgres.Prepared, c.where(), f.order(desc), f.searchLimit()-1)
	if err := db.GetContext(ctx, &end, query, c.args...); err != nil && !errors.Is(err, sql.ErrNoRows) {
		return 0, fmt.Errorf("looking for the end of the next events to read: %w", postgres.Classify(err))
	}
	return end, nil
}

// read is prepared: to plan a query for the 60 partitions that the log has by default takes longer than to run it.
func read(ctx context.Context, db *sqlx.DB, c conditions, order string, limit int) (rows []*row, more bool, err error) {
	// One more than asked for tells whether others follow. The limit is written out, because a plan for any limit is one for large
	// ones; and it is one of a few, because each has a plan of its own.
	atMost := 1001
	for _, enough := range []int{201, 51} {
		if limit < enough {
			atMost = enough
		}
	}
	query := fmt.Sprintf("%s%s%s%s LIMIT %d", postgres.Prepared, selectRows, c.where(), order, max(atMost, limit+1))
	result, err := db.QueryxContext(ctx, query, c.args...)
	if err != nil {
		return nil, false, fmt.Errorf("reading events: %w", postgres.Classify(err))
	}
	defer result.Close()
	size := 0
	for result.Next() {
		if len(rows) == limit || size > maxReadBytes {
			return rows, true, nil
		}
		r := &row{}
		if err := result.StructScan(r); err != nil {
			return nil, false, fmt.Errorf("reading events: %w", err)
		}
		size += len(r.Payload)
		rows = append(rows, r)
	}
	if err := result.Err(); err != nil {
		return nil, false, fmt.Errorf("reading events: %w", postgres.Classify(err))
	}
	return rows, false, nil
}

// lastID returns the highest visible id, 0 in an empty log.
func lastID(ctx context.Context, db *sqlx.DB) (id int64, err error) {
	if err := db.GetContext(ctx, &id, postgres.Prepared+"SELECT coalesce(max(id), 0) FROM event_log"); err != nil {
		return 0, fmt.Errorf("reading the last id: %w", postgres.Classify(err))
	}
	return id, nil
}

// ownerOf returns whom an order belongs to, as its OrderPlaced says; "" if that says nothing or is not in the log.
func ownerOf(ctx context.Context, db *sqlx.DB, orderID string) (owner string, err error) {
	placed, _ := contract.EventOf(&eventsv1.OrderPlaced{})
	err = db.GetContext(ctx, &owner, postgres.Prepared+`
		SELECT coalesce(payload ->> 'owner', '') FROM event_log WHERE order_id = $1 AND routing_key = $2 ORDER BY id LIMIT 1`,
		orderID, placed.RoutingKey)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return "", fmt.Errorf("reading whom order %s belongs to: %w", orderID, postgres.Classify(err))
	}
	return owner, nil
}
