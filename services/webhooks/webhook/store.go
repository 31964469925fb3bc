package webhook

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	webhooksv1 "shop.example/gen/shop/webhooks/v1"
	"shop.example/platform/apierror"
	"shop.example/platform/postgres"
)

// States of webhooks and deliveries, and formats, as the database and the contracts have them.
const (
	stateEnabled  = "ENABLED"
	statePaused   = "PAUSED"
	stateDisabled = "DISABLED"

	statePending   = "PENDING"
	stateDelivered = "DELIVERED"
	stateFailed    = "FAILED"

	formatStandard    = "STANDARD"
	formatCloudEvents = "CLOUD_EVENTS"
)

// webhook is a row of that table.
type webhook struct {
	ID             uuid.UUID      `db:"id"`
	Owner          string         `db:"owner"`
	URL            string         `db:"url"`
	EventTypes     pq.StringArray `db:"event_types"`
	Format         string         `db:"format"`
	Description    string         `db:"description"`
	State          string         `db:"state"`
	DisabledReason string         `db:"disabled_reason"`
	Secret         []byte         `db:"secret"`
	PreviousSecret []byte         `db:"previous_secret"`
	PreviousUntil  sql.NullTime   `db:"previous_until"`
	OlderSecrets   pq.ByteaArray  `db:"older_secrets"` // those that were valid when it was read
	Failures       int            `db:"failures"`
	FailingSince   sql.NullTime   `db:"failing_since"`
	CreatedAt      time.Time      `db:"created_at"`
	UpdatedAt      time.Time      `db:"updated_at"`
}

const webhookColumns = `id, owner, url, event_types, format, description, state, disabled_reason,
	secret, previous_secret, previous_until,
	ARRAY(SELECT older FROM unnest(older_secrets, older_until) AS o (older, until) WHERE until > now()) AS older_secrets, failures, failing_since, created_at, updated_at`

func (w *webhook) message() *webhooksv1.Webhook {
	return &webhooksv1.Webhook{
		Id: w.ID.String(), Url: w.URL, EventTypes: w.EventTypes, Description: w.Description, DisabledReason: w.DisabledReason, Owner: w.Owner,
		Format:       webhooksv1.Webhook_Format(webhooksv1.Webhook_Format_value[w.Format]),
		State:        webhooksv1.Webhook_State(webhooksv1.Webhook_State_value[w.State]),
		FailingSince: timestamp(w.FailingSince), CreatedAt: timestamppb.New(w.CreatedAt), UpdatedAt: timestamppb.New(w.UpdatedAt),
	}
}

func timestamp(t sql.NullTime) *timestamppb.Timestamp {
	if !t.Valid {
		return nil
	}
	return timestamppb.New(t.Time)
}

// whose says which webhooks a caller may see: those of one owner, or all.
type whose struct {
	all   bool
	owner string
}

func webhookNotFound(id string) error {
	return apierror.New(codes.NotFound, "WEBHOOK_NOT_FOUND", "there is no webhook %s", id)
}

// readWebhook reads a webhook that the caller may see; lock is "" or FOR UPDATE.
func readWebhook(ctx context.Context, q sqlx.QueryerContext, by whose, id, lock string) (*webhook, error) {
	w := &webhook{}
	err := sqlx.GetContext(ctx, q, w, `SELECT `+webhookColumns+` FROM webhook WHERE id = $1 AND ($2 OR owner = $3) `+lock, id, by.all, by.owner)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, webhookNotFound(id)
	}
	if err != nil {
		return nil, fmt.Errorf("reading webhook %s: %w", id, postgres.Classify(err))
	}
	return w, nil
}

// listWebhooks reads webhooks that the caller may see, the newest first. Ids are in the order of their creation.
func listWebhooks(ctx context.Context, db *sqlx.DB, by whose, before uuid.UUID, limit int) ([]*webhook, error) {
	var list []*webhook
	err := db.SelectContext(ctx, &list, `
		SELECT `+webhookColumns+` FROM webhook WHERE ($1 OR owner = $2) AND id < $3 ORDER BY id DESC LIMIT $4`, by.all, by.owner, before, limit)
	if err != nil {
		return nil, fmt.Errorf("listing webhooks: %w", postgres.Classify(err))
	}
	return list, nil
}

