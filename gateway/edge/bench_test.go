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
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	checkoutv1 "shop.example/gen/shop/checkout/v1"
	loggingv1 "shop.example/gen/shop/logging/v1"
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
	checkoutv1.RegisterCheckoutServiceServer(a, checkout{orders: &orders{publish: publish, inFlight: semaphore.NewWeighted(1), log: tel.Logger}})
	rest, err := newREST(a.local, callers{}, nil, tel)
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
		if rest.serve(w, r, held{}, nil); w.Code != http.StatusAccepted {
			b.Fatal(w.Code, w.Body)
		}
	}
	if published != b.N {
		b.Errorf("%d orders, %d published", b.N, published)
	}
}

// BenchmarkSSE is what an event costs a stream in the gateway, from the message that the service has sent to the bytes
// that the client gets; the network and gRPC are left out.
func BenchmarkSSE(b *testing.B) {
	payload, err := structpb.NewStruct(map[string]any{
		"order_id": storedOrder, "customer_name": "Ada Lovelace", "customer_email": "ada@example.com", "placed_at": "2026-11-23T07:00:00Z",
		"lines": []any{
			map[string]any{"product_id": "5", "quantity": "3", "expected_unit_price": map[string]any{"currency_code": "USD", "units": "35"}},
			map[string]any{"product_id": "6", "quantity": "4", "expected_unit_price": map[string]any{"currency_code": "USD", "units": "25"}},
		},
	})
	if err != nil {
		b.Fatal(err)
	}
	event := &loggingv1.StreamEventsResponse{Position: 1, Event: &loggingv1.Event{
		Id: 1, RoutingKey: "shop.order.placed", Exchange: "shop.topic", Payload: payload, Status: loggingv1.Event_success, MessageId: storedOrder,
		OrderId: storedOrder, TraceId: "0af7651916cd43dd8448eb211c80319c", Source: "gateway", PublishedAt: timestamppb.Now(), CreatedAt: timestamppb.Now(),
	}}
	wire, err := proto.Marshal(event)
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(b.Context())
	w := &response{ResponseWriter: discard{}}
	out := &eventStream{ctx: ctx, cancel: cancel, codec: newCodec(), patience: readerPatience, w: w, control: http.NewResponseController(w)}
	b.ReportAllocs()
	for b.Loop() {
		received := &loggingv1.StreamEventsResponse{}
		if err := proto.Unmarshal(wire, received); err != nil {
			b.Fatal(err)
		}
		if err := out.SendMsg(received); err != nil {
			b.Fatal(err)
		}
	}
}

// discard is a client that takes everything.
type discard struct{}

func (discard) Header() http.Header         { return http.Header{} }
func (discard) Write(p []byte) (int, error) { return len(p), nil }
func (discard) WriteHeader(int)             {}
func (discard) Flush()                      {}
