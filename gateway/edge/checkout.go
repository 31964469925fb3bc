package edge

import (
	"context"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/metadata"

	checkoutv1 "shop.example/gen/shop/checkout/v1"
	eventsv1 "shop.example/gen/shop/events/v1"
	orderv1 "shop.example/gen/shop/order/v1"
)

const (
	// longestWait bounds what a client may wait for the outcome of its order.
	longestWait = 30 * time.Second
	// An order is usually decided within some ten milliseconds: it is looked for often at first, then less and less.
	firstLook = 5 * time.Millisecond
	lastLook  = 200 * time.Millisecond
)

// checkout implements CheckoutService.
type checkout struct {
	checkoutv1.UnimplementedCheckoutServiceServer
	orders   *orders
	stopping <-chan struct{} // closed when the gateway stops: nobody waits then
}

// PlaceOrder publishes the order and answers with it: as PENDING, or as it was decided where the client prefers to wait
// and that happens in time.
func (c checkout) PlaceOrder(ctx context.Context, req *checkoutv1.PlaceOrderRequest) (*checkoutv1.PlaceOrderResponse, error) {
	lines := make([]*eventsv1.RequestedLine, len(req.GetOrderItems()))
	for i, item := range req.GetOrderItems() {
		lines[i] = &eventsv1.RequestedLine{
			ProductId:         item.GetProductId(),
			Quantity:          item.GetQuantity(),
			ExpectedUnitPrice: item.GetExpectedUnitPrice(),
		}
	}
	order, err := c.orders.place(ctx, req.GetCustomerName(), req.GetCustomerEmail(), lines)
	if err != nil {
		return nil, err
	}
	if wait := preferredWait(ctx); wait > 0 && order.GetState() == orderv1.Order_PENDING {
		order = c.outcome(ctx, order, wait)
	}
	return &checkoutv1.PlaceOrderResponse{Order: order}, nil
}

// outcome returns the order once it has been decided, or as it is when the wait is over.
func (c checkout) outcome(ctx context.Context, order *orderv1.Order, wait time.Duration) *orderv1.Order {
	over := time.NewTimer(wait)
	defer over.Stop()
	for pause := firstLook; ; pause = min(2*pause, lastLook) {
		look := time.NewTimer(pause)
		select {
		case <-look.C:
		case <-over.C:
			return order
		case <-c.stopping:
			return order
		case <-ctx.Done():
			return order
		}
		if decided := c.orders.lookup(ctx, order.GetId()); decided != nil {
			return decided
		}
	}
}

// preferredWait is how long the client prefers to wait: the preference "wait" of RFC 7240, in seconds. A preference
// that cannot be understood is ignored, as that RFC says.
func preferredWait(ctx context.Context) time.Duration {
	for _, header := range metadata.ValueFromIncomingContext(ctx, "prefer") {
		for preference := range strings.SplitSeq(header, ",") {
			name, value, _ := strings.Cut(strings.TrimSpace(preference), "=")
			if !strings.EqualFold(strings.TrimSpace(name), "wait") {
				continue
			}
			seconds, err := strconv.ParseUint(strings.Trim(strings.TrimSpace(value), `"`), 10, 31)
			if err != nil {
				return 0
			}
			return min(time.Duration(seconds)*time.Second, longestWait)
		}
	}
	return 0
}
