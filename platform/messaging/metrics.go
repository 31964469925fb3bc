package messaging

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"shop.example/platform/contract"
)

type metrics struct {
	checksUsers    bool // the counters of users are of use
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

	mu      sync.Mutex
	holders []holder
}

// publishing is the set of labels that published messages are counted by. It has few values.
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

// The causes of messaging.reconnects.
const (
	causeLost = "lost" // a connection that was there
	causeDial = "dial" // one that could not be made
)

// outcomes are the possible results of publishing.
var outcomes = []string{"confirmed", "refused", "failed", "unconfirmed"}

// otherUser is the label of a broker's user who is no service of the contracts: labels have few values.
const otherUser = "other"

// holder is something that has messages in hand: received from a queue and not settled yet.
type holder interface {
	// inHand returns how many, and since when the oldest has been in hand; the zero time if there is none.
	inHand() (queue string, messages int, oldest time.Time)
}

// newMetrics registers the metrics of a service's messaging. Counters exist from the start, with the value 0: otherwise the
// first failure would not be an increase, and no alert would see it.
func newMetrics(m metric.Meter, service string, checksUsers bool) (*metrics, error) {
	var errs [11]error
	out := &metrics{checksUsers: checksUsers}
	out.reconnects, errs[0] = m.Int64Counter("messaging.reconnects", metric.WithDescription("Connections to the broker that were lost (cause lost) or could not be made (cause dial)."))
	out.published, errs[1] = m.Int64Counter("messaging.published", metric.WithDescription("Messages published, by routing key and outcome."))
	out.confirmSeconds, errs[2] = m.Float64Histogram("messaging.confirm.duration", metric.WithUnit("s"), secondsBuckets, metric.WithDescription("Time from publishing to the last confirm."))
	out.consumed, errs[3] = m.Int64Counter("messaging.consumed", metric.WithDescription("Messages settled, by queue and verdict."))
	out.batchSize, errs[4] = m.Int64Histogram("messaging.batch.size", metric.WithExplicitBucketBoundaries(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000), metric.WithDescription("Messages handled together, by queue."))
	out.handleSeconds, errs[5] = m.Float64Histogram("messaging.handle.duration", metric.WithUnit("s"), secondsBuckets, metric.WithDescription("Time to handle a batch, by queue."))
	out.rpcSeconds, errs[6] = m.Float64Histogram("messaging.rpc.duration", metric.WithUnit("s"), secondsBuckets, metric.WithDescription("Time of a call over the broker, by method and status."))
	out.rpcUnknown, errs[7] = m.Int64Counter("messaging.rpc.unknown_replies", metric.WithDescription("Replies that came when nobody waited for them any more."))
	out.wrongUser, errs[8] = m.Int64Counter("messaging.user.wrong", metric.WithDescription("Messages from a user of the broker who may not send them, by queue and user."))
	out.missingUser, errs[9] = m.Int64Counter("messaging.user.missing", metric.WithDescription("Messages that do not say which user of the broker has sent them, by queue."))
	errs[10] = out.observeInHand(m)
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	ctx := context.Background()
	out.countReconnect(ctx, 0, causeLost)
	out.countReconnect(ctx, 0, causeDial)
	out.rpcUnknown.Add(ctx, 0)
	for _, e := range contract.Events() {
		if slices.Contains(e.PublishedBy, service) {
			out.expectPublished(e.RoutingKey)
		}
	}
	return out, nil
}

func (m *metrics) observeInHand(meter metric.Meter) error {
	messages, err := meter.Int64ObservableGauge("messaging.in_hand", metric.WithDescription("Messages taken from a queue and not settled yet, by queue."))
	if err != nil {
		return err
	}
	age, err := meter.Float64ObservableGauge("messaging.in_hand.oldest.age", metric.WithUnit("s"),
		metric.WithDescription("For how long the oldest message in hand has been so, by queue; 0 if there is none."))
	if err != nil {
		return err
	}
	_, err = meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		for queue, held := range m.inHand() {
			attrs := metric.WithAttributes(label("queue", queue))
			o.ObserveInt64(messages, int64(held.messages), attrs)
			o.ObserveFloat64(age, held.age().Seconds(), attrs)
		}
		return nil
	}, messages, age)
	return err
}

// held is what is in hand of one queue.
type held struct {
	messages int
	oldest   time.Time
}

func (h held) age() time.Duration {
	if h.oldest.IsZero() {
		return 0
	}
	return time.Since(h.oldest)
}

func (m *metrics) hold(h holder) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.holders = append(m.holders, h)
}

// inHand is what is in hand, by queue.
func (m *metrics) inHand() map[string]held {
	m.mu.Lock()
	holders := slices.Clone(m.holders)
	m.mu.Unlock()
	all := map[string]held{}
	for _, h := range holders {
		queue, messages, oldest := h.inHand()
		sum := all[queue]
		sum.messages += messages
		if sum.oldest.IsZero() || !oldest.IsZero() && oldest.Before(sum.oldest) {
			sum.oldest = oldest
		}
		all[queue] = sum
	}
	return all
}

func (m *metrics) countReconnect(ctx context.Context, n int64, cause string) {
	m.reconnects.Add(ctx, n, metric.WithAttributes(label("cause", cause)))
}

// expectPublished initializes the counters of a routing key with 0.
func (m *metrics) expectPublished(routingKey string) {
	for _, outcome := range outcomes {
		m.countPublished(context.Background(), 0, routingKey, outcome)
	}
}

// expectConsumed initializes with 0 the counters of a consumer's queue, and of the routes of its retries and dead letters.
func (m *metrics) expectConsumed(queue string) {
	ctx := context.Background()
	for _, verdict := range []string{verdictHandled, verdictRetried, verdictDead} {
		m.consumed.Add(ctx, 0, metric.WithAttributes(label("queue", queue), label("verdict", verdict)))
	}
	m.expectPublished(queue)
	if queue != DeadLetterQueue { // what fails there waits in it
		for _, delay := range retryDelays {
			m.expectPublished(retryQueue(queue, delay))
		}
	}
	m.expectUsers(queue)
}

// expectUsers initializes with 0 the counters of messages that came to queue from users who may not send them.
func (m *metrics) expectUsers(queue string) {
	if !m.checksUsers {
		return
	}
	for _, user := range slices.Concat(services(), []string{otherUser}) {
		m.countWrongUser(0, queue, user)
	}
	m.missingUser.Add(context.Background(), 0, metric.WithAttributes(label("queue", queue)))
}

func (m *metrics) countWrongUser(n int64, queue, user string) {
	m.wrongUser.Add(context.Background(), n, metric.WithAttributes(label("queue", queue), label("user", user)))
}

// services are those that the contracts name.
var services = sync.OnceValue(func() []string {
	names := map[string]bool{}
	for _, e := range contract.Events() {
		for _, name := range slices.Concat(e.PublishedBy, e.HandledBy) {
			names[name] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
})

func label(key, value string) attribute.KeyValue { return attribute.String(key, value) }
