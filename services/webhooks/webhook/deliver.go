package webhook

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"google.golang.org/protobuf/types/known/timestamppb"

	eventsv1 "shop.example/gen/shop/events/v1"
	"shop.example/platform/failpoint"
	"shop.example/platform/outbox"
	"shop.example/platform/postgres"
)

const (
	// deliverInterval is how often a replica looks for due deliveries while it sends, or while another replica may leave some over.
	deliverInterval = 250 * time.Millisecond
	// idleInterval is how often it looks while nothing is due. It is told of what its own replica writes; others may write and die.
	idleInterval = 5 * time.Second
	// maxWorkers is how many webhooks a replica sends to at a time.
	maxWorkers = 1000
	// maxWait bounds the wait between two attempts.
	maxWait = time.Hour
	// maxFailures is how many attempts in a row may be answered with an error before the webhook as a whole has to wait.
	maxFailures = 5
	// slowAnswer is the response time from which a webhook counts as slow.
	slowAnswer = time.Second
	// slowFor is how long it does so when it has nothing to get, and maxSlow how many are remembered.
	slowFor = 10 * time.Minute
	maxSlow = 10_000
	// fetchSize is how many deliveries are read at once, for each concurrent request that the webhook may get, and fetchBytes from
	// which size on no more.
	fetchSize  = 4
	fetchBytes = 128 << 10
	// drainTimeout is how long requests in progress may take when the service stops.
	drainTimeout = 4 * time.Second
)

// deliverer sends due deliveries. Replicas lease webhooks, so that one replica at a time sends to a webhook: it knows how
// many requests the webhook gets and which are in progress, and keeps the order. If the replica dies the lease expires.
type deliverer struct {
	Delivery
	db      *sqlx.DB
	sender  *sender
	replica uuid.UUID
	relay   func() // wakes the relay
	metrics *metrics
	log     *slog.Logger

	lease time.Duration
	wake  chan struct{}
	// Each request takes a place: of the first if its webhook answers quickly, else of the second. Receivers that fail or
	// hang can fill the second, and the others notice nothing.
	quick, slow chan struct{}

	mu      sync.Mutex
	workers map[uuid.UUID]*worker
	slowTo  map[uuid.UUID]time.Time // until when webhooks without a worker count as slow
}

func newDeliverer(d Delivery, db *sqlx.DB, sender *sender, replica uuid.UUID, relay func(), m *metrics, log *slog.Logger) *deliverer {
	return &deliverer{
		Delivery: d, db: db, sender: sender, replica: replica, relay: relay, metrics: m, log: log, lease: 2*d.Timeout + 5*time.Second,
		wake: make(chan struct{}, 1), quick: make(chan struct{}, d.MaxRequests-d.MaxRequests/4), slow: make(chan struct{}, d.MaxRequests/4),
		workers: map[uuid.UUID]*worker{}, slowTo: map[uuid.UUID]time.Time{},
	}
}

// wasSlow reports whether a webhook was slow when it last got something: it would else take the places of others with each event.
func (d *deliverer) wasSlow(id uuid.UUID) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return time.Now().Before(d.slowTo[id])
}

func (d *deliverer) rememberSlow(id uuid.UUID, slow bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !slow {
		delete(d.slowTo, id)
		return
	}
	if len(d.slowTo) >= maxSlow {
		maps.DeleteFunc(d.slowTo, func(_ uuid.UUID, until time.Time) bool { return time.Now().After(until) })
	}
	if len(d.slowTo) < maxSlow {
		d.slowTo[id] = time.Now().Add(slowFor)
	}
}

// notify tells the deliverer that a delivery is due.
func (d *deliverer) notify() {
	select {
	case d.wake <- struct{}{}:
	default: // it has been told
	}
}

