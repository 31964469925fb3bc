package controls

import (
	"context"
	"time"

	eventsv1 "shop.example/gen/shop/events/v1"
	orderv1 "shop.example/gen/shop/order/v1"
	"shop.example/platform/messaging"
	"shop.example/topology"
)

type disorderAnswer struct {
	OrderID     string  `json:"order_id"`
	State       string  `json:"state"`
	StockBefore int32   `json:"stock_before"`
	StockAfter  int32   `json:"stock_after"`
	Audit       verdict `json:"audit"`
}

// disorder lets the cancellation of an order reach inventory before the event that settles it.
func (e *experiment) disorder(ctx context.Context, body []byte) (any, error) {
	if err := read(body); err != nil {
		return nil, err
	}
	begin := time.Now()
	product, err := e.newProduct(ctx, "Cancelled early", 10)
	if err != nil {
		return nil, err
	}
	held, err := e.holdOutbox(ctx)
	if err != nil {
		return nil, err
	}
	placed, err := e.place(ctx, product.GetId(), nil)
	if err != nil {
		return nil, err
	}
	orders := orderv1.NewOrderServiceClient(e.gateway)
	if err = e.until(ctx, "the order was accepted, but is not decided yet; it will be", func() bool {
		reply, err := orders.GetOrder(ctx, &orderv1.GetOrderRequest{OrderId: placed.GetId()})
		return err == nil && reply.GetOrder().GetState() == orderv1.Order_CONFIRMED
	}); err != nil {
		return nil, err
	}
	e.say("An order is confirmed, one piece is held for it. Its events, DecrementQuantity among them, are held back in the outbox.")
	if _, err := orders.CancelOrder(ctx, &orderv1.CancelOrderRequest{OrderId: placed.GetId()}); err != nil {
		return nil, err
	}
	out := messaging.Outgoing{}
	err = held.tx.QueryRowContext(ctx, `
		SELECT exchange, routing_key, type, message_id, correlation_id, traceparent, created_at, body
		FROM orders.outbox WHERE correlation_id = $1 ORDER BY id DESC LIMIT 1`, placed.GetId()).
		Scan(&out.Exchange, &out.RoutingKey, &out.Type, &out.MessageID, &out.CorrelationID, &out.TraceParent, &out.Timestamp, &out.Body)
	if err != nil {
		return nil, err
	}
	if err := e.publishAs(ctx, topology.Order, []messaging.Outgoing{out}); err != nil {
		return nil, err
	}
	e.say("It is cancelled, and that event overtakes the others: %s is published first.", out.RoutingKey)
	if err := e.settled(ctx, product.GetId(), product.GetOnHand()); err != nil {
		return nil, err
	}
	e.say("Inventory has released the piece. Now the outbox is let go: DecrementQuantity comes late, and the cancellation a second time.")
	held.release()
	if _, err := e.events(ctx, placed.GetId(), &eventsv1.DecrementQuantity{}); err != nil {
		return nil, err
	}
	answer := disorderAnswer{OrderID: placed.GetId(), StockBefore: product.GetOnHand()}
	if answer.Audit, err = e.verdict(ctx, time.Since(begin)); err != nil { // when nothing is in flight
		return nil, err
	}
	after, err := e.item(ctx, product.GetId())
	if err != nil {
		return nil, err
	}
	reply, err := orders.GetOrder(ctx, &orderv1.GetOrderRequest{OrderId: placed.GetId()})
	answer.State, answer.StockAfter = reply.GetOrder().GetState().String(), after.GetOnHand()
	return answer, err
}
