package eventlog

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	"shop.example/domain/orderid"
	eventsv1 "shop.example/gen/shop/events/v1"
	loggingv1 "shop.example/gen/shop/logging/v1"
	orderv1 "shop.example/gen/shop/order/v1"
	"shop.example/platform/apierror"
	"shop.example/platform/contract"
	"shop.example/platform/failpoint"
	"shop.example/platform/messaging"
	"shop.example/platform/postgres"
	"shop.example/platform/telemetry"
	"shop.example/topology"
)

// The states of a dead letter, as the database and the contracts spell them.
const (
	stateOpen      = "OPEN"
	stateRedriven  = "REDRIVEN"
	stateDiscarded = "DISCARDED"
)

// deadLetter is a row of dead_letter.
type deadLetter struct {
	ID            int64     `db:"id"`
	State         string    `db:"state"`
	Reason        string    `db:"reason"`
	SourceQueue   string    `db:"source_queue"`
	Exchange      string    `db:"exchange"`
	RoutingKey    string    `db:"routing_key"`
	MessageID     uuid.UUID `db:"message_id"`
	SentMessageID string    `db:"sent_message_id"` // as its publisher gave it, "" if that is MessageID
	OrderID       string    `db:"order_id"`        // "" if it belongs to no order
	CorrelationID string    `db:"correlation_id"`
	TraceParent   string    `db:"traceparent"`
	TraceID       string    `db:"trace_id"`
	Type          string    `db:"type"`
	Attempts      int       `db:"attempts"`
	Headers       string    `db:"headers"` // JSON, see headersJSON; "" if the body was not asked for
	Body          []byte    `db:"body"`    // nil if it was not asked for
	PublishedAt   time.Time `db:"published_at"`
	CreatedAt     time.Time `db:"created_at"`
	UpdatedAt     time.Time `db:"updated_at"`
	FirstAt       time.Time `db:"first_at"` // when the message became a dead letter of this queue for the first time; only read
}

// readDeadLetter makes the row of a message from the queue of dead letters. errText is what is wrong with the message
// itself, "" if it can be decoded.
func readDeadLetter(d messaging.Delivery, now time.Time) (letter deadLetter, errText string) {
	r := readDelivery(d, now)
	reason := sanitizeText(d.Reason)
	if reason == "" {
		reason = "it does not say why it could not be handled"
	}
	body := d.Body
	if body == nil {
		body = []byte{} // which is not NULL
	}
	sent := cmp.Or(canonicalUUID(d.MessageID), sanitizeText(d.MessageID))
	if sent == r.messageID.String() {
		sent = ""
	}
	return deadLetter{
		Reason:        reason,
		SourceQueue:   sanitizeText(d.SourceQueue),
		Exchange:      r.exchange,
		RoutingKey:    r.routingKey,
		MessageID:     r.messageID,
		SentMessageID: sent,
		OrderID:       r.orderID,
		CorrelationID: sanitizeText(d.CorrelationID),
		TraceParent:   messaging.TraceParent(trace.ContextWithRemoteSpanContext(context.Background(), r.trace)),
		TraceID:       traceID(r.trace),
		Type:          sanitizeText(d.Type),
		Attempts:      d.Attempt + 1,
		Headers:       headersJSON(d),
		Body:          body,
		PublishedAt:   r.publishedAt,
	}, r.errText
}

// appIDKey is the key in headersJSON of the property app_id, which names the service that published the message.
const appIDKey = "app_id"

// headersJSON returns those of the headers that JSON can represent, with the user who published the message first and its
// app_id, for when it is redriven.
func headersJSON(d messaging.Delivery) string {
	headers := make(map[string]json.RawMessage, len(d.Headers)+1)
	for name, value := range d.Headers {
		if text, err := json.Marshal(value); err == nil {
			headers[name] = text
		}
	}
	headers[messaging.HeaderUser], _ = json.Marshal(d.User) // text can always be written
	if text, err := json.Marshal(d.AppID); err == nil {
		headers[appIDKey] = text
	}
	text, err := json.Marshal(headers)
	if err != nil {
		return "{}"
	}
	return string(text)
}

