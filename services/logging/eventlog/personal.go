package eventlog

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/jmoiron/sqlx"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"shop.example/domain/customer"
	customerv1 "shop.example/gen/shop/customer/v1"
	eventsv1 "shop.example/gen/shop/events/v1"
	"shop.example/platform/apierror"
	"shop.example/platform/contract"
	"shop.example/platform/pagetoken"
	"shop.example/platform/postgres"
)

const (
	// scanLimit is how many events one call reads. There is no index on addresses, because it would slow down storing every
	// order.
	scanLimit = 200_000
	// maxFound is how many events a call returns or erases, and how many undecodable messages it reads.
	maxFound = 200
	// maxRead bounds the undecodable messages that a call reads, in bytes; at least one is read. The response contains them
	// as bytes and as JSON, and must be smaller than a gateway's limit.
	maxRead = 256 << 10
)

// personalDataServer serves PersonalDataService for events and dead letters. Of all events only OrderPlaced contains
// personal data.
type personalDataServer struct {
	customerv1.UnimplementedPersonalDataServiceServer
	*Service
}

// The stages of a search, in this order; a page token begins with one.
const (
	inEvents      = "e"
	inUndecodable = "u" // events that could not be read: only their bytes can be looked at
	inLetters     = "d"
)

// search is the position of a search: a stage, and the id of the last row in it.
type search struct {
	person customer.Person
	whose  *customerv1.Person
	stage  string
	after  int64
}

func newSearch(whose *customerv1.Person, token string) (s search, err error) {
	s = search{person: customer.Of(whose), whose: whose, stage: inEvents}
	if token == "" {
		return s, nil
	}
	s.stage = token[:1]
	if !slices.Contains([]string{inEvents, inUndecodable, inLetters}, s.stage) || len(token) == 1 {
		return s, pagetoken.ErrInvalid
	}
	s.after, err = pagetoken.ParseID(token[1:], pagetoken.ListOf(whose))
	return s, err
}

// next returns the token with which the search continues: after id, or in the next stage if this one is done; "" at the
// end.
func (s search) next(id int64, done bool) string {
	stage := s.stage
	if done {
		id = 0
		switch stage {
		case inEvents:
			stage = inUndecodable
		case inUndecodable:
			stage = inLetters
		default:
			return ""
		}
	}
	return stage + pagetoken.NewID(id, pagetoken.ListOf(s.whose))
}

// FindPersonalData implements customerv1.PersonalDataServiceServer. Each search is recorded, and each response with
// personal data before it is sent.
func (s personalDataServer) FindPersonalData(ctx context.Context, req *customerv1.FindPersonalDataRequest) (*customerv1.FindPersonalDataResponse, error) {
	at, err := newSearch(req.GetPerson(), req.GetPageToken())
	if err != nil {
		return nil, err
	}
	resp := &customerv1.FindPersonalDataResponse{}
	switch at.stage {
	case inEvents:
		rows, last, done, err := findEvents(ctx, s.db, at)
		if err != nil {
			return nil, err
		}
		for _, r := range rows {
			event, err := r.message()
			if err != nil {
				return nil, err
			}
			resp.Records = append(resp.Records, &customerv1.PersonalRecord{Record: &customerv1.PersonalRecord_Event{Event: event}})
		}
		resp.NextPageToken = at.next(last, done)
	case inUndecodable:
		rows, last, done, err := findUndecodable(ctx, s.db, at)
		if err != nil {
			return nil, err
		}
		for _, r := range rows {
			event, err := r.message()
			if err != nil {
				return nil, err
			}
			resp.Records = append(resp.Records, &customerv1.PersonalRecord{Record: &customerv1.PersonalRecord_Event{Event: event}, Body: r.Body})
		}
		resp.NextPageToken = at.next(last, done)
	default:
		letters, last, done, err := findDeadLetters(ctx, s.db, at)
		if err != nil {
			return nil, err
		}
		for _, l := range letters {
			m, err := l.message(s.horizon)
			if err != nil {
				return nil, err
			}
			headers := &structpb.Struct{}
			if protojson.Unmarshal([]byte(l.Headers), headers) != nil {
				headers = nil
			}
			resp.Records = append(resp.Records, &customerv1.PersonalRecord{Record: &customerv1.PersonalRecord_DeadLetter{DeadLetter: m}, Headers: headers})
		}
		resp.NextPageToken = at.next(last, done)
	}
	// Whatever the token says: who makes one up is recorded, too.
	if len(resp.GetRecords()) == 0 && req.GetPageToken() != "" {
		return resp, nil
	}
	return resp, postgres.InTx(ctx, s.db, func(tx *sqlx.Tx) error {
		return recordAction(ctx, tx, customerv1.CustomerService_ExportCustomer_FullMethodName, at.person.String(), "events and dead letters")
	})
}

