package stock

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"shop.example/domain/enduser"
	"shop.example/domain/orderid"
	eventsv1 "shop.example/gen/shop/events/v1"
	inventoryv1 "shop.example/gen/shop/inventory/v1"
	"shop.example/platform/apierror"
	"shop.example/platform/failpoint"
	"shop.example/platform/outbox"
	"shop.example/platform/postgres"
)

// Whoever changes stock locks first the decisions of the orders it is about, which guard their holds, and then the
// products, both in the order of their ids: so transactions follow one another and cannot deadlock. Products come last
// because all orders want the same few of them: whoever has them is soon done. What is read after its lock stays true
// until commit.

// product is a row of the catalogue with its stock.
type product struct {
	ID        int32     `db:"id"`
	Name      string    `db:"name"`
	UnitPrice int64     `db:"unit_price"` // minor units
	Currency  string    `db:"currency"`
	OnHand    int32     `db:"on_hand"`
	Reserved  int32     `db:"reserved"`
	Version   int64     `db:"version"`
	CreatedAt time.Time `db:"created_at"`
	UpdatedAt time.Time `db:"updated_at"`
}

const productColumns = `p.id, p.name, p.unit_price, p.currency, p.on_hand, p.reserved, p.version, p.created_at, p.updated_at`

// available returns how many pieces can still be sold.
func (p product) available() int32 { return p.OnHand - p.Reserved }

func (p product) price() price { return price{p.UnitPrice, p.Currency} }

// stockChange is a product after its stock has changed.
type stockChange struct {
	product
	before int32 // how many pieces could be sold before
}

func (c stockChange) depleted() bool { return c.before > 0 && c.available() == 0 }

// stockDeltas are the changes of products' stock, by product id.
type stockDeltas map[int32]stockDelta

type stockDelta struct{ onHand, reserved int32 }

// add adds the changes for holds: onHand and reserved for each piece.
func (d stockDeltas) add(holds []hold, onHand, reserved int32) {
	for _, h := range holds {
		sum := d[h.ProductID]
		sum.onHand += h.Quantity * onHand
		sum.reserved += h.Quantity * reserved
		d[h.ProductID] = sum
	}
}

// hold is the stock of one product that is held for an order.
type hold struct {
	OrderID   uuid.UUID `db:"order_id"`
	ProductID int32     `db:"product_id"`
	Quantity  int32     `db:"quantity"`
}

type holdState string

const (
	held     holdState = "HELD"
	settled  holdState = "SETTLED"
	released holdState = "RELEASED"
)

// movement is the reason for a change of on_hand.
type movement string

const (
	created   movement = "CREATED"
	adjusted  movement = "ADJUSTED"
	sold      movement = "SOLD"
	restocked movement = "RESTOCKED"
)

// store changes stock and catalogue, for calls and messages. Its methods may be called concurrently, in any number of
// processes.
type store struct {
	db       *sqlx.DB
	log      *slog.Logger
	currency string
	wake     func() // tells the relay that the outbox has something
	repeats  *outbox.Duplicates
}

// changeStock runs f in a transaction that also publishes f's changes through the outbox, and logs them after the commit.
// If the transaction loses against another one, it is run once more with f.
func (st *store) changeStock(ctx context.Context, f func(tx *sqlx.Tx) ([]stockChange, error)) error {
	var changes []stockChange
	attempt := func(tx *sqlx.Tx) (err error) {
		if changes, err = f(tx); err != nil {
			return err
		}
		return outbox.Add(ctx, tx, stockEvents(changes))
	}
	err := postgres.InTx(ctx, st.db, attempt)
	if errors.Is(err, postgres.ErrRetry) {
		err = postgres.InTx(ctx, st.db, attempt)
	}
	if err != nil || len(changes) == 0 {
		return err
	}
	st.wake()
	for _, c := range changes {
		st.log.LogAttrs(ctx, slog.LevelInfo, "stock updated", slog.String("product", c.Name),
			slog.Int("on_hand", int(c.OnHand)), slog.Int("reserved", int(c.Reserved)), slog.Int("quantity", int(c.available())))
	}
	return nil
}

