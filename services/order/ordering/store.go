package ordering

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"google.golang.org/protobuf/types/known/timestamppb"

	"shop.example/domain/customer"
	"shop.example/domain/money"
	eventsv1 "shop.example/gen/shop/events/v1"
	orderv1 "shop.example/gen/shop/order/v1"
	"shop.example/platform/messaging"
	"shop.example/platform/pagetoken"
	"shop.example/platform/postgres"
)

// errNotFound means that no order is stored under the id.
var errNotFound = errors.New("no such order")

// insertOrders writes the orders that are not stored yet, with their lines, and returns their ids. Ordered by id, two
// transactions with the same orders wait for each other and never both ways. A price of -1 is not known.
const insertOrders = postgres.Prepared + `
WITH stored AS (
    INSERT INTO orders (id, customer_name, customer_email, state, reason, detail,
                        total_items, total_value, currency, created_at, updated_at, fingerprint, owner)
    SELECT id, customer_name, customer_email, state, NULLIF(reason, ''), detail, total_items,
           CASE WHEN currency <> '' THEN total_value END, NULLIF(currency, ''), created_at, updated_at, fingerprint, NULLIF(owner, '')
    FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[],
                $7::integer[], $8::bigint[], $9::text[], $10::timestamptz[], $11::timestamptz[], $18::bytea[], $19::text[])
        AS o (id, customer_name, customer_email, state, reason, detail,
              total_items, total_value, currency, created_at, updated_at, fingerprint, owner)
    ORDER BY id
    ON CONFLICT (id) DO NOTHING
    RETURNING id
), items AS (
    INSERT INTO order_item (order_id, line, product_id, product_name, quantity, unit_price)
    SELECT order_id, line, product_id, product_name, quantity, NULLIF(unit_price, -1)
    FROM unnest($12::uuid[], $13::integer[], $14::integer[], $15::text[], $16::integer[], $17::bigint[])
        AS i (order_id, line, product_id, product_name, quantity, unit_price)
    WHERE order_id IN (SELECT id FROM stored)
)
SELECT id FROM stored`

// lineRow is a row of order_item.
type lineRow struct {
	OrderID uuid.UUID `db:"order_id"`
	Line
}

// storeOrders stores decided orders with their lines, and returns the ids of those that were not stored before; the others
// stay as they are. If another open transaction has inserted one of them, it waits for that one to end.
func storeOrders(ctx context.Context, tx *sqlx.Tx, orders []*Order) (fresh map[uuid.UUID]bool, err error) {
	var lines []lineRow
	for _, o := range orders {
		for _, l := range o.Lines {
			if o.Currency == "" {
				l.UnitPrice = -1
			}
			lines = append(lines, lineRow{o.ID, l})
		}
	}
	var ids []uuid.UUID
	err = tx.SelectContext(ctx, &ids, insertOrders,
		postgres.Array(orders, func(o *Order) uuid.UUID { return o.ID }),
		postgres.Array(orders, func(o *Order) string { return o.CustomerName }),
		postgres.Array(orders, func(o *Order) string { return o.CustomerEmail }),
		postgres.Array(orders, func(o *Order) string { return string(o.State) }),
		postgres.Array(orders, func(o *Order) string { return o.Reason }),
		postgres.Array(orders, func(o *Order) string { return o.Detail }),
		postgres.Array(orders, func(o *Order) int32 { return o.TotalItems }),
		postgres.Array(orders, func(o *Order) int64 { return o.TotalValue }),
		postgres.Array(orders, func(o *Order) string { return o.Currency }),
		postgres.Array(orders, func(o *Order) time.Time { return o.CreatedAt }),
		postgres.Array(orders, func(o *Order) time.Time { return o.UpdatedAt }),

		postgres.Array(lines, func(l lineRow) uuid.UUID { return l.OrderID }),
		postgres.Array(lines, func(l lineRow) int32 { return l.Number }),
		postgres.Array(lines, func(l lineRow) int32 { return l.ProductID }),
		postgres.Array(lines, func(l lineRow) string { return l.ProductName }),
		postgres.Array(lines, func(l lineRow) int32 { return l.Quantity }),
		postgres.Array(lines, func(l lineRow) int64 { return l.UnitPrice }),

		postgres.Array(orders, func(o *Order) []byte { return o.Fingerprint }),
		postgres.Array(orders, func(o *Order) string { return o.Owner }),
	)
	if err != nil {
		return nil, fmt.Errorf("storing %d orders: %w", len(orders), err)
	}
	fresh = make(map[uuid.UUID]bool, len(ids))
	for _, id := range ids {
		fresh[id] = true
	}
	return fresh, nil
}

