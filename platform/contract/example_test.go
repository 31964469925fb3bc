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
	cancelled := &eventsv1.OrderCancelled{OrderId: "018f3b1c-7c00-7000-8000-0123456789ab"}
	fmt.Println(contract.MessageID(cancelled) == contract.MessageID(cancelled))
	other := &eventsv1.OrderCancelled{OrderId: "018f3b1c-7c00-7000-8000-0123456789ac"}
	fmt.Println(contract.MessageID(cancelled) == contract.MessageID(other))
	// Output:
	// true
	// false
}
