package webhook

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"shop.example/domain/enduser"
	webhooksv1 "shop.example/gen/shop/webhooks/v1"
	"shop.example/platform/apierror"
	"shop.example/platform/fieldmask"
	"shop.example/platform/outbox"
	"shop.example/platform/pagetoken"
	"shop.example/platform/postgres"
)

const (
	// maxOfOwner is how many webhooks a customer may have, and maxOfOperators how many operators may have in total.
	maxOfOwner     = 10
	maxOfOperators = 1000
	// maxPageBytes bounds a page of webhooks, or of deliveries, in bytes: 1,000 of the largest have several times as much as a client of
	// gRPC takes.
	maxPageBytes = 1 << 20
	// testType is the type of test events.
	testType = "shop.webhook.test"
)

// webhookServer serves WebhookService.
type webhookServer struct {
	webhooksv1.UnimplementedWebhookServiceServer
	*Service
}

// callerOf returns which webhooks the caller may see: operators all, customers their own.
func callerOf(ctx context.Context) whose {
	c, external := enduser.Of(ctx)
	if !external || c.GetOperator() {
		return whose{all: true}
	}
	owner := enduser.Owner(c.GetIssuer(), c.GetSubject())
	if owner == "" {
		owner = " " // nobody's: the owner of what operators have is ""
	}
	return whose{owner: owner}
}

// CreateWebhook implements webhooksv1.WebhookServiceServer.
func (s webhookServer) CreateWebhook(ctx context.Context, req *webhooksv1.CreateWebhookRequest) (*webhooksv1.CreateWebhookResponse, error) {
	m := req.GetWebhook()
	w := &webhook{
		ID: uuid.Must(uuid.NewV7()), Owner: callerOf(ctx).owner, URL: m.GetUrl(), EventTypes: m.GetEventTypes(), Description: m.GetDescription(),
		Format: formatStandard, State: stateEnabled, Secret: newSecret(),
	}
	if m.GetFormat() != webhooksv1.Webhook_FORMAT_UNSPECIFIED {
		w.Format = m.GetFormat().String()
	}
	if m.GetState() == webhooksv1.Webhook_PAUSED {
		w.State = statePaused
	}
	if err := s.check(w); err != nil {
		return nil, err
	}
	err := s.change(ctx, webhooksv1.WebhookService_CreateWebhook_FullMethodName, w.ID.String(), func(tx *sqlx.Tx) (string, error) {
		var n int
		if err := tx.GetContext(ctx, &n, `SELECT count(*) FROM webhook WHERE owner = $1`, w.Owner); err != nil {
			return "", err
		}
		if limit := limitOf(w.Owner); n >= limit {
			return "", apierror.New(codes.FailedPrecondition, "TOO_MANY_WEBHOOKS", "there are %d webhooks already: delete one that is not needed", n)
		}
		return fmt.Sprintf("created: events %s", strings.Join(w.EventTypes, ", ")), insertWebhook(ctx, tx, w)
	})
	if err != nil {
		return nil, err
	}
	return &webhooksv1.CreateWebhookResponse{Webhook: w.message(), Secret: secretText(w.Secret)}, nil
}

func limitOf(owner string) int {
	if owner == "" {
		return maxOfOperators
	}
	return maxOfOwner
}

// eventType matches a pattern of routing keys. (Two # in a row mean the same as one.)
var eventType = regexp.MustCompile(`^([a-z0-9_-]+|\*|#)(\.([a-z0-9_-]+|\*|#))*$`)

// check returns an error that names the fields of a webhook that are wrong.
func (s webhookServer) check(w *webhook) error {
	var wrong []apierror.Violation
	if problem := s.sender.checkURL(w.URL); problem != "" {
		wrong = append(wrong, apierror.Violation{Field: "url", Description: problem})
	}
	if len(w.EventTypes) == 0 {
		wrong = append(wrong, apierror.Violation{Field: "event_types", Description: "must name at least one event, shop.order.# for example"})
	}
	for i, pattern := range w.EventTypes {
		if !eventType.MatchString(pattern) || strings.Contains(pattern, "#.#") {
			wrong = append(wrong, apierror.Violation{
				Field:       fmt.Sprintf("event_types[%d]", i),
				Description: "must be a routing key such as shop.order.confirmed, with * for one word and # for any number of them",
			})
		}
	}
	if len(wrong) > 0 {
		return apierror.InvalidArgument(wrong...)
	}
	return nil
}

