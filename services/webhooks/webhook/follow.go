package webhook

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	eventsv1 "shop.example/gen/shop/events/v1"
	loggingv1 "shop.example/gen/shop/logging/v1"
	"shop.example/platform/backoff"
	"shop.example/platform/contract"
	"shop.example/platform/failpoint"
	"shop.example/platform/messaging"
	"shop.example/platform/postgres"
	"shop.example/topology"
)

const (
	// followInterval is how often a replica tries to become the one that follows the log, and how often that one checks
	// whether webhooks have changed.
	followInterval = time.Second
	// followLease is how long the lease to follow the log lasts without being renewed.
	followLease = 10 * time.Second
	// followBatch is how many events are written at once, and followBytes from which size on no more.
	followBatch = 500
	followBytes = 2 << 20
	// followAhead is how many events are read ahead; one of more than aheadBytes counts as several.
	followAhead = 128
	aheadBytes  = followBytes / followAhead
	// maxOwners is for how many orders it is cached whom they belong to.
	maxOwners = 50_000
	// placedWithin is how long an event may be in the log before the OrderPlaced of its order: replicas that share the log's
	// queue may write in another order.
	placedWithin = 5 * time.Second
)

// subscriber is what the follower needs to know about a webhook.
type subscriber struct {
	ID         uuid.UUID      `db:"id"`
	Owner      string         `db:"owner"`
	EventTypes pq.StringArray `db:"event_types"`
}

func (s subscriber) wants(routingKey, owner string) bool {
	return (s.Owner == "" || s.Owner == owner) &&
		slices.ContainsFunc(s.EventTypes, func(pattern string) bool { return messaging.Matches(pattern, routingKey) })
}

// commonPattern returns the narrowest pattern of the form prefix.# that matches everything that any subscriber wants, so
// that no more of the log is read.
func commonPattern(list []subscriber) string {
	var common []string
	for i, s := range list {
		for j, pattern := range s.EventTypes {
			words := strings.Split(pattern, ".")
			if wild := slices.IndexFunc(words, func(w string) bool { return w == "*" || w == "#" }); wild >= 0 {
				words = words[:wild]
			}
			if i == 0 && j == 0 {
				common = words
				continue
			}
			n := 0
			for n < len(common) && n < len(words) && common[n] == words[n] {
				n++
			}
			common = common[:n]
		}
	}
	return strings.Join(append(common, "#"), ".")
}

// follower reads the log and writes the deliveries. One replica at a time does so, under a lease, so that deliveries are in
// the order of the log. The position in the log moves in the transaction that writes the deliveries, and only if the
// replica still has the lease and knows the current webhooks; so each event is processed once.
type follower struct {
	db      *sqlx.DB
	events  loggingv1.EventLogServiceClient
	replica uuid.UUID
	written func() // tells that there is something to deliver
	metrics *metrics
	log     *slog.Logger
	wake    chan struct{}
	owners  map[string]string // of orders; of the goroutine that runs
	// unplaced has the orders whose OrderPlaced is waited for, and since when; of the goroutine that runs.
	unplaced map[string]time.Time
}

func newFollower(db *sqlx.DB, events loggingv1.EventLogServiceClient, replica uuid.UUID, written func(), m *metrics, log *slog.Logger) *follower {
	return &follower{
		db: db, events: events, replica: replica, written: written, metrics: m, log: log, wake: make(chan struct{}, 1),
		owners: map[string]string{}, unplaced: map[string]time.Time{},
	}
}

// notify tells the follower that the webhooks have changed.
func (f *follower) notify() {
	select {
	case f.wake <- struct{}{}:
	default: // it has been told
	}
}

