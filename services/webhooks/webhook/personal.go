package webhook

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"shop.example/domain/customer"
	"shop.example/domain/enduser"
	customerv1 "shop.example/gen/shop/customer/v1"
	eventsv1 "shop.example/gen/shop/events/v1"
	loggingv1 "shop.example/gen/shop/logging/v1"
	"shop.example/platform/outbox"
	"shop.example/platform/pagetoken"
	"shop.example/platform/postgres"
	"shop.example/topology"
)

const (
	// scanLimit is how many events one call reads, and maxFound how many it returns or erases.
	scanLimit = 100_000
	maxFound  = 200
)

// personalDataServer serves PersonalDataService for the webhooks of customers and the events that are kept for delivery. Of
// all events only OrderPlaced contains personal data.
type personalDataServer struct {
	customerv1.UnimplementedPersonalDataServiceServer
	*Service
}

// FindPersonalData implements customerv1.PersonalDataServiceServer. Each search is recorded, and each response with
// personal data before it is sent.
func (s personalDataServer) FindPersonalData(ctx context.Context, req *customerv1.FindPersonalDataRequest) (*customerv1.FindPersonalDataResponse, error) {
	person := customer.Of(req.GetPerson())
	after, err := pagetoken.ParseID(req.GetPageToken(), listOf(person))
	if err != nil {
		return nil, err
	}
	resp := &customerv1.FindPersonalDataResponse{}
	if req.GetPageToken() == "" && person.Owner() != "" {
		var hooks []*webhook
		err := s.db.SelectContext(ctx, &hooks, `SELECT `+webhookColumns+` FROM webhook WHERE owner = $1 ORDER BY id`, person.Owner())
		if err != nil {
			return nil, fmt.Errorf("looking for the webhooks of a person: %w", postgres.Classify(err))
		}
		for _, w := range hooks {
			resp.Records = append(resp.Records, &customerv1.PersonalRecord{Record: &customerv1.PersonalRecord_Webhook{Webhook: w.message()}})
		}
	}
	found, last, err := findEvents(ctx, s.db, person, after)
	if err != nil {
		return nil, err
	}
	for _, e := range found {
		payload := &structpb.Struct{}
		if err := protojson.Unmarshal([]byte(e.Payload), payload); err != nil {
			return nil, fmt.Errorf("event %d: %w", e.ID, err)
		}
		resp.Records = append(resp.Records, &customerv1.PersonalRecord{Record: &customerv1.PersonalRecord_Event{Event: &loggingv1.Event{
			Id: e.ID, RoutingKey: e.RoutingKey, MessageId: e.MessageID, OrderId: e.OrderID, Payload: payload,
			PublishedAt: timestamppb.New(e.PublishedAt), CreatedAt: timestamppb.New(e.CreatedAt),
		}}})
	}
	resp.NextPageToken = nextPage(last, person)
	// Whatever the token says: who makes one up is recorded, too.
	if len(resp.GetRecords()) == 0 && req.GetPageToken() != "" {
		return resp, nil
	}
	err = postgres.InTx(ctx, s.db, func(tx *sqlx.Tx) error {
		return recordPersonal(ctx, tx, customerv1.CustomerService_ExportCustomer_FullMethodName, person, "webhooks and events for them")
	})
	if err != nil {
		return nil, err
	}
	s.wakeRelay()
	return resp, nil
}