// asRefused returns the letter with no more than its body and what it takes to send that again, for when the database has refused the whole.
func (l deadLetter) asRefused(d messaging.Delivery, cause error) deadLetter {
	l.Reason = sanitizeText(fmt.Sprintf("the database refused it: %v; it is here because: %s", cause, l.Reason))
	l.SentMessageID, l.CorrelationID, l.TraceParent, l.TraceID, l.Type, l.Attempts = "", "", "", "", "", 1
	l.Headers = headersJSON(messaging.Delivery{Meta: d.Meta})
	return l
}

// storeDeadLetters stores dead letters one by one; there are few of them. There is no other place for a message: what the database
// refuses is stored without its properties, and after any other failure it is kept in the queue until it is stored.
func (s *Service) storeDeadLetters(ctx context.Context, batch []messaging.Delivery) error {
	for _, d := range batch {
		letter, errText := readDeadLetter(d, time.Now())
		id, err := storeDeadLetter(ctx, s.db, letter, errText)
		if isRefusal(err) {
			letter = letter.asRefused(d, err)
			id, err = storeDeadLetter(ctx, s.db, letter, errText)
		}
		if err != nil {
			return messaging.Unavailable(err)
		}
		failpoint.Hit("logging.letter-stored")
		s.log.LogAttrs(trace.ContextWithRemoteSpanContext(ctx, d.Trace), slog.LevelWarn, "dead letter stored", slog.Int64("id", id),
			slog.String("queue", letter.SourceQueue), telemetry.RoutingKey(letter.RoutingKey), telemetry.MessageID(letter.MessageID),
			orderid.Attr(letter.OrderID), slog.String("reason", letter.Reason))
	}
	return nil
}

const insertDeadLetter = `
INSERT INTO dead_letter (reason, source_queue, exchange, routing_key, message_id, sent_message_id, order_id, correlation_id,
                         traceparent, trace_id, type, attempts, headers, body, published_at)
VALUES (:reason, :source_queue, :exchange, :routing_key, :message_id, :sent_message_id, CAST(nullif(:order_id, '') AS uuid), :correlation_id,
        :traceparent, :trace_id, :type, :attempts, :headers, :body, :published_at)
ON CONFLICT (message_id, source_queue) WHERE state = 'OPEN'
DO UPDATE SET reason = excluded.reason, attempts = excluded.attempts, headers = excluded.headers, updated_at = now()
RETURNING id`

// storeDeadLetter stores a dead letter, and marks its event in the log as an error. If the same one is open already, that
// is updated.
//
// It takes locks in the same order as redrive: the dead letter, then insertLock. Because of that lock, an event that is
// being logged at the same moment either is there to be marked, or finds the dead letter.
func storeDeadLetter(ctx context.Context, db *sqlx.DB, letter deadLetter, errText string) (id int64, err error) {
	err = postgres.InTx(ctx, db, func(tx *sqlx.Tx) error {
		query, args, err := tx.BindNamed(insertDeadLetter, letter)
		if err != nil {
			return err
		}
		if err := tx.GetContext(ctx, &id, query, args...); err != nil {
			return err
		}
		return markEvent(ctx, tx, letter.MessageID, errText)
	})
	if err != nil {
		return 0, fmt.Errorf("storing dead letter %s: %w", letter.MessageID, err)
	}
	return id, nil
}

