// Package intake takes orders: it gives each an id (orderid.go) and publishes it to the broker; from then on the order is
// PENDING (orders.go). A client that wants to wait for the decision is told when it is made (decisions.go). checkout.go is
// the gRPC service.
package intake

import (
	"context"
	"strings"

	"google.golang.org/protobuf/proto"

	"shop.example/domain/email"
	"shop.example/domain/orderstate"
	"shop.example/domain/text"
	checkoutv1 "shop.example/gen/shop/checkout/v1"
	eventsv1 "shop.example/gen/shop/events/v1"
	"shop.example/platform/apierror"
)

// checkout implements CheckoutService.
type checkout struct {
	checkoutv1.UnimplementedCheckoutServiceServer
	orders    *Orders
	decisions *Decisions
}

// NewCheckout returns the gRPC service that takes orders. Without decisions (nil) no client can wait for the outcome.
func NewCheckout(orders *Orders, decisions *Decisions) checkoutv1.CheckoutServiceServer {
	return checkout{orders: orders, decisions: decisions}
}

// PlaceOrder publishes the order and returns it, PENDING; or, if the client prefers to wait, as it was decided if that
// happens in time.
func (c checkout) PlaceOrder(ctx context.Context, req *checkoutv1.PlaceOrderRequest) (*checkoutv1.PlaceOrderResponse, error) {
	lines := make([]*eventsv1.RequestedLine, len(req.GetOrderItems()))
	for i, item := range req.GetOrderItems() {
		lines[i] = &eventsv1.RequestedLine{
			ProductId:         item.GetProductId(),
			Quantity:          item.GetQuantity(),
			ExpectedUnitPrice: item.GetExpectedUnitPrice(),
		}
	}
	announce := func(string) {}
	preferred := readPreferences(ctx)
	var w *wait
	if preferred.wait > 0 {
		w = c.decisions.await(ctx)
		defer w.close()
		announce = w.setOrder
	}
	order, err := c.orders.Place(ctx, &eventsv1.OrderPlaced{
		CustomerName:  req.GetCustomerName(),
		CustomerEmail: req.GetCustomerEmail(),
		Lines:         lines,
	}, announce)
	if err != nil {
		return nil, err
	}
	if w != nil && !orderstate.IsDecided(order.GetState()) && order.GetId() == w.orderID {
		order = w.outcome(ctx, order, preferred.wait)
	}
	preferred.announce(ctx, !orderstate.IsDecided(order.GetState()))
	return &checkoutv1.PlaceOrderResponse{Order: order}, nil
}

// Violations implements apierror.RequestChecker, for rules that the contract cannot express. An address without an @ breaks
// one of the contract's rules already.
func (c checkout) Violations(req proto.Message) []apierror.Violation {
	order, ok := req.(*checkoutv1.PlaceOrderRequest)
	if !ok || !strings.Contains(order.GetCustomerEmail(), "@") || email.Valid(text.Normal(order.GetCustomerEmail())) {
		return nil
	}
	return []apierror.Violation{{Field: "customer_email", Description: "must be a valid email address"}}
}
