package messaging_test

import (
	"context"
	"fmt"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	eventsv1 "shop.example/gen/shop/events/v1"
	"shop.example/platform/messaging"
	"shop.example/platform/testkit/brokertest"
)

// The library closes the connection when it cannot read a message's headers. Each delivery took with it what had come beside it, 20 times,
// and what was a dead letter by then kept all others from being stored.
func TestConsumer_HeadersThatTheLibraryCannotReadAreLeftOut(t *testing.T) {
	t.Parallel()
	urls := brokertest.New(t).Services(t, brokertest.Topology())
	gateway, order := rogueAt(t, urls["gateway"]), watch(t, urls["order"], "order")
	nested := func(depth int) amqp.Table {
		table := amqp.Table{}
		for range depth {
			table = amqp.Table{"in": []any{table}}
		}
		return table
	}
	wide := func(entries int) amqp.Table {
		table := amqp.Table{}
		for i := range entries {
			table[fmt.Sprint(i)] = nil
		}
		return table
	}
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	deep := nested(5)
	deep["traceparent"] = parent
	sent := map[string]bool{} // by order, whether the headers are kept
	for _, c := range []struct {
		headers amqp.Table
		kept    bool
	}{
		{deep, true}, {nested(40), false}, {amqp.Table{"traceparent": parent}, true}, {amqp.Table{"list": []any{wide(9000)}}, false}, {wide(9000), false},
		{amqp.Table{"traceparent": parent, "list": make([]any, 9000)}, false}, {amqp.Table{"traceparent": parent, "text": string(make([]byte, 60_000))}, true},
	} {
		m := placed()
		gateway.publish(t, "shop.topic", "shop.order.placed", m, c.headers)
		sent[m.GetOrderId()] = c.kept
	}
	handled := make(chan messaging.Message[*eventsv1.OrderPlaced], 100)
	order.orders(func(_ context.Context, batch []messaging.Message[*eventsv1.OrderPlaced]) error {
		for _, m := range batch {
			handled <- m
		}
		return nil
	})
	for range len(sent) {
		m := next(t, handled, "an order")
		kept, fresh := sent[m.Body.GetOrderId()]
		if !fresh || m.Trace.HasTraceID() != kept {
			t.Errorf("an order that is new (%t) has its headers: %t, want %t", fresh, m.Trace.HasTraceID(), kept)
		}
		delete(sent, m.Body.GetOrderId())
	}
	if order.said("connection lost") {
		t.Error("the connection was lost")
	}
}
