package intake

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	eventsv1 "shop.example/gen/shop/events/v1"
	moneyv1 "shop.example/gen/shop/money/v1"
	orderv1 "shop.example/gen/shop/order/v1"
)

func TestDecide_IsWhatTheOrderServiceStores(t *testing.T) {
	t.Parallel()
	at, later := timestamppb.New(time.Unix(1, 1000)), timestamppb.New(time.Unix(2, 2000))
	usd := func(units int64) *moneyv1.Money { return &moneyv1.Money{CurrencyCode: "USD", Units: units} }
	placed := func() *orderv1.Order {
		return pending(&eventsv1.OrderPlaced{
			OrderId: "00000000-0000-4000-8000-000000000001", CustomerName: "Ada", CustomerEmail: "ada@example.org", PlacedAt: at,
			Lines: []*eventsv1.RequestedLine{{ProductName: "Laptop Stand", Quantity: 3}, {ProductId: 6, Quantity: 4}},
		})
	}
	for event, want := range map[proto.Message]*orderv1.Order{
		&eventsv1.OrderConfirmed{
			OrderId: "00000000-0000-4000-8000-000000000001", TotalItems: 7, TotalValue: usd(205), ConfirmedAt: later,
			Lines: []*eventsv1.PricedLine{
				{Line: 1, ProductId: 5, ProductName: "Laptop Stand", Quantity: 3, UnitPrice: usd(35)},
				{Line: 2, ProductId: 6, ProductName: "Mouse Pad", Quantity: 4, UnitPrice: usd(25)},
			},
		}: {
			Id: "00000000-0000-4000-8000-000000000001", State: orderv1.Order_CONFIRMED, CustomerName: "Ada", CustomerEmail: "ada@example.org", CreatedAt: at, UpdatedAt: later,
			TotalItems: 7, TotalValue: usd(205), OrderItems: []*orderv1.OrderItem{
				{Line: 1, ProductId: 5, ProductName: "Laptop Stand", Quantity: 3, UnitPrice: usd(35)},
				{Line: 2, ProductId: 6, ProductName: "Mouse Pad", Quantity: 4, UnitPrice: usd(25)},
			},
		},
		&eventsv1.OrderRejected{OrderId: "00000000-0000-4000-8000-000000000001", Reason: eventsv1.OrderRejected_PRICE_CHANGED, Detail: "Laptop Stand: 36.00 USD", RejectedAt: later}: {
			Id: "00000000-0000-4000-8000-000000000001", State: orderv1.Order_REJECTED, Reason: eventsv1.OrderRejected_PRICE_CHANGED.Enum(), RejectionDetail: proto.String("Laptop Stand: 36.00 USD"),
			CustomerName: "Ada", CustomerEmail: "ada@example.org", CreatedAt: at, UpdatedAt: later,
			TotalItems: 7, OrderItems: []*orderv1.OrderItem{{Line: 1, ProductName: "Laptop Stand", Quantity: 3}, {Line: 2, ProductId: 6, Quantity: 4}},
		},
	} {
		if got := decide(placed(), event); !proto.Equal(got, want) {
			t.Errorf("after %T: %v\nwant %v", event, got, want)
		}
	}
}
