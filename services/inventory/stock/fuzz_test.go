package stock

import (
	"testing"

	"google.golang.org/protobuf/proto"

	eventsv1 "shop.example/gen/shop/events/v1"
	inventoryv1 "shop.example/gen/shop/inventory/v1"
	moneyv1 "shop.example/gen/shop/money/v1"
	"shop.example/platform/contract"
)

// A request that the contract allows can be read, whatever its bytes.
func FuzzCheckStockRequest_IsReadIfItKeepsItsContract(f *testing.F) {
	line := &eventsv1.RequestedLine{ProductId: 1, Quantity: 1, ExpectedUnitPrice: &moneyv1.Money{CurrencyCode: "USD", Units: 10, Nanos: 990000000}}
	for _, id := range []string{"01a1b9a4-0000-7000-8000-000000000001", "00000000-0000-0000-0000-000000000000", "", "urn:uuid:x"} {
		data, err := proto.Marshal(&inventoryv1.CheckStockRequest{Orders: []*inventoryv1.CheckStockRequest_Order{
			{OrderId: id, Lines: []*eventsv1.RequestedLine{line, {ProductName: "Laptop", Quantity: 3}}},
		}})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte("\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, data []byte) {
		request := &inventoryv1.CheckStockRequest{}
		if proto.Unmarshal(data, request) != nil || contract.Validate(request) != nil {
			return
		}
		for _, m := range request.GetOrders() {
			o, err := newOrder(m)
			if err != nil {
				t.Errorf("the contract allows %v, which cannot be read: %v", m, err)
			}
			for _, l := range o.lines {
				if l.quantity <= 0 || l.expected != nil && l.expected.minor < 0 {
					t.Errorf("a line of %d pieces at %+v", l.quantity, l.expected)
				}
			}
		}
	})
}
