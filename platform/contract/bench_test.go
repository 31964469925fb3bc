package contract

import (
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	eventsv1 "shop.example/gen/shop/events/v1"
	moneyv1 "shop.example/gen/shop/money/v1"
)

// BenchmarkValidate is what the rules of the events of an order of two lines cost; each event is validated by every
// service that takes it.
func BenchmarkValidate(b *testing.B) {
	const order = "01890a5d-ac96-774b-bcce-b302099a8057"
	price := &moneyv1.Money{CurrencyCode: "USD", Units: 35}
	priced := func(line int32) *eventsv1.PricedLine {
		return &eventsv1.PricedLine{Line: line, ProductId: 5, ProductName: "Laptop Stand", Quantity: 3, UnitPrice: price}
	}
	lines := []*eventsv1.PricedLine{priced(1), priced(2)}
	for _, m := range []proto.Message{
		&eventsv1.OrderPlaced{
			OrderId: order, CustomerName: "Ada Lovelace", CustomerEmail: "ada@example.com", PlacedAt: timestamppb.Now(),
			Lines: []*eventsv1.RequestedLine{{ProductId: 5, Quantity: 3, ExpectedUnitPrice: price}, {ProductId: 6, Quantity: 4, ExpectedUnitPrice: price}},
		},
		&eventsv1.OrderConfirmed{OrderId: order, Lines: lines, TotalItems: 6, TotalValue: price, ConfirmedAt: timestamppb.Now()},
		&eventsv1.DecrementQuantity{OrderId: order, Lines: lines},
	} {
		b.Run(string(m.ProtoReflect().Descriptor().Name()), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := Validate(m); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
