package ordering

import (
	"context"
	"errors"
	"fmt"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	eventsv1 "shop.example/gen/shop/events/v1"
)

// metrics counts the outcomes of orders.
type metrics struct {
	decided  metric.Int64Counter
	duration metric.Float64Histogram
	by       map[decision]metric.MeasurementOption
}

// decision is the set of labels that orders are counted by. It has few values.
type decision struct {
	state  State
	reason string
}

func newMetrics(meters metric.MeterProvider) (*metrics, error) {
	meter := meters.Meter("shop.example/services/order")
	decided, err := meter.Int64Counter("order.decided", metric.WithDescription("Orders that were stored, by the state that was decided and the reason of a rejection."))
	duration, durationErr := meter.Float64Histogram("order.decision.duration", metric.WithUnit("s"), metric.WithDescription("Time from an order's acceptance to its decision."))
	if err := errors.Join(err, durationErr); err != nil {
		return nil, fmt.Errorf("registering the metrics of orders: %w", err)
	}
	m := &metrics{decided: decided, duration: duration, by: map[decision]metric.MeasurementOption{}}
	m.expect(decision{Confirmed, ""})
	for n, reason := range eventsv1.OrderRejected_Reason_name {
		if n != int32(eventsv1.OrderRejected_REASON_UNSPECIFIED) {
			m.expect(decision{Rejected, reason})
		}
	}
	return m, nil
}

// expect initializes a counter with 0.
func (m *metrics) expect(d decision) {
	m.by[d] = metric.WithAttributeSet(attribute.NewSet(attribute.String("state", string(d.state)), attribute.String("reason", d.reason)))
	m.decided.Add(context.Background(), 0, m.by[d])
}

// count counts orders that were stored.
func (m *metrics) count(ctx context.Context, stored []pendingOrder) {
	counts := map[decision]int64{}
	for _, p := range stored {
		o := p.order
		counts[decision{o.State, o.Reason}]++
		m.duration.Record(ctx, max(0, o.UpdatedAt.Sub(o.CreatedAt)).Seconds())
	}
	for d, n := range counts {
		if m.by[d] != nil { // else a reason that the contract does not have
			m.decided.Add(ctx, n, m.by[d])
		}
	}
}
