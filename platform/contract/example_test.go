package contract_test

import (
	"fmt"

	eventsv1 "shop.example/gen/shop/events/v1"
	"shop.example/platform/contract"
)

func ExampleEventOf() {
	event, ok := contract.EventOf(&eventsv1.OrderCancelled{})
	fmt.Println(ok, event.Exchange, event.RoutingKey, event.PublishedBy)
	_, ok = contract.EventOf(&eventsv1.PricedLine{}) // a part of events
	fmt.Println(ok)
	// Output:
	// true shop.topic shop.order.cancelled [order]
	// false
}

// The same event has the same id, whoever computes it and however often.
func ExampleMessageID() {
	id := func(order string) string {
		return contract.MessageID(&eventsv1.OrderCancelled{OrderId: order}).String()
	}
	first := id("018f3b1c-7c00-7000-8000-0123456789ab")
	fmt.Println(first == id("018f3b1c-7c00-7000-8000-0123456789ab"))
	fmt.Println(first == id("018f3b1c-7c00-7000-8000-0123456789ac"))
	// Output:
	// true
	// false
}
