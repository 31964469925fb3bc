package command

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/structpb"

	loggingv1 "shop.example/gen/shop/logging/v1"
	orderv1 "shop.example/gen/shop/order/v1"
	"shop.example/platform/apierror"
)

// streaming returns a stream that sends these events, and then nothing.
func streaming(events ...*loggingv1.Event) func(grpc.ServerStreamingServer[loggingv1.StreamEventsResponse]) error {
	return func(s grpc.ServerStreamingServer[loggingv1.StreamEventsResponse]) error {
		if err := s.Send(&loggingv1.StreamEventsResponse{}); err != nil {
			return err
		}
		for _, e := range events {
			if err := s.Send(&loggingv1.StreamEventsResponse{Event: e, Position: e.GetId()}); err != nil {
				return err
			}
		}
		<-s.Context().Done()
		return s.Context().Err()
	}
}

func TestOrderWatch_WithoutTheOrderServiceTheEventsSayHowItEnded(t *testing.T) {
	t.Parallel()
	placed := &loggingv1.Event{Id: 1, RoutingKey: "shop.order.placed", Source: "gateway"}
	why, err := structpb.NewStruct(map[string]any{"reason": "OUT_OF_STOCK", "detail": "Laptop: only 50 available"})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		events []*loggingv1.Event
		status int
		state  string
		why    string
	}{
		{"rejected", []*loggingv1.Event{placed, {Id: 2, RoutingKey: "shop.order.rejected", Source: "order", Payload: why}}, 1, "REJECTED", "OUT_OF_STOCK: Laptop: only 50 available"},
		{"confirmed", []*loggingv1.Event{placed, {Id: 2, RoutingKey: "shop.order.confirmed"}, {Id: 3, RoutingKey: "shop.inventory.decrement.quantity"}}, 0, "CONFIRMED", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := &fakeShop{
				get: func() (*orderv1.Order, error) {
					return nil, apierror.Unavailable("SERVICE_UNAVAILABLE", time.Second, "order service is not available").GRPCStatus().Err()
				},
				stream: streaming(c.events...),
			}
			got := f.run(t.Context(), t, "order", "watch", anOrder)
			if got.status != c.status || !strings.HasSuffix(got.out, "\n\n"+anOrder+" "+c.state+"\n") ||
				!strings.Contains(got.errs, "the order service does not answer") || !strings.Contains(got.errs, c.why) {
				t.Errorf("watched: %+v", got)
			}
		})
	}
}

func TestSinceLast_IsAsShortAsItCanBeRead(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{
		0: "+0 ms", 14 * time.Millisecond: "+14 ms", -3 * time.Millisecond: "-3 ms", 14065 * time.Millisecond: "+14.1 s",
		-1500 * time.Millisecond: "-1.5 s", 130 * time.Second: "+2m10s", -time.Hour: "-1h0m0s",
	} {
		if got := sinceLast(d); got != want {
			t.Errorf("%s is %q, want %q", d, got, want)
		}
	}
}

func TestEvents_ARoutingKeyThatNoEventHasIsNamed(t *testing.T) {
	t.Parallel()
	for pattern, known := range map[string]bool{
		"": true, "shop.order.placed": true, "shop.stock.#": true, "shop.*.placed": true, "#": true,
		"shop.ordr.placed": false, "shop.order": false, "shop.order..placed": false, "shop.order.placed.": false, "order.#": false,
	} {
		if err := knownKey(pattern); (err == nil) != known {
			t.Errorf("%q: %v", pattern, err)
		}
	}
}
