package outbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jmoiron/sqlx"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"

	"shop.example/platform/backoff"
	"shop.example/platform/failpoint"
	"shop.example/platform/messaging"
	"shop.example/platform/postgres"
)

// scope is the package's name in metrics.
const scope = "shop.example/platform/outbox"

const (
	// pollInterval is how often the relay looks into the outbox without being woken, for events of a replica that died
	// after its commit.
	pollInterval = time.Second
	// sendTimeout bounds publishing one round. The transaction is idle meanwhile, so it is shorter than what lockOutbox allows:
	// a relay that is frozen with the lock holds up those of the other replicas no longer.
	sendTimeout = 10 * time.Second

	minBackoff = 100 * time.Millisecond
	maxBackoff = 10 * time.Second

	// readyAge is how old the oldest message may be before the relay is not ready: more than one backoff.
	readyAge = 30 * time.Second

	// refusalGrace is how long a message that a complete topology would route may hold up those behind it: the owner of the
	// missing queue declares it again within seconds, if it is running.
	refusalGrace = time.Minute

	// refusalKept is after how long without another refusal the grace begins anew: longer than a relay that waits pauses.
	refusalKept = time.Minute
)

// Sender publishes messages in their order and returns nil once the broker has all of them. messaging.Publisher implements
// it.
type Sender interface {
	Send(ctx context.Context, messages []messaging.Outgoing) error
}

// maxRound bounds the bodies that are published in one transaction, in bytes, and with them the relay's memory. A larger
// message is published alone.
const maxRound = 2 << 20

// Options configure a relay. The zero value works.
type Options struct {
	// Batch is the maximum number of messages that are published in one transaction, 700 if it is 0. Large messages make it
	// fewer.
	Batch int
	// Linger is how long the relay waits for more messages after it was woken. Each round costs four statements, so waiting
	// saves work and delays messages by as much.
	Linger time.Duration
	// InboxRetention is how long the inbox remembers a message, see Retention; 0 if the schema has no inbox.
	InboxRetention time.Duration
	Logger         *slog.Logger
	Meter          metric.MeterProvider
}

// Relay publishes the outbox of the schema that its pool uses. Any number of relays may run on one schema; one of them
// works at a time, because two would lose the order.
type Relay struct {
	pool      *sqlx.DB
	sender    Sender
	refused   map[string]refusals // by routing key
	grace     time.Duration
	kept      time.Duration
	batch     int
	linger    time.Duration
	retention time.Duration
	log       *slog.Logger
	published metric.Int64Counter
	parked    metric.Int64Counter
	sample    atomic.Pointer[sample]
	wake      chan struct{}
}

// NewRelay returns a relay that publishes from pool to sender. It does so while Run runs.
func NewRelay(pool *sqlx.DB, sender Sender, o Options) (*Relay, error) {
	r := &Relay{pool: pool, sender: sender, batch: o.Batch, linger: o.Linger, retention: o.InboxRetention, log: o.Logger, wake: make(chan struct{}, 1),
		refused: map[string]refusals{}, grace: refusalGrace, kept: refusalKept}
	if r.batch == 0 {
		r.batch = 700
	}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	if o.Meter == nil {
		o.Meter = noop.NewMeterProvider()
	}
	if err := r.register(o.Meter.Meter(scope)); err != nil {
		return nil, fmt.Errorf("registering the metrics of the outbox: %w", err)
	}
	return r, nil
}

func (r *Relay) register(meter metric.Meter) (err error) {
	r.published, err = meter.Int64Counter("outbox.published", metric.WithDescription("Messages of the outbox that the broker has confirmed."))
	if err != nil {
		return err
	}
	r.parked, err = meter.Int64Counter("outbox.parked", metric.WithDescription("Messages that the broker refused and that were parked."))
	if err != nil {
		return err
	}
	r.published.Add(context.Background(), 0)
	r.parked.Add(context.Background(), 0)
	_, err = meter.Int64ObservableGauge("outbox.parked.waiting", metric.WithDescription("Messages that are parked and wait for an operator."),
		metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error {
			if last := r.sample.Load(); last != nil {
				o.Observe(last.parked)
			}
			return nil
		}))
	if err != nil {
		return err
	}
	_, err = meter.Float64ObservableGauge("outbox.oldest.age", metric.WithUnit("s"),
		metric.WithDescription("Age of the oldest message of the outbox; 0 if it is empty."),
		metric.WithFloat64Callback(func(_ context.Context, o metric.Float64Observer) error {
			if last := r.sample.Load(); last != nil {
				o.Observe(last.age().Seconds())
			}
			return nil
		}))
	return err
}

// sample is what the metrics of the outbox show.
type sample struct {
	oldest time.Time // when the oldest message was added, by our clock; zero if there was none
	parked int64
}

// age goes on growing while the database does not answer: nothing is published then.
func (s sample) age() time.Duration {
	if s.oldest.IsZero() {
		return 0
	}
	return time.Since(s.oldest)
}