// ErasePersonalData implements customerv1.PersonalDataServiceServer. An erased OrderPlaced no longer meets its contract, so
// it cannot be sent again. A dead letter with the person's data is discarded first.
func (s personalDataServer) ErasePersonalData(ctx context.Context, req *customerv1.ErasePersonalDataRequest) (*customerv1.ErasePersonalDataResponse, error) {
	at, err := newSearch(req.GetPerson(), req.GetPageToken())
	if err != nil {
		return nil, err
	}
	resp := &customerv1.ErasePersonalDataResponse{}
	switch at.stage {
	case inEvents:
		rows, last, done, err := findEvents(ctx, s.db, at)
		if err == nil {
			err = s.eraseEvents(ctx, at.person, rows, `payload = payload - $4::text[] || jsonb_build_object('customer_name', $3::text) ||
				CASE WHEN payload ->> 'owner' <> '' THEN jsonb_build_object('owner', $3::text) ELSE '{}' END`, // as customer.Erase
				postgres.ArrayOf(customer.ErasedFields()))
		}
		if err != nil {
			return nil, err
		}
		resp.Events, resp.NextPageToken = int32(len(rows)), at.next(last, done) //nolint:gosec // at most maxFound
	case inUndecodable:
		rows, last, done, err := findUndecodable(ctx, s.db, at)
		if err == nil {
			err = s.eraseEvents(ctx, at.person, rows, `body = convert_to($3::text, 'UTF8')`)
		}
		if err != nil {
			return nil, err
		}
		resp.Events, resp.NextPageToken = int32(len(rows)), at.next(last, done) //nolint:gosec // at most maxFound
	default:
		letters, last, done, err := findDeadLetters(ctx, s.db, at)
		if err == nil {
			err = s.eraseDeadLetters(ctx, at.person, letters)
		}
		if err != nil {
			return nil, err
		}
		resp.DeadLetters, resp.NextPageToken = int32(len(letters)), at.next(last, done) //nolint:gosec // at most maxFound
	}
	return resp, nil
}

// eraseEvents updates the rows with the SQL assignments in set, in which $3 is the text that replaces personal data, and
// records it. An error message with the person's data is erased too.
func (s personalDataServer) eraseEvents(ctx context.Context, person customer.Person, rows []*row, set string, args ...any) error {
	if len(rows) == 0 {
		return nil
	}
	var ids, named []int64
	for _, r := range rows {
		ids = append(ids, r.ID)
		if person.NamedIn([]byte(r.ErrorMessage)) {
			named = append(named, r.ID)
		}
	}
	return postgres.InTx(ctx, s.db, func(tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, `
			UPDATE event_log SET `+set+`, error_message = CASE WHEN id = ANY ($2::bigint[]) THEN $3::text ELSE error_message END
			WHERE id = ANY ($1::bigint[])`, append([]any{postgres.ArrayOf(ids), postgres.ArrayOf(named), customer.Erased}, args...)...)
		if err != nil {
			return fmt.Errorf("erasing a person in %d events: %w", len(rows), err)
		}
		return recordAction(ctx, tx, customerv1.CustomerService_EraseCustomer_FullMethodName, person.String(), fmt.Sprintf("%d events", len(rows)))
	})
}

// eraseDeadLetters erases dead letters. Those that are open are discarded first, because what is left of them cannot be
// redriven.
func (s personalDataServer) eraseDeadLetters(ctx context.Context, person customer.Person, letters []*deadLetter) error {
	if len(letters) == 0 {
		return nil
	}
	for _, l := range letters {
		if l.State == stateOpen {
			// One that was redriven at this moment is as good.
			if _, err := discard(ctx, s.db, l.ID, s.rejectDiscardedOrder); err != nil && apierror.Status(err).Code() != codes.FailedPrecondition {
				return err
			}
		}
	}
	return postgres.InTx(ctx, s.db, func(tx *sqlx.Tx) error {
		for _, l := range letters {
			if person.NamedIn([]byte(l.Reason)) {
				l.Reason = customer.Erased
			}
			_, err := tx.ExecContext(ctx, `UPDATE dead_letter SET body = $2, headers = '{}', reason = $3 WHERE id = $1`, l.ID, l.erasedBody(), l.Reason)
			if err != nil {
				return fmt.Errorf("erasing a person in dead letter %d: %w", l.ID, err)
			}
		}
		return recordAction(ctx, tx, customerv1.CustomerService_EraseCustomer_FullMethodName, person.String(), fmt.Sprintf("%d dead letters", len(letters)))
	})
}

// erasedBody returns what may be kept of a body with personal data.
func (l *deadLetter) erasedBody() []byte {
	m, _ := decode(l.delivery())
	order, ok := m.(*eventsv1.OrderPlaced)
	if !ok {
		return []byte(customer.Erased)
	}
	customer.Erase(order)
	order.ProtoReflect().SetUnknown(nil)
	body, err := proto.Marshal(order)
	if err != nil { // not of a message that was unmarshalled
		return []byte(customer.Erased)
	}
	return body
}

// names reports whether a dead letter contains the person's data: as the customer of an order, or anywhere if it cannot be
// decoded.
func (l *deadLetter) names(person customer.Person) bool {
	if m, _ := decode(l.delivery()); m != nil {
		order, ok := m.(*eventsv1.OrderPlaced)
		if ok && person.Matches(order.GetCustomerEmail(), order.GetOwner()) {
			return true
		}
	}
	return person.NamedIn(l.Body) || person.NamedIn([]byte(l.Headers)) || person.NamedIn([]byte(l.Reason))
}

