package server

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"shop.example/gateway/ingress"
	"shop.example/gateway/intake"
	checkoutv1 "shop.example/gen/shop/checkout/v1"
	"shop.example/platform/telemetry"
)

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
