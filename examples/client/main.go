// Command example places an order and watches it until it has been decided.
package main

import (
	"cmp"
	"context"
	"log"
	"os"
	"time"

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
	request := &loggingv1.StreamEventsRequest{OrderId: placed.GetOrder().GetId()}
	for range 30 {
		if err = watch(ctx, loggingv1.NewEventLogServiceClient(conn), request); err == nil {
			return
		}
		<-time.After(time.Second) // the connection was cut, or the shop restarts
	}
	check(err)
}

// watch returns nil when the order has been decided. After an error request says where to go on.
func watch(ctx context.Context, events loggingv1.EventLogServiceClient, request *loggingv1.StreamEventsRequest) error {
	stream, err := events.StreamEvents(ctx, request)
	if err != nil {
		return err
	}
	for {
		reply, err := stream.Recv()
		if err != nil {
			return err
		}
		request.AfterId = reply.GetPosition()
		event := reply.GetEvent() // some replies say only how far the stream has come
		if event != nil {
			log.Println(event.GetOrderId(), event.GetRoutingKey(), event.GetPayload().GetFields()["reason"].GetStringValue())
		}
		if key := event.GetRoutingKey(); key == "shop.order.confirmed" || key == "shop.order.rejected" {
			return nil
		}
	}
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
