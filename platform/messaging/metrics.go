package messaging

import (
	"context"
	"errors"
	"sync"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

type metrics struct {
	reconnects     metric.Int64Counter
	published      metric.Int64Counter
	confirmSeconds metric.Float64Histogram
	consumed       metric.Int64Counter
	batchSize      metric.Int64Histogram
	handleSeconds  metric.Float64Histogram
	rpcSeconds     metric.Float64Histogram
	rpcUnknown     metric.Int64Counter
	wrongUser      metric.Int64Counter
	missingUser    metric.Int64Counter

	publishings sync.Map // publishing → metric.MeasurementOption
}

// publishing is what published messages are counted by. It has few values.
type publishing struct{ routingKey, outcome string }

func (m *metrics) countPublished(ctx context.Context, n int64, routingKey, outcome string) {
	as := publishing{routingKey, outcome}
	attributes, known := m.publishings.Load(as)
	if !known {
		set := attribute.NewSet(label("routing_key", routingKey), label("outcome", outcome))
		attributes, _ = m.publishings.LoadOrStore(as, metric.WithAttributeSet(set))
	}
	m.published.Add(ctx, n, attributes.(metric.MeasurementOption))
}

var secondsBuckets = metric.WithExplicitBucketBoundaries(.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10)

func newMetrics(m metric.Meter) (*metrics, error) {
	var errs [10]error
	out := &metrics{}
	out.reconnects, errs[0] = m.Int64Counter("messaging.reconnects", metric.WithDescription("Connections to the broker that were lost or could not be made."))
	out.published, errs[1] = m.Int64Counter("messaging.published", metric.WithDescription("Messages published, by routing key and outcome."))
	out.confirmSeconds, errs[2] = m.Float64Histogram("messaging.confirm.duration", metric.WithUnit("s"), secondsBuckets, metric.WithDescription("Time from publishing to the last confirm."))
	out.consumed, errs[3] = m.Int64Counter("messaging.consumed", metric.WithDescription("Messages settled, by queue and verdict."))
	out.batchSize, errs[4] = m.Int64Histogram("messaging.batch.size", metric.WithExplicitBucketBoundaries(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000), metric.WithDescription("Messages handled together, by queue."))
	out.handleSeconds, errs[5] = m.Float64Histogram("messaging.handle.duration", metric.WithUnit("s"), secondsBuckets, metric.WithDescription("Time to handle a batch, by queue."))
	out.rpcSeconds, errs[6] = m.Float64Histogram("messaging.rpc.duration", metric.WithUnit("s"), secondsBuckets, metric.WithDescription("Time of a call over the broker, by method and status."))
	out.rpcUnknown, errs[7] = m.Int64Counter("messaging.rpc.unknown_replies", metric.WithDescription("Replies that came when nobody waited for them any more."))
	out.wrongUser, errs[8] = m.Int64Counter("messaging.user.wrong", metric.WithDescription("Messages from a user of the broker who may not send them, by queue and user."))
	out.missingUser, errs[9] = m.Int64Counter("messaging.user.missing", metric.WithDescription("Messages that do not say which user of the broker has sent them, by queue."))
	return out, errors.Join(errs[:]...)
}

func label(key, value string) attribute.KeyValue { return attribute.String(key, value) }