// Sample reads from the database what the relay's metrics show; see service.Sample.
func (r *Relay) Sample(ctx context.Context) error {
	age, err := r.Age(ctx)
	if err != nil {
		return err
	}
	parked, err := countParked(ctx, r.pool)
	if err != nil {
		return err
	}
	s := sample{parked: parked}
	if age > 0 {
		s.oldest = time.Now().Add(-age)
	}
	r.sample.Store(&s)
	return nil
}

// Wake tells the relay that a transaction with events has been committed. Without it they are published within a second. It
// returns at once and may be called concurrently.
func (r *Relay) Wake() {
	select {
	case r.wake <- struct{}{}:
	default: // it has been told and has not looked yet
	}
}

// Age returns how long the oldest message has been waiting; 0 if there is none.
func (r *Relay) Age(ctx context.Context) (time.Duration, error) {
	var seconds float64
	err := r.pool.GetContext(ctx, &seconds, `
		SELECT coalesce((SELECT extract(epoch FROM clock_timestamp() - created_at) FROM outbox ORDER BY id LIMIT 1), 0)`)
	if err != nil {
		return 0, fmt.Errorf("reading the age of the outbox: %w", postgres.Classify(err))
	}
	return time.Duration(max(seconds, 0) * float64(time.Second)), nil
}

// maxCounted bounds the count of messages that wait. After a long outage counting all of them would take seconds.
const maxCounted = 100_000

// ORDER BY: along the index, whose dead entries the relay has cleared away, the count reads what waits and no more. The
// table itself may be long with what was deleted.
const countOutbox = `
	SELECT count(*), coalesce(extract(epoch FROM clock_timestamp() - min(created_at)) * 1000, 0)
	FROM (SELECT created_at FROM outbox ORDER BY id LIMIT $1) AS waiting`

// Pending returns how many messages are waiting, counted up to 100,000, and for how long the oldest has been.
func (r *Relay) Pending(ctx context.Context) (messages int, oldest time.Duration, err error) {
	var milliseconds float64
	if err := r.pool.QueryRowContext(ctx, countOutbox, maxCounted).Scan(&messages, &milliseconds); err != nil {
		return 0, 0, fmt.Errorf("counting the outbox: %w", postgres.Classify(err))
	}
	return messages, time.Duration(max(milliseconds, 0) * float64(time.Millisecond)), nil
}

// Ready returns an error if a message has been waiting for more than 30 s, or if the database does not answer.
func (r *Relay) Ready(ctx context.Context) error {
	age, err := r.Age(ctx)
	if err != nil {
		return err
	}
	if age > readyAge {
		return fmt.Errorf("the outbox has been waiting for the broker for %s", age.Round(time.Second))
	}
	return nil
}

// Run publishes until ctx ends, through all outages of broker and database. Then it finishes its current round, for at most
// 20 s, and returns nil. It also cleans the inbox if there is one.
func (r *Relay) Run(ctx context.Context) error {
	var cleaner sync.WaitGroup
	if r.retention > 0 {
		cleaner.Go(func() { _ = KeepInboxClean(ctx, r.pool, r.retention, r.log) })
	}
	defer cleaner.Wait()

	wait := backoff.New(minBackoff, maxBackoff)
	for ctx.Err() == nil {
		more, err := r.round(ctx)
		switch {
		case err == nil:
			wait.Reset()
			if !more { // whoever has committed since has called Wake, on this replica or on its own
				r.sleep(ctx, pollInterval, r.wake)
				r.sleep(ctx, r.linger, nil)
			}
		case errors.Is(err, postgres.ErrRetry):
			// Another replica's relay has been at work all the time that we were willing to wait.
		case ctx.Err() == nil:
			pause := wait.Next()
			r.log.WarnContext(ctx, "the outbox waits", "error", err, "next_try", pause.Round(time.Millisecond))
			r.sleep(ctx, pause, nil)
		}
	}
	return nil
}

func (r *Relay) sleep(ctx context.Context, d time.Duration, wake <-chan struct{}) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-wake:
	case <-timer.C:
	}
}

// round publishes the oldest messages of the outbox, and reports whether there may be more than it has taken.
func (r *Relay) round(ctx context.Context) (more bool, err error) {
	var n, size int
	var parked []parkedMessage
	var sendErr error // kept apart: what the broker says is no error of the database
	err = postgres.InTx(ctx, r.pool, func(tx *sqlx.Tx) error {
		messages, err := take(ctx, tx, r.batch)
		if err != nil || len(messages) == 0 {
			return err
		}
		n = len(messages)
		for i := range messages {
			size += len(messages[i].Body)
		}
		failpoint.Hit("relay.taken")
		if parked, sendErr = r.send(ctx, messages); sendErr != nil {
			return sendErr
		}
		failpoint.Hit("relay.published")
		return park(ctx, tx, parked)
	})
	switch {
	case sendErr != nil:
		return false, fmt.Errorf("publishing the outbox: %w", sendErr)
	case err != nil:
		return false, err
	}
	r.published.Add(ctx, int64(n-len(parked)))
	for _, m := range parked {
		r.parked.Add(ctx, 1)
		r.log.ErrorContext(ctx, "the broker refuses a message, which is parked", "message_id", m.MessageID,
			"routing_key", m.RoutingKey, "correlation_id", m.CorrelationID, "type", m.Type, "error", m.reason)
	}
	return n == r.batch || size >= maxRound, nil
}