// change runs do in a transaction, records the action if the caller is an operator, and tells the follower. do returns what
// has changed, in words. While no webhook wants any events the log is not followed; this starts it, at the end of the log.
func (s webhookServer) change(ctx context.Context, method, id string, do func(*sqlx.Tx) (detail string, err error)) error {
	var active bool
	if err := s.db.GetContext(ctx, &active, `SELECT active FROM log_position`); err != nil {
		return fmt.Errorf("reading the position in the log: %w", postgres.Classify(err))
	}
	errInactive := errors.New("the log is not followed any more")
	for {
		end := int64(-1)
		if !active {
			var err error
			if end, err = logEnd(ctx, s.events); err != nil {
				return apierror.Unavailable("LOG_UNAVAILABLE", 2*time.Second, "the log of events is not available: try again").WithCause(err)
			}
		}
		err := postgres.InTx(ctx, s.db, func(tx *sqlx.Tx) error {
			// This waits for others that change webhooks, and for the follower's transaction.
			err := tx.GetContext(ctx, &active, `SELECT active FROM log_position FOR UPDATE`)
			if err != nil {
				return err
			}
			if !active && end < 0 {
				return errInactive
			}
			_, err = tx.ExecContext(ctx, `
				UPDATE log_position SET generation = generation + 1, active = true, position = CASE WHEN active THEN position ELSE $1 END`, end)
			if err != nil {
				return err
			}
			detail, err := do(tx)
			if err != nil {
				return err
			}
			return recordAction(ctx, tx, method, id, detail)
		})
		if errors.Is(err, errInactive) {
			continue
		}
		if err == nil {
			s.wakeRelay()
			s.follower.notify()
			s.deliverer.notify()
		}
		return err
	}
}

// recordAction records what an operator does. What customers do with their own webhooks is not recorded.
func recordAction(ctx context.Context, tx *sqlx.Tx, method, id, detail string) error {
	if !enduser.IsOperator(ctx) {
		return nil
	}
	return outbox.Add(ctx, tx, []outbox.Entry{{Message: enduser.Acted(enduser.Operator(ctx), method, "webhook "+id, detail)}})
}

// ListWebhooks implements webhooksv1.WebhookServiceServer.
func (s webhookServer) ListWebhooks(ctx context.Context, req *webhooksv1.ListWebhooksRequest) (*webhooksv1.ListWebhooksResponse, error) {
	by := callerOf(ctx)
	before, page := uuid.Max, "webhooks of "+by.owner
	if req.GetPageToken() != "" {
		position, err := pagetoken.Parse(req.GetPageToken(), page, len(before))
		if err != nil {
			return nil, err
		}
		before = uuid.UUID(position)
	}
	size := pagetoken.Size(req.GetPageSize())
	list, err := listWebhooks(ctx, s.db, by, before, size+1) // one more than a page says whether there is another page
	if err != nil {
		return nil, err
	}
	resp := &webhooksv1.ListWebhooksResponse{}
	for _, w := range list {
		resp.Webhooks = append(resp.Webhooks, w.message())
	}
	if n := countFitting(resp.Webhooks, size); n < len(list) {
		resp.Webhooks, resp.NextPageToken = resp.Webhooks[:n], pagetoken.New(list[n-1].ID[:], page)
	}
	return resp, nil
}

// countFitting returns how many of the entries a page of the given size takes: at least one if there are any, and else at most
// maxPageBytes.
func countFitting[M proto.Message](entries []M, size int) (n int) {
	for bytes := 0; n < min(len(entries), size); n++ {
		if bytes += proto.Size(entries[n]); n > 0 && bytes > maxPageBytes {
			break
		}
	}
	return n
}

// GetWebhook implements webhooksv1.WebhookServiceServer.
func (s webhookServer) GetWebhook(ctx context.Context, req *webhooksv1.GetWebhookRequest) (*webhooksv1.GetWebhookResponse, error) {
	w, err := readWebhook(ctx, s.db, callerOf(ctx), req.GetWebhookId(), "")
	if err != nil {
		return nil, err
	}
	return &webhooksv1.GetWebhookResponse{Webhook: w.message()}, nil
}