// compareStored returns errContentDiffers, as Permanent, if one of the orders is stored with other content. Orders that are
// stored without a fingerprint, by an older release or because personal data were erased, cannot be compared.
func compareStored(ctx context.Context, tx *sqlx.Tx, orders []*Order) error {
	var different []uuid.UUID
	err := tx.SelectContext(ctx, &different, `
		SELECT id FROM orders JOIN unnest($1::uuid[], $2::bytea[]) AS came (id, fingerprint) USING (id)
		WHERE orders.fingerprint <> came.fingerprint LIMIT 1`,
		postgres.Array(orders, func(o *Order) uuid.UUID { return o.ID }),
		postgres.Array(orders, func(o *Order) []byte { return o.Fingerprint }))
	if err != nil {
		return fmt.Errorf("comparing orders that came again: %w", err)
	}
	if len(different) > 0 {
		return messaging.Permanent(fmt.Errorf("order %s: %w", different[0], errContentDiffers))
	}
	return nil
}

// claim is the wish of an order for an idempotency key, given by its hash.
type claim struct {
	keyHash []byte
	orderID uuid.UUID
}

// keyOwner is a row of idempotency_key.
type keyOwner struct {
	KeyHash []byte    `db:"key_hash"`
	OrderID uuid.UUID `db:"order_id"`
}

// Ordered by key, two transactions that claim the same keys wait for each other and never both ways.
const insertClaims = postgres.Prepared + `
INSERT INTO idempotency_key (key_hash, order_id)
SELECT key_hash, order_id FROM unnest($1::bytea[], $2::uuid[]) AS claim (key_hash, order_id)
ORDER BY key_hash
ON CONFLICT DO NOTHING
RETURNING key_hash, order_id`

// claimKeys gives each key that is free to the order that claims it, durably, and returns the owner of each key. If another
// open transaction has claimed one of them, it waits for that one to end. claims must contain each key only once.
func claimKeys(ctx context.Context, db *sqlx.DB, claims []claim) (owners map[string]uuid.UUID, err error) {
	var rows []keyOwner
	err = db.SelectContext(ctx, &rows, insertClaims,
		postgres.Array(claims, func(c claim) []byte { return c.keyHash }),
		postgres.Array(claims, func(c claim) uuid.UUID { return c.orderID }))
	if err != nil {
		return nil, fmt.Errorf("claiming %d idempotency keys: %w", len(claims), postgres.Classify(err))
	}
	if len(rows) < len(claims) {
		if rows, err = keyOwners(ctx, db, postgres.Array(claims, func(c claim) []byte { return c.keyHash })); err != nil {
			return nil, err
		}
	}
	if len(rows) < len(claims) {
		return nil, fmt.Errorf("claiming %d idempotency keys: one has just expired: %w", len(claims), postgres.ErrRetry)
	}
	owners = make(map[string]uuid.UUID, len(rows))
	for _, r := range rows {
		owners[string(r.KeyHash)] = r.OrderID
	}
	return owners, nil
}

// keyOwners returns the owners of keys, given as an array of their hashes, without those that are free.
func keyOwners(ctx context.Context, db *sqlx.DB, hashes []byte) (rows []keyOwner, err error) {
	err = db.SelectContext(ctx, &rows, postgres.Prepared+`
		SELECT key_hash, order_id FROM idempotency_key WHERE key_hash = ANY ($1::bytea[])`, hashes)
	if err != nil {
		return nil, fmt.Errorf("reading whose idempotency keys are: %w", postgres.Classify(err))
	}
	return rows, nil
}

