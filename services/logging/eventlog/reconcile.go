package eventlog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"go.opentelemetry.io/otel/metric"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"shop.example/domain/orderid"
	eventsv1 "shop.example/gen/shop/events/v1"
	inventoryv1 "shop.example/gen/shop/inventory/v1"
	orderv1 "shop.example/gen/shop/order/v1"
	"shop.example/platform/contract"
	"shop.example/platform/messaging"
	"shop.example/platform/postgres"
	"shop.example/platform/telemetry"
	"shop.example/topology"
)

const (
	reconcileInterval = 3 * time.Second
	// reconcileBatch is how many events are compared together, with one call to the service.
	reconcileBatch = 1000
	askTimeout     = 5 * time.Second
	// graceTime is the age up to which an event that was logged or sent again is left alone, because it may still be being
	// handled.
	graceTime = 3 * time.Second
	// maxHandlingTime is how long a consumer may have a message in hand after its queue has become empty.
	maxHandlingTime = 8 * time.Second
	// maxSends is how often an event is sent again if it is lost each time.
	maxSends = 5
	// closedRetention is how long the record of events that were sent again is kept.
	closedRetention = 90 * 24 * time.Hour
)

// overtakenAfter is how much later another event must have been logged, and have been handled, for an event to count as
// lost. A message that is retried comes back behind those that were published meanwhile.
var overtakenAfter = messaging.MaxRetryTime() + 49*time.Second

// reconciler sends events again that were lost between the exchange and the service that handles them, because somebody
// deleted the service's queue or a binding. The log has them, because it has a queue of its own. See docs/adr/0013.
//
// Each event is compared once with what the service has handled, in the order of the log. The comparison stops at an event
// that may still be waiting, so that a service which is down and has a long queue costs one question from time to time.
// Lost events are recorded (unhandled_event) before they are sent, and followed until they are handled.
type reconciler struct {
	db     *sqlx.DB
	pub    *messaging.Publisher
	broker *messaging.Connection // for the state of the queues
	log    *slog.Logger
	routes []*route
	// retention is how long the log keeps events; 0 for ever.
	retention time.Duration
	events    metric.Int64Counter
	head      logEnd // where the log ended at the pass before
	failed    string // the error of that pass, "" if it had none
	begun     bool   // begin has succeeded
}

// logEnd is the end of the log at some time: everything up to there was logged before that time.
type logEnd struct {
	logPosition
	at time.Time // by the clock of this process
}

// route is a type of event, with the queue and the service that handle it.
type route struct {
	event contract.Event
	queue string
	// sent is the type of what is sent again, usually the same, and user the one of the broker who publishes it. read reads what is
	// sent again, by the ids of the messages that were not handled.
	sent contract.Event
	user string
	read func(context.Context, []entry) (map[uuid.UUID]loggedEvent, error)
	// unhandled returns those of the orders whose event the service has not handled.
	unhandled func(ctx context.Context, orders [][]byte) ([][]byte, error)
	// waiting returns a page of the orders for whose event the service still waits, and the token of the next one. If it is nil, the
	// service is asked about every event.
	waiting    func(ctx context.Context, page string) (orders [][]byte, next string, err error)
	page       string      // which comes next: one a pass, so that orders which wait for long do not hide others
	emptySince []time.Time // when its queue was seen to be empty, since it was not
}