// run follows the log until ctx ends.
func (f *follower) run(ctx context.Context) error {
	wait := backoff.New(100*time.Millisecond, 5*time.Second)
	failing := false
	for ctx.Err() == nil {
		again, err := f.session(ctx)
		if err != nil && ctx.Err() == nil {
			if !failing {
				f.log.WarnContext(ctx, "the log of events cannot be followed, will be tried again", "error", err)
			}
			failing = true
			wait.Sleep(ctx)
			continue
		}
		failing = false
		wait.Reset()
		if !again {
			f.pause(ctx)
		}
	}
	return f.release(context.WithoutCancel(ctx))
}

func (f *follower) pause(ctx context.Context) {
	timer := time.NewTimer(followInterval)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-f.wake:
	case <-timer.C:
	}
}

// release ends the lease, so that another replica can follow at once.
func (f *follower) release(ctx context.Context) error {
	_, err := f.db.ExecContext(ctx, `UPDATE log_position SET lessee = NULL, leased_until = '-infinity' WHERE lessee = $1`, f.replica)
	if err != nil {
		f.log.WarnContext(ctx, "other replicas follow the log only when the lease has ended", "error", err)
	}
	return nil
}

// turn is a position in the log that this replica has leased, with the webhooks at that time.
type turn struct {
	position, generation int64
	subscribers          []subscriber
}

// takeTurn takes or renews the lease of the position; it returns nil if another replica has it, or if no webhook wants
// anything.
func (f *follower) takeTurn(ctx context.Context) (*turn, error) {
	t := &turn{}
	err := f.db.QueryRowContext(ctx, `
		UPDATE log_position SET lessee = $1, leased_until = now() + $2 * interval '1 second'
		WHERE active AND (lessee = $1 OR `+leaseOver+`) RETURNING position, generation`, f.replica, followLease.Seconds()).Scan(&t.position, &t.generation)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("leasing the position in the log: %w", postgres.Classify(err))
	}
	err = f.db.SelectContext(ctx, &t.subscribers, `SELECT id, owner, event_types FROM webhook WHERE state <> 'DISABLED'`)
	if err != nil {
		return nil, fmt.Errorf("reading the webhooks: %w", postgres.Classify(err))
	}
	if len(t.subscribers) > 0 {
		return t, nil
	}
	_, err = f.db.ExecContext(ctx, `
		UPDATE log_position SET active = false, lessee = NULL, leased_until = '-infinity' WHERE lessee = $1 AND generation = $2`, f.replica, t.generation)
	return nil, err
}

