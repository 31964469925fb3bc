package webhook

import (
	"context"
	"errors"
	"fmt"

	"github.com/jmoiron/sqlx"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"shop.example/platform/postgres"
)

// maxCounted is up to how many deliveries are counted: there may be millions.
const maxCounted = 100_000

// metrics are what the service measures.
type metrics struct {
	attempts metric.Int64Counter
	seconds  metric.Float64Histogram
}

func newMetrics(meters metric.MeterProvider, db *sqlx.DB) (*metrics, error) {
	meter := meters.Meter("shop.example/services/webhooks")
	m := &metrics{}
	var errs [4]error
	m.attempts, errs[0] = meter.Int64Counter("webhooks.attempts", metric.WithDescription("Attempts to deliver an event, by outcome."))
	m.seconds, errs[1] = meter.Float64Histogram("webhooks.attempt.duration", metric.WithUnit("s"),
		metric.WithExplicitBucketBoundaries(.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 15, 30), metric.WithDescription("Time from an attempt's begin to the end of the answer."))
	_, errs[2] = meter.Int64ObservableGauge("webhooks.pending", metric.WithDescription("Deliveries that wait for an attempt; no more than 100,000 are counted."),
		metric.WithInt64Callback(observe(db, fmt.Sprintf("SELECT count(*) FROM (SELECT FROM delivery WHERE state = 'PENDING' LIMIT %d) AS counted", maxCounted))))
	_, errs[3] = meter.Int64ObservableGauge("webhooks.failing", metric.WithDescription("Webhooks that are enabled and whose last attempt has failed."),
		metric.WithInt64Callback(observe(db, "SELECT count(*) FROM webhook WHERE state = 'ENABLED' AND failures > 0")))
	if err := errors.Join(errs[:]...); err != nil {
		return nil, fmt.Errorf("registering the metrics of webhooks: %w", err)
	}
	return m, nil
}

// observe asks the database for a number.
func observe(db *sqlx.DB, query string) metric.Int64Callback {
	return func(ctx context.Context, o metric.Int64Observer) error {
		var n int64
		if err := db.GetContext(ctx, &n, query); err != nil {
			return postgres.Classify(err)
		}
		o.Observe(n)
		return nil
	}
}

func (m *metrics) count(ctx context.Context, a answer) {
	outcome := "failed"
	switch {
	case a.delivered():
		outcome = "delivered"
	case a.status == 0:
		outcome = "unreachable"
	}
	as := metric.WithAttributes(attribute.String("outcome", outcome))
	m.attempts.Add(ctx, 1, as)
	m.seconds.Record(ctx, a.took.Seconds(), as)
}
