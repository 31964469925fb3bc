package stock

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"shop.example/domain/money"
	inventoryv1 "shop.example/gen/shop/inventory/v1"
	"shop.example/platform/apierror"
	"shop.example/platform/postgres"
)

// The catalogue. What is refused here carries a gRPC status, because the caller can correct it; the same functions
// serve calls and messages.

// newItem is a product to add.
type newItem struct {
	name   string
	onHand int32
	price  price
}

// itemUpdate changes the fields of a product that are not nil.
type itemUpdate struct {
	id     int32
	etag   string // must be the stored one, if it is not empty
	name   *string
	onHand *int32
	price  *price
	asRead []protoreflect.Name // fields that cannot be changed: in read they must be as they are stored
	read   *inventoryv1.Item
}

// etag returns a value that changes with every change of the product, also of its stock.
func (p product) etag() string { return strconv.FormatInt(p.Version, 10) }

// checkEtag returns an error if etag is that of another version of the product.
func (p product) checkEtag(etag string) error {
	if etag == "" || etag == p.etag() {
		return nil
	}
	return apierror.New(codes.Aborted, "ETAG_MISMATCH", "item %d has changed since it was read: read it again", p.ID)
}

func itemNotFound(id int32) error {
	return apierror.New(codes.NotFound, "ITEM_NOT_FOUND", "there is no item %d", id)
}

// listItems reads up to limit products with ids above after, in the order of their ids.
func listItems(ctx context.Context, db *sqlx.DB, after int64, limit int) ([]product, error) {
	var products []product
	err := db.SelectContext(ctx, &products, `
		SELECT `+productColumns+` FROM product p
		WHERE p.deleted_at IS NULL AND p.id > $1::bigint
		ORDER BY p.id LIMIT $2`, after, limit)
	if err != nil {
		return nil, fmt.Errorf("listing items: %w", postgres.Classify(err))
	}
	return products, nil
}

// readItem reads a product of the catalogue.
func readItem(ctx context.Context, db *sqlx.DB, id int32) (p product, err error) {
	err = db.GetContext(ctx, &p, `SELECT `+productColumns+` FROM product p WHERE p.deleted_at IS NULL AND p.id = $1`, id)
	if errors.Is(err, sql.ErrNoRows) {
		return p, itemNotFound(id)
	}
	if err != nil {
		return p, fmt.Errorf("reading item %d: %w", id, postgres.Classify(err))
	}
	return p, nil
}

// catalogueChange is the result of a change of the catalogue.
type catalogueChange struct {
	products []product     // as they are now
	stock    []stockChange // of their stock
	actions  []itemAction
}

// itemAction is what was done to one product, for the record of operators' actions.
type itemAction struct {
	product int32
	detail  string
}

// createItems adds products with their stock, all or none.
func createItems(ctx context.Context, tx *sqlx.Tx, items []newItem) (catalogueChange, error) {
	var products []product
	err := tx.SelectContext(ctx, &products, `
		INSERT INTO product AS p (name, unit_price, currency, on_hand)
		SELECT name, unit_price, currency, on_hand
		FROM unnest($1::text[], $2::bigint[], $3::text[], $4::int[]) WITH ORDINALITY
			AS d (name, unit_price, currency, on_hand, position)
		ORDER BY position
		ON CONFLICT (name) WHERE deleted_at IS NULL DO NOTHING
		RETURNING `+productColumns,
		postgres.Array(items, func(i newItem) string { return i.name }),
		postgres.Array(items, func(i newItem) int64 { return i.price.minor }),
		postgres.Array(items, func(i newItem) string { return i.price.currency }),
		postgres.Array(items, func(i newItem) int32 { return i.onHand }))
	if err != nil {
		return catalogueChange{}, fmt.Errorf("creating %d items: %w", len(items), err)
	}
	if len(products) < len(items) {
		return catalogueChange{}, itemExists(items, products)
	}
	done := catalogueChange{products: products}
	stocked := stockDeltas{}
	for _, p := range products {
		done.stock = append(done.stock, stockChange{product: p})
		done.actions = append(done.actions, itemAction{p.ID, fmt.Sprintf("created: name %q, price %s, on hand %d", p.Name, money.Format(p.UnitPrice, p.Currency), p.OnHand)})
		stocked[p.ID] = stockDelta{onHand: p.OnHand}
	}
	return done, writeMovements(ctx, tx, stocked, created)
}