// UpdateWebhook implements webhooksv1.WebhookServiceServer.
func (s webhookServer) UpdateWebhook(ctx context.Context, req *webhooksv1.UpdateWebhookRequest) (*webhooksv1.UpdateWebhookResponse, error) {
	var w *webhook
	id := req.GetWebhook().GetId()
	err := s.change(ctx, webhooksv1.WebhookService_UpdateWebhook_FullMethodName, id, func(tx *sqlx.Tx) (detail string, err error) {
		if w, err = readWebhook(ctx, tx, callerOf(ctx), id, "FOR UPDATE"); err != nil {
			return "", err
		}
		before := *w
		changed, err := w.apply(req)
		if err != nil {
			return "", err
		}
		if err := s.check(w); err != nil {
			return "", err
		}
		anew := w.State == stateEnabled && before.State != stateEnabled || w.URL != before.URL
		return "changed: " + cmp.Or(strings.Join(changed, ", "), "nothing"), updateWebhook(ctx, tx, w, anew)
	})
	if err != nil {
		return nil, err
	}
	return &webhooksv1.UpdateWebhookResponse{Webhook: w.message()}, nil
}

// apply sets the fields that the mask names. It ignores fields that cannot be set, because a client may send back what it
// has read.
func (w *webhook) apply(req *webhooksv1.UpdateWebhookRequest) (changed []string, err error) {
	m := req.GetWebhook()
	for _, field := range fieldmask.Paths(req.GetUpdateMask(), m, "url", "event_types", "description", "format", "state") {
		switch field {
		case "id", "disabled_reason", "owner", "failing_since", "created_at", "updated_at":
			continue
		case "url":
			w.URL = m.GetUrl()
		case "event_types":
			w.EventTypes = m.GetEventTypes()
		case "description":
			w.Description = m.GetDescription()
		case "format":
			if m.GetFormat() == webhooksv1.Webhook_FORMAT_UNSPECIFIED {
				return nil, apierror.InvalidArgument(apierror.Violation{Field: "format", Description: "must be STANDARD or CLOUD_EVENTS"})
			}
			w.Format = m.GetFormat().String()
		case "state":
			if m.GetState().String() == w.State {
				continue
			}
			if m.GetState() != webhooksv1.Webhook_ENABLED && m.GetState() != webhooksv1.Webhook_PAUSED {
				return nil, apierror.InvalidArgument(apierror.Violation{Field: "state", Description: "must be ENABLED or PAUSED"})
			}
			w.State = m.GetState().String()
		default:
			return nil, apierror.InvalidArgument(apierror.Violation{
				Field: "update_mask", Description: "may name url, event_types, format, description and state",
			})
		}
		changed = append(changed, field)
	}
	slices.Sort(changed)
	return changed, nil
}

// RotateWebhookSecret implements webhooksv1.WebhookServiceServer.
func (s webhookServer) RotateWebhookSecret(ctx context.Context, req *webhooksv1.RotateWebhookSecretRequest) (*webhooksv1.RotateWebhookSecretResponse, error) {
	var w *webhook
	err := s.inTx(ctx, req.GetWebhookId(), webhooksv1.WebhookService_RotateWebhookSecret_FullMethodName, "the secret", func(tx *sqlx.Tx, locked *webhook) error {
		w = locked
		return rotateSecret(ctx, tx, w, newSecret())
	})
	if err != nil {
		return nil, err
	}
	return &webhooksv1.RotateWebhookSecretResponse{Secret: secretText(w.Secret), PreviousValidUntil: timestamp(w.PreviousUntil)}, nil
}

// inTx locks a webhook that the caller may see, calls do, and records the action. It is for changes that the follower need
// not know of.
func (s webhookServer) inTx(ctx context.Context, id, method, detail string, do func(*sqlx.Tx, *webhook) error) error {
	err := postgres.InTx(ctx, s.db, func(tx *sqlx.Tx) error {
		w, err := readWebhook(ctx, tx, callerOf(ctx), id, "FOR UPDATE")
		if err != nil {
			return err
		}
		if err := do(tx, w); err != nil {
			return err
		}
		return recordAction(ctx, tx, method, id, detail)
	})
	if err == nil {
		s.wakeRelay()
		s.deliverer.notify()
	}
	return err
}