func newReconciler(db *sqlx.DB, pub *messaging.Publisher, broker *messaging.Connection, orders orderv1.IntakeServiceClient,
	stock inventoryv1.SettlementServiceClient, log *slog.Logger, meters metric.MeterProvider,
) (*reconciler, error) {
	counter, err := meters.Meter("shop.example/services/logging").Int64Counter("logging.reconciler.events",
		metric.WithDescription("Events that were lost on their way to a service, by queue and by what became of them: sent again or unreadable."))
	if err != nil {
		return nil, fmt.Errorf("registering the metrics of the reconciler: %w", err)
	}
	r := &reconciler{db: db, pub: pub, broker: broker, log: log, events: counter}
	add := func(queue string, m, sent proto.Message, unhandled func(context.Context, [][]byte) ([][]byte, error)) *route {
		event, _ := contract.EventOf(m)
		rt := &route{event: event, queue: queue, read: r.logged, unhandled: unhandled}
		rt.sent, _ = contract.EventOf(sent)
		rt.user = broker.UserOf(rt.sent.PublishedBy[0])
		r.routes = append(r.routes, rt)
		for _, outcome := range []string{"sent", outcomeUnreadable} {
			r.count(context.Background(), rt, outcome, 0)
		}
		return rt
	}
	add(topology.Order, &eventsv1.OrderPlaced{}, &eventsv1.OrderPlaced{}, func(ctx context.Context, ids [][]byte) ([][]byte, error) {
		resp, err := orders.FindUnknown(ctx, &orderv1.FindUnknownRequest{OrderIds: ids})
		return resp.GetOrderIds(), err
	})
	for _, m := range []proto.Message{&eventsv1.DecrementQuantity{}, &eventsv1.OrderCancelled{}} {
		event, _ := contract.EventOf(m)
		rt := add(topology.Inventory, m, m, func(ctx context.Context, ids [][]byte) ([][]byte, error) {
			resp, err := stock.FindUnhandled(ctx, &inventoryv1.FindUnhandledRequest{RoutingKey: event.RoutingKey, OrderIds: ids})
			return resp.GetOrderIds(), err
		})
		if _, settles := m.(*eventsv1.DecrementQuantity); settles {
			// Nearly every order has one; but what has not been settled is still held, and nothing is held for long.
			rt.waiting = func(ctx context.Context, page string) ([][]byte, string, error) {
				resp, err := stock.FindHeld(ctx, &inventoryv1.FindHeldRequest{MinAge: durationpb.New(graceTime), PageToken: page})
				return resp.GetOrderIds(), resp.GetNextPageToken(), err
			}
		}
	}
	// A decision whose OrderPlaced is not in the log: a broker that loses the majority of its nodes while it takes a message may
	// keep it in one queue and lose it in another.
	for _, m := range []proto.Message{&eventsv1.OrderConfirmed{}, &eventsv1.OrderRejected{}} {
		add(topology.Logging, m, &eventsv1.OrderPlaced{}, r.withoutPlaced).read = func(ctx context.Context, decisions []entry) (map[uuid.UUID]loggedEvent, error) {
			return r.placedAgain(ctx, orders, decisions)
		}
	}
	return r, nil
}

// sentID is the id of the message that is sent again for an event that was not handled.
func (rt *route) sentID(e entry) uuid.UUID {
	if rt.sent.Name == rt.event.Name {
		return e.MessageID
	}
	return contract.MessageID(&eventsv1.OrderPlaced{OrderId: e.OrderID.String()})
}

// run compares every three seconds until ctx ends. What fails is done the next time.
func (r *reconciler) run(ctx context.Context) error {
	for {
		// Replicas that were started together do not ask together.
		pause := time.NewTimer(reconcileInterval + rand.N(reconcileInterval/3)) //nolint:gosec // jitter needs no secret
		select {
		case <-ctx.Done():
			pause.Stop()
			return nil
		case <-pause.C:
		}
		err := r.begin(ctx)
		if err == nil {
			err = r.pass(ctx)
		}
		if ctx.Err() == nil {
			r.report(ctx, err)
		}
	}
}

// begin has routes that a release before did not compare begin at the end of the log: what is before may be very much.
func (r *reconciler) begin(ctx context.Context) error {
	if r.begun {
		return nil
	}
	for _, rt := range r.routes {
		if rt.queue != topology.Logging {
			continue
		}
		if err := beginChecking(ctx, r.db, rt.event.RoutingKey); err != nil {
			return err
		}
	}
	r.begun = true
	return nil
}

// report logs when failures begin and when they end.
func (r *reconciler) report(ctx context.Context, err error) {
	now := ""
	if err != nil {
		now = err.Error()
	}
	switch {
	case now == r.failed:
	case err != nil:
		r.log.WarnContext(ctx, "looking for lost events failed, will be tried again", "error", err)
	default:
		r.log.InfoContext(ctx, "looking for lost events works again")
	}
	r.failed = now
}

// pass compares all routes. If another replica is doing so, it does nothing.
func (r *reconciler) pass(ctx context.Context) (err error) {
	conn, err := r.db.Connx(ctx)
	if err != nil {
		return fmt.Errorf("connecting: %w", postgres.Classify(err))
	}
	defer conn.Close()
	var mine bool
	if err := conn.GetContext(ctx, &mine, `SELECT pg_try_advisory_lock(hashtext('logging.reconciler'))`); err != nil || !mine {
		return postgres.Classify(err)
	}
	defer func() {
		// If it fails the connection is lost, and the lock with it.
		_, unlockErr := conn.ExecContext(context.WithoutCancel(ctx), `SELECT pg_advisory_unlock(hashtext('logging.reconciler'))`)
		err = errors.Join(err, postgres.Classify(unlockErr))
	}()
	upTo := r.head
	if time.Since(upTo.at) < graceTime {
		return nil
	}
	if r.head, err = readLogEnd(ctx, r.db); err != nil {
		return err
	}
	var errs []error
	for _, rt := range r.routes {
		if err := r.reconcile(ctx, rt, upTo.logPosition); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", rt.event.RoutingKey, err))
		}
	}
	return errors.Join(errs...)
}

