package command

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

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

// Such a watch had no end.
func TestOrderWatch_EndsForAnOrderOfWhichTheLogHasDeletedEvents(t *testing.T) {
	t.Parallel()
	placed := &loggingv1.Event{Id: 1, RoutingKey: "shop.order.placed"}
	confirmed := []*loggingv1.Event{placed, {Id: 2, RoutingKey: "shop.order.confirmed"}, {Id: 3, RoutingKey: "shop.inventory.decrement.quantity"}}
	cancelled := []*loggingv1.Event{{Id: 9, RoutingKey: "shop.order.cancelled"}}
	for _, c := range []struct {
		name         string
		state        orderv1.Order_State
		sent, logged []*loggingv1.Event
		complete     bool
	}{
		{"all", orderv1.Order_CONFIRMED, nil, nil, false},
		{"the older ones", orderv1.Order_CANCELLED, cancelled, cancelled, false},
		{"none, and the stream is slow", orderv1.Order_CONFIRMED, confirmed[:1], confirmed, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 10*silentFor)
			defer cancel()
			f := &fakeShop{
				get: func() (*orderv1.Order, error) {
					return &orderv1.Order{Id: anOrder, State: c.state, CreatedAt: timestamppb.New(time.Now().Add(-2 * minKept))}, nil
				},
				stream: streaming(c.sent...), events: c.logged,
			}
			got := f.run(ctx, t, "order", "watch", anOrder)
			if got.status != 0 || !strings.Contains(got.out, anOrder+"  "+c.state.String()) || strings.Contains(got.errs, "Nothing is known") ||
				strings.Contains(got.errs, "does not have all events") == c.complete {
				t.Errorf("watched: %+v", got)
			}
			for _, e := range c.logged {
				if strings.Count(got.out, e.GetRoutingKey()) != 1 {
					t.Errorf("%s is not shown once:\n%s", e.GetRoutingKey(), got.out)
				}
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