// markEvent updates the status of the event's row, if there is one: an error while one of its dead letters was not sent
// again; after that errText, which is what is wrong with the message itself, "" if nothing is.
func markEvent(ctx context.Context, tx *sqlx.Tx, messageID uuid.UUID, errText string) error {
	if _, err := tx.ExecContext(ctx, insertLock); err != nil {
		return fmt.Errorf("waiting for the lock on the log: %w", err)
	}
	_, err := tx.ExecContext(ctx, `
		UPDATE event_log SET status = CASE WHEN now.problem = '' THEN 'success' ELSE 'error' END, error_message = now.problem
		FROM (SELECT coalesce((
		    SELECT reason FROM dead_letter WHERE message_id = $1 AND state <> 'REDRIVEN' ORDER BY id DESC LIMIT 1), $2) AS problem) AS now
		WHERE event_log.message_id = $1`, messageID, errText)
	if err != nil {
		return fmt.Errorf("marking the event: %w", err)
	}
	return nil
}

const selectDeadLetter = `
SELECT id, state, reason, source_queue, exchange, routing_key, message_id, sent_message_id, coalesce(order_id::text, '') AS order_id, correlation_id,
       traceparent, trace_id, type, attempts, published_at, created_at, updated_at,
       (SELECT min(created_at) FROM dead_letter AS same
        WHERE same.message_id = dead_letter.message_id AND same.source_queue = dead_letter.source_queue) AS first_at`

// getDeadLetter reads one with its headers and body. lock is "" or FOR UPDATE.
func getDeadLetter(ctx context.Context, db sqlx.QueryerContext, id int64, lock string) (letter deadLetter, err error) {
	err = sqlx.GetContext(ctx, db, &letter, selectDeadLetter+", headers, body FROM dead_letter WHERE id = $1 "+lock, id)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return letter, apierror.New(codes.NotFound, "DEAD_LETTER_NOT_FOUND", "there is no dead letter %d", id)
	case err != nil:
		return letter, fmt.Errorf("reading dead letter %d: %w", id, postgres.Classify(err))
	}
	return letter, nil
}

// listDeadLetters reads dead letters with an id below before (0: from the newest on), the newest first, without their
// bodies. state "" stands for all states.
func listDeadLetters(ctx context.Context, db *sqlx.DB, state, messageID string, before int64, limit int) ([]deadLetter, error) {
	var c conditions
	if state != "" {
		c.add("state = %s", state)
	}
	if id := canonicalUUID(messageID); id != "" {
		c.add("(message_id = %[1]s::text::uuid OR sent_message_id = %[1]s::text)", id)
	} else if messageID != "" {
		c.add("sent_message_id = %s", messageID)
	}
	if before > 0 {
		c.add("id < %s", before)
	}
	var letters []deadLetter
	query := fmt.Sprintf("%s FROM dead_letter%s ORDER BY id DESC LIMIT %d", selectDeadLetter, c.where(), limit)
	if err := db.SelectContext(ctx, &letters, query, c.args...); err != nil {
		return nil, fmt.Errorf("reading dead letters: %w", postgres.Classify(err))
	}
	return letters, nil
}

func setState(ctx context.Context, tx *sqlx.Tx, letter *deadLetter, state string) error {
	letter.State = state
	err := tx.GetContext(ctx, &letter.UpdatedAt, "UPDATE dead_letter SET state = $2, updated_at = now() WHERE id = $1 RETURNING updated_at", letter.ID, state)
	if err != nil {
		return fmt.Errorf("setting dead letter %d to %s: %w", letter.ID, state, err)
	}
	return nil
}