// reconcile finds and sends the lost events of a route, of those that were logged up to a position.
func (r *reconciler) reconcile(ctx context.Context, rt *route, upTo logPosition) (err error) {
	e := &lossCheck{reconciler: r, route: rt}
	if rt.waiting != nil {
		err = r.checkWaiting(ctx, e, upTo)
	} else {
		for more := true; more && err == nil; {
			more, err = r.compare(ctx, e, upTo)
		}
	}
	for more := true; more && err == nil; {
		more, err = r.followUp(ctx, e)
	}
	return err
}

// compare compares the next events of the log with what the service has handled. more reports whether others may follow.
func (r *reconciler) compare(ctx context.Context, e *lossCheck, upTo logPosition) (more bool, err error) {
	from, err := checkedUpTo(ctx, r.db, e.event.RoutingKey)
	if err != nil || from.EventID >= upTo.EventID {
		return false, err
	}
	orders, last, err := ordersAfter(ctx, r.db, e.event.RoutingKey, from, upTo, reconcileBatch)
	if err != nil {
		return false, err
	}
	if more = len(orders) == reconcileBatch; more {
		upTo = last
	}
	open, err := e.findUnhandled(ctx, orders)
	if err != nil {
		return false, err
	}
	entries, err := entriesOf(ctx, r.db, e.event.RoutingKey, slices.Collect(maps.Keys(open)), from, upTo)
	if err != nil {
		return false, err
	}
	done, lost, err := r.classify(ctx, e, entries)
	if err != nil {
		return false, err
	}
	if done < len(entries) {
		more, upTo = false, logPosition{EventID: entries[done].EventID - 1, LoggedAt: entries[done].Since}
	}
	return more, saveChecked(ctx, r.db, e.event.RoutingKey, upTo, e.queue, lost)
}

// checkWaiting compares the events of the orders for which the service still waits.
func (r *reconciler) checkWaiting(ctx context.Context, e *lossCheck, upTo logPosition) error {
	asking, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	orders, next, err := e.waiting(asking, e.page)
	if err != nil {
		e.page = ""
		return fmt.Errorf("asking which orders wait for it: %w", err)
	}
	entries, err := entriesOf(ctx, r.db, e.event.RoutingKey, parseIDs(orders), logPosition{}, upTo)
	if err != nil {
		return err
	}
	_, lost, err := r.classify(ctx, e, entries)
	if err != nil {
		return err
	}
	if err := insertUnhandled(ctx, r.db, e.event.RoutingKey, e.queue, lost, "NOTHING"); err != nil {
		return err
	}
	e.page = next
	return nil
}

// classify examines events that the service has not handled, in the order of the log. unhandled are those that are lost or
// dead letters; done is how many it has got through. The next one may still be waiting in the queue.
func (r *reconciler) classify(ctx context.Context, e *lossCheck, entries []entry) (done int, unhandled []entry, err error) {
	letters, err := deadLetterStates(ctx, r.db, e.queue, entries)
	if err != nil {
		return 0, nil, err
	}
	for i, entry := range entries {
		switch letters[entry.MessageID] {
		case stateDiscarded: // a person has decided
			continue
		case "":
			if lost, err := e.lost(ctx, entry); err != nil || !lost {
				return i, unhandled, err
			}
		}
		unhandled = append(unhandled, entry)
	}
	return len(entries), unhandled, nil
}

// followUp examines events that are recorded as unhandled, and sends those that are lost. more reports whether others may
// follow.
func (r *reconciler) followUp(ctx context.Context, e *lossCheck) (more bool, err error) {
	rows, err := openUnhandled(ctx, r.db, e.event.RoutingKey, reconcileBatch)
	if err != nil || len(rows) == 0 {
		return false, err
	}
	orders := make([]uuid.UUID, len(rows))
	for i := range rows {
		orders[i] = rows[i].OrderID
	}
	open, err := e.findUnhandled(ctx, orders)
	if err != nil {
		return false, err
	}
	closed := map[string][]uuid.UUID{} // by outcome
	var due []entry
	for _, row := range rows {
		switch {
		case !open[row.OrderID]:
			closed[outcomeHandled] = append(closed[outcomeHandled], row.MessageID)
			continue
		case row.DeadLetter == stateDiscarded:
			closed[outcomeDiscarded] = append(closed[outcomeDiscarded], row.MessageID)
			continue
		}
		if row.Sent > 0 || row.DeadLetter != "" { // else it was found to be lost
			if lost, err := e.lost(ctx, row.entry); err != nil {
				return false, err
			} else if !lost {
				continue
			}
		}
		if row.Sent >= maxSends {
			r.log.LogAttrs(ctx, slog.LevelError, "an event is lost each time that it is sent", telemetry.RoutingKey(e.event.RoutingKey),
				telemetry.MessageID(row.MessageID), orderid.Attr(row.OrderID.String()), slog.Int("sent", row.Sent))
			closed[outcomeLost] = append(closed[outcomeLost], row.MessageID)
			continue
		}
		due = append(due, row.entry)
	}
	total := len(due)
	for outcome, ids := range closed {
		total += len(ids)
		if err := closeUnhandled(ctx, r.db, outcome, ids); err != nil {
			return false, err
		}
	}
	problems, err := r.send(ctx, e.route, due)
	for id, problem := range problems {
		if err == nil && errors.Is(problem, errNewer) {
			return false, fmt.Errorf("event %s: %w", id, problem)
		}
	}
	return total == reconcileBatch, err
}