// run delivers until ctx ends; requests in progress then have drainTimeout.
func (d *deliverer) run(ctx context.Context) error {
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(drainTimeout, cancel) })()
	var workers sync.WaitGroup
	defer workers.Wait()
	look := time.NewTimer(0)
	defer look.Stop()
	failing := false
	for {
		asked := time.Now()
		leased, err := d.leaseDue(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil && !failing {
			d.log.WarnContext(ctx, "webhooks get no events: the database cannot be read", "error", err)
		}
		failing = err != nil
		d.mu.Lock()
		for _, w := range d.workers {
			w.poke()
		}
		for _, id := range leased {
			w := &worker{
				deliverer: d, id: id, limit: 1, leasedUntil: asked.Add(d.lease), inHand: map[int64]bool{},
				results: make(chan result, d.Concurrency), poked: make(chan struct{}, 1),
			}
			d.workers[id] = w
			workers.Go(func() {
				w.run(ctx, work)
				d.mu.Lock()
				delete(d.workers, id)
				d.mu.Unlock()
			})
		}
		idle := len(d.workers) == 0
		d.mu.Unlock()
		wait := deliverInterval
		if idle && !failing {
			wait = d.untilDue(ctx)
		}
		look.Reset(wait)
		select {
		case <-ctx.Done():
			return nil
		case <-d.wake:
		case <-look.C:
		}
	}
}

// untilDue returns how long nothing is due, at most idleInterval. What is due already is another replica's, as long as that has the
// lease.
func (d *deliverer) untilDue(ctx context.Context) time.Duration {
	var seconds sql.NullFloat64
	err := d.db.GetContext(ctx, &seconds, postgres.Prepared+`
		SELECT extract(epoch FROM min(greatest(w.retry_at, due.next_attempt_at)) - now())
		FROM webhook w CROSS JOIN LATERAL (
			SELECT next_attempt_at FROM delivery WHERE webhook_id = w.id AND state = 'PENDING' ORDER BY next_attempt_at LIMIT 1) AS due
		WHERE w.state = 'ENABLED'`)
	switch {
	case err == nil && !seconds.Valid:
		return idleInterval
	case err != nil || seconds.Float64 <= 0: // the next lease meets the same error, and tells of it
		return deliverInterval
	}
	return min(time.Duration(seconds.Float64*float64(time.Second)), idleInterval)
}

// leaseDue leases webhooks that have due deliveries and that no replica sends to.
func (d *deliverer) leaseDue(ctx context.Context) (ids []uuid.UUID, err error) {
	d.mu.Lock()
	room := maxWorkers - len(d.workers)
	d.mu.Unlock()
	err = d.db.SelectContext(ctx, &ids, postgres.Prepared+`
		UPDATE webhook SET lessee = $1, leased_until = now() + $2 * interval '1 second'
		WHERE id = ANY (ARRAY(
			SELECT w.id FROM webhook w
			WHERE w.state = 'ENABLED' AND w.retry_at <= now() AND `+leaseOver+` AND EXISTS (
				SELECT FROM delivery d WHERE d.webhook_id = w.id AND d.state = 'PENDING' AND d.next_attempt_at <= now())
			ORDER BY w.retry_at LIMIT $3 FOR UPDATE OF w SKIP LOCKED))
		RETURNING id`, d.replica, d.lease.Seconds(), room)
	if err != nil {
		return nil, fmt.Errorf("leasing webhooks: %w", postgres.Classify(err))
	}
	return ids, nil
}

// leaseOver says that a lease for $2 seconds has ended. One that would last for ten times as long was given while the database's clock was
// ahead, which has gone back since; replicas with different settings have different leases.
const leaseOver = `leased_until NOT BETWEEN now() AND now() + 10 * $2 * interval '1 second'`

// worker sends to one webhook while it is leased and has due deliveries.
type worker struct {
	*deliverer
	id          uuid.UUID
	limit       int  // of requests at once: it grows by one with each success, and begins at one
	slowOne     bool // it has failed, or answered late
	leasedUntil time.Time
	hook        *webhook // as it was when it was read last
	generation  int64    // of the webhooks, at that time
	queue       []*delivery
	inFlight    int
	inHand      map[int64]bool // deliveries in the queue or in flight
	results     chan result
	poked       chan struct{}
}

// result is the outcome of one attempt.
type result struct {
	*delivery
	answer
	url     string // that it went to
	begun   time.Time
	aborted bool // there was no attempt, or it was cut off by the stop of the service
}

func (w *worker) poke() {
	select {
	case w.poked <- struct{}{}:
	default: // it has been told
	}
}

