package webhook

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/jmoiron/sqlx"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"shop.example/platform/postgres"
)

// maxCounted is the number up to which deliveries are counted: there may be millions.
const maxCounted = 100_000

// The outcomes of an attempt.
const (
	delivered   = "delivered"
	failed      = "failed"
	unreachable = "unreachable"
)

// metrics are the service's metrics.
type metrics struct {
	db       *sqlx.DB
	attempts metric.Int64Counter
	seconds  metric.Float64Histogram
	waiting  atomic.Pointer[waiting] // nil until it was read
	// followed is when this replica last got on with the log; nil while it does not follow it.
	followed atomic.Pointer[time.Time]
}

// waiting is the result of one sample.
type waiting struct {
	Pending int64 `db:"pending"`
	Failing int64 `db:"failing"`
}

func newMetrics(meters metric.MeterProvider, db *sqlx.DB) (*metrics, error) {
	meter := meters.Meter("shop.example/services/webhooks")
	m := &metrics{db: db}
	var errs [5]error
	m.attempts, errs[0] = meter.Int64Counter("webhooks.attempts", metric.WithDescription("Attempts to deliver an event, by outcome."))
	m.seconds, errs[1] = meter.Float64Histogram("webhooks.attempt.duration", metric.WithUnit("s"),
		metric.WithExplicitBucketBoundaries(.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 15, 30), metric.WithDescription("Time from an attempt's begin to the end of the answer."))
	_, errs[2] = meter.Int64ObservableGauge("webhooks.pending", metric.WithDescription("Deliveries that wait for an attempt; no more than 100,000 are counted."),
		metric.WithInt64Callback(m.observe(func(w *waiting) int64 { return w.Pending })))
	_, errs[3] = meter.Int64ObservableGauge("webhooks.failing", metric.WithDescription("Webhooks that are enabled and whose last attempt has failed."),
		metric.WithInt64Callback(m.observe(func(w *waiting) int64 { return w.Failing })))
	_, errs[4] = meter.Float64ObservableGauge("webhooks.log.age", metric.WithUnit("s"),
		metric.WithDescription("Time since the replica that follows the log of events last got on with it; 0 in the others."),
		metric.WithFloat64Callback(func(_ context.Context, o metric.Float64Observer) error {
			o.Observe(m.logAge().Seconds())
			return nil
		}))
	if err := errors.Join(errs[:]...); err != nil {
		return nil, fmt.Errorf("registering the metrics of webhooks: %w", err)
	}
	for _, outcome := range []string{delivered, failed, unreachable} {
		m.attempts.Add(context.Background(), 0, withOutcome(outcome))
	}
	return m, nil
}

func withOutcome(outcome string) metric.MeasurementOption {
	return metric.WithAttributes(attribute.String("outcome", outcome))
}

// observe reports a part of the newest sample.
func (m *metrics) observe(part func(*waiting) int64) metric.Int64Callback {
	return func(_ context.Context, o metric.Int64Observer) error {
		if w := m.waiting.Load(); w != nil {
			o.Observe(part(w))
		}
		return nil
	}
}

// follows says whether this replica follows the log. It counts as getting on with it when it begins to.
func (m *metrics) follows(follows bool) {
	switch {
	case !follows:
		m.followed.Store(nil)
	case m.followed.Load() == nil:
		m.gotOn()
	}
}

func (m *metrics) gotOn() {
	now := time.Now()
	m.followed.Store(&now)
}

func (m *metrics) logAge() time.Duration {
	at := m.followed.Load()
	if at == nil {
		return 0
	}
	return time.Since(*at)
}

var countWaiting = fmt.Sprintf(`
SELECT (SELECT count(*) FROM (SELECT FROM delivery WHERE state = 'PENDING' LIMIT %d) AS counted) AS pending,
       (SELECT count(*) FROM webhook WHERE state = 'ENABLED' AND failures > 0) AS failing`, maxCounted)

// sample counts what waits and what fails.
func (m *metrics) sample(ctx context.Context) error {
	w := &waiting{}
	if err := m.db.GetContext(ctx, w, countWaiting); err != nil {
		return fmt.Errorf("counting deliveries and webhooks: %w", postgres.Classify(err))
	}
	m.waiting.Store(w)
	return nil
}

func (m *metrics) count(ctx context.Context, a answer) {
	outcome := failed
	switch {
	case a.delivered():
		outcome = delivered
	case a.status == 0:
		outcome = unreachable
	}
	m.attempts.Add(ctx, 1, withOutcome(outcome))
	m.seconds.Record(ctx, a.took.Seconds(), withOutcome(outcome))
}
