package stock

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"

	eventsv1 "shop.example/gen/shop/events/v1"
	inventoryv1 "shop.example/gen/shop/inventory/v1"
	"shop.example/platform/apierror"
	"shop.example/platform/contract"
	"shop.example/platform/postgres"
)

// settlementServer serves SettlementService, which tells which events about orders have not been handled. A hold's state
// shows that.
type settlementServer struct {
	inventoryv1.UnimplementedSettlementServiceServer
	*store
}

// FindUnhandled implements inventoryv1.SettlementServiceServer.
func (s settlementServer) FindUnhandled(ctx context.Context, req *inventoryv1.FindUnhandledRequest) (*inventoryv1.FindUnhandledResponse, error) {
	event, _ := contract.ByRoutingKey(req.GetRoutingKey())
	var before []holdTransition // what handling the event does to holds
	switch event.Name {
	case (&eventsv1.DecrementQuantity{}).ProtoReflect().Descriptor().FullName():
		before = settleTransitions
	case (&eventsv1.OrderCancelled{}).ProtoReflect().Descriptor().FullName():
		before = releaseTransitions
	default:
		return nil, apierror.InvalidArgument(apierror.Violation{Field: "routing_key", Description: "must be that of an event which settles or releases holds"})
	}
	ids := make([]uuid.UUID, len(req.GetOrderIds()))
	for i, id := range req.GetOrderIds() {
		ids[i] = uuid.UUID(id) // 16 bytes, as the contract says
	}
	unhandled, err := ordersWithHoldsIn(ctx, s.db, ids, before)
	if err != nil {
		return nil, err
	}
	return &inventoryv1.FindUnhandledResponse{OrderIds: idBytes(unhandled)}, nil
}

// FindHeld implements inventoryv1.SettlementServiceServer.
func (s settlementServer) FindHeld(ctx context.Context, req *inventoryv1.FindHeldRequest) (*inventoryv1.FindHeldResponse, error) {
	held, err := ordersHoldingFor(ctx, s.db, req.GetMinAge().AsDuration(), maxHeld)
	if err != nil {
		return nil, err
	}
	return &inventoryv1.FindHeldResponse{OrderIds: idBytes(held)}, nil
}

// maxHeld is how many holds FindHeld reads.
const maxHeld = 1000

func idBytes(ids []uuid.UUID) [][]byte {
	out := make([][]byte, len(ids))
	for i := range ids {
		out[i] = ids[i][:]
	}
	return out
}

// ordersWithHoldsIn returns those of the orders that have holds in the first state of one of the transitions.
func ordersWithHoldsIn(ctx context.Context, q sqlx.QueryerContext, orders []uuid.UUID, transitions []holdTransition) (found []uuid.UUID, err error) {
	err = sqlx.SelectContext(ctx, q, &found, postgres.Prepared+`
		SELECT DISTINCT order_id FROM hold WHERE order_id = ANY ($1::uuid[]) AND state = ANY ($2::text[])`,
		postgres.ArrayOf(orders), postgres.Array(transitions, func(s holdTransition) string { return string(s.from) }))
	if err != nil {
		return nil, fmt.Errorf("reading the holds of %d orders: %w", len(orders), postgres.Classify(err))
	}
	return found, nil
}

// ordersHoldingFor returns the orders of the oldest holds that are neither settled nor released and at least this old. It
// reads limit holds.
func ordersHoldingFor(ctx context.Context, q sqlx.QueryerContext, age time.Duration, limit int) (orders []uuid.UUID, err error) {
	err = sqlx.SelectContext(ctx, q, &orders, `
		SELECT DISTINCT order_id FROM (
		    SELECT order_id FROM hold WHERE state = 'HELD' AND created_at < statement_timestamp() - $1 * interval '1 second'
		    ORDER BY created_at LIMIT $2) AS held`, age.Seconds(), limit)
	if err != nil {
		return nil, fmt.Errorf("reading what is held: %w", postgres.Classify(err))
	}
	return orders, nil
}
