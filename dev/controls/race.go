package controls

import (
	"context"
	"slices"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/metadata"

	"shop.example/domain/orderstate"
	checkoutv1 "shop.example/gen/shop/checkout/v1"
	eventsv1 "shop.example/gen/shop/events/v1"
	inventoryv1 "shop.example/gen/shop/inventory/v1"
	moneyv1 "shop.example/gen/shop/money/v1"
	orderv1 "shop.example/gen/shop/order/v1"
)

// outcomeWait is how long each buyer waits for the outcome, as the header Prefer has it: in seconds.
const outcomeWait = "wait=12"

type raceAnswer struct {
	ProductID int32   `json:"product_id"`
	Tried     int     `json:"tried"`
	Sold      int     `json:"sold"`
	Refused   int     `json:"refused"`
	Oversold  int     `json:"oversold"` // sold beyond the stock
	Seconds   float64 `json:"seconds"`  // from the first order to the last outcome
	Audit     verdict `json:"audit"`
}

// race places many orders at the same time, of one piece each, for a product with little stock.
func (e *experiment) race(ctx context.Context, body []byte) (any, error) {
	buyers, stock := 50, 10
	if err := read(body, number{"buyers", 1, 500, &buyers}, number{"stock", 1, 500, &stock}); err != nil {
		return nil, err
	}
	product, err := e.newProduct(ctx, "Last pieces", stock)
	if err != nil {
		return nil, err
	}
	begin := time.Now()
	e.say("%d orders are sent at the same time, of one piece each; there are %d.", buyers, stock)
	orders := make([]*orderv1.Order, buyers)
	var placing errgroup.Group
	for i := range orders {
		placing.Go(func() (err error) {
			orders[i], err = e.order(ctx, product.GetId())
			return err
		})
	}
	if err := placing.Wait(); err != nil {
		return nil, err
	}
	answer := raceAnswer{ProductID: product.GetId(), Tried: buyers, Seconds: time.Since(begin).Seconds()}
	for _, o := range orders {
		switch {
		case !orderstate.IsDecided(o.GetState()):
			return nil, e.late("the orders were accepted, but not all of them are decided yet; they will be")
		case o.GetState() == orderv1.Order_CONFIRMED:
			answer.Sold++
		case o.GetReason() == eventsv1.OrderRejected_OUT_OF_STOCK:
			answer.Refused++
		}
	}
	answer.Oversold = max(0, answer.Sold-stock)
	e.say("All are decided: %d confirmed, %d rejected. Now the audit compares orders, holds, movements and stock.", answer.Sold, answer.Refused)
	if answer.Audit, err = e.verdict(ctx, time.Since(begin)); err != nil {
		return nil, err
	}
	return answer, nil
}

// placeAll places n orders, one every pause, whether those before have been answered or not. If meanwhile is not nil, it is called
// when a third has been sent. It returns the ids, and how long the slowest took.
func placeAll(ctx context.Context, n int, pause time.Duration, place func(context.Context) (id string, err error), meanwhile func()) (ids []string, slowest time.Duration, err error) {
	ids = make([]string, n)
	took := make([]time.Duration, n)
	placing, ctx := errgroup.WithContext(ctx)
	for i := range ids {
		if i == n/3 && meanwhile != nil {
			meanwhile()
		}
		placing.Go(func() (err error) {
			sent := time.Now()
			ids[i], err = place(ctx)
			took[i] = time.Since(sent)
			return err
		})
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
	err = placing.Wait()
	return ids, slices.Max(took), err
}

// verdict audits the orders of this experiment. It does not count open dead letters, which are about something else.
func (e *experiment) verdict(ctx context.Context, took time.Duration) (v verdict, err error) {
	r, err := e.auditSince(ctx, took+time.Second, auditTimeout)
	if err != nil {
		return v, err
	}
	return newVerdict(r), nil
}

// newProduct creates a product that nobody else orders; it is deleted when the experiment ends.
func (e *experiment) newProduct(ctx context.Context, name string, stock int) (*inventoryv1.Item, error) {
	reply, err := inventoryv1.NewInventoryServiceClient(e.gateway).CreateItems(ctx, &inventoryv1.CreateItemsRequest{
		Items: []*inventoryv1.CreateItemsRequest_NewItem{{
			ProductName: name + " " + uuid.NewString()[:8], Quantity: int32(stock), Price: &moneyv1.Money{CurrencyCode: e.Currency, Units: 10},
		}},
	})
	if err != nil {
		return nil, err
	}
	e.products = append(e.products, reply.GetItems()[0].GetId())
	return reply.GetItems()[0], nil
}

// order orders one piece, as any client would, and waits some time for the outcome.
func (e *experiment) order(ctx context.Context, product int32) (*orderv1.Order, error) {
	return e.place(metadata.AppendToOutgoingContext(ctx, "prefer", outcomeWait), product, nil)
}

// place orders one piece, at the expected price if there is one, and returns when the order is accepted.
func (e *experiment) place(ctx context.Context, product int32, expected *moneyv1.Money) (*orderv1.Order, error) {
	reply, err := checkoutv1.NewCheckoutServiceClient(e.gateway).PlaceOrder(ctx, &checkoutv1.PlaceOrderRequest{
		CustomerName: "Demo", CustomerEmail: "demo@example.org",
		OrderItems: []*checkoutv1.PlaceOrderRequest_Item{{ProductId: product, Quantity: 1, ExpectedUnitPrice: expected}},
	})
	return reply.GetOrder(), err
}
