package stock

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	inventoryv1 "shop.example/gen/shop/inventory/v1"
	"shop.example/platform/pagetoken"
	"shop.example/platform/postgres"
)

// movementsRead is how many movements, of all products, one call reads: there is no index on products, because it would slow
// down settling every order.
const movementsRead = 20_000

// stockMovement is a row of stock_movement.
type stockMovement struct {
	ID        int64         `db:"id"`
	OrderID   uuid.NullUUID `db:"order_id"`
	Quantity  int32         `db:"quantity"`
	Reason    movement      `db:"reason"`
	CreatedAt time.Time     `db:"created_at"`
}

func (c inventoryServer) ListStockMovements(
	ctx context.Context, req *inventoryv1.ListStockMovementsRequest,
) (*inventoryv1.ListStockMovementsResponse, error) {
	list := fmt.Sprintf("movements of %d", req.GetItemId())
	before, err := pagetoken.ParseID(req.GetPageToken(), list)
	if err != nil {
		return nil, err
	}
	movements, next, err := listMovements(ctx, c.db, req.GetItemId(), before, pagetoken.Size(req.GetPageSize()))
	if err != nil {
		return nil, err
	}
	resp := &inventoryv1.ListStockMovementsResponse{Movements: make([]*inventoryv1.StockMovement, len(movements))}
	for i, m := range movements {
		resp.Movements[i] = m.message()
	}
	if next != 0 {
		resp.NextPageToken = pagetoken.NewID(next, list)
	}
	return resp, nil
}

// listMovements reads up to limit movements of a product that are older than before, an id, the newest first; all of them may be if
// it is 0. next is the id before which the next page begins, or 0 if nothing is older.
func listMovements(ctx context.Context, db *sqlx.DB, item int32, before int64, limit int) (movements []stockMovement, next int64, err error) {
	if before == 0 {
		before = math.MaxInt64
	}
	var known bool
	if err = db.GetContext(ctx, &known, `SELECT EXISTS (SELECT FROM product WHERE id = $1)`, item); err == nil && !known {
		return nil, 0, itemNotFound(item)
	}
	if err == nil {
		err = db.GetContext(ctx, &next, `SELECT id FROM stock_movement WHERE id < $1 ORDER BY id DESC OFFSET $2 LIMIT 1`, before, movementsRead-1)
	}
	if errors.Is(err, sql.ErrNoRows) {
		err = nil
	}
	if err == nil {
		err = db.SelectContext(ctx, &movements, `
			SELECT id, order_id, quantity, reason, created_at FROM stock_movement
			WHERE product_id = $1 AND id < $2 AND id >= $3
			ORDER BY id DESC LIMIT $4`, item, before, next, limit+1)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("listing the stock movements of item %d: %w", item, postgres.Classify(err))
	}
	if len(movements) > limit {
		movements = movements[:limit]
		next = movements[limit-1].ID
	}
	return movements, next, nil
}

func (m stockMovement) message() *inventoryv1.StockMovement {
	to := &inventoryv1.StockMovement{
		Id: m.ID, Quantity: m.Quantity, MovedAt: timestamppb.New(m.CreatedAt),
		Reason: inventoryv1.StockMovement_Reason(inventoryv1.StockMovement_Reason_value[string(m.Reason)]),
	}
	if m.OrderID.Valid {
		to.OrderId = proto.String(m.OrderID.UUID.String())
	}
	return to
}