// session follows the log over one stream. again says that the next one has to begin at once.
func (f *follower) session(ctx context.Context) (again bool, err error) {
	at, err := f.takeTurn(ctx)
	if err != nil {
		return false, err
	}
	f.metrics.follows(at != nil)
	if at == nil {
		return false, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := f.events.StreamEvents(ctx, &loggingv1.StreamEventsRequest{
		AfterId: at.position, FromBeginning: true, RoutingKey: commonPattern(at.subscribers),
	})
	if err != nil {
		return false, err
	}
	events, room := make(chan *loggingv1.StreamEventsResponse, followAhead), make(chan struct{}, followAhead)
	ended := make(chan error, 1)
	go func() {
		defer close(events)
		for {
			response, err := stream.Recv()
			for n := roomOf(response); n > 0 && err == nil; n-- {
				select {
				case room <- struct{}{}:
				case <-ctx.Done():
					err = ctx.Err()
				}
			}
			if err != nil {
				ended <- err
				return
			}
			events <- response // there is room
		}
	}()
	tick := time.NewTicker(followInterval)
	defer tick.Stop()
	begun := false
	for {
		var read batch
		select {
		case response, ok := <-events:
			if !ok {
				return false, <-ended
			}
			if response.GetPosition() < at.position {
				return true, f.stepBack(ctx, at, response.GetPosition())
			}
			read = gather(response, events, room)
		case <-tick.C:
		case <-f.wake:
		}
		before := at.position
		goOn, err := f.fanOut(ctx, at, read)
		if !goOn || err != nil {
			return true, err
		}
		if read.position > 0 {
			if begun || at.position > before {
				f.metrics.gotOn()
			}
			begun = true // the first position comes from a log that cannot be read, too
		}
	}
}

// batch is what was read of the log at once, and the position behind it: there is no other event up to there that a webhook wants.
type batch struct {
	events   []*loggingv1.Event
	position int64
}

// gather returns a batch of first and the other responses that have already arrived.
func gather(first *loggingv1.StreamEventsResponse, responses <-chan *loggingv1.StreamEventsResponse, room <-chan struct{}) (b batch) {
	size := 0
	for response := first; ; response = <-responses {
		for range roomOf(response) {
			<-room
		}
		b.position = response.GetPosition()
		if response.GetEvent() != nil {
			b.events = append(b.events, response.GetEvent())
		}
		size += proto.Size(response)
		if len(b.events) == followBatch || size >= followBytes || len(responses) == 0 {
			return b
		}
	}
}

// roomOf returns as how many events a response counts while it waits.
func roomOf(response *loggingv1.StreamEventsResponse) int {
	return min(1+proto.Size(response)/aheadBytes, followAhead)
}

// stepBack follows a log that ends before the position: it was restored from a backup.
func (f *follower) stepBack(ctx context.Context, at *turn, position int64) error {
	f.log.WarnContext(ctx, "the log ends before the position that was reached: it is followed from its end", "position", at.position, "end", position)
	_, err := f.db.ExecContext(ctx, `UPDATE log_position SET position = $1 WHERE lessee = $2 AND position = $3`, position, f.replica, at.position)
	return err
}

// errStale means that this replica no longer has the lease, or that the webhooks have changed.
var errStale = errors.New("the webhooks have changed")

// fanOut writes the deliveries of a batch, which may be empty. goOn is false if the log has to be read again from the position:
// the webhooks have changed, or a person was erased in what was read before.
func (f *follower) fanOut(ctx context.Context, at *turn, read batch) (goOn bool, err error) {
	switch {
	case len(read.events) > 0:
		err = f.write(ctx, at, read)
	case read.position > at.position:
		err = f.move(ctx, f.db, at, read.position)
	default:
		now, err := f.takeTurn(ctx)
		return now != nil && now.position == at.position && now.generation == at.generation, err
	}
	if errors.Is(err, errStale) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	at.position = read.position
	return true, nil
}

// move moves the position, and renews the lease.
func (f *follower) move(ctx context.Context, q sqlx.ExecerContext, at *turn, position int64) error {
	result, err := q.ExecContext(ctx, postgres.Prepared+`
		UPDATE log_position SET position = $1, leased_until = now() + $2 * interval '1 second'
		WHERE lessee = $3 AND position = $4 AND generation = $5`,
		position, followLease.Seconds(), f.replica, at.position, at.generation)
	if err != nil {
		return fmt.Errorf("moving the position in the log: %w", postgres.Classify(err))
	}
	if n, err := result.RowsAffected(); err != nil || n == 0 {
		return errors.Join(err, errStale)
	}
	return nil
}

// pairing is an event and a webhook that gets it.
type pairing struct {
	event   *loggingv1.Event
	webhook uuid.UUID
}

// write moves the position behind the batch, and writes its deliveries.
func (f *follower) write(ctx context.Context, at *turn, read batch) error {
	wanted, pairings, payloads, err := f.match(ctx, at.subscribers, read.events)
	if err != nil {
		return err
	}
	err = postgres.InTx(ctx, f.db, func(tx *sqlx.Tx) error {
		if err := f.move(ctx, tx, at, read.position); err != nil {
			return err
		}
		if len(wanted) > 0 {
			if err := insertDeliveries(ctx, tx, wanted, payloads, pairings); err != nil {
				return err
			}
		}
		failpoint.Hit("webhooks.uncommitted")
		return nil
	})
	if err != nil {
		return fmt.Errorf("writing the deliveries of %d events: %w", len(read.events), err)
	}
	failpoint.Hit("webhooks.fanned-out")
	if len(pairings) > 0 {
		f.written()
	}
	return nil
}

// insertDeliveries writes events and the deliveries in pairings. A delivery about an order that waits for another attempt
// at an earlier event gets the time of that attempt.
func insertDeliveries(ctx context.Context, tx *sqlx.Tx, events []*loggingv1.Event, payloads map[int64]string, pairings []pairing) error {
	n, err := insertEvents(ctx, tx, events, payloads)
	if err != nil {
		return err
	}
	if n < len(events) {
		// A log that was restored from a backup may give ids again. What is kept under them is about others.
		_, err := tx.ExecContext(ctx, postgres.Prepared+`
			DELETE FROM event e USING unnest($1::bigint[], $2::uuid[]) AS new (id, message_id) WHERE e.id = new.id AND e.message_id <> new.message_id`,
			postgres.Array(events, (*loggingv1.Event).GetId), postgres.Array(events, messageOf))
		if err != nil {
			return err
		}
		if _, err := insertEvents(ctx, tx, events, payloads); err != nil {
			return err
		}
	}
	_, err = tx.ExecContext(ctx, postgres.Prepared+`
		INSERT INTO delivery (event_id, webhook_id, order_id, next_attempt_at)
		SELECT new.event_id, new.webhook_id, new.order_id, greatest(now(), (
			SELECT max(d.next_attempt_at) FROM delivery d
			WHERE d.webhook_id = new.webhook_id AND d.order_id = new.order_id AND d.state = 'PENDING'))
		FROM unnest($1::bigint[], $2::uuid[], $3::uuid[]) WITH ORDINALITY AS new (event_id, webhook_id, order_id, place)
		ORDER BY place ON CONFLICT DO NOTHING`,
		postgres.Array(pairings, func(p pairing) int64 { return p.event.GetId() }),
		postgres.Array(pairings, func(p pairing) uuid.UUID { return p.webhook }),
		postgres.Array(pairings, func(p pairing) uuid.NullUUID { return orderOf(p.event) }))
	return err
}

// insertEvents writes the events that are not there, and returns how many those are.
func insertEvents(ctx context.Context, tx *sqlx.Tx, events []*loggingv1.Event, payloads map[int64]string) (int, error) {
	result, err := tx.ExecContext(ctx, postgres.Prepared+`
		INSERT INTO event (id, message_id, routing_key, order_id, payload, published_at)
		SELECT * FROM unnest($1::bigint[], $2::uuid[], $3::text[], $4::uuid[], $5::text[], $6::timestamptz[]) ON CONFLICT DO NOTHING`,
		postgres.Array(events, (*loggingv1.Event).GetId),
		postgres.Array(events, messageOf),
		postgres.Array(events, (*loggingv1.Event).GetRoutingKey),
		postgres.Array(events, orderOf),
		postgres.Array(events, func(e *loggingv1.Event) string { return payloads[e.GetId()] }),
		postgres.Array(events, func(e *loggingv1.Event) time.Time { return e.GetPublishedAt().AsTime() }))
	if err != nil {
		return 0, err
	}
	n, err := result.RowsAffected()
	return int(n), err
}

func messageOf(e *loggingv1.Event) uuid.UUID { return uuid.MustParse(e.GetMessageId()) }

func orderOf(e *loggingv1.Event) (id uuid.NullUUID) {
	if e.GetOrderId() != "" {
		id = uuid.NullUUID{UUID: uuid.MustParse(e.GetOrderId()), Valid: true} // the log has it of that type
	}
	return id
}

// match returns those of the events that some webhook wants, with their JSON, and which webhooks get them. It returns errNotPlaced
// when it has asked for the owners of all, so that those that have to be waited for are waited for together.
func (f *follower) match(ctx context.Context, list []subscriber, events []*loggingv1.Event) (wanted []*loggingv1.Event, pairings []pairing, payloads map[int64]string, err error) {
	payloads = map[int64]string{}
	owned := slices.ContainsFunc(list, func(s subscriber) bool { return s.Owner != "" })
	var notPlaced error
	for _, e := range events {
		if !deliverable(e) {
			continue
		}
		owner := ""
		if owned {
			if owner, err = f.ownerOf(ctx, e); errors.Is(err, errNotPlaced) {
				notPlaced = err
				continue
			} else if err != nil {
				return nil, nil, nil, err
			}
		}
		for _, s := range list {
			if s.wants(e.GetRoutingKey(), owner) {
				pairings = append(pairings, pairing{e, s.ID})
			}
		}
		if n := len(pairings); n > 0 && pairings[n-1].event == e {
			wanted = append(wanted, e)
			if payloads[e.GetId()], err = toJSON(e.GetPayload()); err != nil {
				return nil, nil, nil, fmt.Errorf("event %d: %w", e.GetId(), err)
			}
		}
	}
	return wanted, pairings, payloads, notPlaced
}

// deliverable reports whether an entry of the log is an event that meets its contract. Requests do not count, nor what
// could not be decoded, nor events in which personal data were erased.
func deliverable(e *loggingv1.Event) bool {
	known, ok := contract.ByRoutingKey(e.GetRoutingKey())
	if !ok || known.IsRequest() || e.GetPayload() == nil {
		return false
	}
	payload, err := e.GetPayload().MarshalJSON()
	if err == nil {
		_, err = known.FromJSON(payload)
	}
	return err == nil
}

// toJSON encodes the fields sorted by name, so that an event has the same text each time.
func toJSON(payload *structpb.Struct) (string, error) {
	b, err := json.Marshal(payload.AsMap())
	return string(b), err
}

// errNotPlaced means that it is not known yet whom an event's order belongs to.
var errNotPlaced = errors.New("the log does not have the OrderPlaced of an order yet that it has another event of")

// ownerOf returns whom the event's order belongs to, as its OrderPlaced says; "" for nobody. While the log does not have that
// event it returns errNotPlaced: if the event were skipped, its owner's webhooks would never get it.
func (f *follower) ownerOf(ctx context.Context, e *loggingv1.Event) (string, error) {
	order := e.GetOrderId()
	if order == "" {
		return "", nil
	}
	placed := topology.RoutingKey(&eventsv1.OrderPlaced{})
	// An OrderPlaced says itself whose the order is, which may not have been known before: one that the log had lost comes late.
	if owner, known := f.owners[order]; known && e.GetRoutingKey() != placed {
		return owner, nil
	}
	if len(f.owners) >= maxOwners {
		clear(f.owners)
	}
	if len(f.unplaced) >= maxOwners { // of batches that another replica has written
		clear(f.unplaced)
	}
	if e.GetRoutingKey() != placed {
		first, err := f.events.ListEvents(ctx, &loggingv1.ListEventsRequest{OrderId: order, RoutingKey: placed, PageSize: 1})
		if err != nil {
			return "", fmt.Errorf("asking the log whom an order belongs to: %w", err)
		}
		if len(first.GetEvents()) == 0 {
			since, waits := f.unplaced[order]
			if !waits {
				since = time.Now()
				f.unplaced[order] = since
			}
			if time.Since(since) < placedWithin {
				return "", errNotPlaced
			}
			delete(f.unplaced, order)
			f.owners[order] = "" // it was deleted with the old events, or nobody has placed the order
			return "", nil
		}
		e = first.GetEvents()[0]
	}
	delete(f.unplaced, order)
	owner := e.GetPayload().GetFields()["owner"].GetStringValue()
	f.owners[order] = owner
	return owner, nil
}

// logEnd returns the position of the last event in the log.
func logEnd(ctx context.Context, events loggingv1.EventLogServiceClient) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	stream, err := events.StreamEvents(ctx, &loggingv1.StreamEventsRequest{})
	if err != nil {
		return 0, err
	}
	first, err := stream.Recv() // comes at once
	return first.GetPosition(), err
}