// itemExists returns the error that names the first item which was not inserted, because its name is taken.
func itemExists(items []newItem, inserted []product) error {
	for i, it := range items {
		if i >= len(inserted) || inserted[i].Name != it.name {
			return apierror.New(codes.AlreadyExists, "ITEM_EXISTS", "there is an item %q already", it.name)
		}
	}
	return nil
}

// updateItems changes products, all or none, one update after the other.
func updateItems(ctx context.Context, tx *sqlx.Tx, updates []itemUpdate) (catalogueChange, error) {
	ids := make([]int32, len(updates))
	for i, u := range updates {
		ids[i] = u.id
	}
	stored, err := lockItems(ctx, tx, ids)
	if err != nil {
		return catalogueChange{}, err
	}
	wanted := maps.Clone(stored)
	for _, u := range updates {
		if wanted[u.id], err = u.apply(wanted[u.id]); err != nil {
			return catalogueChange{}, err
		}
	}
	products, err := writeItems(ctx, tx, slices.Collect(maps.Values(wanted)))
	if err != nil {
		return catalogueChange{}, err
	}
	done := catalogueChange{products: products}
	restocked := stockDeltas{}
	for _, p := range products {
		before := stored[p.ID]
		done.actions = append(done.actions, itemAction{p.ID, p.differences(before)})
		if p.OnHand == before.OnHand {
			continue
		}
		done.stock = append(done.stock, stockChange{p, before.available()})
		restocked[p.ID] = stockDelta{onHand: p.OnHand - before.OnHand}
	}
	return done, writeMovements(ctx, tx, restocked, adjusted)
}

// differences describes the differences of p from what the product was before.
func (p product) differences(before product) string {
	var all []string
	differs := func(what, now, was string) {
		if now != was {
			all = append(all, fmt.Sprintf("%s %s, was %s", what, now, was))
		}
	}
	differs("name", strconv.Quote(p.Name), strconv.Quote(before.Name))
	differs("price", money.Format(p.UnitPrice, p.Currency), money.Format(before.UnitPrice, before.Currency))
	differs("on hand", strconv.Itoa(int(p.OnHand)), strconv.Itoa(int(before.OnHand)))
	if len(all) == 0 {
		return "nothing changed"
	}
	return strings.Join(all, "; ")
}

// isUnchanged says whether a field is as it is stored. Some clients keep times to the millisecond, or the second.
func isUnchanged(fd protoreflect.FieldDescriptor, stored, read protoreflect.Value) bool {
	if fd.Message() == nil || stored.Equal(read) {
		return stored.Equal(read)
	}
	was, isTime := stored.Message().Interface().(*timestamppb.Timestamp)
	if !isTime || !read.Message().IsValid() {
		return false
	}
	at, sent := was.AsTime(), read.Message().Interface().(*timestamppb.Timestamp).AsTime()
	return sent.Equal(at.Truncate(time.Millisecond)) || sent.Equal(at.Truncate(time.Second))
}

// apply returns the product with the update's values.
func (u itemUpdate) apply(p product) (product, error) {
	if err := p.checkEtag(u.etag); err != nil {
		return p, err
	}
	stored, read := p.item().ProtoReflect(), u.read.ProtoReflect()
	for _, name := range u.asRead {
		fd := stored.Descriptor().Fields().ByName(name)
		if !isUnchanged(fd, stored.Get(fd), read.Get(fd)) {
			return p, invalidItem(string(name), "cannot be changed: product_name, on_hand and price can; send it as it was read last, or leave it out")
		}
	}
	if u.name != nil {
		p.Name = *u.name
	}
	if u.price != nil {
		p.UnitPrice, p.Currency = u.price.minor, u.price.currency
	}
	if u.onHand != nil {
		p.OnHand = *u.onHand
	}
	if p.OnHand < p.Reserved {
		return p, apierror.New(codes.FailedPrecondition, "ITEM_HELD",
			"%s: %d pieces are held for orders, so there cannot be %d on hand", p.Name, p.Reserved, p.OnHand)
	}
	return p, nil
}