// ErasePersonalData is part of customerv1.PersonalDataServiceServer. Webhooks of the person are deleted. Events that name the
// person are not delivered any more, and what receivers have answered to events of the person's orders, or with the person's address or owner, is erased, too.
// The log is to be erased before.
func (s personalDataServer) ErasePersonalData(ctx context.Context, req *customerv1.ErasePersonalDataRequest) (*customerv1.ErasePersonalDataResponse, error) {
	person := customer.Of(req.GetPerson())
	after, err := pagetoken.ParseID(req.GetPageToken(), listOf(person))
	if err != nil {
		return nil, err
	}
	if err := deleteDeliveriesOf(ctx, s.db, person.Owner()); err != nil {
		return nil, err
	}
	resp := &customerv1.ErasePersonalDataResponse{}
	err = postgres.InTx(ctx, s.db, func(tx *sqlx.Tx) error {
		// As everybody who changes webhooks: first the position, which the follower has locked while it writes. What was read of
		// the log before is read again, and so is what waits to be sent.
		if _, err := tx.ExecContext(ctx, `UPDATE log_position SET generation = generation + 1`); err != nil {
			return err
		}
		if person.Owner() != "" {
			if resp.Webhooks, err = deleteWebhooksOf(ctx, tx, person.Owner()); err != nil {
				return err
			}
		}
		found, last, err := findEvents(ctx, tx, person, after)
		if err != nil {
			return err
		}
		for _, e := range found {
			if err := eraseEvent(ctx, tx, e); err != nil {
				return fmt.Errorf("erasing a person in event %d: %w", e.ID, err)
			}
		}
		answers, err := eraseAnswersNaming(ctx, tx, person, after, last)
		if err != nil {
			return err
		}
		resp.WebhookEvents, resp.NextPageToken = int32(len(found)), nextPage(last, person) //nolint:gosec // at most maxFound
		if len(found) == 0 && resp.GetWebhooks() == 0 && answers == 0 {
			return nil
		}
		return recordPersonal(ctx, tx, customerv1.CustomerService_EraseCustomer_FullMethodName, person,
			fmt.Sprintf("%d webhooks, %d events for webhooks, %d more answers to them", resp.GetWebhooks(), len(found), answers))
	})
	if err != nil {
		return nil, err
	}
	s.wakeRelay()
	s.follower.notify()
	return resp, nil
}

// deleteDeliveriesOf deletes the deliveries of somebody's webhooks, which are deleted next; owner "" has none.
func deleteDeliveriesOf(ctx context.Context, db *sqlx.DB, owner string) error {
	if owner == "" {
		return nil
	}
	var hooks []uuid.UUID
	if err := db.SelectContext(ctx, &hooks, `SELECT id FROM webhook WHERE owner = $1`, owner); err != nil {
		return fmt.Errorf("looking for the webhooks of a person: %w", postgres.Classify(err))
	}
	for _, id := range hooks {
		if err := deleteDeliveries(ctx, db, id); err != nil {
			return err
		}
	}
	return nil
}

func deleteWebhooksOf(ctx context.Context, tx *sqlx.Tx, owner string) (int32, error) {
	result, err := tx.ExecContext(ctx, `DELETE FROM webhook WHERE owner = $1`, owner)
	if err != nil {
		return 0, fmt.Errorf("deleting the webhooks of a person: %w", err)
	}
	n, err := result.RowsAffected()
	return int32(n), err //nolint:gosec // at most maxOfOwner
}

// eraseAnswers erases what receivers have answered to an event, and to others of its order: an answer, or what is wrong with it, may
// repeat what was sent. As an array the ids are looked up in the index; with OR, or IN, all deliveries are read.
const eraseAnswers = `
	UPDATE delivery SET response_body = '', error_message = ''
	WHERE event_id = ANY (ARRAY(SELECT id FROM event WHERE id = $1 OR order_id = nullif($2, '')::uuid))`

func eraseEvent(ctx context.Context, tx *sqlx.Tx, e *event) error {
	placed := &eventsv1.OrderPlaced{}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal([]byte(e.Payload), placed); err != nil {
		return err
	}
	customer.Erase(placed)
	erased, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(placed)
	if err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, `UPDATE event SET payload = $2 WHERE id = $1`, e.ID, string(erased)); err != nil {
		return err
	}
	if _, err = tx.ExecContext(ctx, eraseAnswers, e.ID, e.OrderID); err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, `
		UPDATE delivery SET state = 'FAILED', error_message = 'the customer was erased before' WHERE event_id = $1 AND state = 'PENDING'`, e.ID)
	return err
}

