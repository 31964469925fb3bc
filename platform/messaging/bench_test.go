package messaging_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	eventsv1 "shop.example/gen/shop/events/v1"
	inventoryv1 "shop.example/gen/shop/inventory/v1"
	moneyv1 "shop.example/gen/shop/money/v1"
	"shop.example/platform/messaging"
	"shop.example/platform/testkit/brokertest"
)

// confirmedOrder is the event of an order of two lines.
func confirmedOrder() *eventsv1.OrderConfirmed {
	price := func(units int64) *moneyv1.Money { return &moneyv1.Money{CurrencyCode: "USD", Units: units} }
	return &eventsv1.OrderConfirmed{
		OrderId: uuid.Must(uuid.NewV7()).String(), TotalItems: 7, TotalValue: price(205), ConfirmedAt: timestamppb.Now(),
		Lines: []*eventsv1.PricedLine{
			{Line: 1, ProductId: 5, ProductName: "Laptop Stand", Quantity: 3, UnitPrice: price(35)},
			{Line: 2, ProductId: 6, ProductName: "Mouse Pad", Quantity: 4, UnitPrice: price(25)},
		},
	}
}

func BenchmarkNewOutgoing(b *testing.B) {
	m := confirmedOrder()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := messaging.NewOutgoing(b.Context(), m); err != nil {
			b.Fatal(err)
		}
	}
}

func outgoing(b *testing.B, m proto.Message) messaging.Outgoing {
	b.Helper()
	out, err := messaging.NewOutgoing(b.Context(), m)
	if err != nil {
		b.Fatal(err)
	}
	return out
}

// What the broker confirms at once, of a message that goes to the logging queue alone.
func BenchmarkSend(b *testing.B) {
	for _, size := range []int{1, 50, 500} {
		b.Run(fmt.Sprintf("%d messages", size), func(b *testing.B) {
			p := join(b, brokertest.New(b).URL, "order")
			messages := make([]messaging.Outgoing, size)
			for i := range messages {
				messages[i] = outgoing(b, confirmedOrder())
			}
			send := func() {
				if err := p.pub.Send(b.Context(), messages); err != nil {
					b.Fatal(err)
				}
			}
			send() // connects
			b.ReportAllocs()
			for b.Loop() {
				send()
			}
			perSecond(b, size, "messages/s")
		})
	}
}

// Placed orders from the queue to a handler that does nothing, decoded and validated, and acknowledged.
func BenchmarkConsume(b *testing.B) {
	p := join(b, brokertest.New(b).URL, "order")
	const round = 1000
	b.ReportAllocs()
	b.ResetTimer()
	b.StopTimer()
	for left := b.N; left > 0; left -= round {
		messages := make([]messaging.Outgoing, min(left, round))
		for i := range messages {
			messages[i] = outgoing(b, placed())
		}
		if err := p.pub.Send(b.Context(), messages); err != nil {
			b.Fatal(err)
		}
	}
	handled, all := 0, make(chan struct{})
	b.StartTimer()
	stop := p.orders(func(_ context.Context, batch []messaging.Message[*eventsv1.OrderPlaced]) error {
		if handled += len(batch); handled == b.N {
			close(all)
		}
		return nil
	})
	<-all
	b.StopTimer()
	stop()
	perSecond(b, 1, "messages/s")
}

// One call a batch of orders, answered at once: what the way there and back costs.
func BenchmarkRPC(b *testing.B) {
	for _, orders := range []int{1, 200} {
		b.Run(fmt.Sprintf("%d orders", orders), func(b *testing.B) {
			lines := confirmedOrder().GetLines()
			client := call(b, brokertest.New(b).URL, func(_ context.Context, r *inventoryv1.CheckStockRequest) (*inventoryv1.CheckStockResponse, error) {
				answer := &inventoryv1.CheckStockResponse{}
				for _, o := range r.GetOrders() {
					answer.Decisions = append(answer.Decisions, &inventoryv1.StockDecision{OrderId: o.GetOrderId(), Lines: lines})
				}
				return answer, nil
			})
			request := &inventoryv1.CheckStockRequest{}
			for range orders {
				request.Orders = append(request.Orders, &inventoryv1.CheckStockRequest_Order{
					OrderId: uuid.Must(uuid.NewV7()).String(),
					Lines:   []*eventsv1.RequestedLine{{ProductId: 5, Quantity: 3}, {ProductId: 6, Quantity: 4}},
				})
			}
			ask := func() {
				ctx, cancel := context.WithTimeout(b.Context(), testTimeout)
				defer cancel()
				if _, err := client.CheckStock(ctx, request); err != nil {
					b.Fatal(err)
				}
			}
			ask() // connects
			b.ReportAllocs()
			for b.Loop() {
				ask()
			}
			perSecond(b, orders, "orders/s")
		})
	}
}

func perSecond(b *testing.B, each int, unit string) {
	b.ReportMetric(float64(b.N*each)/b.Elapsed().Seconds(), unit)
}
