// Command example places an order and watches it until it has been decided.
package main

import (
	"cmp"
	"context"
	"log"
	"os"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	checkoutv1 "shop.example/gen/shop/checkout/v1"
	loggingv1 "shop.example/gen/shop/logging/v1"
)

func main() {
	ctx := context.Background()
	conn, err := grpc.NewClient(cmp.Or(os.Getenv("SHOP_SERVER"), "localhost:3000"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	check(err)
	placed, err := checkoutv1.NewCheckoutServiceClient(conn).PlaceOrder(ctx, &checkoutv1.PlaceOrderRequest{
		CustomerName: "Ada", CustomerEmail: "ada@example.org",
		OrderItems: []*checkoutv1.PlaceOrderRequest_Item{{ProductId: 5, Quantity: 3}, {ProductId: 6, Quantity: 4}},
	})
	check(err)
	stream, err := loggingv1.NewEventLogServiceClient(conn).StreamEvents(ctx, &loggingv1.StreamEventsRequest{OrderId: placed.GetOrder().GetId()})
	check(err)
	for decided := false; !decided; {
		reply, err := stream.Recv()
		check(err)
		if event := reply.GetEvent(); event != nil { // the first reply says only where the stream begins
			log.Println(event.GetOrderId(), event.GetRoutingKey(), event.GetPayload().GetFields()["reason"].GetStringValue())
			decided = event.GetRoutingKey() == "shop.order.confirmed" || event.GetRoutingKey() == "shop.order.rejected"
		}
	}
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