// eraseAnswersNaming erases what receivers have answered to the events after a position, up to last, if it names the person. The OrderPlaced of an
// order says whose it is, but is not kept if no webhook wants it.
func eraseAnswersNaming(ctx context.Context, tx *sqlx.Tx, person customer.Person, after, last int64) (int, error) {
	var answers []struct {
		ID     int64  `db:"id"`
		Answer string `db:"answer"`
	}
	err := tx.SelectContext(ctx, &answers, `
		SELECT id, answer FROM (SELECT id, response_body || E'\n' || error_message AS answer FROM delivery WHERE event_id > $1 AND event_id <= $2) AS d
		WHERE answer COLLATE "C" ILIKE ANY (SELECT '%' || p || '%' FROM unnest($3::text[]) AS p) OR $4 <> '' AND strpos(answer, $4) > 0`,
		after, last, postgres.ArrayOf(person.Patterns()), person.Owner())
	if err != nil {
		return 0, fmt.Errorf("looking for a person in answers: %w", err)
	}
	var named []int64
	for _, a := range answers {
		if person.NamedIn([]byte(a.Answer)) {
			named = append(named, a.ID)
		}
	}
	if len(named) == 0 {
		return 0, nil
	}
	_, err = tx.ExecContext(ctx, `UPDATE delivery SET response_body = '', error_message = '' WHERE event_id > $1 AND event_id <= $2 AND id = ANY ($3::bigint[])`,
		after, last, postgres.ArrayOf(named))
	if err != nil {
		return 0, fmt.Errorf("erasing a person in answers: %w", err)
	}
	return len(named), nil
}

func recordPersonal(ctx context.Context, tx *sqlx.Tx, method string, person customer.Person, detail string) error {
	return outbox.Add(ctx, tx, []outbox.Entry{{Message: enduser.Acted(enduser.Operator(ctx), method, person.String(), detail)}})
}

// listOf identifies the list of a person's events, for page tokens.
func listOf(person customer.Person) string { return "events of " + person.String() }

// nextPage returns the token to continue with after last; "" at the end.
func nextPage(last int64, person customer.Person) string {
	if last == 0 {
		return ""
	}
	return pagetoken.NewID(last, listOf(person))
}

// findEvents reads the next scanLimit events after a position, up to last, and returns the orders that the person has placed. last is 0 if
// there are no more events.
func findEvents(ctx context.Context, q sqlx.QueryerContext, person customer.Person, after int64) (found []*event, last int64, err error) {
	err = sqlx.GetContext(ctx, q, &last, `SELECT coalesce(max(id), 0) FROM (SELECT id FROM event WHERE id > $1 ORDER BY id LIMIT $2) AS read`, after, scanLimit)
	if err != nil {
		return nil, 0, fmt.Errorf("looking for a person in events: %w", postgres.Classify(err))
	}
	if last == 0 {
		return nil, 0, nil
	}
	var rows []*event
	err = sqlx.SelectContext(ctx, q, &rows, `
		SELECT id AS event_id, message_id, routing_key, coalesce(order_id::text, '') AS order_id, payload, published_at, created_at FROM event
		WHERE id > $1 AND id <= $2 AND routing_key = $3 AND ((payload::jsonb ->> 'customer_email') COLLATE "C" ILIKE ANY ($4::text[]) OR payload::jsonb ->> 'owner' = $5)
		ORDER BY id LIMIT $6`,
		after, last, topology.RoutingKey(&eventsv1.OrderPlaced{}), postgres.ArrayOf(person.Patterns()), person.Owner(), maxFound)
	if err != nil {
		return nil, 0, fmt.Errorf("looking for a person in events: %w", postgres.Classify(err))
	}
	if len(rows) == maxFound {
		last = rows[maxFound-1].ID
	}
	for _, e := range rows {
		var order struct {
			Email string `json:"customer_email"`
			Owner string `json:"owner"`
		}
		if json.Unmarshal([]byte(e.Payload), &order) == nil && person.Matches(order.Email, order.Owner) {
			found = append(found, e)
		}
	}
	return found, last, nil
}
