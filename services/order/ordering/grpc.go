package ordering

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"shop.example/domain/customer"
	"shop.example/domain/enduser"
	"shop.example/domain/orderid"
	customerv1 "shop.example/gen/shop/customer/v1"
	eventsv1 "shop.example/gen/shop/events/v1"
	orderv1 "shop.example/gen/shop/order/v1"
	"shop.example/platform/apierror"
	"shop.example/platform/failpoint"
	"shop.example/platform/outbox"
	"shop.example/platform/pagetoken"
	"shop.example/platform/postgres"
)

// GetOrder implements orderv1.OrderServiceServer.
func (s *Service) GetOrder(ctx context.Context, req *orderv1.GetOrderRequest) (*orderv1.GetOrderResponse, error) {
	id, err := parseOrderID(req.GetOrderId())
	if err != nil {
		return nil, err
	}
	o, err := getOrder(ctx, s.db, id, false)
	if err == nil && !enduser.MayAccess(ctx, o.Owner) {
		err = errHidden
	}
	if err != nil {
		return nil, apiError(err, id)
	}
	return &orderv1.GetOrderResponse{Order: o.message()}, nil
}

// ListOrders implements orderv1.OrderServiceServer. A page begins after the last order of the page before, so orders that
// are placed meanwhile neither shift pages nor appear in them.
func (s *Service) ListOrders(ctx context.Context, req *orderv1.ListOrdersRequest) (*orderv1.ListOrdersResponse, error) {
	f, err := filterOf(ctx, req)
	if err != nil {
		return nil, err
	}
	list := f.list()
	after, err := parsePosition(req.GetPageToken(), list)
	if err != nil {
		return nil, err
	}
	orders, next, err := listOrders(ctx, s.db, f, after, pagetoken.Size(req.GetPageSize()))
	if err != nil {
		return nil, err
	}
	resp := &orderv1.ListOrdersResponse{}
	if next != listEnd {
		resp.NextPageToken = next.token(list)
	}
	for _, o := range orders {
		resp.Orders = append(resp.Orders, o.message())
	}
	return resp, nil
}

// filterOf returns which orders a request asks for: of what the caller may see.
func filterOf(ctx context.Context, req *orderv1.ListOrdersRequest) (*orderFilter, error) {
	f := &orderFilter{since: listEnd, before: listEnd, idSuffix: strings.ToLower(req.GetIdSuffix()), product: req.GetProductId()}
	if req.GetState() != orderv1.Order_STATE_UNSPECIFIED {
		f.state = State(req.GetState().String())
	}
	if c, external := enduser.Of(ctx); external && !c.GetOperator() {
		if f.owner = enduser.Owner(c.GetIssuer(), c.GetSubject()); f.owner == "" {
			return nil, apierror.New(codes.PermissionDenied, "ROLE_REQUIRED", "a list of orders is for operators, and for whom they belong to")
		}
	}
	if address := req.GetCustomerEmail(); address != "" {
		person := customer.Of(&customerv1.Person{Email: address})
		f.customer = &person
	}
	var wrong []apierror.Violation
	for field, bound := range map[string]struct {
		at *timestamppb.Timestamp
		to *position
	}{"placed_after": {req.GetPlacedAfter(), &f.since}, "placed_before": {req.GetPlacedBefore(), &f.before}} {
		switch {
		case bound.at == nil:
		case bound.at.CheckValid() != nil:
			wrong = append(wrong, apierror.Violation{Field: field, Description: "must be a time between the years 1 and 9999"})
		default:
			*bound.to = position{micros: bound.at.AsTime().UnixMicro()}
		}
	}
	if wrong != nil {
		return nil, apierror.InvalidArgument(wrong...)
	}
	return f, nil
}

// list identifies the list in its page tokens.
func (f *orderFilter) list() string {
	list := string(f.state) + " " + f.owner
	if f.since != listEnd {
		list += " " + f.since.sqlTime()
	}
	if f.before != listEnd || f.searches() {
		var address []string
		if f.customer != nil {
			address = f.customer.Patterns()
		}
		list += fmt.Sprintf(" before %s: %q %q %d", f.before.sqlTime(), f.idSuffix, address, f.product)
	}
	return list
}

