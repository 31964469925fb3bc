package eventlog

import (
	"context"
	"fmt"
	"sync/atomic"

	"github.com/jmoiron/sqlx"
	"go.opentelemetry.io/otel/metric"

	"shop.example/platform/postgres"
)

// openDeadLetters counts the open dead letters, for a metric.
type openDeadLetters struct {
	db    *sqlx.DB
	count atomic.Pointer[int64] // nil until it was read
}

func newOpenDeadLetters(db *sqlx.DB, meters metric.MeterProvider) (*openDeadLetters, error) {
	o := &openDeadLetters{db: db}
	_, err := meters.Meter("shop.example/services/logging").Int64ObservableGauge("logging.dead_letters.open",
		metric.WithDescription("Dead letters that nobody has decided about yet."),
		metric.WithInt64Callback(func(_ context.Context, to metric.Int64Observer) error {
			if n := o.count.Load(); n != nil {
				to.Observe(*n)
			}
			return nil
		}))
	if err != nil {
		return nil, fmt.Errorf("registering the metrics of dead letters: %w", err)
	}
	return o, nil
}

// sample counts them.
func (o *openDeadLetters) sample(ctx context.Context) error {
	var n int64
	if err := o.db.GetContext(ctx, &n, "SELECT count(*) FROM dead_letter WHERE state = 'OPEN'"); err != nil {
		return fmt.Errorf("counting open dead letters: %w", postgres.Classify(err))
	}
	o.count.Store(&n)
	return nil
}