// changeCatalogue runs f as changeStock does, and records that operator did it, with method, the full name of a gRPC method
// or a message. If f returns no changes nothing is recorded.
func (st *store) changeCatalogue(ctx context.Context, operator, method string, f func(tx *sqlx.Tx) (catalogueChange, error)) (done catalogueChange, err error) {
	err = st.changeStock(ctx, func(tx *sqlx.Tx) (_ []stockChange, err error) {
		if done, err = f(tx); err != nil {
			return nil, err
		}
		acts := make([]outbox.Entry, len(done.actions))
		for i, d := range done.actions {
			acts[i].Message = enduser.Acted(operator, method, fmt.Sprintf("item %d", d.product), d.detail)
		}
		return done.stock, outbox.Add(ctx, tx, acts)
	})
	if err == nil && len(done.actions) > 0 {
		st.wake()
	}
	return done, err
}

// stockEvents returns a StockChanged for each change, and a StockDepleted if no piece is left.
func stockEvents(changes []stockChange) []outbox.Entry {
	entries := make([]outbox.Entry, 0, len(changes))
	for _, c := range changes {
		at := timestamppb.New(c.UpdatedAt)
		entries = append(entries, outbox.Entry{Message: &eventsv1.StockChanged{
			ProductId: c.ID, Version: c.Version, ProductName: c.Name, OnHand: c.OnHand, Reserved: c.Reserved, ChangedAt: at,
		}})
		if c.depleted() {
			entries = append(entries, outbox.Entry{Message: &eventsv1.StockDepleted{
				ProductId: c.ID, Version: c.Version, ProductName: c.Name, DepletedAt: at,
			}})
		}
	}
	return entries
}

// logDecisions logs a line for each order.
func (st *store) logDecisions(ctx context.Context, decided []decision) {
	if !st.log.Enabled(ctx, slog.LevelInfo) {
		return
	}
	for _, d := range decided {
		id := orderid.Attr(d.order.id.String())
		if d.reason == "" {
			st.log.LogAttrs(ctx, slog.LevelInfo, "stock available", id,
				slog.Int("lines", len(d.lines)), slog.Int64("pieces", d.pieces()))
			continue
		}
		st.log.LogAttrs(ctx, slog.LevelInfo, "stock refused", id,
			slog.String("reason", string(d.reason)), slog.String("detail", d.detail))
	}
}

// checkResult is the outcome of one call of check.
type checkResult struct {
	decisions map[uuid.UUID]*inventoryv1.StockDecision // every order that was asked about
	fresh     []decision                               // those that were decided by this call
}

// check decides orders, holds their stock and stores the decisions, all in one transaction. An order that was decided
// before gets the same answer again. If an order id comes with other lines than before, the whole call fails with
// ORDER_LINES_DIFFER, which names the order, and nothing is decided.
func (st *store) check(ctx context.Context, orders []order) (a checkResult, err error) {
	decideAll := func(tx *sqlx.Tx) (changes []stockChange, err error) {
		a, changes, err = checkTx(ctx, tx, orders)
		return changes, err
	}
	err = st.changeStock(ctx, decideAll)
	if errors.Is(err, postgres.ErrUnique) {
		// Another replica has just decided one of these, and its decision can be read now.
		err = st.changeStock(ctx, decideAll)
	}
	return a, err
}