// missingOrders returns those of the ids under which no order is stored.
func missingOrders(ctx context.Context, q sqlx.QueryerContext, ids []uuid.UUID) (missing []uuid.UUID, err error) {
	err = sqlx.SelectContext(ctx, q, &missing, postgres.Prepared+`
		SELECT id FROM unnest($1::uuid[]) AS asked (id) WHERE NOT EXISTS (SELECT FROM orders WHERE orders.id = asked.id)`, postgres.ArrayOf(ids))
	if err != nil {
		return nil, fmt.Errorf("looking for %d orders: %w", len(ids), postgres.Classify(err))
	}
	return missing, nil
}

const selectOrders = `
SELECT id, customer_name, customer_email, state, COALESCE(reason, '') AS reason, detail, total_items,
       COALESCE(total_value, 0) AS total_value, COALESCE(currency, '') AS currency, created_at, updated_at,
       COALESCE(owner, '') AS owner
FROM orders `

// getOrder reads an order with its lines; errNotFound if there is none. With lock the row is locked until the transaction
// of q ends.
func getOrder(ctx context.Context, q sqlx.QueryerContext, id uuid.UUID, lock bool) (*Order, error) {
	query := selectOrders + `WHERE id = $1`
	if lock {
		query += ` FOR UPDATE`
	}
	var o Order
	err := sqlx.GetContext(ctx, q, &o, query, id)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, fmt.Errorf("order %s: %w", id, errNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("reading order %s: %w", id, postgres.Classify(err))
	}
	if err := addLines(ctx, q, []*Order{&o}); err != nil {
		return nil, err
	}
	return &o, nil
}

// One call of a search reads searchLimit orders, or itemSearchLimit if it looks at their items: less than 50 ms on a machine that
// does nothing else, with 10,000,000 orders.
const (
	searchLimit     = 20_000
	itemSearchLimit = 4_000
)

// maxPageBytes bounds the lines of a page of orders, in bytes: 1,000 of the largest have 90 MB.
const maxPageBytes = 1 << 20

// orderFilter says which orders a list has.
type orderFilter struct {
	state State  // "" for any
	owner string // "" for any
	// All are placed at since or later, and before the other time; listEnd is no bound.
	since, before position
	// What follows is searched for, order by order: there is no index on it, because it would slow down storing every order.
	idSuffix string           // "" for any
	customer *customer.Person // nil for any
	product  int32            // 0 for any
}

// searches reports whether many orders may be read for one that is wanted. Confirmed ones have no index, because nearly all are: if
// nearly none of the last ones was, because a product had sold out, they are searched for, too.
func (f *orderFilter) searches() bool {
	return f.idSuffix != "" || f.customer != nil || f.product != 0 || f.state == Confirmed && f.owner == ""
}

func (f *orderFilter) searchLimit() int {
	if f.product != 0 {
		return itemSearchLimit
	}
	return searchLimit
}

