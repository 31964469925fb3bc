package server

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	"shop.example/gateway/ingress"
	"shop.example/gateway/intake"
	checkoutv1 "shop.example/gen/shop/checkout/v1"
	"shop.example/platform/telemetry"
)

// BenchmarkPlaceOrder_GRPC is what an order costs client and gateway over gRPC, one call at a time on one connection of this
// machine.
func BenchmarkPlaceOrder_GRPC(b *testing.B) {
	tel, err := telemetry.New(b.Context(), telemetry.Config{Service: "gateway", LogLevel: slog.LevelInfo, Output: io.Discard})
	if err != nil {
		b.Fatal(err)
	}
	server := grpc.NewServer()
	a := newAPI(server, testOperators, tel)
	publish := func(context.Context, proto.Message) error { return nil }
	orders, err := intake.NewOrders(intake.Config{Secrets: []*intake.Secret{intake.NewSecret("a secret of the tests")}, Publish: publish, MaxInFlight: 1, Log: tel.Logger})
	if err != nil {
		b.Fatal(err)
	}
	checkoutv1.RegisterCheckoutServiceServer(a, intake.NewCheckout(orders, nil))
	meter := tel.Meter.Meter("test")
	limits, err := ingress.NewLimits(0, 0, 0, false, meter)
	if err != nil {
		b.Fatal(err)
	}
	handler, err := ingress.New(ingress.Config{}, server, nil, ingress.ClientIdentifier{Authorizer: a.access}, limits, nil, tel.Logger, meter)
	if err != nil {
		b.Fatal(err)
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	front := ingress.NewServer(handler, tel.Logger)
	go func() { _ = front.Serve(lis) }() // until it is closed
	defer front.Close()
	conn, err := grpc.NewClient(lis.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	client := checkoutv1.NewCheckoutServiceClient(conn)
	request := &checkoutv1.PlaceOrderRequest{CustomerName: "Ada Lovelace", CustomerEmail: "ada@example.org", OrderItems: []*checkoutv1.PlaceOrderRequest_Item{{ProductId: 1, Quantity: 1}}}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := client.PlaceOrder(b.Context(), request); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkPlaceOrder_REST is what the gateway itself costs an order over REST, from the parsed HTTP request to the
// written answer: the broker, whose part is messaging's, confirms at once, and the network is left out.
func BenchmarkPlaceOrder_REST(b *testing.B) {
	tel, err := telemetry.New(b.Context(), telemetry.Config{Service: "gateway", LogLevel: slog.LevelInfo, Output: io.Discard})
	if err != nil {
		b.Fatal(err)
	}
	published := 0
	publish := func(context.Context, proto.Message) error {
		published++
		return nil
	}
	a := newAPI(grpc.NewServer(), testOperators, tel)
	orders, err := intake.NewOrders(intake.Config{Secrets: []*intake.Secret{intake.NewSecret("a secret of the tests")}, Publish: publish, MaxInFlight: 1, Log: tel.Logger})
	if err != nil {
		b.Fatal(err)
	}
	checkoutv1.RegisterCheckoutServiceServer(a, intake.NewCheckout(orders, nil))
	rest := serveREST(b, a, orders, tel)
	request := httptest.NewRequestWithContext(b.Context(), http.MethodPost, "/v1/orders", nil)
	request.Header = http.Header{"Content-Type": {"application/json"}, "User-Agent": {"curl/8.0"}, "Accept": {"*/*"}}
	request.ContentLength = int64(len(order))
	b.ReportAllocs()
	for b.Loop() {
		r := request.WithContext(b.Context())
		r.Body = io.NopCloser(strings.NewReader(order))
		w := httptest.NewRecorder()
		if rest.ServeCall(w, r, ingress.CallMemory{}, nil); w.Code != http.StatusAccepted {
			b.Fatal(w.Code, w.Body)
		}
	}
	if published != b.N {
		b.Errorf("%d orders, %d published", b.N, published)
	}
}
