package stock

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"shop.example/domain/orderid"
	"shop.example/domain/orderstate"
	orderv1 "shop.example/gen/shop/order/v1"
	"shop.example/platform/apierror"
	"shop.example/platform/postgres"
)

const (
	defaultHoldLimit = 15 * time.Minute
	// minHoldLimit is well above the time within which an order can still be stored after its stock was asked about: the
	// minute in the contract of CheckStock, plus a transaction of five statements with the full time that package postgres
	// allows, 10 s for each statement and 6 s between two.
	minHoldLimit = 5 * time.Minute

	sweepInterval = time.Minute
	// sweepBatch is how many orders are asked about and changed together.
	sweepBatch = 100
	// lookUpTimeout bounds one question to the order service.
	lookUpTimeout = 2 * time.Second
	// maxUnanswered is how many questions in a row may stay without an answer before the order service counts as away.
	maxUnanswered = 3
)

// sweeper releases the stock of orders that were never stored, or were closed: the order service died between the hold and
// its commit, or an event was lost to a dead letter (docs/adr/0005). It never guesses: if the order service does not
// answer, the hold stays.
//
// Only what the order service does not know can still become an order, from an OrderPlaced that waits in a queue. So
// its decision is deleted together with its holds, and the next CheckStock decides it again. Nobody can be relying on the
// old one: the holds are renewed whenever it is repeated, and an answer is good for much less than the limit.
//
// The age of a hold is by the database's clock. When that jumps ahead, what was held a moment ago looks old, and the order service may be
// about to store it: then no decision is deleted until that is over, see clockWatch.
type sweeper struct {
	*store
	orders orderv1.OrderServiceClient
	limit  time.Duration
	clock  clockWatch
	swept  metric.Int64Counter
	oldest atomic.Pointer[time.Time] // the hold's time; the zero time if there is none
}

// clockWatch notices when the database's clock jumps ahead, by the monotonic clock of this process: its own time of day may
// jump, too. Until a process has read the database's clock once, it compares that with the time of day.
type clockWatch struct {
	database, read time.Time // what the database's clock said, and when
	trusted        time.Time // from when on ages can be trusted
}

// maxJump is how far the database's clock may be ahead of what is expected: clocks are corrected, and differ between machines.
const maxJump = time.Minute

// jumped reads the database's clock. It is true for minHoldLimit after that has jumped ahead.
func (w *clockWatch) jumped(ctx context.Context, q sqlx.QueryerContext) (bool, error) {
	var database time.Time
	if err := sqlx.GetContext(ctx, q, &database, `SELECT clock_timestamp()`); err != nil {
		return false, fmt.Errorf("reading the database's clock: %w", postgres.Classify(err))
	}
	now := time.Now()
	expected := now
	if !w.read.IsZero() {
		expected = w.database.Add(now.Sub(w.read))
	}
	w.database, w.read = database, now
	if database.Sub(expected) > maxJump {
		w.trusted = now.Add(minHoldLimit)
	}
	return now.Before(w.trusted), nil
}

// outcome is what the sweeper does with the old holds of an order.
type outcome string

const (
	outcomeKept     outcome = "kept"      // the order is confirmed: it will be settled
	outcomeReleased outcome = "released"  // the order is closed
	outcomeDeleted  outcome = "forgotten" // there is no order
	// outcomeUnknown is for an order in a state of a newer release, of which it is not known what becomes of its holds.
	outcomeUnknown outcome = "unknown_state"
)

func newSweeper(st *store, orders orderv1.OrderServiceClient, limit time.Duration, meters metric.MeterProvider) (*sweeper, error) {
	s := &sweeper{store: st, orders: orders, limit: limit}
	meter := meters.Meter("shop.example/services/inventory")
	var err error
	s.swept, err = meter.Int64Counter("inventory.sweeper.orders",
		metric.WithDescription("Orders with old holds that the sweeper has looked at, by what became of the holds."))
	if err != nil {
		return nil, fmt.Errorf("registering the metrics of the sweeper: %w", err)
	}
	for _, o := range []outcome{outcomeKept, outcomeReleased, outcomeDeleted, outcomeUnknown} {
		s.count(context.Background(), o, 0)
	}
	_, err = meter.Float64ObservableGauge("inventory.holds.oldest.age", metric.WithUnit("s"),
		metric.WithDescription("Age of the oldest hold that is neither settled nor released; 0 if there is none."),
		metric.WithFloat64Callback(func(_ context.Context, o metric.Float64Observer) error {
			switch oldest := s.oldest.Load(); {
			case oldest == nil: // not known yet
			case oldest.IsZero():
				o.Observe(0)
			default:
				o.Observe(time.Since(*oldest).Seconds())
			}
			return nil
		}))
	if err != nil {
		return nil, fmt.Errorf("registering the metrics of the sweeper: %w", err)
	}
	return s, nil
}

func (s *sweeper) count(ctx context.Context, o outcome, orders int) {
	s.swept.Add(ctx, int64(orders), metric.WithAttributes(attribute.String("outcome", string(o))))
}