// listOrders reads up to limit orders with their lines that follow after, the newest first, and fewer if they are large. A search
// reads no more orders than its limit. next is where the next page begins, or listEnd.
func listOrders(ctx context.Context, q sqlx.QueryerContext, f *orderFilter, after position, limit int) (orders []*Order, next position, err error) {
	if after == listStart && f.before != listEnd {
		after = f.before
	}
	next = listEnd
	var patterns any // of addresses; NULL for any
	if f.searches() {
		if next, err = endOfScan(ctx, q, f.owner, after, f.searchLimit()); err != nil {
			return nil, next, err
		}
		if f.customer != nil {
			patterns = postgres.ArrayOf(f.customer.Patterns())
		}
	}
	var rows []*Order
	err = sqlx.SelectContext(ctx, q, &rows, selectOrders+`
		WHERE ($1 = '' OR state = $1) AND ($2 = '' OR owner = $2) AND (created_at, id) < ($3::timestamptz, $4::uuid)
			AND created_at >= $6::timestamptz AND (created_at, id) >= ($7::timestamptz, $8::uuid)
			AND ($9 = '' OR id::text LIKE '%' || $9)
			AND ($10::text[] IS NULL OR customer_email COLLATE "C" ILIKE ANY ($10))
			AND ($11 = 0 OR EXISTS (SELECT FROM order_item WHERE order_id = orders.id AND product_id = $11))
		ORDER BY created_at DESC, id DESC
		LIMIT $5`, string(f.state), f.owner, after.sqlTime(), after.id, limit+1, // one more tells whether another page follows
		f.since.sqlTime(), next.sqlTime(), next.id, f.idSuffix, patterns, f.product)
	if err != nil {
		return nil, next, fmt.Errorf("listing orders: %w", postgres.Classify(err))
	}
	if len(rows) > limit {
		next = positionAfter(rows[limit-1])
		rows = rows[:limit]
	}
	if f.customer != nil {
		rows = slices.DeleteFunc(rows, func(o *Order) bool { return !f.customer.Matches(o.CustomerEmail, o.Owner) })
	}
	if next.micros < f.since.micros { // whatever follows is older
		next = listEnd
	}
	fit, err := countFitting(ctx, q, rows)
	if err != nil {
		return nil, next, err
	}
	if fit < len(rows) {
		next = positionAfter(rows[fit-1])
	}
	return rows[:fit], next, addLines(ctx, q, rows[:fit])
}

// endOfScan returns the position of the limit-th order of an owner, "" for any, that follows after, the newest first; listEnd if there
// are fewer. A page's token contains its id, so it must be one that the caller may see.
func endOfScan(ctx context.Context, q sqlx.QueryerContext, owner string, after position, limit int) (position, error) {
	var end Order
	err := sqlx.GetContext(ctx, q, &end, `
		SELECT id, created_at FROM orders WHERE (created_at, id) < ($1::timestamptz, $2::uuid) AND ($4 = '' OR owner = $4)
		ORDER BY created_at DESC, id DESC OFFSET $3 LIMIT 1`, after.sqlTime(), after.id, limit-1, owner)
	switch {
	case err == nil:
		return positionAfter(&end), nil
	case errors.Is(err, sql.ErrNoRows):
		return listEnd, nil
	default:
		return listEnd, fmt.Errorf("looking for the end of the next orders to read: %w", postgres.Classify(err))
	}
}

// countFitting returns how many of the orders, at least one if there are any, have lines of at most maxPageBytes bytes.
func countFitting(ctx context.Context, q sqlx.QueryerContext, orders []*Order) (n int, err error) {
	var sizes []struct {
		OrderID uuid.UUID `db:"order_id"`
		Size    int       `db:"size"`
	}
	err = sqlx.SelectContext(ctx, q, &sizes, `
		SELECT order_id, sum(octet_length(product_name) + 50) AS size
		FROM order_item WHERE order_id = ANY ($1::uuid[]) GROUP BY order_id`,
		postgres.Array(orders, func(o *Order) uuid.UUID { return o.ID }))
	if err != nil {
		return 0, fmt.Errorf("reading the sizes of %d orders: %w", len(orders), postgres.Classify(err))
	}
	size := make(map[uuid.UUID]int, len(sizes))
	for _, s := range sizes {
		size[s.OrderID] = s.Size
	}
	for page := 0; n < len(orders); n++ {
		if page += size[orders[n].ID]; n > 0 && page > maxPageBytes {
			break
		}
	}
	return n, nil
}

// addLines reads the lines of orders. Lines are stored with their order and never change, so a second statement sees the
// same state as the first.
func addLines(ctx context.Context, q sqlx.QueryerContext, orders []*Order) error {
	byID := make(map[uuid.UUID]*Order, len(orders))
	for _, o := range orders {
		byID[o.ID] = o
	}
	var lines []lineRow
	err := sqlx.SelectContext(ctx, q, &lines, `
		SELECT order_id, line, product_id, product_name, quantity, COALESCE(unit_price, 0) AS unit_price
		FROM order_item WHERE order_id = ANY ($1::uuid[]) ORDER BY order_id, line`,
		postgres.Array(orders, func(o *Order) uuid.UUID { return o.ID }))
	if err != nil {
		return fmt.Errorf("reading the lines of %d orders: %w", len(orders), postgres.Classify(err))
	}
	for _, l := range lines {
		o := byID[l.OrderID]
		o.Lines = append(o.Lines, l.Line)
	}
	return nil
}

