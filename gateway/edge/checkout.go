package edge

import (
	"context"

	checkoutv1 "shop.example/gen/shop/checkout/v1"
	eventsv1 "shop.example/gen/shop/events/v1"
	orderv1 "shop.example/gen/shop/order/v1"
)

// checkout implements CheckoutService.
type checkout struct {
	checkoutv1.UnimplementedCheckoutServiceServer
	orders *orders
}

// PlaceOrder publishes the order and answers with it as PENDING.
func (c checkout) PlaceOrder(ctx context.Context, req *checkoutv1.PlaceOrderRequest) (*checkoutv1.PlaceOrderResponse, error) {
	lines := make([]*eventsv1.RequestedLine, len(req.GetOrderItems()))
	for i, item := range req.GetOrderItems() {
		lines[i] = &eventsv1.RequestedLine{
			ProductId:         item.GetProductId(),
			Quantity:          item.GetQuantity(),
			ExpectedUnitPrice: item.GetExpectedUnitPrice(),
		}
	}
	placed, err := c.orders.place(ctx, req.GetCustomerName(), req.GetCustomerEmail(), lines)
	if err != nil {
		return nil, err
	}
	return &checkoutv1.PlaceOrderResponse{Order: pending(placed)}, nil
}

// pending is the order as far as it is known before it has been decided.
func pending(placed *eventsv1.OrderPlaced) *orderv1.Order {
	order := &orderv1.Order{
		Id:            placed.GetOrderId(),
		State:         orderv1.Order_PENDING,
		CustomerName:  placed.GetCustomerName(),
		CustomerEmail: placed.GetCustomerEmail(),
		OrderItems:    make([]*orderv1.OrderItem, len(placed.GetLines())),
		CreatedAt:     placed.GetPlacedAt(),
		UpdatedAt:     placed.GetPlacedAt(),
	}
	for i, line := range placed.GetLines() {
		order.OrderItems[i] = &orderv1.OrderItem{Line: int32(i + 1), ProductId: line.GetProductId(), Quantity: line.GetQuantity()}
		order.TotalItems += line.GetQuantity()
	}
	return order
}