// sample reads the age of the oldest hold, for the metric.
func (s *sweeper) sample(ctx context.Context) error {
	var age float64
	err := s.db.GetContext(ctx, &age, `
		SELECT coalesce(extract(epoch FROM clock_timestamp() - min(created_at)), 0) FROM hold WHERE state = 'HELD'`)
	if err != nil {
		return postgres.Classify(err)
	}
	var oldest time.Time
	if age > 0 {
		oldest = time.Now().Add(-time.Duration(age * float64(time.Second)))
	}
	s.oldest.Store(&oldest)
	return nil
}

// errClockJumped keeps decisions from being deleted.
var errClockJumped = fmt.Errorf("the database's clock has jumped ahead: for %s nothing is released that nobody knows", minHoldLimit)

// run sweeps every minute until ctx ends. What fails is logged, and done the next time.
func (s *sweeper) run(ctx context.Context) error {
	tick := time.NewTicker(sweepInterval)
	defer tick.Stop()
	for {
		if err := s.sweep(ctx); err != nil && ctx.Err() == nil {
			s.log.WarnContext(ctx, "old holds were not swept, will be tried again", "in", sweepInterval, "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// sweep processes all old holds once. If another replica is doing so it does nothing: two would do no harm, but would ask
// about everything twice.
func (s *sweeper) sweep(ctx context.Context) (err error) {
	if _, err := s.clock.jumped(ctx, s.db); err != nil { // whoever sweeps; deleteOrphans looks again
		return err
	}
	conn, err := s.db.Connx(ctx)
	if err != nil {
		return fmt.Errorf("connecting: %w", postgres.Classify(err))
	}
	defer conn.Close()
	var mine bool
	if err := conn.GetContext(ctx, &mine, `SELECT pg_try_advisory_lock(hashtext('inventory.sweeper'))`); err != nil || !mine {
		return postgres.Classify(err)
	}
	defer func() {
		// If it fails the connection is lost, and the lock with it.
		_, unlockErr := conn.ExecContext(context.WithoutCancel(ctx), `SELECT pg_advisory_unlock(hashtext('inventory.sweeper'))`)
		err = errors.Join(err, postgres.Classify(unlockErr))
	}()
	// Holds that stay must not hide those behind them, so it goes on from the last one.
	var firstError error // the first of them
	for last := (oldHold{}); ; {
		old, err := s.oldHolds(ctx, last)
		if err != nil || len(old) == 0 {
			return cmp.Or(err, firstError)
		}
		failed, err := s.sweepOrders(ctx, old)
		if err != nil {
			return err
		}
		firstError = cmp.Or(firstError, failed)
		last = old[len(old)-1]
	}
}

// oldHold is an order that has held stock for longer than the limit.
type oldHold struct {
	CreatedAt time.Time `db:"created_at"`
	OrderID   uuid.UUID `db:"order_id"`
}

// oldHoldCondition is the SQL condition for a hold to be swept; $1 is the limit in seconds. A hold's age never exceeds the
// time since its creation, so the index of open holds by creation bounds what is read.
const oldHoldCondition = `state = 'HELD' AND created_at < statement_timestamp() - $1 * interval '1 second'
	AND updated_at < statement_timestamp() - $1 * interval '1 second'`

func (s *sweeper) oldHolds(ctx context.Context, after oldHold) (old []oldHold, err error) {
	err = s.db.SelectContext(ctx, &old, `
		SELECT DISTINCT created_at, order_id FROM hold
		WHERE `+oldHoldCondition+` AND (created_at, order_id) > ($2, $3)
		ORDER BY created_at, order_id LIMIT $4`, s.limit.Seconds(), after.CreatedAt, after.OrderID, sweepBatch)
	if err != nil {
		return nil, fmt.Errorf("reading old holds: %w", postgres.Classify(err))
	}
	return old, nil
}

// sweepOrders asks about orders and acts on the answers. If there is no answer about one of them the others are processed
// all the same, and firstError is the first such failure. It returns err, without having changed anything, if the order
// service does not answer at all.
func (s *sweeper) sweepOrders(ctx context.Context, old []oldHold) (firstError, err error) {
	byOutcome := map[outcome][]uuid.UUID{}
	unanswered := 0 // questions in a row without a word from the order service
	for _, h := range old {
		f, err := s.lookUp(ctx, h.OrderID)
		if err == nil {
			byOutcome[f] = append(byOutcome[f], h.OrderID)
			unanswered = 0
			continue
		}
		if f == outcomeUnknown {
			byOutcome[f] = append(byOutcome[f], h.OrderID)
		}
		err = fmt.Errorf("asking about order %s: %w", h.OrderID, err)
		firstError = cmp.Or(firstError, err)
		if code := status.Code(err); code == codes.Unavailable || code == codes.DeadlineExceeded {
			unanswered++
		}
		if unanswered == maxUnanswered || ctx.Err() != nil {
			return nil, err
		}
	}
	s.reportOutcome(ctx, outcomeKept, byOutcome[outcomeKept])
	s.reportOutcome(ctx, outcomeUnknown, byOutcome[outcomeUnknown])
	if err := s.release(ctx, byOutcome[outcomeReleased]); err != nil {
		return firstError, err
	}
	return firstError, s.deleteOrphans(ctx, byOutcome[outcomeDeleted])
}

// lookUp asks the order service about an order and returns what becomes of its holds.
func (s *sweeper) lookUp(ctx context.Context, id uuid.UUID) (outcome, error) {
	ctx, cancel := context.WithTimeout(ctx, lookUpTimeout)
	defer cancel()
	resp, err := s.orders.GetOrder(ctx, &orderv1.GetOrderRequest{OrderId: id.String()})
	if isUnknownOrder(err) {
		return outcomeDeleted, nil
	}
	if err != nil {
		return "", err
	}
	if got := resp.GetOrder().GetId(); got != id.String() {
		return "", fmt.Errorf("the answer is about order %q", got)
	}
	switch state := resp.GetOrder().GetState(); orderstate.StockOf(state) {
	case orderstate.Sold:
		return outcomeKept, nil
	case orderstate.Released:
		return outcomeReleased, nil
	case orderstate.Open:
		return "", fmt.Errorf("its state is %s, although it is stored", state)
	default:
		return outcomeUnknown, fmt.Errorf("its state is %s, which this release does not know: its stock stays held", state)
	}
}

// isUnknownOrder reports whether the order service itself said so: something else at its address could also answer
// NOT_FOUND.
func isUnknownOrder(err error) bool {
	return status.Code(err) == codes.NotFound && apierror.ReasonOf(err) == "ORDER_NOT_FOUND"
}

// release releases the holds of closed orders. A closed order stays closed, so nothing is checked again.
func (s *sweeper) release(ctx context.Context, orders []uuid.UUID) error {
	if len(orders) == 0 {
		return nil
	}
	err := s.changeStock(ctx, func(tx *sqlx.Tx) ([]stockChange, error) {
		_, changes, err := transitionHolds(ctx, tx, orders, []holdTransition{{held, released, 0, -1, ""}})
		return changes, err
	})
	if err != nil {
		return fmt.Errorf("releasing the holds of %d orders: %w", len(orders), err)
	}
	s.reportOutcome(ctx, outcomeReleased, orders)
	return nil
}

// deleteOrphans deletes the decisions about orders that the order service does not know, with their holds. If a message to
// settle such an order comes after all, it finds NO_HOLD and becomes a dead letter.
func (s *sweeper) deleteOrphans(ctx context.Context, orders []uuid.UUID) error {
	if len(orders) == 0 {
		return nil
	}
	var gone []uuid.UUID
	err := s.changeStock(ctx, func(tx *sqlx.Tx) (changes []stockChange, err error) {
		if gone, changes, err = deleteOrphansTx(ctx, tx, orders, s.limit); err != nil {
			return nil, err
		}
		jumped, err := s.clock.jumped(ctx, tx) // afterwards: since then nothing that is deleted can look old
		if err == nil && jumped {
			err = errClockJumped
		}
		return changes, err
	})
	if err != nil {
		return fmt.Errorf("deleting the decisions of %d orders that are not stored: %w", len(orders), err)
	}
	s.reportOutcome(ctx, outcomeDeleted, gone)
	return nil
}

// deleteOrphansTx deletes the decisions about those of the orders whose holds are still old. CheckStock also locks the
// decisions that it repeats, so one that is being repeated has either renewed its holds by now, or will find no decision.
func deleteOrphansTx(ctx context.Context, tx *sqlx.Tx, orders []uuid.UUID, limit time.Duration) (gone []uuid.UUID, changes []stockChange, err error) {
	ids := postgres.ArrayOf(orders)
	if err := lockDecisions(ctx, tx, ids); err != nil {
		return nil, nil, err
	}
	var freed []hold
	err = tx.SelectContext(ctx, &freed, `
		DELETE FROM hold WHERE `+oldHoldCondition+` AND order_id = ANY($2::uuid[]) RETURNING order_id, product_id, quantity`, limit.Seconds(), ids)
	if err != nil {
		return nil, nil, fmt.Errorf("deleting old holds: %w", err)
	}
	total := stockDeltas{}
	total.add(freed, 0, -1)
	if changes, err = updateStock(ctx, tx, total); err != nil {
		return nil, nil, err
	}
	err = tx.SelectContext(ctx, &gone, `DELETE FROM decision WHERE order_id = ANY($1::uuid[]) RETURNING order_id`,
		postgres.Array(freed, func(h hold) uuid.UUID { return h.OrderID }))
	if err != nil {
		return nil, nil, fmt.Errorf("deleting decisions: %w", err)
	}
	return gone, changes, nil
}

// reportOutcome counts orders, and logs what became of the holds of each.
func (s *sweeper) reportOutcome(ctx context.Context, f outcome, orders []uuid.UUID) {
	if len(orders) == 0 {
		return
	}
	s.count(ctx, f, len(orders))
	for _, id := range orders {
		s.log.LogAttrs(ctx, slog.LevelWarn, "old hold", orderid.Attr(id.String()), slog.String("outcome", string(f)))
	}
}
