package stock

import (
	"context"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"

	eventsv1 "shop.example/gen/shop/events/v1"
	inventoryv1 "shop.example/gen/shop/inventory/v1"
	"shop.example/platform/apierror"
	"shop.example/platform/contract"
	"shop.example/platform/pagetoken"
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
	after, err := parseHeld(req.GetPageToken())
	if err != nil {
		return nil, err
	}
	held, err := ordersHoldingFor(ctx, s.db, req.GetMinAge().AsDuration(), after, maxHeld)
	if err != nil {
		return nil, err
	}
	resp := &inventoryv1.FindHeldResponse{}
	for _, h := range held {
		resp.OrderIds = append(resp.OrderIds, h.OrderID[:])
	}
	if len(held) == maxHeld {
		resp.NextPageToken = held[maxHeld-1].token()
	}
	return resp, nil
}

// maxHeld is how many orders a page of FindHeld has.
const maxHeld = 1000

const heldList = "held" // in page tokens

// token is that of the page behind h in the list of what is held.
func (h oldHold) token() string {
	return pagetoken.New(append(binary.BigEndian.AppendUint64(nil, uint64(h.CreatedAt.UnixMicro())), h.OrderID[:]...), heldList)
}

func parseHeld(token string) (oldHold, error) {
	if token == "" {
		return oldHold{}, nil
	}
	b, err := pagetoken.Parse(token, heldList, 8+16)
	if err != nil {
		return oldHold{}, err
	}
	return oldHold{time.UnixMicro(int64(binary.BigEndian.Uint64(b))), uuid.UUID(b[8:])}, nil
}

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

// ordersHoldingFor returns up to limit orders with holds that are neither settled nor released and at least this old, the oldest
// after a position first.
func ordersHoldingFor(ctx context.Context, q sqlx.QueryerContext, age time.Duration, after oldHold, limit int) (held []oldHold, err error) {
	err = sqlx.SelectContext(ctx, q, &held, `
		SELECT DISTINCT created_at, order_id FROM hold
		WHERE state = 'HELD' AND created_at < statement_timestamp() - $1 * interval '1 second' AND (created_at, order_id) > ($2, $3)
		ORDER BY created_at, order_id LIMIT $4`, age.Seconds(), after.CreatedAt, after.OrderID, limit)
	if err != nil {
		return nil, fmt.Errorf("reading what is held: %w", postgres.Classify(err))
	}
	return held, nil
}