func insertWebhook(ctx context.Context, tx *sqlx.Tx, w *webhook) error {
	return tx.GetContext(ctx, w, `
		INSERT INTO webhook (id, owner, url, event_types, format, description, state, secret, since)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, (SELECT position FROM log_position))
		RETURNING `+webhookColumns, w.ID, w.Owner, w.URL, postgres.ArrayOf([]string(w.EventTypes)), w.Format, w.Description, w.State, w.Secret)
}

// updateWebhook writes the fields of a webhook that can be changed. If it was enabled by this, or has another URL, its count of
// failures begins anew, and those of the deliveries that wait.
func updateWebhook(ctx context.Context, tx *sqlx.Tx, w *webhook, anew bool) error {
	if anew {
		if _, err := tx.ExecContext(ctx, beginAnew, w.ID); err != nil {
			return fmt.Errorf("beginning anew what waits for webhook %s: %w", w.ID, err)
		}
	}
	return tx.GetContext(ctx, w, `
		UPDATE webhook SET url = $2, event_types = $3, format = $4, description = $5, state = $6, updated_at = now(),
			disabled_reason = CASE WHEN $6 = 'DISABLED' THEN disabled_reason ELSE '' END,
			failures = CASE WHEN $7 THEN 0 ELSE failures END,
			failing_since = CASE WHEN $7 THEN NULL ELSE failing_since END,
			retry_at = CASE WHEN $7 THEN now() ELSE retry_at END,
			since = CASE WHEN event_types <> $3 OR state = 'DISABLED' THEN (SELECT position FROM log_position) ELSE since END
		WHERE id = $1 RETURNING `+webhookColumns,
		w.ID, w.URL, postgres.ArrayOf([]string(w.EventTypes)), w.Format, w.Description, w.State, anew)
}

// beginAnew is for deliveries that wait: they would be given up at their next failure if the first was long ago.
const beginAnew = `
	UPDATE delivery SET first_attempt_at = NULL, failures = 0 WHERE webhook_id = $1 AND state = 'PENDING' AND first_attempt_at IS NOT NULL`

// rotateSecret gives a webhook another secret. Those before it stay valid as long as each was to be, although there may be several: who
// did not get the answer repeats the call, and the receiver has none but the oldest.
func rotateSecret(ctx context.Context, tx *sqlx.Tx, w *webhook, secret []byte) error {
	const older = `FROM unnest(older_secrets || previous_secret, older_until || previous_until) AS o (older, until) WHERE until > now() ORDER BY until DESC LIMIT $4`
	return tx.GetContext(ctx, w, `
		UPDATE webhook SET older_secrets = ARRAY(SELECT older `+older+`), older_until = ARRAY(SELECT until `+older+`),
			previous_secret = secret, previous_until = now() + $3 * interval '1 second', secret = $2, updated_at = now()
		WHERE id = $1 RETURNING `+webhookColumns, w.ID, secret, secretOverlap.Seconds(), maxOlder)
}

// deleteSlice is how many deliveries are deleted at once.
const deleteSlice = 5000

// deleteDeliveries deletes the deliveries of a webhook, in slices: many could not be deleted within one statement's time
// limit. A replica that is sending to the webhook at this moment finds nothing left.
func deleteDeliveries(ctx context.Context, db *sqlx.DB, id uuid.UUID) error {
	for {
		result, err := db.ExecContext(ctx, `
			DELETE FROM delivery WHERE webhook_id = $1 AND id = ANY (ARRAY(SELECT id FROM delivery WHERE webhook_id = $1 LIMIT $2))`, id, deleteSlice)
		if err != nil {
			return fmt.Errorf("deleting deliveries of webhook %s: %w", id, postgres.Classify(err))
		}
		if n, err := result.RowsAffected(); err != nil || n < deleteSlice {
			return err
		}
	}
}

// delivery is a row of that table, with its event.
type delivery struct {
	event
	Delivery       int64        `db:"id"`
	State          string       `db:"state"`
	Attempts       int32        `db:"attempts"`
	Failures       int          `db:"failures"` // since FirstAttemptAt
	FirstAttemptAt sql.NullTime `db:"first_attempt_at"`
	LastAttemptAt  sql.NullTime `db:"last_attempt_at"`
	NextAttemptAt  time.Time    `db:"next_attempt_at"`
	ResponseStatus int32        `db:"response_status"`
	ResponseBody   string       `db:"response_body"`
	ErrorMessage   string       `db:"error_message"`
	CreatedAt      time.Time    `db:"created_at"`
}