// findEvents reads the next scanLimit events and returns the orders that the person has placed. last is the last id that it
// has read.
func findEvents(ctx context.Context, db *sqlx.DB, at search) (found []*row, last int64, done bool, err error) {
	var ends struct {
		First int64 `db:"first"`
		Last  int64 `db:"last"`
	}
	if err := db.GetContext(ctx, &ends, "SELECT coalesce(min(id), 0) AS first, coalesce(max(id), 0) AS last FROM event_log"); err != nil {
		return nil, 0, false, fmt.Errorf("reading the ends of the log: %w", postgres.Classify(err))
	}
	after := max(at.after, ends.First-1)
	last = min(after+scanLimit, ends.Last)
	placed, _ := contract.EventOf(&eventsv1.OrderPlaced{})
	rows, err := db.QueryxContext(ctx, selectRows+`
		WHERE routing_key = $1 AND id > $2 AND id <= $3 AND ((payload ->> 'customer_email') COLLATE "C" ILIKE ANY ($4::text[]) OR payload ->> 'owner' = $5)
		ORDER BY id LIMIT $6`, placed.RoutingKey, after, last, postgres.ArrayOf(at.person.Patterns()), at.person.Owner(), maxFound)
	if err != nil {
		return nil, 0, false, fmt.Errorf("looking for a person in the log: %w", postgres.Classify(err))
	}
	defer rows.Close()
	seen, size := 0, 0
	for rows.Next() {
		r := &row{}
		if err := rows.StructScan(r); err != nil {
			return nil, 0, false, fmt.Errorf("looking for a person in the log: %w", err)
		}
		var order struct {
			Email string `json:"customer_email"`
			Owner string `json:"owner"`
		}
		if json.Unmarshal(r.Payload, &order) == nil && at.person.Matches(order.Email, order.Owner) {
			found = append(found, r)
		}
		seen++
		if size += len(r.Payload); seen == maxFound || size > maxReadBytes {
			return found, r.ID, false, nil
		}
	}
	if err := rows.Err(); err != nil {
		return nil, 0, false, fmt.Errorf("looking for a person in the log: %w", postgres.Classify(err))
	}
	return found, last, last >= ends.Last, nil
}

// findUndecodable searches messages of the log that could not be decoded. All of them have the status error, and there are
// few.
func findUndecodable(ctx context.Context, db *sqlx.DB, at search) (found []*row, last int64, done bool, err error) {
	ids, done, err := idsToRead(ctx, db, "event_log WHERE status = 'error' AND payload IS NULL AND id > $1", at.after)
	if err != nil || len(ids) == 0 {
		return nil, 0, done, err
	}
	var rows []*row
	err = db.SelectContext(ctx, &rows, "SELECT "+rowColumns+", body FROM event_log WHERE id = ANY ($1::bigint[]) ORDER BY id", postgres.ArrayOf(ids))
	if err != nil {
		return nil, 0, false, fmt.Errorf("looking for a person in what could not be read: %w", postgres.Classify(err))
	}
	for _, r := range rows {
		if at.person.NamedIn(r.Body) || at.person.NamedIn([]byte(r.ErrorMessage)) {
			found = append(found, r)
		}
	}
	return found, ids[len(ids)-1], done, nil
}

// findDeadLetters searches dead letters.
func findDeadLetters(ctx context.Context, db *sqlx.DB, at search) (found []*deadLetter, last int64, done bool, err error) {
	ids, done, err := idsToRead(ctx, db, "dead_letter WHERE id > $1", at.after)
	if err != nil || len(ids) == 0 {
		return nil, 0, done, err
	}
	var letters []*deadLetter
	err = db.SelectContext(ctx, &letters, selectDeadLetter+", headers, body FROM dead_letter WHERE id = ANY ($1::bigint[]) ORDER BY id", postgres.ArrayOf(ids))
	if err != nil {
		return nil, 0, false, fmt.Errorf("looking for a person in dead letters: %w", postgres.Classify(err))
	}
	for _, l := range letters {
		if l.names(at.person) {
			found = append(found, l)
		}
	}
	return found, ids[len(ids)-1], done, nil
}

// idsToRead returns the first ids of rows whose bodies are read together, and whether no others follow. from is a table
// with its condition, in which $1 is after.
func idsToRead(ctx context.Context, db *sqlx.DB, from string, after int64) (ids []int64, done bool, err error) {
	var rows []struct {
		ID   int64 `db:"id"`
		Size int   `db:"size"`
	}
	if err := db.SelectContext(ctx, &rows, "SELECT id, octet_length(body) AS size FROM "+from+" ORDER BY id LIMIT $2", after, maxFound); err != nil {
		return nil, false, fmt.Errorf("looking for a person: %w", postgres.Classify(err))
	}
	size := 0
	for _, r := range rows {
		if size += r.Size; size > maxRead && len(ids) > 0 {
			return ids, false, nil
		}
		ids = append(ids, r.ID)
	}
	return ids, len(rows) < maxFound, nil
}
