package main

import (
	"context"
	"log"
	"net/http"
	"os"
	"strconv"

	"github.com/google/uuid"

	"example.org/clients/shop"
)

func main() {
	ctx := context.Background()
	client := must(shop.NewClientWithResponses(os.Getenv("SHOP_URL"), shop.WithRequestEditorFn(func(_ context.Context, req *http.Request) error {
		req.Header.Set("Authorization", "Bearer "+os.Getenv("SHOP_OPERATOR_TOKEN"))
		return nil
	})))
	product, unsold := number("PRODUCT"), number("UNSOLD_PRODUCT")

	wait := "wait=20"
	placed := must(client.CheckoutServicePlaceOrderWithResponse(ctx, &shop.CheckoutServicePlaceOrderParams{Prefer: &wait}, shop.PlaceOrderRequest{
		CustomerName: "Ada", CustomerEmail: "ada@example.org", OrderItems: []shop.PlaceOrderRequestItem{{ProductId: product, Quantity: 2}},
	})).JSON200
	check(placed.State, "CONFIRMED")
	id := must(uuid.Parse(placed.Id))
	check(must(client.OrderServiceGetOrderWithResponse(ctx, id, nil)).JSON200.TotalItems, 2)
	state := shop.OrderServiceListOrdersParamsState("CONFIRMED")
	found := false
	for _, o := range must(client.OrderServiceListOrdersWithResponse(ctx, &shop.OrderServiceListOrdersParams{State: &state})).JSON200.Orders {
		found = found || o.Id == placed.Id
	}
	check(found, true)
	check(must(client.OrderServiceCancelOrderWithResponse(ctx, id, nil, shop.CancelOrderBody{})).JSON200.State, "CANCELLED")

	item := must(client.InventoryServiceGetItemWithResponse(ctx, unsold, nil)).JSON200
	more := item.OnHand + 1
	changed := must(client.InventoryServiceUpdateItemWithResponse(ctx, unsold, nil, shop.UpdateItemBody{
		Id: item.Id, ProductName: &item.ProductName, OnHand: &more, Quantity: item.Quantity, Reserved: item.Reserved, Price: &item.Price,
		Etag: &item.Etag, CreatedAt: item.CreatedAt, UpdatedAt: item.UpdatedAt,
	}))
	check(changed.JSON200.OnHand, more)

	missing := must(client.InventoryServiceGetItemWithResponse(ctx, 999999, nil)).JSON404
	check(*missing.Details[0].Reason, "ITEM_NOT_FOUND")
}

func number(variable string) int32 { return int32(must(strconv.Atoi(os.Getenv(variable)))) }

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}

func check[T comparable](got, want T) {
	if got != want {
		log.Fatalf("got %v, want %v", got, want)
	}
}