func checkTx(ctx context.Context, tx *sqlx.Tx, orders []order) (checkResult, []stockChange, error) {
	byOrder, undecided, err := readDecisions(ctx, tx, orders)
	if err != nil {
		return checkResult{}, nil, err
	}
	if len(byOrder) > 0 {
		if err := renewHolds(ctx, tx, byOrder); err != nil {
			return checkResult{}, nil, err
		}
	}
	if len(undecided) == 0 {
		return checkResult{decisions: byOrder}, nil, nil
	}
	products, err := lockProducts(ctx, tx, undecided)
	if err != nil {
		return checkResult{}, nil, err
	}
	a := checkResult{decisions: byOrder, fresh: decide(products, undecided)}
	var holds []hold
	for _, d := range a.fresh {
		byOrder[d.order.id] = d.message()
		holds = append(holds, d.holds...)
	}
	taken := stockDeltas{}
	taken.add(holds, 0, +1)
	changes, err := updateStock(ctx, tx, taken)
	if err != nil {
		return checkResult{}, nil, err
	}
	if err := insertDecisions(ctx, tx, a); err != nil {
		return checkResult{}, nil, err
	}
	if err := insertHolds(ctx, tx, holds); err != nil {
		return checkResult{}, nil, err
	}
	failpoint.Hit("inventory.uncommitted")
	return a, changes, nil
}

// lockProducts locks and reads the products that the orders name.
func lockProducts(ctx context.Context, tx *sqlx.Tx, orders []order) ([]product, error) {
	ids, names := map[int32]bool{}, map[string]bool{}
	for _, o := range orders {
		for _, l := range o.lines {
			if l.productName != "" {
				names[l.productName] = true
			} else {
				ids[l.productID] = true
			}
		}
	}
	var products []product
	err := tx.SelectContext(ctx, &products, postgres.Prepared+`
		SELECT `+productColumns+` FROM product p
		WHERE p.deleted_at IS NULL AND (p.id = ANY($1::int[]) OR p.name = ANY($2::text[]))
		ORDER BY p.id FOR UPDATE`,
		postgres.ArrayOf(slices.Collect(maps.Keys(ids))), postgres.ArrayOf(slices.Collect(maps.Keys(names))))
	if err != nil {
		return nil, fmt.Errorf("locking the products of %d orders: %w", len(orders), err)
	}
	return products, nil
}

// readDecisions returns the answers of orders that were decided before, and the orders that were not, each once. Decisions
// that are repeated are locked, so that they cannot be deleted before the answer is sent.
func readDecisions(ctx context.Context, tx *sqlx.Tx, orders []order) (map[uuid.UUID]*inventoryv1.StockDecision, []order, error) {
	var rows []struct {
		OrderID   uuid.UUID `db:"order_id"`
		LinesHash []byte    `db:"lines_hash"`
		Answer    []byte    `db:"answer"`
	}
	err := tx.SelectContext(ctx, &rows, postgres.Prepared+`
		SELECT order_id, lines_hash, answer FROM decision WHERE order_id = ANY($1::uuid[])
		ORDER BY order_id FOR NO KEY UPDATE`, postgres.Array(orders, func(o order) uuid.UUID { return o.id }))
	if err != nil {
		return nil, nil, fmt.Errorf("reading the decisions of %d orders: %w", len(orders), err)
	}
	answers := make(map[uuid.UUID]*inventoryv1.StockDecision, len(orders))
	hashes := make(map[uuid.UUID]string, len(orders))
	for _, r := range rows {
		answer := &inventoryv1.StockDecision{}
		if err := proto.Unmarshal(r.Answer, answer); err != nil {
			return nil, nil, fmt.Errorf("reading the decision of order %s: %w", r.OrderID, err)
		}
		answers[r.OrderID], hashes[r.OrderID] = answer, string(r.LinesHash)
	}
	var undecided []order
	for _, o := range orders {
		before, seen := hashes[o.id]
		switch {
		case !seen:
			undecided, hashes[o.id] = append(undecided, o), string(o.hash())
		case before != string(o.hash()):
			return nil, nil, apierror.New(codes.FailedPrecondition, "ORDER_LINES_DIFFER",
				"order %s was asked about before with other lines", o.id).WithMetadata("order_id", o.id.String())
		}
	}
	return answers, undecided, nil
}

