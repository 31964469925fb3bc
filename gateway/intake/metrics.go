package intake

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"shop.example/platform/apierror"
)

// The outcomes of an order at the gateway.
const (
	outcomeAccepted  = "accepted"
	outcomeRepeated  = "repeated"  // it was accepted before, and is not published again
	outcomeRefused   = "refused"   // the shop's fault, for a reason of docs/errors.md
	outcomeInvalid   = "invalid"   // the client's
	outcomeAbandoned = "abandoned" // the client did not wait
)

// refusals are the reasons that the shop refuses orders for.
var refusals = []string{reasonOverloaded, reasonBroker, reasonQueue, reasonOther}

const (
	reasonOverloaded = "OVERLOADED"
	reasonBroker     = "BROKER_UNAVAILABLE"
	reasonQueue      = "ORDER_QUEUE_UNAVAILABLE"
	reasonOther      = "INTERNAL"
)

// metrics counts orders at the gateway, whichever API they come through.
type metrics struct {
	orders   metric.Int64Counter
	duration metric.Float64Histogram
	inFlight atomic.Int64
	by       map[[2]string]metric.MeasurementOption // outcome and reason
}

func newMetrics(meter metric.Meter) (*metrics, error) {
	if meter == nil {
		meter = noop.Meter{}
	}
	m := &metrics{by: map[[2]string]metric.MeasurementOption{}}
	var errs [3]error
	m.orders, errs[0] = meter.Int64Counter("gateway.orders", metric.WithDescription("Orders by outcome: accepted, repeated (accepted before), refused (with the reason), invalid, abandoned by a client that did not wait."))
	m.duration, errs[1] = meter.Float64Histogram("gateway.order.duration", metric.WithUnit("s"), metric.WithDescription("Time to accept an order: until the broker has it."))
	_, errs[2] = meter.Int64ObservableGauge("gateway.orders.in_flight", metric.WithDescription("Orders that wait for the broker; a large one counts as several."),
		metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error {
			o.Observe(m.inFlight.Load())
			return nil
		}))
	if err := errors.Join(errs[:]...); err != nil {
		return nil, fmt.Errorf("registering the metrics of orders: %w", err)
	}
	for _, outcome := range []string{outcomeAccepted, outcomeRepeated, outcomeInvalid, outcomeAbandoned} {
		m.expect(outcome, "")
	}
	for _, reason := range refusals {
		m.expect(outcomeRefused, reason)
	}
	return m, nil
}

// expect initializes a counter with 0.
func (m *metrics) expect(outcome, reason string) {
	attrs := metric.WithAttributeSet(attribute.NewSet(attribute.String("outcome", outcome), attribute.String("reason", reason)))
	m.by[[2]string{outcome, reason}] = attrs
	m.orders.Add(context.Background(), 0, attrs)
}

// placed counts an order that arrived at start, with its outcome. repeated says that it was answered with what became of it
// before: counted as accepted, it would seem to wait for a decision that nobody will make.
func (m *metrics) placed(ctx context.Context, start time.Time, repeated bool, err error) {
	outcome, reason := outcomeOf(ctx, time.Since(start), err)
	if repeated {
		outcome = outcomeRepeated
	}
	m.orders.Add(ctx, 1, m.by[[2]string{outcome, reason}])
	if outcome == outcomeAccepted {
		m.duration.Record(ctx, time.Since(start).Seconds())
	}
}

// minPatience is how long a client has to wait for the broker at least. A client whose own deadline is shorter did not wait:
// otherwise anybody could make the shop seem to refuse orders.
const minPatience = 2 * time.Second

// outcomeOf returns the outcome of an order that took so long.
func outcomeOf(ctx context.Context, took time.Duration, err error) (outcome, reason string) {
	if err == nil {
		return outcomeAccepted, ""
	}
	if errors.Is(ctx.Err(), context.Canceled) || errors.Is(ctx.Err(), context.DeadlineExceeded) && took < minPatience {
		return outcomeAbandoned, ""
	}
	own, known := errors.AsType[*apierror.Error](err)
	if !known {
		return outcomeRefused, reasonOther
	}
	switch status.Code(err) {
	case codes.Unavailable:
		if slices.Contains(refusals, own.Reason()) {
			return outcomeRefused, own.Reason()
		}
		return outcomeRefused, reasonOther
	case codes.Internal, codes.Unknown:
		return outcomeRefused, reasonOther
	}
	return outcomeInvalid, ""
}