// TestWebhook implements webhooksv1.WebhookServiceServer.
func (s webhookServer) TestWebhook(ctx context.Context, req *webhooksv1.TestWebhookRequest) (*webhooksv1.TestWebhookResponse, error) {
	w, err := readWebhook(ctx, s.db, callerOf(ctx), req.GetWebhookId(), "")
	if err != nil {
		return nil, err
	}
	payload, err := json.Marshal(map[string]string{"webhook_id": w.ID.String()})
	if err != nil {
		return nil, err
	}
	select {
	case s.deliverer.slow <- struct{}{}:
		defer func() { <-s.deliverer.slow }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	// An answer that comes too late for the call is told as one that did not come.
	if deadline, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadlineCause(ctx, deadline.Add(-500*time.Millisecond), errors.New("no answer in the time of this call"))
		defer cancel()
	}
	a := s.sender.send(ctx, w, event{MessageID: uuid.Must(uuid.NewV7()).String(), RoutingKey: testType, Payload: string(payload), PublishedAt: time.Now()})
	return &webhooksv1.TestWebhookResponse{
		Delivered: a.delivered(), ResponseStatus: int32(a.status), ResponseBody: a.body, ErrorMessage: a.problem, //nolint:gosec // three digits
		DurationMs: int32(min(a.took.Milliseconds(), math.MaxInt32)), //nolint:gosec // bounded
	}, nil
}

// DeleteWebhook implements webhooksv1.WebhookServiceServer.
func (s webhookServer) DeleteWebhook(ctx context.Context, req *webhooksv1.DeleteWebhookRequest) (*webhooksv1.DeleteWebhookResponse, error) {
	w, err := readWebhook(ctx, s.db, callerOf(ctx), req.GetWebhookId(), "")
	if err != nil {
		return nil, err
	}
	if err := deleteDeliveries(ctx, s.db, w.ID); err != nil {
		return nil, err
	}
	err = s.change(ctx, webhooksv1.WebhookService_DeleteWebhook_FullMethodName, w.ID.String(), func(tx *sqlx.Tx) (string, error) {
		_, err := tx.ExecContext(ctx, `DELETE FROM webhook WHERE id = $1`, w.ID)
		return "deleted: events " + strings.Join(w.EventTypes, ", "), err
	})
	if err != nil {
		return nil, err
	}
	return &webhooksv1.DeleteWebhookResponse{}, nil
}

// ListWebhookDeliveries implements webhooksv1.WebhookServiceServer.
func (s webhookServer) ListWebhookDeliveries(ctx context.Context, req *webhooksv1.ListWebhookDeliveriesRequest) (*webhooksv1.ListWebhookDeliveriesResponse, error) {
	w, err := readWebhook(ctx, s.db, callerOf(ctx), req.GetWebhookId(), "")
	if err != nil {
		return nil, err
	}
	state := ""
	if req.GetState() != webhooksv1.WebhookDelivery_STATE_UNSPECIFIED {
		state = req.GetState().String()
	}
	page := "deliveries " + state + " of " + w.ID.String()
	before, err := pagetoken.ParseID(req.GetPageToken(), page)
	if err != nil {
		return nil, err
	}
	if before == 0 {
		before = math.MaxInt64 // the newest first
	}
	size := pagetoken.Size(req.GetPageSize())
	list, err := listDeliveries(ctx, s.db, w.ID, state, before, size+1)
	if err != nil {
		return nil, err
	}
	resp := &webhooksv1.ListWebhookDeliveriesResponse{}
	for _, d := range list {
		resp.Deliveries = append(resp.Deliveries, d.message())
	}
	if n := countFitting(resp.Deliveries, size); n < len(list) {
		resp.Deliveries, resp.NextPageToken = resp.Deliveries[:n], pagetoken.NewID(list[n-1].Delivery, page)
	}
	return resp, nil
}

// RedeliverWebhook implements webhooksv1.WebhookServiceServer.
func (s webhookServer) RedeliverWebhook(ctx context.Context, req *webhooksv1.RedeliverWebhookRequest) (*webhooksv1.RedeliverWebhookResponse, error) {
	var d *delivery
	detail := fmt.Sprintf("delivery %d", req.GetDeliveryId())
	err := s.inTx(ctx, req.GetWebhookId(), webhooksv1.WebhookService_RedeliverWebhook_FullMethodName, detail, func(tx *sqlx.Tx, w *webhook) (err error) {
		d, err = redeliver(ctx, tx, w, req.GetDeliveryId())
		return err
	})
	if err != nil {
		return nil, err
	}
	return &webhooksv1.RedeliverWebhookResponse{Delivery: d.message()}, nil
}
