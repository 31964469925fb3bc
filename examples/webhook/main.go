// Command webhook registers itself as a webhook for the events of orders, asks for a test event, and prints what comes and is
// verified: the first ones (webhook 3) or all, until Ctrl-C.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	webhooksv1 "shop.example/gen/shop/webhooks/v1"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	left := -1
	if len(os.Args) > 1 {
		var err error
		left, err = strconv.Atoi(os.Args[1])
		check(err)
	}
	if os.Getenv("SHOP_OPERATOR_TOKEN") == "" {
		log.Fatal("set SHOP_OPERATOR_TOKEN to the operator token, which make up prints")
	}
	check(listen(ctx, left))
}

func listen(ctx context.Context, left int) (err error) {
	conn, err := grpc.NewClient(cmp.Or(os.Getenv("SHOP_SERVER"), "localhost:3000"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	webhooks := webhooksv1.NewWebhookServiceClient(conn)
	operator := metadata.AppendToOutgoingContext(context.Background(), "authorization", "Bearer "+os.Getenv("SHOP_OPERATOR_TOKEN"))
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	created, err := webhooks.CreateWebhook(operator, &webhooksv1.CreateWebhookRequest{
		Webhook: &webhooksv1.Webhook{Url: "http://" + lis.Addr().String(), EventTypes: []string{"shop.order.#"}},
	})
	if err != nil {
		return err
	}
	id := created.GetWebhook().GetId()
	defer func() {
		_, deleted := webhooks.DeleteWebhook(operator, &webhooksv1.DeleteWebhookRequest{WebhookId: id})
		err = errors.Join(err, deleted)
	}()
	verifier, err := standardwebhooks.NewWebhook(created.GetSecret()) // it is shown this once
	if err != nil {
		return err
	}
	received := make(chan string)
	go func() { log.Println(http.Serve(lis, receiver(verifier, received))) }()

	tested := make(chan error, 1)
	go func() {
		test, err := webhooks.TestWebhook(operator, &webhooksv1.TestWebhookRequest{WebhookId: id})
		if err == nil && !test.GetDelivered() {
			err = fmt.Errorf("the test event was not delivered: %s", test.GetErrorMessage())
		}
		tested <- err
	}()
	for left != 0 {
		select {
		case event := <-received:
			log.Println(event)
			left--
		case err := <-tested:
			if err != nil {
				return err
			}
			log.Println("listening")
		case <-ctx.Done():
			return nil
		}
	}
	return nil
}

// receiver hands on what the shop has signed. Whatever it does with an event it should do after its answer, from a queue.
func receiver(verifier *standardwebhooks.Webhook, received chan<- string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
		if err == nil {
			err = verifier.Verify(body, r.Header)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		received <- r.Header.Get("webhook-id") + " " + string(body)
	}
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