// redrive publishes a dead letter to the queue it came from and marks it as redriven in one transaction, which is committed
// when the broker has confirmed. After a crash between the two it is still open. Redriving it again is harmless, because
// the consumer remembers what it has handled for longer than horizon, after which no dead letter can be redriven. One that
// is redriven already is returned as it is.
func redrive(ctx context.Context, db *sqlx.DB, pub *messaging.Publisher, id int64, horizon time.Duration) (letter deadLetter, err error) {
	err = postgres.InTx(ctx, db, func(tx *sqlx.Tx) (err error) {
		letter, err = getDeadLetter(ctx, tx, id, "FOR UPDATE")
		switch {
		case err != nil || letter.State == stateRedriven:
			return err
		case letter.State == stateDiscarded:
			return apierror.New(codes.FailedPrecondition, "DEAD_LETTER_DISCARDED", "dead letter %d was discarded", id)
		case time.Now().After(letter.FirstAt.Add(horizon)):
			return apierror.New(codes.FailedPrecondition, "REDRIVE_TOO_LATE",
				"dead letter %d could be redriven until %s: now nobody may remember whether it was handled before; it can only be discarded",
				id, letter.FirstAt.Add(horizon).UTC().Format(time.RFC3339))
		case letter.SourceQueue == "":
			return apierror.New(codes.FailedPrecondition, "SOURCE_QUEUE_UNKNOWN", "dead letter %d does not say which queue it came from", id)
		}
		sending, cancel := context.WithTimeout(ctx, decideTimeout)
		defer cancel()
		if err := pub.Send(sending, []messaging.Outgoing{letter.outgoing()}); err != nil {
			return publishError(letter, err)
		}
		failpoint.Hit("logging.redriven")
		if err := setState(ctx, tx, &letter, stateRedriven); err != nil {
			return err
		}
		_, errText := decodeJSON(letter.delivery())
		if err := markEvent(ctx, tx, letter.MessageID, errorText(errText)); err != nil {
			return err
		}
		return recordDecision(ctx, tx, loggingv1.DeadLetterService_RedriveDeadLetter_FullMethodName, letter)
	})
	return letter, err
}

// outgoing returns the message as a first attempt, addressed to the queue it came from: through its exchange all other
// queues would get it again. Headers carry what the delivery will not show: the exchange, routing key and user of its first
// publishing.
func (l *deadLetter) outgoing() messaging.Outgoing {
	id := l.SentMessageID
	if id == "" || shortString(id) != id || strings.ContainsRune(id, utf8.RuneError) { // that is not how it came
		id = l.MessageID.String()
	}
	return messaging.Outgoing{
		RoutingKey:    shortString(l.SourceQueue),
		Type:          shortString(l.Type),
		MessageID:     id,
		CorrelationID: shortString(l.CorrelationID),
		TraceParent:   l.TraceParent,
		Timestamp:     l.PublishedAt,
		AppID:         shortString(l.header(appIDKey)),
		Headers: map[string]any{
			messaging.HeaderExchange: l.Exchange, messaging.HeaderRoutingKey: l.RoutingKey, messaging.HeaderUser: l.header(messaging.HeaderUser),
		},
		Body: l.Body,
	}
}

// shortString returns as much of s as a property of a message takes, 255 bytes: stored, what is no text in it has become longer. A longer
// one would end the connection.
func shortString(s string) string {
	if len(s) <= math.MaxUint8 {
		return s
	}
	cut := math.MaxUint8
	for !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut]
}

// header returns a stored header, "" if it is missing or the dead letter was stored before headers were.
func (l *deadLetter) header(name string) string {
	var headers map[string]json.RawMessage // a struct would take other spellings of the name, too
	var text string
	if json.Unmarshal([]byte(l.Headers), &headers) != nil || json.Unmarshal(headers[name], &text) != nil {
		return ""
	}
	return text
}

func publishError(letter deadLetter, err error) error {
	switch {
	case errors.Is(err, messaging.ErrUnroutable):
		return apierror.New(codes.FailedPrecondition, "SOURCE_QUEUE_GONE", "queue %q does not exist any more", letter.SourceQueue)
	case errors.Is(err, messaging.ErrTooLarge):
		return apierror.New(codes.FailedPrecondition, "MESSAGE_TOO_LARGE",
			"the broker takes no message as large as dead letter %d: raise its max_message_size, or discard the letter", letter.ID)
	}
	return apierror.Unavailable("BROKER_UNAVAILABLE", time.Second, "the broker did not take the message; try again").WithCause(err)
}