// selectDelivery reads deliveries without what they send.
const selectDelivery = `
	SELECT d.id, d.event_id, e.message_id, e.routing_key, coalesce(d.order_id::text, '') AS order_id, e.published_at, d.state, d.attempts, d.first_attempt_at,
		d.last_attempt_at, d.next_attempt_at, d.response_status, d.response_body, d.error_message, d.created_at
	FROM delivery d JOIN event e ON e.id = d.event_id `

func (d *delivery) message() *webhooksv1.WebhookDelivery {
	m := &webhooksv1.WebhookDelivery{
		Id: d.Delivery, MessageId: d.MessageID, EventType: d.RoutingKey, OrderId: d.OrderID, Attempts: d.Attempts,
		State:         webhooksv1.WebhookDelivery_State(webhooksv1.WebhookDelivery_State_value[d.State]),
		LastAttemptAt: timestamp(d.LastAttemptAt), ResponseStatus: d.ResponseStatus, ResponseBody: d.ResponseBody, ErrorMessage: d.ErrorMessage,
		PublishedAt: timestamppb.New(d.PublishedAt), CreatedAt: timestamppb.New(d.CreatedAt),
	}
	if d.State == statePending {
		m.NextAttemptAt = timestamppb.New(d.NextAttemptAt)
	}
	return m
}

const pageOfDeliveries = selectDelivery + `
	WHERE d.webhook_id = $1 AND d.id < $2 AND ($3 = '' OR d.state = $3) ORDER BY d.id DESC LIMIT $4`

// listDeliveries reads deliveries of a webhook with ids below before, the newest first; state "" stands for all.
func listDeliveries(ctx context.Context, db *sqlx.DB, id uuid.UUID, state string, before int64, limit int) ([]*delivery, error) {
	var list []*delivery
	err := db.SelectContext(ctx, &list, pageOfDeliveries, id, before, state, limit)
	if err != nil {
		return nil, fmt.Errorf("listing deliveries of webhook %s: %w", id, postgres.Classify(err))
	}
	return list, nil
}

// redeliver makes a delivery due now, and those before it that it has to wait for. One that did not wait is tried again as if for the first time, after the same waits.
func redeliver(ctx context.Context, tx *sqlx.Tx, w *webhook, id int64) (*delivery, error) {
	if w.State != stateEnabled {
		return nil, apierror.New(codes.FailedPrecondition, "WEBHOOK_NOT_ENABLED", "webhook %s is %s: enable it first", w.ID, w.State)
	}
	result, err := tx.ExecContext(ctx, `
		UPDATE delivery SET state = 'PENDING', next_attempt_at = now(),
			first_attempt_at = CASE WHEN state = 'PENDING' THEN first_attempt_at END, failures = CASE WHEN state = 'PENDING' THEN failures ELSE 0 END
		WHERE webhook_id = $1 AND id = $2`, w.ID, id)
	if err != nil {
		return nil, fmt.Errorf("delivering %d again: %w", id, err)
	}
	if n, err := result.RowsAffected(); err != nil || n == 0 {
		return nil, errors.Join(err, apierror.New(codes.NotFound, "WEBHOOK_DELIVERY_NOT_FOUND", "webhook %s has no delivery %d", w.ID, id))
	}
	_, err = tx.ExecContext(ctx, `
		UPDATE delivery before SET next_attempt_at = now() FROM delivery d
		WHERE d.webhook_id = $1 AND d.id = $2 AND before.webhook_id = $1 AND before.order_id = d.order_id AND before.id < $2
			AND before.state = 'PENDING' AND before.next_attempt_at > now()`, w.ID, id)
	if err != nil {
		return nil, fmt.Errorf("delivering again what is before %d: %w", id, err)
	}
	if _, err := tx.ExecContext(ctx, `UPDATE webhook SET retry_at = least(retry_at, now()) WHERE id = $1`, w.ID); err != nil {
		return nil, fmt.Errorf("delivering %d again: %w", id, err)
	}
	d := &delivery{}
	return d, tx.GetContext(ctx, d, selectDelivery+`WHERE d.webhook_id = $1 AND d.id = $2`, w.ID, id)
}
