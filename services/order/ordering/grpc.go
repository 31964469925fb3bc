package ordering

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	"shop.example/domain/enduser"
	"shop.example/domain/orderid"
	eventsv1 "shop.example/gen/shop/events/v1"
	orderv1 "shop.example/gen/shop/order/v1"
	"shop.example/platform/apierror"
	"shop.example/platform/failpoint"
	"shop.example/platform/outbox"
	"shop.example/platform/postgres"
)

const defaultPageSize = 50

// GetOrder is part of orderv1.OrderServiceServer.
func (s *Service) GetOrder(ctx context.Context, req *orderv1.GetOrderRequest) (*orderv1.GetOrderResponse, error) {
	id, err := parseOrderID(req.GetOrderId())
	if err != nil {
		return nil, err
	}
	o, err := getOrder(ctx, s.db, id, false)
	if err == nil && !enduser.MayAccess(ctx, o.Owner) {
		err = errNotFound
	}
	if err != nil {
		return nil, apiError(err, id)
	}
	return &orderv1.GetOrderResponse{Order: o.message()}, nil
}

// ListOrders is part of orderv1.OrderServiceServer. Its pages go by position, not by number, so orders that arrive in
// between neither shift them nor show up in them.
func (s *Service) ListOrders(ctx context.Context, req *orderv1.ListOrdersRequest) (*orderv1.ListOrdersResponse, error) {
	var state State
	if req.GetState() != orderv1.Order_STATE_UNSPECIFIED {
		state = State(req.GetState().String())
	}
	var owner string
	if c, external := enduser.Of(ctx); external && !c.GetOperator() {
		if owner = enduser.Owner(c.GetIssuer(), c.GetSubject()); owner == "" {
			return nil, apierror.New(codes.PermissionDenied, "ROLE_REQUIRED", "a list of orders is for operators, and for whom they belong to")
		}
	}
	filter := string(state) + " " + owner
	after, err := parsePosition(req.GetPageToken(), filter)
	if err != nil {
		return nil, err
	}
	size := int(req.GetPageSize())
	if size == 0 {
		size = defaultPageSize
	}
	orders, more, err := listOrders(ctx, s.db, state, owner, after, size)
	if err != nil {
		return nil, err
	}
	resp := &orderv1.ListOrdersResponse{}
	if more {
		resp.NextPageToken = positionAfter(orders[len(orders)-1]).token(filter)
	}
	for _, o := range orders {
		resp.Orders = append(resp.Orders, o.message())
	}
	return resp, nil
}

// CancelOrder is part of orderv1.OrderServiceServer.
func (s *Service) CancelOrder(ctx context.Context, req *orderv1.CancelOrderRequest) (*orderv1.CancelOrderResponse, error) {
	id, err := parseOrderID(req.GetOrderId())
	if err != nil {
		return nil, err
	}
	o, changed, err := s.cancel(ctx, id)
	if errors.Is(err, ErrInvalidTransition) {
		return nil, apierror.New(codes.FailedPrecondition, "ORDER_NOT_CANCELLABLE",
			"order %s is %s; only a confirmed order can be cancelled", id, o.State)
	}
	if err != nil {
		return nil, apiError(err, id)
	}
	failpoint.Hit("order.cancelled")
	if changed {
		s.wake()
		s.log.LogAttrs(ctx, slog.LevelInfo, "order cancelled", orderid.Attr(o.ID.String()))
	}
	return &orderv1.CancelOrderResponse{Order: o.message()}, nil
}

// cancel cancels a confirmed order and says so in the outbox. An order that is cancelled already stays as it is.
func (s *Service) cancel(ctx context.Context, id uuid.UUID) (o *Order, changed bool, err error) {
	err = postgres.InTx(ctx, s.db, func(tx *sqlx.Tx) error {
		if o, err = getOrder(ctx, tx, id, true); err != nil {
			return err
		}
		if !enduser.MayAccess(ctx, o.Owner) {
			return errNotFound
		}
		if o.State == Cancelled {
			return nil
		}
		if err := o.transition(Cancelled, time.Now().Truncate(time.Microsecond)); err != nil {
			return err
		}
		if err := updateState(ctx, tx, o); err != nil {
			return err
		}
		changed = true
		entries := []outbox.Entry{{Message: &eventsv1.OrderCancelled{
			OrderId: o.ID.String(), Lines: pricedLines(o), CancelledAt: timestamppb.New(o.UpdatedAt),
		}}}
		if enduser.IsOperator(ctx) {
			entries = append(entries, outbox.Entry{Message: enduser.Acted(enduser.Operator(ctx),
				orderv1.OrderService_CancelOrder_FullMethodName, "order "+o.ID.String(), "cancelled")})
		}
		return outbox.Add(ctx, tx, entries)
	})
	return o, changed, err
}

func parseOrderID(s string) (uuid.UUID, error) {
	id, err := uuid.Parse(s)
	if err != nil {
		return uuid.UUID{}, apierror.InvalidArgument(apierror.Violation{Field: "order_id", Description: "must be a UUID"})
	}
	return id, nil
}

// apiError gives the errors of this service their gRPC status; what else there is, the server's interceptor maps.
func apiError(err error, id uuid.UUID) error {
	switch {
	case errors.Is(err, errNotFound):
		return apierror.New(codes.NotFound, "ORDER_NOT_FOUND",
			"there is no order %s; an order that was just placed appears once it has been decided, usually within a second", id)
	}
	return err
}
