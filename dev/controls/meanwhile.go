package controls

import (
	"context"
	"time"

	"shop.example/domain/orderstate"
	inventoryv1 "shop.example/gen/shop/inventory/v1"
	moneyv1 "shop.example/gen/shop/money/v1"
	orderv1 "shop.example/gen/shop/order/v1"
	"shop.example/topology"
)

type priceAnswer struct {
	OrderID     string `json:"order_id"`
	State       string `json:"state"`
	Reason      string `json:"reason"`
	Expected    int64  `json:"expected"` // the price that the customer saw
	Price       int64  `json:"price"`    // the catalogue's when the order was decided
	Currency    string `json:"currency"`
	StockBefore int32  `json:"stock_before"`
	StockAfter  int32  `json:"stock_after"`
}

// price changes the price of a product while an order for it waits in the queue.
func (e *experiment) price(ctx context.Context, body []byte) (any, error) {
	if err := read(body); err != nil {
		return nil, err
	}
	product, err := e.newProduct(ctx, "Dearer meanwhile", 10)
	if err != nil {
		return nil, err
	}
	back, err := e.withoutOrderService(ctx)
	if err != nil {
		return nil, err
	}
	placed, err := e.place(ctx, product.GetId(), product.GetPrice())
	if err != nil {
		return nil, err
	}
	expected, price := product.GetPrice().GetUnits(), product.GetPrice().GetUnits()+2
	e.say("The order service is stopped, so that an order waits in its queue: one piece at %d %s, the price that the customer saw.", expected, e.Currency)
	_, err = inventoryv1.NewInventoryServiceClient(e.gateway).UpdateItem(ctx, &inventoryv1.UpdateItemRequest{
		Item: &inventoryv1.Item{Id: product.GetId(), Price: &moneyv1.Money{CurrencyCode: e.Currency, Units: price}},
	})
	if err != nil {
		return nil, err
	}
	e.say("An operator changes the price to %d %s.", price, e.Currency)
	if err := back(); err != nil {
		return nil, err
	}
	o, err := e.decided(ctx, placed.GetId())
	if err != nil {
		return nil, err
	}
	e.say("The order service is back, asks inventory, and the order is %s.", o.GetState())
	after, err := e.item(ctx, product.GetId())
	return priceAnswer{
		OrderID: o.GetId(), State: o.GetState().String(), Reason: o.GetReason().String(), Expected: expected, Price: price, Currency: e.Currency,
		StockBefore: product.GetQuantity(), StockAfter: after.GetQuantity(),
	}, err
}

// decided waits until an order is decided, and returns it.
func (e *experiment) decided(ctx context.Context, id string) (o *orderv1.Order, err error) {
	return o, e.until(ctx, "the order was accepted, but is not decided yet; it will be", func() bool {
		reply, err := orderv1.NewOrderServiceClient(e.gateway).GetOrder(ctx, &orderv1.GetOrderRequest{OrderId: id})
		o = reply.GetOrder()
		return err == nil && orderstate.IsDecided(o.GetState())
	})
}

type compareAnswer struct {
	Usual       string  `json:"usual"`   // the id of the order while everything runs
	Waited      string  `json:"waited"`  // and of the one during the stop
	Seconds     float64 `json:"seconds"` // that inventory was stopped
	StockBefore int32   `json:"stock_before"`
	StockAfter  int32   `json:"stock_after"`
}

// compare places the same order twice: while everything runs, and while inventory is stopped.
func (e *experiment) compare(ctx context.Context, body []byte) (any, error) {
	const stopped = 2 * time.Second
	if err := read(body); err != nil {
		return nil, err
	}
	product, err := e.newProduct(ctx, "Ordered twice", 10)
	if err != nil {
		return nil, err
	}
	usual, err := e.order(ctx, product.GetId())
	if err != nil {
		return nil, err
	}
	if err := e.settled(ctx, product.GetId(), product.GetOnHand()-1); err != nil {
		return nil, err
	}
	e.say("An order of one piece is decided and settled, while everything runs.")
	inventory := e.shop.Services()[topology.Inventory]
	back := func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), experimentTimeout)
		defer cancel()
		return inventory.Start(ctx)
	}
	e.undo = append(e.undo, func() { _ = back() }) // if it failed, the list of services says so
	begin := time.Now()
	if err := inventory.Stop(); err != nil {
		return nil, err
	}
	waited, err := e.place(ctx, product.GetId(), nil)
	if err != nil {
		return nil, err
	}
	e.say("Inventory is stopped, and the same order is placed: it is accepted all the same, and waits.")
	select {
	case <-time.After(stopped):
	case <-ctx.Done():
		return nil, e.late("the order waits for inventory")
	}
	if err := back(); err != nil {
		return nil, err
	}
	answer := compareAnswer{Usual: usual.GetId(), Waited: waited.GetId(), Seconds: time.Since(begin).Seconds(), StockBefore: product.GetOnHand()}
	e.say("Inventory is back after %.1f s. Nobody sends the order again: it is in the queue.", answer.Seconds)
	if err := e.settled(ctx, product.GetId(), product.GetOnHand()-2); err != nil {
		return nil, err
	}
	after, err := e.item(ctx, product.GetId())
	answer.StockAfter = after.GetOnHand()
	return answer, err
}