// CancelOrder implements orderv1.OrderServiceServer.
func (s *Service) CancelOrder(ctx context.Context, req *orderv1.CancelOrderRequest) (*orderv1.CancelOrderResponse, error) {
	o, err := s.change(ctx, req.GetOrderId(), change{
		to: Cancelled, method: orderv1.OrderService_CancelOrder_FullMethodName,
		refused: func(o *Order) error {
			return apierror.New(codes.FailedPrecondition, "ORDER_NOT_CANCELLABLE",
				"order %s is %s; only a confirmed order can be cancelled", o.ID, o.State)
		},
		event: func(o *Order, at *timestamppb.Timestamp) proto.Message {
			return &eventsv1.OrderCancelled{OrderId: o.ID.String(), Lines: pricedLines(o), CancelledAt: at}
		},
	})
	if err != nil {
		return nil, err
	}
	failpoint.Hit("order.cancelled")
	return &orderv1.CancelOrderResponse{Order: o.message()}, nil
}

// change is a change of a stored order's state that a client asks for.
type change struct {
	to      State
	method  string             // of the call, for the record of what operators do
	refused func(*Order) error // if the order's state does not allow it
	event   func(o *Order, at *timestamppb.Timestamp) proto.Message
}

// done is what the change has made of an order, in words: "cancelled".
func (c change) done() string { return strings.ToLower(string(c.to)) }

// change changes the state of an order and adds the event to the outbox. An order that is in the state already stays as it
// is.
func (s *Service) change(ctx context.Context, orderID string, c change) (*Order, error) {
	id, err := parseOrderID(orderID)
	if err != nil {
		return nil, err
	}
	var o *Order
	changed := false
	err = postgres.InTx(ctx, s.db, func(tx *sqlx.Tx) error {
		if o, err = getOrder(ctx, tx, id, true); err != nil {
			return err
		}
		if !enduser.MayAccess(ctx, o.Owner) {
			return errHidden
		}
		if o.State == c.to {
			return nil
		}
		if err := o.transition(c.to, time.Now().Truncate(time.Microsecond)); err != nil {
			return err
		}
		if err := updateState(ctx, tx, o); err != nil {
			return err
		}
		changed = true
		entries := []outbox.Entry{{Message: c.event(o, timestamppb.New(o.UpdatedAt))}}
		if enduser.IsOperator(ctx) {
			entries = append(entries, outbox.Entry{Message: enduser.Acted(enduser.Operator(ctx), c.method, "order "+o.ID.String(), c.done())})
		}
		return outbox.Add(ctx, tx, entries)
	})
	if errors.Is(err, ErrInvalidTransition) {
		return nil, c.refused(o)
	}
	if err != nil {
		return nil, apiError(err, id)
	}
	if changed {
		s.wake()
		s.log.LogAttrs(ctx, slog.LevelInfo, "order "+c.done(), orderid.Attr(o.ID.String()))
	}
	return o, nil
}

func parseOrderID(s string) (uuid.UUID, error) {
	id, err := uuid.Parse(s)
	if err != nil {
		return uuid.UUID{}, apierror.InvalidArgument(apierror.Violation{Field: "order_id", Description: "must be a UUID"})
	}
	return id, nil
}

// errHidden means that the order belongs to somebody else. Clients are told that there is no such order.
var errHidden = errors.New("somebody else's order")

// apiError gives this service's own errors their gRPC statuses; the server's interceptor maps all others.
func apiError(err error, id uuid.UUID) error {
	notFound := apierror.New(codes.NotFound, "ORDER_NOT_FOUND", "there is no order %s", id)
	switch {
	case errors.Is(err, errHidden):
		return notFound.WithMetadata(orderid.HiddenKey, "true")
	case errors.Is(err, errNotFound):
		return notFound
	}
	return err
}
