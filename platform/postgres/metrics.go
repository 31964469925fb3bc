package postgres

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// observePool registers the use of a pool. The names are like OpenTelemetry's, but for the number of connections: Prometheus
// takes what ends with count for a part of a histogram. Those of otelsql are in milliseconds.
func observePool(pool *sql.DB, meters metric.MeterProvider) error {
	meter := meters.Meter("shop.example/platform/postgres")
	var errs [4]error
	count, err := meter.Int64ObservableGauge("db.client.connection.open", metric.WithDescription("Open connections to the database by state: used or idle."))
	errs[0] = err
	most, err := meter.Int64ObservableGauge("db.client.connection.max", metric.WithDescription("The most connections to the database that may be open."))
	errs[1] = err
	waits, err := meter.Int64ObservableCounter("db.client.connection.waits", metric.WithDescription("How often a connection had to be waited for."))
	errs[2] = err
	waited, err := meter.Float64ObservableCounter("db.client.connection.waited", metric.WithUnit("s"), metric.WithDescription("For how long connections were waited for, all together."))
	errs[3] = err
	if err := errors.Join(errs[:]...); err != nil {
		return fmt.Errorf("registering the metrics of the database pool: %w", err)
	}
	used, idle := metric.WithAttributes(attribute.String("state", "used")), metric.WithAttributes(attribute.String("state", "idle"))
	_, err = meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		s := pool.Stats()
		o.ObserveInt64(count, int64(s.InUse), used)
		o.ObserveInt64(count, int64(s.Idle), idle)
		o.ObserveInt64(most, int64(s.MaxOpenConnections))
		o.ObserveInt64(waits, s.WaitCount)
		o.ObserveFloat64(waited, s.WaitDuration.Seconds())
		return nil
	}, count, most, waits, waited)
	if err != nil {
		return fmt.Errorf("registering the metrics of the database pool: %w", err)
	}
	return nil
}