// run returns when nothing is due, when the webhook has to wait or is disabled, or when ctx has ended; and no attempt is in
// progress.
func (w *worker) run(ctx, work context.Context) {
	defer w.release(work)
	for {
		goOn := ctx.Err() == nil
		if goOn {
			var err error
			if goOn, err = w.fill(ctx); err != nil && ctx.Err() == nil {
				w.log.WarnContext(ctx, "deliveries cannot be read, will be tried again", "webhook", w.id, "error", err)
			}
		}
		for goOn && w.inFlight < w.limit && len(w.queue) > 0 {
			d := w.queue[0]
			w.queue = w.queue[1:]
			w.inFlight++
			hook, until, places := w.hook, w.leasedUntil, w.places()
			go func() { w.results <- w.attempt(ctx, work, hook, d, until, places) }()
		}
		if w.inFlight == 0 {
			return
		}
		done := w.await(ctx)
		if len(done) == 0 {
			continue
		}
		if err := w.record(work, done); err != nil {
			w.log.WarnContext(ctx, "what came of deliveries cannot be written: they are repeated", "webhook", w.id, "deliveries", len(done), "error", err)
			w.limit = 0 // nothing else is begun
		}
	}
}

func (w *worker) places() chan struct{} {
	if w.slowOne {
		return w.slow
	}
	return w.quick
}

// fill reads the webhook and, if the queue is empty, due deliveries. goOn is false if no attempt may be begun.
func (w *worker) fill(ctx context.Context) (goOn bool, err error) {
	asked := time.Now()
	var read struct {
		webhook
		Generation int64 `db:"generation"`
		Quiet      bool  `db:"quiet"`
	}
	// A webhook that fails is tried again at retry_at, or within maxWait of it.
	const columns = webhookColumns + `, (SELECT generation FROM log_position), greatest(retry_at, failing_since) < now() - interval '2 hours' AS quiet`
	// A lease that is far from its end is left as it is: each change of the row is another version of it.
	if time.Until(w.leasedUntil) > w.lease*2/3 {
		err = w.db.GetContext(ctx, &read, postgres.Prepared+`
			SELECT `+columns+` FROM webhook WHERE id = $1 AND lessee = $2 AND state = 'ENABLED' AND retry_at <= now()`, w.id, w.replica)
	} else {
		err = w.db.GetContext(ctx, &read, postgres.Prepared+`
			UPDATE webhook SET leased_until = now() + $3 * interval '1 second'
			WHERE id = $1 AND lessee = $2 AND state = 'ENABLED' AND retry_at <= now() RETURNING `+columns, w.id, w.replica, w.lease.Seconds())
		if err == nil {
			w.leasedUntil = asked.Add(w.lease)
		}
	}
	if err != nil {
		w.drop()
		if errors.Is(err, sql.ErrNoRows) {
			return false, nil
		}
		return false, fmt.Errorf("reading the webhook: %w", postgres.Classify(err))
	}
	if w.hook == nil {
		w.slowOne = read.Failures > 0 || w.wasSlow(w.id)
	}
	if w.generation != read.Generation { // a person may be erased in what waits: it is read again
		w.drop()
	}
	if read.Quiet { // there was nothing to try, because what had failed was given up: that time does not count
		read.FailingSince = sql.NullTime{}
	}
	w.hook, w.generation = &read.webhook, read.Generation
	if len(w.queue) > 0 || w.limit == 0 {
		return w.limit > 0, nil
	}
	inHand := make([]int64, 0, len(w.inHand))
	for id := range w.inHand {
		inHand = append(inHand, id)
	}
	err = w.db.SelectContext(ctx, &w.queue, postgres.Prepared+`
		WITH due AS (
			SELECT d.id, d.event_id, d.failures, d.first_attempt_at, coalesce(d.order_id::text, '') AS order_id, e.message_id, e.routing_key, e.payload, e.published_at,
				sum(octet_length(e.payload)) OVER (ORDER BY d.next_attempt_at, d.id ROWS UNBOUNDED PRECEDING) - octet_length(e.payload) AS before, d.next_attempt_at
			FROM (
				SELECT * FROM delivery d
				WHERE d.webhook_id = $1 AND d.state = 'PENDING' AND d.next_attempt_at <= now() AND d.id <> ALL ($2::bigint[]) AND NOT EXISTS (
					SELECT FROM delivery before
					WHERE before.webhook_id = d.webhook_id AND before.order_id = d.order_id AND before.state = 'PENDING' AND before.id < d.id)
				ORDER BY d.next_attempt_at, d.id LIMIT $3) AS d JOIN event e ON e.id = d.event_id)
		SELECT id, event_id, failures, first_attempt_at, order_id, message_id, routing_key, payload, published_at FROM due
		WHERE before < $4 ORDER BY next_attempt_at, id`, w.id, postgres.ArrayOf(inHand), fetchSize*w.limit, fetchBytes*w.limit)
	if err != nil {
		return false, fmt.Errorf("reading what is due: %w", postgres.Classify(err))
	}
	for _, d := range w.queue {
		w.inHand[d.Delivery] = true
	}
	return true, nil
}