// updateState writes the state of an order that getOrder has locked.
func updateState(ctx context.Context, tx *sqlx.Tx, o *Order) error {
	_, err := tx.ExecContext(ctx, `UPDATE orders SET state = $2, updated_at = $3, version = version + 1 WHERE id = $1`,
		o.ID, string(o.State), o.UpdatedAt)
	if err != nil {
		return fmt.Errorf("storing state %s of order %s: %w", o.State, o.ID, err)
	}
	return nil
}

// position is a position in the list of orders: behind the order that was placed at this time, in microseconds since 1970,
// and has this id. Orders that are placed later do not move it.
type position struct {
	micros int64
	id     uuid.UUID
}

// listStart is the position before the first order, and listEnd the one after the last.
var (
	listStart = position{micros: -1, id: uuid.Max}
	listEnd   = position{micros: math.MinInt64}
)

func (p position) sqlTime() string {
	switch p {
	case listStart:
		return "infinity"
	case listEnd:
		return "-infinity"
	}
	return time.UnixMicro(p.micros).UTC().Format(time.RFC3339Nano)
}

// positionAfter returns the position behind o in the list.
func positionAfter(o *Order) position { return position{o.CreatedAt.UnixMicro(), o.ID} }

// token returns the position as a page token of the list with this filter.
func (p position) token(filter string) string {
	return pagetoken.New(append(binary.BigEndian.AppendUint64(nil, uint64(p.micros)), p.id[:]...), filter)
}

// parsePosition parses a page token of the list with this filter; "" is the first page.
func parsePosition(token, filter string) (position, error) {
	if token == "" {
		return listStart, nil
	}
	b, err := pagetoken.Parse(token, filter, 8+16)
	if err != nil {
		return position{}, err
	}
	p := position{int64(binary.BigEndian.Uint64(b)), uuid.UUID(b[8:])}
	if year := time.UnixMicro(p.micros).UTC().Year(); year < 1 || year > 9999 { // what a Timestamp holds
		return position{}, pagetoken.ErrInvalid
	}
	return p, nil
}

// message returns the order in the form of the contracts.
func (o *Order) message() *orderv1.Order {
	m := &orderv1.Order{
		Id:            o.ID.String(),
		State:         orderv1.Order_State(orderv1.Order_State_value[string(o.State)]),
		CustomerName:  o.CustomerName,
		CustomerEmail: o.CustomerEmail,
		TotalItems:    o.TotalItems,
		CreatedAt:     timestamppb.New(o.CreatedAt),
		UpdatedAt:     timestamppb.New(o.UpdatedAt),
	}
	if o.Reason != "" {
		m.Reason, m.RejectionDetail = o.reason().Enum(), &o.Detail
	}
	if o.Currency != "" {
		m.TotalValue = money.FromMinor(o.TotalValue, o.Currency)
	}
	for _, l := range o.Lines {
		item := &orderv1.OrderItem{Line: l.Number, ProductId: l.ProductID, ProductName: l.ProductName, Quantity: l.Quantity}
		if o.Currency != "" {
			item.UnitPrice = money.FromMinor(l.UnitPrice, o.Currency)
		}
		m.OrderItems = append(m.OrderItems, item)
	}
	return m
}

// reason returns o.Reason as the contracts' value; it is stored as a number if it came from a newer release than this one.
func (o *Order) reason() eventsv1.OrderRejected_Reason {
	if value, known := eventsv1.OrderRejected_Reason_value[o.Reason]; known {
		return eventsv1.OrderRejected_Reason(value)
	}
	number, _ := strconv.ParseInt(o.Reason, 10, 32) // 0 is "not said"
	return eventsv1.OrderRejected_Reason(number)
}