// renewHolds resets the age of the holds of orders that were asked about again, because somebody relies on them.
func renewHolds(ctx context.Context, tx *sqlx.Tx, answered map[uuid.UUID]*inventoryv1.StockDecision) error {
	_, err := tx.ExecContext(ctx, `
		UPDATE hold SET updated_at = statement_timestamp() WHERE order_id = ANY($1::uuid[]) AND state = 'HELD'`,
		postgres.ArrayOf(slices.Collect(maps.Keys(answered))))
	if err != nil {
		return fmt.Errorf("renewing the holds of %d orders: %w", len(answered), err)
	}
	return nil
}

func insertDecisions(ctx context.Context, tx *sqlx.Tx, a checkResult) error {
	answers := make([][]byte, len(a.fresh))
	for i, d := range a.fresh {
		answer, err := proto.Marshal(a.decisions[d.order.id])
		if err != nil {
			return fmt.Errorf("encoding the decision of order %s: %w", d.order.id, err)
		}
		answers[i] = answer
	}
	_, err := tx.ExecContext(ctx, postgres.Prepared+`
		INSERT INTO decision (order_id, lines_hash, reason, answer)
		SELECT order_id, lines_hash, nullif(reason, ''), answer
		FROM unnest($1::uuid[], $2::bytea[], $3::text[], $4::bytea[]) AS d (order_id, lines_hash, reason, answer)
		ORDER BY order_id`,
		postgres.Array(a.fresh, func(d decision) uuid.UUID { return d.order.id }),
		postgres.Array(a.fresh, func(d decision) []byte { return d.order.hash() }),
		postgres.Array(a.fresh, func(d decision) string { return string(d.reason) }),
		postgres.ArrayOf(answers))
	if err != nil {
		return fmt.Errorf("storing %d decisions: %w", len(answers), err)
	}
	return nil
}

func insertHolds(ctx context.Context, tx *sqlx.Tx, holds []hold) error {
	if len(holds) == 0 {
		return nil
	}
	_, err := tx.ExecContext(ctx, postgres.Prepared+`
		INSERT INTO hold (order_id, product_id, quantity)
		SELECT * FROM unnest($1::uuid[], $2::int[], $3::int[])`,
		postgres.Array(holds, func(h hold) uuid.UUID { return h.OrderID }),
		postgres.Array(holds, func(h hold) int32 { return h.ProductID }),
		postgres.Array(holds, func(h hold) int32 { return h.Quantity }))
	if err != nil {
		return fmt.Errorf("storing %d holds: %w", len(holds), err)
	}
	return nil
}

// holdTransition changes the state of holds. onHandPerPiece and reserved are the changes of the product's stock for each
// piece.
type holdTransition struct {
	from, to                         holdState
	onHandPerPiece, reservedPerPiece int32
	reason                           movement // why, if on_hand changes
}

var (
	// settleTransitions sell the held pieces of a confirmed order.
	settleTransitions = []holdTransition{{held, settled, -1, -1, sold}}
	// releaseTransitions return to the stock what a cancelled order holds, or what has been sold to it.
	releaseTransitions = []holdTransition{{held, released, 0, -1, ""}, {settled, released, +1, 0, restocked}}
)

// transitionHolds applies the transitions to the holds of the orders, and changes the stock accordingly. Holds in other
// states stay as they are: a hold that was released cannot be settled, whichever message comes first. moved is how many
// orders had holds to change. It fails with NO_HOLD if an order never held anything.
func transitionHolds(ctx context.Context, tx *sqlx.Tx, orders []uuid.UUID, transitions []holdTransition) (moved int, _ []stockChange, err error) {
	ids := postgres.ArrayOf(orders)
	if err := lockDecisions(ctx, tx, ids); err != nil {
		return 0, nil, err
	}
	missing := make(map[uuid.UUID]bool, len(orders))
	for _, id := range orders {
		missing[id] = true
	}
	total := stockDeltas{}
	for _, s := range transitions {
		holds, err := s.apply(ctx, tx, ids)
		if err != nil {
			return 0, nil, err
		}
		total.add(holds, s.onHandPerPiece, s.reservedPerPiece)
		for _, h := range holds {
			if missing[h.OrderID] {
				delete(missing, h.OrderID)
				moved++
			}
		}
	}
	if err := requireHolds(ctx, tx, slices.Collect(maps.Keys(missing))); err != nil {
		return 0, nil, err
	}
	changes, err := updateStock(ctx, tx, total)
	return moved, changes, err
}