// send publishes the messages of a round also if ctx ends meanwhile: otherwise every shutdown would publish many messages
// twice. It returns the messages that the broker refuses, which are to be parked; all others are confirmed.
func (r *Relay) send(ctx context.Context, messages []messaging.Outgoing) (parked []parkedMessage, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), sendTimeout)
	defer cancel()
	for len(messages) > 0 {
		err := r.sender.Send(ctx, messages)
		refusal, refused := errors.AsType[*messaging.RefusedError](err)
		switch {
		case err == nil:
			r.accepted(messages)
			return parked, nil
		case !refused:
			return nil, err
		}
		waits, before := false, 0
		for _, m := range refusal.Refused {
			r.accepted(messages[before:m.Index])
			before = m.Index + 1
			waits = r.waitsFor(messages[m.Index].RoutingKey, m) || waits
			parked = append(parked, parkedMessage{messages[m.Index], m.Cause.Error()})
		}
		r.accepted(messages[before:refusal.Done])
		if waits {
			return nil, err
		}
		messages = messages[refusal.Done:]
	}
	return parked, nil
}

// accepted records that the broker takes messages of these kinds again.
func (r *Relay) accepted(messages []messaging.Outgoing) {
	if len(r.refused) == 0 {
		return
	}
	for i := range messages {
		delete(r.refused, messages[i].RoutingKey)
	}
}

// refusals are when the broker has refused messages of a routing key, as far as this relay knows. That one was accepted meanwhile is not
// known if another replica's relay has published it.
type refusals struct{ first, last time.Time }

// waitsFor reports whether a refused message may be accepted soon, when the topology is complete again.
func (r *Relay) waitsFor(routingKey string, refusal messaging.Refusal) bool {
	if refusal.Permanent {
		return false
	}
	now := time.Now()
	known := r.refused[routingKey]
	if now.Sub(known.last) > r.kept {
		known.first = now
	}
	known.last = now
	r.refused[routingKey] = known
	return now.Sub(known.first) < r.grace
}

// One relay at a time keeps the order over all replicas; it ends with the transaction, also if the replica dies.
// A COMMIT that does not wait for the disk can be lost, and then messages are published again, as after any
// lost confirm.
const lockOutbox = postgres.Prepared + `
	SELECT pg_advisory_xact_lock(hashtext('outbox'), hashtext(current_schema())),
	       set_config('synchronous_commit', 'off', true),
	       set_config('idle_in_transaction_session_timeout', '12s', true)`

// By ctid, which is safe while nobody else deletes, no plan can read more than it deletes. If the $1 oldest have more
// than $2 bytes, a message is taken if those before it have less: to sum up row by row, which takes ten times as long as
// all of the rest, is left to that case. How long a body is can be told without reading it.
const deleteOutbox = postgres.Prepared + `
	WITH taken AS (
		DELETE FROM outbox
		WHERE ctid = ANY ((
			SELECT CASE WHEN size <= $2 THEN all_oldest ELSE ARRAY(
				SELECT ctid FROM (
					SELECT ctid, sum(octet_length(body)) OVER (ORDER BY id ROWS UNBOUNDED PRECEDING) - octet_length(body) AS before
					FROM outbox ORDER BY id LIMIT $1) AS oldest
				WHERE before < $2) END
			FROM (
				SELECT array_agg(ctid) AS all_oldest, sum(octet_length(body)) AS size
				FROM (SELECT ctid, body FROM outbox ORDER BY id LIMIT $1) AS oldest) AS together)::tid[])
		RETURNING *
	)
	SELECT message_id, exchange, routing_key, type, correlation_id, traceparent, body, created_at FROM taken ORDER BY id`

func take(ctx context.Context, tx *sqlx.Tx, limit int) ([]messaging.Outgoing, error) {
	if _, err := tx.ExecContext(ctx, lockOutbox); err != nil {
		return nil, fmt.Errorf("locking the outbox: %w", err)
	}
	rows, err := tx.QueryContext(ctx, deleteOutbox, limit, maxRound)
	if err != nil {
		return nil, fmt.Errorf("reading the outbox: %w", err)
	}
	defer rows.Close()
	messages := make([]messaging.Outgoing, 0, limit)
	for rows.Next() {
		var m messaging.Outgoing
		err := rows.Scan(&m.MessageID, &m.Exchange, &m.RoutingKey, &m.Type, &m.CorrelationID, &m.TraceParent, &m.Body, &m.Timestamp)
		if err != nil {
			return nil, fmt.Errorf("reading the outbox: %w", err)
		}
		messages = append(messages, m)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("reading the outbox: %w", err)
	}
	return messages, nil
}