// writeItems stores products that are locked, and returns them in the order of their ids.
func writeItems(ctx context.Context, tx *sqlx.Tx, items []product) ([]product, error) {
	names := make([]string, len(items))
	for i, p := range items {
		names[i] = p.Name
	}
	var products []product
	err := tx.SelectContext(ctx, &products, `
		UPDATE product p SET
			name = d.name, unit_price = d.unit_price, currency = d.currency, on_hand = d.on_hand,
			version = p.version + 1, updated_at = statement_timestamp()
		FROM unnest($1::int[], $2::text[], $3::bigint[], $4::text[], $5::int[]) AS d (id, name, unit_price, currency, on_hand)
		WHERE p.id = d.id
		RETURNING `+productColumns,
		postgres.Array(items, func(p product) int32 { return p.ID }),
		postgres.ArrayOf(names),
		postgres.Array(items, func(p product) int64 { return p.UnitPrice }),
		postgres.Array(items, func(p product) string { return p.Currency }),
		postgres.Array(items, func(p product) int32 { return p.OnHand }))
	if err = postgres.Classify(err); errors.Is(err, postgres.ErrUnique) {
		return nil, apierror.New(codes.AlreadyExists, "ITEM_EXISTS", "there is another item with a name of these: %q", names)
	}
	if err != nil {
		return nil, fmt.Errorf("updating %d items: %w", len(items), err)
	}
	slices.SortFunc(products, func(a, b product) int { return cmp.Compare(a.ID, b.ID) })
	return products, nil
}

// deleteItems marks products as deleted, all or none; their rows stay for the orders that name them. If etag is not empty,
// it must be that of each of them.
func deleteItems(ctx context.Context, tx *sqlx.Tx, ids []int32, etag string) (done catalogueChange, err error) {
	stored, err := lockItems(ctx, tx, ids)
	if err != nil {
		return done, err
	}
	for _, id := range ids {
		p := stored[id]
		if err := p.checkEtag(etag); err != nil {
			return done, err
		}
		if p.Reserved > 0 {
			return done, apierror.New(codes.FailedPrecondition, "ITEM_HELD", "%s: %d pieces are held for orders", p.Name, p.Reserved)
		}
		done.actions = append(done.actions, itemAction{id, fmt.Sprintf("deleted: name %q", p.Name)})
	}
	_, err = tx.ExecContext(ctx, `
		UPDATE product SET deleted_at = statement_timestamp(), updated_at = statement_timestamp(), version = version + 1
		WHERE id = ANY($1::int[])`, postgres.ArrayOf(ids))
	if err != nil {
		return done, fmt.Errorf("deleting %d items: %w", len(ids), err)
	}
	return done, nil
}

// lockItems locks and reads products of the catalogue. It fails if one is not there.
func lockItems(ctx context.Context, tx *sqlx.Tx, ids []int32) (map[int32]product, error) {
	var products []product
	err := tx.SelectContext(ctx, &products, `
		SELECT `+productColumns+` FROM product p
		WHERE p.deleted_at IS NULL AND p.id = ANY($1::int[])
		ORDER BY p.id FOR UPDATE`, postgres.ArrayOf(ids))
	if err != nil {
		return nil, fmt.Errorf("locking %d items: %w", len(ids), err)
	}
	byID := make(map[int32]product, len(products))
	for _, p := range products {
		byID[p.ID] = p
	}
	for _, id := range ids {
		if _, ok := byID[id]; !ok {
			return nil, itemNotFound(id)
		}
	}
	return byID, nil
}

// writeMovements records changes of on_hand that no order caused.
func writeMovements(ctx context.Context, tx *sqlx.Tx, by stockDeltas, why movement) error {
	ids := slices.Collect(maps.Keys(by))
	_, err := tx.ExecContext(ctx, `
		INSERT INTO stock_movement (product_id, quantity, reason)
		SELECT product_id, quantity, $3 FROM unnest($1::int[], $2::int[]) AS d (product_id, quantity)
		WHERE quantity <> 0`,
		postgres.ArrayOf(ids), postgres.Array(ids, func(id int32) int32 { return by[id].onHand }), why)
	if err != nil {
		return fmt.Errorf("writing %d stock movements: %w", len(by), err)
	}
	return nil
}