// lockDecisions locks the decisions about orders, and with them their holds.
func lockDecisions(ctx context.Context, tx *sqlx.Tx, orders []byte) error {
	_, err := tx.ExecContext(ctx, postgres.Prepared+`
		SELECT FROM decision WHERE order_id = ANY($1::uuid[]) ORDER BY order_id FOR NO KEY UPDATE`, orders)
	if err != nil {
		return fmt.Errorf("locking decisions: %w", err)
	}
	return nil
}

// apply changes the holds that are in the transition's first state, writes the stock movements, and returns those holds.
func (s holdTransition) apply(ctx context.Context, tx *sqlx.Tx, orders []byte) ([]hold, error) {
	var moved []hold
	err := tx.SelectContext(ctx, &moved, postgres.Prepared+`
		WITH moved AS (
			UPDATE hold SET state = $3, updated_at = statement_timestamp()
			WHERE order_id = ANY($1::uuid[]) AND state = $2
			RETURNING order_id, product_id, quantity
		), written AS (
			INSERT INTO stock_movement (product_id, order_id, quantity, reason)
			SELECT product_id, order_id, quantity * $4::int, $5 FROM moved WHERE $4::int <> 0
		)
		SELECT order_id, product_id, quantity FROM moved`, orders, s.from, s.to, s.onHandPerPiece, s.reason)
	if err != nil {
		return nil, fmt.Errorf("moving holds from %s to %s: %w", s.from, s.to, err)
	}
	return moved, nil
}

// requireHolds fails with NO_HOLD if one of the orders has no hold in any state.
func requireHolds(ctx context.Context, tx *sqlx.Tx, orders []uuid.UUID) error {
	if len(orders) == 0 {
		return nil
	}
	var unheld []string
	err := tx.SelectContext(ctx, &unheld, `
		SELECT id FROM unnest($1::uuid[]) AS id
		WHERE NOT EXISTS (SELECT FROM hold WHERE hold.order_id = id)`, postgres.ArrayOf(orders))
	if err != nil {
		return fmt.Errorf("looking for holds: %w", err)
	}
	if len(unheld) > 0 {
		return apierror.New(codes.FailedPrecondition, "NO_HOLD", "no stock was ever held for order %s", strings.Join(unheld, ", "))
	}
	return nil
}

// updateStock locks the products, in the order of their ids, and applies the deltas.
func updateStock(ctx context.Context, tx *sqlx.Tx, by stockDeltas) ([]stockChange, error) {
	if len(by) == 0 {
		return nil, nil
	}
	ids := slices.Collect(maps.Keys(by))
	var products []product
	err := tx.SelectContext(ctx, &products, postgres.Prepared+`
		UPDATE product p SET
			on_hand = p.on_hand + d.on_hand, reserved = p.reserved + d.reserved,
			version = p.version + 1, updated_at = statement_timestamp()
		FROM (SELECT id FROM product WHERE id = ANY($1::int[]) ORDER BY id FOR UPDATE) AS locked
		JOIN unnest($1::int[], $2::int[], $3::int[]) AS d (id, on_hand, reserved) USING (id)
		WHERE p.id = locked.id
		RETURNING `+productColumns,
		postgres.ArrayOf(ids),
		postgres.Array(ids, func(id int32) int32 { return by[id].onHand }),
		postgres.Array(ids, func(id int32) int32 { return by[id].reserved }))
	if err != nil {
		return nil, fmt.Errorf("changing the stock of %d products: %w", len(by), err)
	}
	changes := make([]stockChange, len(products))
	for i, p := range products {
		changes[i] = stockChange{p, p.available() - by[p.ID].onHand + by[p.ID].reserved}
	}
	slices.SortFunc(changes, func(a, b stockChange) int { return cmp.Compare(a.ID, b.ID) })
	return changes, nil
}
