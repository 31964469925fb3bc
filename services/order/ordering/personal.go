package ordering

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"google.golang.org/protobuf/proto"

	"shop.example/domain/customer"
	"shop.example/domain/enduser"
	customerv1 "shop.example/gen/shop/customer/v1"
	"shop.example/platform/outbox"
	"shop.example/platform/postgres"
)

const (
	// scanLimit is how many orders one call reads. There is no index on addresses, because it would slow down storing every
	// order.
	scanLimit = 100_000
	// maxFound is how many orders a call returns or erases, and maxBytes about how many bytes it returns.
	maxFound = 200
	maxBytes = 1 << 20
)

// personalDataServer serves PersonalDataService for the orders.
type personalDataServer struct {
	customerv1.UnimplementedPersonalDataServiceServer
	*Service
}

// FindPersonalData implements customerv1.PersonalDataServiceServer. Each search is recorded, and each response with
// personal data before it is sent.
func (s personalDataServer) FindPersonalData(ctx context.Context, req *customerv1.FindPersonalDataRequest) (*customerv1.FindPersonalDataResponse, error) {
	person, after, err := parsePerson(req.GetPerson(), req.GetPageToken())
	if err != nil {
		return nil, err
	}
	orders, next, err := findOrdersOf(ctx, s.db, person, after)
	if err != nil {
		return nil, err
	}
	if err := addLines(ctx, s.db, orders); err != nil {
		return nil, err
	}
	resp := &customerv1.FindPersonalDataResponse{}
	size := 0
	for _, o := range orders {
		if size > maxBytes {
			break
		}
		r := &customerv1.PersonalRecord{Record: &customerv1.PersonalRecord_Order{Order: o.message()}, Owner: o.Owner}
		resp.Records = append(resp.Records, r)
		size += proto.Size(r)
	}
	if n := len(resp.GetRecords()); n < len(orders) {
		next = positionAfter(orders[n-1])
	}
	resp.NextPageToken = nextPageToken(next, req.GetPerson())
	// Whatever the token says: who makes one up is recorded, too.
	if len(resp.GetRecords()) == 0 && req.GetPageToken() != "" {
		return resp, nil
	}
	err = postgres.InTx(ctx, s.db, func(tx *sqlx.Tx) error {
		return recordAction(ctx, tx, customerv1.CustomerService_ExportCustomer_FullMethodName, person, "orders")
	})
	if err != nil {
		return nil, err
	}
	s.wake()
	return resp, nil
}

// ErasePersonalData implements customerv1.PersonalDataServiceServer. A redelivered order is not compared with an erased
// one, because the fingerprint contains who placed it. An erased order that belonged to somebody then belongs to nobody, so
// that only operators may cancel it and not everybody who knows its id. Claims of idempotency keys stay, because they are
// keyed hashes.
func (s personalDataServer) ErasePersonalData(ctx context.Context, req *customerv1.ErasePersonalDataRequest) (*customerv1.ErasePersonalDataResponse, error) {
	person, after, err := parsePerson(req.GetPerson(), req.GetPageToken())
	if err != nil {
		return nil, err
	}
	var orders []*Order
	var next position
	err = postgres.InTx(ctx, s.db, func(tx *sqlx.Tx) (err error) {
		if orders, next, err = findOrdersOf(ctx, tx, person, after); err != nil || len(orders) == 0 {
			return err
		}
		_, err = tx.ExecContext(ctx, `
			UPDATE orders SET customer_name = $2, customer_email = $2, owner = CASE WHEN owner <> '' THEN $2 END, fingerprint = NULL WHERE id = ANY ($1::uuid[])`,
			postgres.Array(orders, func(o *Order) uuid.UUID { return o.ID }), customer.Erased)
		if err != nil {
			return fmt.Errorf("erasing who placed %d orders: %w", len(orders), err)
		}
		return recordAction(ctx, tx, customerv1.CustomerService_EraseCustomer_FullMethodName, person, fmt.Sprintf("%d orders", len(orders)))
	})
	if err != nil {
		return nil, err
	}
	if len(orders) > 0 {
		s.wake()
	}
	return &customerv1.ErasePersonalDataResponse{Orders: int32(len(orders)), NextPageToken: nextPageToken(next, req.GetPerson())}, nil //nolint:gosec // at most maxFound
}

func recordAction(ctx context.Context, tx *sqlx.Tx, method string, person customer.Person, detail string) error {
	return outbox.Add(ctx, tx, []outbox.Entry{{Message: enduser.Acted(enduser.Operator(ctx), method, person.String(), detail)}})
}

// parsePerson returns the person that a request names, and the position to continue at.
func parsePerson(p *customerv1.Person, token string) (customer.Person, position, error) {
	after, err := parsePosition(token, tokenFilter(p))
	return customer.Of(p), after, err
}

func nextPageToken(next position, p *customerv1.Person) string {
	if next == listEnd {
		return ""
	}
	return next.token(tokenFilter(p))
}

func tokenFilter(p *customerv1.Person) string {
	return "personal data " + p.GetEmail() + " " + p.GetOwner()
}

// findOrdersOf reads the next scanLimit orders after a position, the newest first, and returns those of the person, without
// their lines, and the position to continue at; listEnd if there are no more.
func findOrdersOf(ctx context.Context, q sqlx.QueryerContext, person customer.Person, after position) (found []*Order, next position, err error) {
	if next, err = endOfScan(ctx, q, "", after, scanLimit); err != nil {
		return nil, next, err
	}
	var rows []*Order
	err = sqlx.SelectContext(ctx, q, &rows, selectOrders+`
		WHERE (created_at, id) < ($1::timestamptz, $2::uuid) AND (created_at, id) >= ($3::timestamptz, $4::uuid)
		    AND (customer_email COLLATE "C" ILIKE ANY ($5::text[]) OR owner = $6)
		ORDER BY created_at DESC, id DESC LIMIT $7`,
		after.sqlTime(), after.id, next.sqlTime(), next.id, postgres.ArrayOf(person.Patterns()), person.Owner(), maxFound)
	if err != nil {
		return nil, next, fmt.Errorf("looking for the orders of a person: %w", postgres.Classify(err))
	}
	if len(rows) == maxFound {
		next = positionAfter(rows[len(rows)-1])
	}
	for _, o := range rows {
		if person.Matches(o.CustomerEmail, o.Owner) {
			found = append(found, o)
		}
	}
	return found, next, nil
}