// lossCheck decides whether unhandled events of a route are lost. It asks the broker and the service at most once a pass,
// when that is first needed.
type lossCheck struct {
	*reconciler
	*route

	queueChecked  bool
	emptyAt       time.Time // the queue was empty at this time, and is now; zero if it is not
	newestHandled *time.Time
}

// findUnhandled returns those of the orders whose events the service has not handled.
func (e *lossCheck) findUnhandled(ctx context.Context, orders []uuid.UUID) (open map[uuid.UUID]bool, err error) {
	if len(orders) == 0 {
		return nil, nil
	}
	ids := make([][]byte, len(orders))
	for i := range orders {
		ids[i] = orders[i][:]
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	unhandled, err := e.unhandled(ctx, ids)
	if err != nil {
		return nil, fmt.Errorf("asking which of %d events are handled: %w", len(ids), err)
	}
	open = make(map[uuid.UUID]bool, len(unhandled))
	for _, id := range parseIDs(unhandled) {
		open[id] = true
	}
	return open, nil
}

// lost reports whether an unhandled event can no longer be waiting. Either its queue is empty, and was empty some time ago
// when the event would have been in it; then no consumer has it in hand either. Or events that came clearly later were
// handled. If it is wrong, because a consumer held a message very long, the event is delivered twice, and has one effect.
func (e *lossCheck) lost(ctx context.Context, entry entry) (bool, error) {
	if !e.queueChecked {
		if err := e.checkQueue(ctx); err != nil {
			return false, err
		}
	}
	if !e.emptyAt.IsZero() && time.Now().Add(-entry.age()).Add(time.Second).Before(e.emptyAt) {
		return true, nil
	}
	if entry.age() < overtakenAfter {
		return false, nil
	}
	if e.newestHandled == nil {
		front, err := e.findNewestHandled(ctx, entry.EventID)
		if err != nil {
			return false, err
		}
		e.newestHandled = &front
	}
	return !entry.Since.Add(overtakenAfter).After(*e.newestHandled), nil
}

// checkQueue asks the broker whether the queue is empty and has a consumer, and whether its retry queues are empty too.
func (e *lossCheck) checkQueue(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	states, err := e.broker.Queues(ctx)
	if err != nil {
		return err
	}
	e.queueChecked = true
	now, empty := time.Now(), false
	for _, q := range states {
		switch {
		case q.Name == e.queue:
			empty = q.Consumers > 0
			fallthrough
		case strings.HasPrefix(q.Name, e.queue+".") || q.Name == messaging.DeadLetterQueue:
			if q.Messages > 0 {
				e.emptySince = nil
				return nil
			}
		}
	}
	if !empty {
		e.emptySince = nil
		return nil
	}
	e.emptySince = append(e.emptySince, now)
	// Of the times that are long enough ago the last one covers the most events.
	for len(e.emptySince) > 1 && now.Sub(e.emptySince[1]) >= maxHandlingTime {
		e.emptySince = e.emptySince[1:]
	}
	if first := e.emptySince[0]; now.Sub(first) >= maxHandlingTime {
		e.emptyAt = first
	}
	return nil
}

// findNewestHandled returns when the newest handled event was logged, among samples of those after an event; the zero time
// if none was handled.
func (e *lossCheck) findNewestHandled(ctx context.Context, from int64) (front time.Time, err error) {
	samples, err := samplesAfter(ctx, e.db, e.event.RoutingKey, from)
	if err != nil {
		return front, err
	}
	orders := make([]uuid.UUID, len(samples))
	for i := range samples {
		orders[i] = samples[i].OrderID
	}
	open, err := e.findUnhandled(ctx, orders)
	if err != nil {
		return front, err
	}
	for _, s := range samples {
		if s.Since.After(front) && !open[s.OrderID] {
			front = s.Since
		}
	}
	return front, nil
}

func parseIDs(ids [][]byte) []uuid.UUID {
	out := make([]uuid.UUID, 0, len(ids))
	for _, b := range ids {
		if id, err := uuid.FromBytes(b); err == nil { // as the contract says
			out = append(out, id)
		}
	}
	return out
}