// drop empties the queue: what was in it is read again.
func (w *worker) drop() {
	for _, d := range w.queue {
		delete(w.inHand, d.Delivery)
	}
	w.queue = nil
}

// await returns the results of attempts; none if it is time to look for due deliveries again.
func (w *worker) await(ctx context.Context) (done []result) {
	tick := time.NewTimer(deliverInterval)
	defer tick.Stop()
	stopping := ctx.Done()
	if ctx.Err() != nil || w.limit == 0 {
		stopping = nil // there is nothing to look for
	}
	select {
	case r := <-w.results:
		done = append(done, r)
	case <-stopping:
	case <-w.poked:
	case <-tick.C:
	}
	for len(w.results) > 0 {
		done = append(done, <-w.results)
	}
	w.inFlight -= len(done)
	return done
}

// attempt sends one delivery. It waits for a free place, and sends only if the response or the timeout comes before the
// lease ends, because another replica may send to the webhook after that; and if nothing has changed while it waited.
func (w *worker) attempt(ctx, work context.Context, hook *webhook, d *delivery, leasedUntil time.Time, places chan struct{}) result {
	r := result{delivery: d, url: hook.URL, aborted: true}
	wait, cancel := context.WithDeadline(ctx, leasedUntil.Add(-w.Timeout))
	defer cancel()
	waited := false
	select {
	case places <- struct{}{}:
	default:
		waited = true
		select {
		case places <- struct{}{}:
		case <-wait.Done():
			return r
		}
	}
	defer func() { <-places }()
	if wait.Err() != nil || waited && !w.isCurrent(wait, hook, d) {
		return r
	}
	r.begun = time.Now()
	r.answer = w.sender.send(work, hook, d.event)
	failpoint.Hit("webhooks.sent")
	r.aborted = !r.delivered() && work.Err() != nil
	return r
}

// isCurrent reports whether a delivery that was read before is still to be sent, and to the same URL: a person may have been erased
// in it since, and the webhook changed or deleted. If it cannot be known the delivery is read again.
func (w *worker) isCurrent(ctx context.Context, hook *webhook, d *delivery) (current bool) {
	err := w.db.GetContext(ctx, &current, postgres.Prepared+`
		SELECT EXISTS (
			SELECT FROM delivery d JOIN webhook w ON w.id = d.webhook_id
			WHERE d.webhook_id = $1 AND d.id = $2 AND d.state = 'PENDING' AND w.state = 'ENABLED' AND w.url = $3)`, hook.ID, d.Delivery, hook.URL)
	return err == nil && current
}

// change is what is written about a delivery after an attempt.
type change struct {
	result
	state string
	wait  time.Duration // before the next attempt
}

