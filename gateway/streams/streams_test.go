package streams

import (
	"context"
	"net/http"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"shop.example/gateway/ingress"
	"shop.example/gateway/rest"
	loggingv1 "shop.example/gen/shop/logging/v1"
)

// BenchmarkSSE is what an event costs a stream in the gateway, from the message that the service has sent to the bytes
// that the client gets; the network and gRPC are left out.
func BenchmarkSSE(b *testing.B) {
	const orderID = "00000000-0000-4000-8000-000000000001"
	payload, err := structpb.NewStruct(map[string]any{
		"order_id": orderID, "customer_name": "Ada Lovelace", "customer_email": "ada@example.com", "placed_at": "2026-11-23T07:00:00Z",
		"lines": []any{
			map[string]any{"product_id": "5", "quantity": "3", "expected_unit_price": map[string]any{"currency_code": "USD", "units": "35"}},
			map[string]any{"product_id": "6", "quantity": "4", "expected_unit_price": map[string]any{"currency_code": "USD", "units": "25"}},
		},
	})
	if err != nil {
		b.Fatal(err)
	}
	event := &loggingv1.StreamEventsResponse{Position: 1, Event: &loggingv1.Event{
		Id: 1, RoutingKey: "shop.order.placed", Exchange: "shop.topic", Payload: payload, Status: loggingv1.Event_success, MessageId: orderID,
		OrderId: orderID, TraceId: "0af7651916cd43dd8448eb211c80319c", Source: "gateway", PublishedAt: timestamppb.Now(), CreatedAt: timestamppb.Now(),
	}}
	wire, err := proto.Marshal(event)
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(b.Context())
	w := &rest.Response{ResponseWriter: discard{}}
	out := &eventStream{ctx: ctx, cancel: cancel, writeTimeout: ingress.SlowReaderTimeout, w: w, control: http.NewResponseController(w)}
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