// discard marks a dead letter as discarded, after decide has done what follows from that; if decide fails the dead letter
// stays open. One that is discarded already is returned as it is, once decide has done the same again: what it did may have been lost since
// with another database.
func discard(ctx context.Context, db *sqlx.DB, id int64, decide func(context.Context, *deadLetter) error) (letter deadLetter, err error) {
	err = postgres.InTx(ctx, db, func(tx *sqlx.Tx) (err error) {
		letter, err = getDeadLetter(ctx, tx, id, "FOR UPDATE")
		switch {
		case err != nil:
			return err
		case letter.State == stateDiscarded:
			return decide(ctx, &letter)
		case letter.State == stateRedriven:
			return apierror.New(codes.FailedPrecondition, "DEAD_LETTER_REDRIVEN", "dead letter %d was redriven", id)
		}
		if err := decide(ctx, &letter); err != nil {
			return err
		}
		if err := setState(ctx, tx, &letter, stateDiscarded); err != nil {
			return err
		}
		return recordDecision(ctx, tx, loggingv1.DeadLetterService_DiscardDeadLetter_FullMethodName, letter)
	})
	return letter, err
}

// decideTimeout bounds what another server has to do before a decision is written: the broker or the order service. The transaction is
// idle meanwhile, so it must be shorter than postgres.IdleInTransactionTimeout.
const decideTimeout = 5 * time.Second

// rejectDiscardedOrder makes the order service reject the order in a discarded dead letter, whose customer would otherwise
// wait for ever. It does nothing if the message came from a user who may not place orders.
func (s *Service) rejectDiscardedOrder(ctx context.Context, letter *deadLetter) error {
	placed, _ := contract.EventOf(&eventsv1.OrderPlaced{})
	if letter.SourceQueue != topology.Order || letter.RoutingKey != placed.RoutingKey || letter.OrderID == "" ||
		!s.broker.MayPublish(letter.header(messaging.HeaderUser), placed) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, decideTimeout)
	defer cancel()
	body := letter.Body
	if len(body) > messaging.MaxEvent {
		body = nil // no order is that large
	}
	_, err := s.orders.RejectDiscarded(ctx, &orderv1.RejectDiscardedRequest{OrderId: letter.OrderID, OrderPlaced: body})
	if err != nil {
		return apierror.Unavailable("SERVICE_UNAVAILABLE", time.Second,
			"the order service did not take the decision about order %s; dead letter %d stays as it is, try again", letter.OrderID, letter.ID).WithCause(err)
	}
	return nil
}

// delivery returns the message with as much as decoding its body needs.
func (l *deadLetter) delivery() messaging.Delivery {
	return messaging.Delivery{Meta: messaging.Meta{RoutingKey: l.RoutingKey}, Type: l.Type, Body: l.Body}
}

// message returns the dead letter in the form of the contracts, with its body if that was read.
func (l *deadLetter) message(horizon time.Duration) (*loggingv1.DeadLetter, error) {
	m := &loggingv1.DeadLetter{
		Id:          l.ID,
		State:       loggingv1.DeadLetter_State(loggingv1.DeadLetter_State_value[l.State]),
		Reason:      l.Reason,
		SourceQueue: l.SourceQueue,
		Exchange:    l.Exchange,
		RoutingKey:  l.RoutingKey,
		MessageId:   l.MessageID.String(),
		OrderId:     l.OrderID,
		TraceId:     l.TraceID,
		Type:        l.Type,
		Attempts:    int32(l.Attempts),
		Body:        l.Body,
		CreatedAt:   timestamppb.New(l.CreatedAt),
		UpdatedAt:   timestamppb.New(l.UpdatedAt),

		RedrivableUntil: timestamppb.New(l.FirstAt.Add(horizon)),
	}
	if l.Body == nil {
		return m, nil
	}
	payload, _ := decodeJSON(l.delivery())
	if payload == nil {
		return m, nil
	}
	var err error
	m.Payload, err = structOf(payload)
	return m, err
}