// record writes the results of attempts, and what follows from them for the webhook.
func (w *worker) record(ctx context.Context, done []result) error {
	for _, r := range done {
		delete(w.inHand, r.Delivery)
	}
	var changes []change
	hook := *w.hook
	if slices.ContainsFunc(done, func(r result) bool { return !r.aborted && !r.delivered() }) {
		err := w.db.GetContext(ctx, &hook.URL, postgres.Prepared+`SELECT url FROM webhook WHERE id = $1`, w.id)
		if errors.Is(err, sql.ErrNoRows) {
			return nil // it has been deleted, with its deliveries
		}
		if err != nil {
			return fmt.Errorf("reading the webhook: %w", postgres.Classify(err))
		}
	}
	var pause time.Duration // of the webhook
	var disabled *eventsv1.WebhookDisabled
	now := time.Now()
	for _, r := range done {
		if r.aborted {
			continue
		}
		w.metrics.count(ctx, r.answer)
		if !r.delivered() && r.url != hook.URL { // it says nothing about the URL that the webhook has now, which is tried next
			changes = append(changes, change{result: r, state: statePending})
			continue
		}
		w.slowOne = !r.delivered() || r.took > slowAnswer
		if r.delivered() {
			changes = append(changes, change{result: r, state: stateDelivered})
			hook.Failures, hook.FailingSince = 0, sql.NullTime{}
			w.limit = min(w.limit+1, w.Concurrency)
			continue
		}
		w.limit = 1
		c := change{result: r, state: statePending, wait: max(w.backoff(r.Failures+1), r.retryAfter)}
		if r.gone() || r.FirstAttemptAt.Valid && now.Add(c.wait).Sub(r.FirstAttemptAt.Time) > w.RetryFor {
			c.state = stateFailed
		}
		changes = append(changes, c)
		if !hook.FailingSince.Valid {
			hook.FailingSince = sql.NullTime{Time: r.begun, Valid: true}
		}
		if pause == 0 { // others that had begun before this one failed say nothing new
			hook.Failures++
		}
		if r.unreachable || r.retryAfter > 0 {
			pause = max(pause, w.backoff(hook.Failures), r.retryAfter)
		} else if hook.Failures >= maxFailures {
			pause = max(pause, w.backoff(hook.Failures-maxFailures+1))
		}
		if disabled == nil {
			disabled = w.disabling(&hook, r.answer, now)
		}
	}
	if len(changes) == 0 {
		return nil
	}
	w.rememberSlow(w.id, w.slowOne)
	err := postgres.InTx(ctx, w.db, func(tx *sqlx.Tx) error {
		if disabled != nil {
			if err := disable(ctx, tx, &hook, disabled); err != nil {
				return err
			}
		}
		// The webhook first, as whoever changes it, or sends a delivery again, locks it first.
		if err := writeWebhook(ctx, tx, &hook, w.replica, pause); err != nil {
			return err
		}
		return writeAttempts(ctx, tx, w.id, changes)
	})
	if err != nil {
		return err
	}
	failpoint.Hit("webhooks.recorded")
	if disabled != nil {
		w.relay()
		w.log.WarnContext(ctx, "webhook disabled", "webhook", w.id, "cause", disabled.GetCause(), "detail", disabled.GetDetail())
	}
	return nil
}

// disabling returns the event to publish if the webhook has to be disabled; nil if it has not.
func (w *worker) disabling(hook *webhook, a answer, now time.Time) *eventsv1.WebhookDisabled {
	e := &eventsv1.WebhookDisabled{
		DisablingId: uuid.Must(uuid.NewV7()).String(), WebhookId: w.id.String(), DisabledAt: timestamppb.New(now),
	}
	switch {
	case a.gone():
		e.Cause, e.Detail = eventsv1.WebhookDisabled_GONE, "the receiver has answered 410: it wants no more"
	case now.Sub(hook.FailingSince.Time) > w.RetryFor:
		e.Cause, e.Detail = eventsv1.WebhookDisabled_FAILING, fmt.Sprintf("no delivery has succeeded for %s: %.300s", w.RetryFor, a.problem)
	default:
		return nil
	}
	return e
}

// backoff returns the wait after the n-th failure in a row (n from 1): about three times the one before.
func (d *deliverer) backoff(n int) time.Duration {
	wait := d.FirstRetry
	for ; n > 1 && wait < maxWait; n-- {
		wait *= 3
	}
	return time.Duration(float64(min(wait, maxWait)) * (0.9 + 0.2*rand.Float64()))
}

