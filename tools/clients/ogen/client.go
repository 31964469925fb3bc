package main

import (
	"context"
	"log"
	"os"
	"strconv"

	"github.com/google/uuid"

	"example.org/clients/shop"
)

// token is what the shop's bearer scheme takes.
type token string

func (t token) Bearer(context.Context, shop.OperationName) (shop.Bearer, error) {
	return shop.Bearer{Token: string(t)}, nil
}

func main() {
	ctx := context.Background()
	client := must(shop.NewClient(os.Getenv("SHOP_URL"), token(os.Getenv("SHOP_OPERATOR_TOKEN"))))
	product, unsold := number("PRODUCT"), number("UNSOLD_PRODUCT")

	placed := as[*shop.OrderHeaders](client.CheckoutServicePlaceOrder(ctx, &shop.PlaceOrderRequest{
		CustomerName: "Ada", CustomerEmail: "ada@example.org", OrderItems: []shop.PlaceOrderRequestItem{{ProductID: product, Quantity: 2}},
	}, shop.CheckoutServicePlaceOrderParams{Prefer: shop.NewOptString("wait=20")})).Response
	check(placed.State, "CONFIRMED")
	id := must(uuid.Parse(placed.ID))
	read := as[*shop.OrderServiceGetOrderOKHeaders](client.OrderServiceGetOrder(ctx, shop.OrderServiceGetOrderParams{OrderID: id})).Response
	check(read.TotalItems, 2)
	listed := as[*shop.ListOrdersResponse](client.OrderServiceListOrders(ctx, shop.OrderServiceListOrdersParams{
		State: shop.NewOptOrderServiceListOrdersState("CONFIRMED"),
	}))
	found := false
	for _, o := range listed.Orders {
		found = found || o.ID == placed.ID
	}
	check(found, true)
	check(as[*shop.OrderServiceCancelOrderOKHeaders](client.OrderServiceCancelOrder(ctx, &shop.CancelOrderBody{}, shop.OrderServiceCancelOrderParams{OrderID: id})).Response.State, "CANCELLED")

	item := as[*shop.ItemHeaders](client.InventoryServiceGetItem(ctx, shop.InventoryServiceGetItemParams{ID: unsold})).Response
	changed := as[*shop.ItemHeaders](client.InventoryServiceUpdateItem(ctx, &shop.UpdateItemBody{
		ID: shop.NewOptInt32(item.ID), ProductName: shop.NewOptString(item.ProductName), OnHand: shop.NewOptInt32(item.OnHand + 1),
		Quantity: shop.NewOptInt32(item.Quantity), Reserved: shop.NewOptInt32(item.Reserved), Price: shop.NewOptMoney(item.Price),
		Etag: shop.NewOptString(item.Etag), CreatedAt: shop.NewOptDateTime(item.CreatedAt), UpdatedAt: shop.NewOptDateTime(item.UpdatedAt),
	}, shop.InventoryServiceUpdateItemParams{ID: unsold})).Response
	check(changed.OnHand, item.OnHand+1)

	missing := as[*shop.InventoryServiceGetItemNotFound](client.InventoryServiceGetItem(ctx, shop.InventoryServiceGetItemParams{ID: 999999}))
	check(missing.Details[0].Reason.Value, "ITEM_NOT_FOUND")
}

func number(variable string) int32 { return int32(must(strconv.Atoi(os.Getenv(variable)))) }

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}

// as is the answer of a call, which has to be of a type.
func as[T any](answer any, err error) T {
	value, ok := must(answer, err).(T)
	if !ok {
		log.Fatalf("the answer is %T: %+v", answer, answer)
	}
	return value
}

func check[T comparable](got, want T) {
	if got != want {
		log.Fatalf("got %v, want %v", got, want)
	}
}
