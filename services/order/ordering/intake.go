package ordering

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"shop.example/domain/customer"
	eventsv1 "shop.example/gen/shop/events/v1"
	orderv1 "shop.example/gen/shop/order/v1"
	"shop.example/platform/outbox"
	"shop.example/platform/postgres"
)

// intakeServer serves IntakeService, which other services ask about orders that may not be stored yet.
type intakeServer struct {
	orderv1.UnimplementedIntakeServiceServer
	*Service
}

// FindKey implements orderv1.IntakeServiceServer.
func (s intakeServer) FindKey(ctx context.Context, req *orderv1.FindKeyRequest) (*orderv1.FindKeyResponse, error) {
	owners, err := keyOwners(ctx, s.db, postgres.ArrayOf(req.GetKeyHashes()))
	if err != nil {
		return nil, err
	}
	for _, hash := range req.GetKeyHashes() {
		i := slices.IndexFunc(owners, func(o keyOwner) bool { return slices.Equal(o.KeyHash, hash) })
		if i >= 0 {
			resp, err := s.find(ctx, owners[i].OrderID)
			if err == nil {
				resp.OrderId = owners[i].OrderID.String() // claimed, though not stored yet
			}
			return resp, err
		}
	}
	for _, former := range req.GetFormerOrderIds() {
		id, err := parseOrderID(former)
		if err != nil {
			return nil, err
		}
		if resp, err := s.find(ctx, id); err != nil || resp.Order != nil {
			return resp, err
		}
	}
	return &orderv1.FindKeyResponse{}, nil
}

// find reads an order; the response is empty if it is not stored.
func (s intakeServer) find(ctx context.Context, id uuid.UUID) (*orderv1.FindKeyResponse, error) {
	o, err := getOrder(ctx, s.db, id, false)
	switch {
	case errors.Is(err, errNotFound):
		return &orderv1.FindKeyResponse{}, nil
	case err != nil:
		return nil, err
	}
	return &orderv1.FindKeyResponse{OrderId: id.String(), Order: o.message()}, nil
}

// FindUnknown implements orderv1.IntakeServiceServer.
func (s intakeServer) FindUnknown(ctx context.Context, req *orderv1.FindUnknownRequest) (*orderv1.FindUnknownResponse, error) {
	ids := make([]uuid.UUID, len(req.GetOrderIds()))
	for i, id := range req.GetOrderIds() {
		ids[i] = uuid.UUID(id) // 16 bytes, as the contract says
	}
	missing, err := missingOrders(ctx, s.db, ids)
	if err != nil {
		return nil, err
	}
	resp := &orderv1.FindUnknownResponse{OrderIds: make([][]byte, len(missing))}
	for i := range missing {
		resp.OrderIds[i] = missing[i][:]
	}
	return resp, nil
}

// FindPlaced implements orderv1.IntakeServiceServer.
func (s intakeServer) FindPlaced(ctx context.Context, req *orderv1.FindPlacedRequest) (*orderv1.FindPlacedResponse, error) {
	resp := &orderv1.FindPlacedResponse{}
	for _, id := range req.GetOrderIds() {
		o, err := getOrder(ctx, s.db, uuid.UUID(id), false) // 16 bytes, as the contract says
		switch {
		case errors.Is(err, errNotFound):
			continue
		case err != nil:
			return nil, err
		case o.CustomerName == customer.Erased: // what was erased must not look like an event
			continue
		}
		resp.Placed = append(resp.Placed, o.placed())
	}
	return resp, nil
}

// placed returns the event with which the order began, as far as it is stored.
func (o *Order) placed() *eventsv1.OrderPlaced {
	m := &eventsv1.OrderPlaced{
		OrderId: o.ID.String(), CustomerName: o.CustomerName, CustomerEmail: o.CustomerEmail, Owner: o.Owner, PlacedAt: timestamppb.New(o.CreatedAt),
	}
	for _, l := range o.Lines {
		m.Lines = append(m.Lines, &eventsv1.RequestedLine{ProductId: l.ProductID, ProductName: l.ProductName, Quantity: l.Quantity})
	}
	return m
}

// RejectDiscarded implements orderv1.IntakeServiceServer.
func (s intakeServer) RejectDiscarded(ctx context.Context, req *orderv1.RejectDiscardedRequest) (*orderv1.RejectDiscardedResponse, error) {
	id, err := parseOrderID(req.GetOrderId())
	if err != nil {
		return nil, err
	}
	o := discardedOrder(id, req.GetOrderPlaced(), time.Now().Truncate(time.Microsecond))
	var stored bool
	err = postgres.InTx(ctx, s.db, func(tx *sqlx.Tx) error {
		fresh, err := storeOrders(ctx, tx, []*Order{o})
		if stored = fresh[id]; err != nil || !stored {
			return err
		}
		rejected, err := eventsOf(o)
		if err != nil {
			return err
		}
		return outbox.Add(ctx, tx, []outbox.Entry{{Message: rejected[0]}})
	})
	if err != nil {
		return nil, err
	}
	if stored {
		s.wake()
		s.logDecided(ctx, []pendingOrder{{trace: trace.SpanContextFromContext(ctx), order: o}})
	}
	return &orderv1.RejectDiscardedResponse{}, nil
}

// discardedOrder returns, as a rejected order, the order in a message that could not be handled, as far as it can be
// decoded. The message may break every rule of its contract.
func discardedOrder(id uuid.UUID, body []byte, now time.Time) *Order {
	o := &Order{
		ID: id, State: Rejected, Reason: eventsv1.OrderRejected_DISCARDED.String(),
		Detail: "the order could not be handled, and an operator has discarded it", CreatedAt: now, UpdatedAt: now,
	}
	placed := &eventsv1.OrderPlaced{}
	if err := proto.Unmarshal(body, placed); err != nil || !strings.EqualFold(placed.GetOrderId(), id.String()) {
		return o
	}
	text := func(s string) string { return strings.ReplaceAll(s, "\x00", "\uFFFD") } // which the database does not take
	o.CustomerName, o.CustomerEmail, o.Owner = text(placed.GetCustomerName()), text(placed.GetCustomerEmail()), text(placed.GetOwner())
	o.Fingerprint = placed.GetFingerprint()
	if at := placed.GetPlacedAt(); at.CheckValid() == nil && at.AsTime().Before(now) {
		o.CreatedAt = at.AsTime()
	}
	for i, l := range placed.GetLines() {
		if l.GetQuantity() > 0 {
			o.Lines = append(o.Lines, Line{Number: int32(i + 1), ProductID: l.GetProductId(), ProductName: text(l.GetProductName()), Quantity: l.GetQuantity()})
		}
	}
	items, _, err := totals(o.Lines)
	if err != nil { // there are none, or they are too many to count
		o.Lines = nil
	}
	o.TotalItems = items
	return o
}

const defaultKeyRetention = 30 * 24 * time.Hour

// checkKeyRetention returns how long an order keeps its idempotency key. It fails if that is shorter than the time within
// which the order's message can be delivered again.
func (cfg Config) checkKeyRetention() (time.Duration, error) {
	retention := cfg.KeyRetention
	if retention == 0 {
		retention = defaultKeyRetention
	}
	least, err := outbox.MinRetention(cfg.RedriveHorizon)
	if err != nil {
		return 0, err
	}
	if retention < least {
		return 0, fmt.Errorf("IDEMPOTENCY_KEY_RETENTION is %s, but an order can come again for %s: set it to that or more", retention, least)
	}
	return retention, nil
}