// writeAttempts writes the results of attempts. Deliveries that must wait for one which is retried get the same time.
func writeAttempts(ctx context.Context, tx *sqlx.Tx, hook uuid.UUID, changes []change) error {
	_, err := tx.ExecContext(ctx, postgres.Prepared+`
		UPDATE delivery d SET state = n.state, attempts = d.attempts + 1, failures = d.failures + (n.state <> 'DELIVERED')::integer,
			first_attempt_at = coalesce(d.first_attempt_at, n.begun), last_attempt_at = n.begun,
			next_attempt_at = now() + n.wait * interval '1 millisecond', response_status = n.status, response_body = n.body, error_message = n.problem
		FROM unnest($2::bigint[], $3::text[], $4::timestamptz[], $5::bigint[], $6::integer[], $7::text[], $8::text[])
			AS n (id, state, begun, wait, status, body, problem)
		WHERE d.webhook_id = $1 AND d.id = n.id AND d.state = 'PENDING'`,
		hook,
		postgres.Array(changes, func(c change) int64 { return c.Delivery }),
		postgres.Array(changes, func(c change) string { return c.state }),
		postgres.Array(changes, func(c change) time.Time { return c.begun }),
		postgres.Array(changes, func(c change) int64 { return c.wait.Milliseconds() }),
		postgres.Array(changes, func(c change) int32 { return int32(c.status) }), //nolint:gosec // three digits
		postgres.Array(changes, func(c change) string { return c.body }),
		postgres.Array(changes, func(c change) string { return c.problem }))
	if err != nil {
		return fmt.Errorf("writing %d attempts: %w", len(changes), err)
	}
	for _, c := range changes {
		if c.state != statePending || c.OrderID == "" {
			continue
		}
		_, err := tx.ExecContext(ctx, postgres.Prepared+`
			UPDATE delivery SET next_attempt_at = greatest(next_attempt_at, now() + $4 * interval '1 millisecond')
			WHERE webhook_id = $1 AND order_id = $2 AND state = 'PENDING' AND id > $3`, hook, c.OrderID, c.Delivery, c.wait.Milliseconds())
		if err != nil {
			return fmt.Errorf("delaying what waits behind delivery %d: %w", c.Delivery, err)
		}
	}
	return nil
}

// writeWebhook writes how a webhook does, if the replica still has the lease and the URL is the same.
func writeWebhook(ctx context.Context, tx *sqlx.Tx, w *webhook, replica uuid.UUID, pause time.Duration) error {
	_, err := tx.ExecContext(ctx, postgres.Prepared+`
		UPDATE webhook SET failures = $3, failing_since = $4, retry_at = greatest(retry_at, now() + $5 * interval '1 millisecond')
		WHERE id = $1 AND lessee = $2 AND url = $6 AND (failures <> $3 OR $5 > 0)`,
		w.ID, replica, w.Failures, w.FailingSince, pause.Milliseconds(), w.URL)
	if err != nil {
		return fmt.Errorf("writing how webhook %s does: %w", w.ID, err)
	}
	return nil
}

// disable disables a webhook that is enabled and has the same URL, and publishes e. As every change of webhooks it first locks the
// position in the log.
func disable(ctx context.Context, tx *sqlx.Tx, w *webhook, e *eventsv1.WebhookDisabled) error {
	if _, err := tx.ExecContext(ctx, `UPDATE log_position SET generation = generation + 1`); err != nil {
		return fmt.Errorf("disabling webhook %s: %w", w.ID, err)
	}
	result, err := tx.ExecContext(ctx, `
		UPDATE webhook SET state = 'DISABLED', disabled_reason = $2, updated_at = now() WHERE id = $1 AND state = 'ENABLED' AND url = $3`,
		w.ID, e.GetDetail(), w.URL)
	if err != nil {
		return fmt.Errorf("disabling webhook %s: %w", w.ID, err)
	}
	if n, err := result.RowsAffected(); err != nil || n == 0 {
		return err
	}
	return outbox.Add(ctx, tx, []outbox.Entry{{Message: e}})
}

// release ends the lease, so that another replica can send to the webhook at once.
func (w *worker) release(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	_, err := w.db.ExecContext(ctx, postgres.Prepared+`
		UPDATE webhook SET lessee = NULL, leased_until = '-infinity' WHERE id = $1 AND lessee = $2`, w.id, w.replica)
	if err != nil {
		w.log.WarnContext(ctx, "a webhook gets its next event only when its lease has ended", "webhook", w.id, "error", err)
	}
}
