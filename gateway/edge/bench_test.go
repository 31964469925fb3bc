package edge

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

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
	a := newAPI(grpc.NewServer(), operatorToken, tel)
	checkoutv1.RegisterCheckoutServiceServer(a, checkout{orders: &orders{publish: publish, inFlight: semaphore.NewWeighted(1), log: tel.Logger}})
	rest, err := newREST(a.local, nil, tel)
	if err != nil {
		b.Fatal(err)
	}
	request := httptest.NewRequestWithContext(b.Context(), http.MethodPost, "/v1/orders", nil)
	request.Header = http.Header{"Content-Type": {"application/json"}, "User-Agent": {"curl/8.0"}, "Accept": {"*/*"}}
	request.ContentLength = int64(len(order))
	b.ReportAllocs()
	for b.Loop() {
		r := request.WithContext(b.Context())
		r.Body = io.NopCloser(strings.NewReader(order))
		w := httptest.NewRecorder()
		if rest.ServeHTTP(w, r); w.Code != http.StatusAccepted {
			b.Fatal(w.Code, w.Body)
		}
	}
	if published != b.N {
		b.Errorf("%d orders, %d published", b.N, published)
	}
}
