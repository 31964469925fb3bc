package intake

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	orderv1 "shop.example/gen/shop/order/v1"
	"shop.example/platform/messaging"
	"shop.example/platform/telemetry"
)

// Clients with a deadline of a millisecond made the shop seem to refuse orders, which pages operators.
func TestMetrics_AClientThatGivesTheBrokerNoTimeHasAbandonedItsOrder(t *testing.T) {
	t.Parallel()
	expired, cancel := context.WithDeadline(t.Context(), time.Now())
	defer cancel()
	cancelled, leave := context.WithCancel(t.Context())
	leave()
	unconfirmed := publishError(messaging.ErrUnconfirmed)
	for _, c := range []struct {
		name            string
		ctx             context.Context
		took            time.Duration
		err             error
		outcome, reason string
	}{
		{"its deadline was short", expired, time.Millisecond, unconfirmed, outcomeAbandoned, ""},
		{"it disconnected", cancelled, time.Millisecond, unconfirmed, outcomeAbandoned, ""},
		{"it waited for as long as one should", expired, minPatience, unconfirmed, outcomeRefused, reasonBroker},
		{"the broker is away", t.Context(), time.Millisecond, unconfirmed, outcomeRefused, reasonBroker},
		{"a fault", t.Context(), time.Millisecond, errors.New("a fault"), outcomeRefused, reasonOther},
		{"the broker has it", expired, time.Millisecond, nil, outcomeAccepted, ""},
	} {
		if outcome, reason := outcomeOf(c.ctx, c.took, c.err); outcome != c.outcome || reason != c.reason {
			t.Errorf("%s: %s %s, want %s %s", c.name, outcome, reason, c.outcome, c.reason)
		}
	}
}

// An order that is repeated is decided no second time: in a quiet shop it paged operators, because orders were accepted and none was
// decided.
func TestMetrics_ARepeatedOrderIsNotAcceptedAgain(t *testing.T) {
	t.Parallel()
	tel, err := telemetry.New(t.Context(), telemetry.Config{Service: "gateway"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tel.Shutdown(context.Background()) })
	s := newShop("secret")
	if s.metrics, err = newMetrics(tel.Meter.Meter("test")); err != nil {
		t.Fatal(err)
	}
	first := s.mustPlace(t, request{key: "1"})
	s.find = func(context.Context, *orderv1.FindKeyRequest) (*orderv1.FindKeyResponse, error) {
		return &orderv1.FindKeyResponse{OrderId: first.GetOrderId(), Order: &orderv1.Order{Id: first.GetOrderId(), State: orderv1.Order_CONFIRMED}}, nil
	}
	if order, err := s.place(t, request{key: "1"}); err != nil || order.GetId() != first.GetOrderId() || len(s.published) != 1 {
		t.Fatalf("repeated: %v, %v, and %d orders published", order, err, len(s.published))
	}
	reply := httptest.NewRecorder()
	tel.MetricsHandler().ServeHTTP(reply, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil))
	for _, want := range []string{
		`gateway_orders_total{outcome="accepted",reason=""} 1`,
		`gateway_orders_total{outcome="repeated",reason=""} 1`,
		"gateway_order_duration_seconds_count 1",
	} {
		if !strings.Contains(reply.Body.String(), want+"\n") {
			t.Errorf("the metrics have no %s: %s", want, reply.Body)
		}
	}
}
