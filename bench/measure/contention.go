package measure

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
)

// lockInterval is how often sessions are looked at that wait for a lock.
const lockInterval = 20 * time.Millisecond

// lockMeter counts the sessions of the run's database that wait for a lock. Only runs that are about locks have it, because what
// it asks costs the database a hundredth of a core.
type lockMeter struct {
	env       *environment
	deadlocks float64 // before
	stop      chan struct{}
	watching  sync.WaitGroup

	looks, rows, advisory, most float64
	err                         error
}

func newLockMeter(ctx context.Context, e *environment) (*lockMeter, error) {
	m := &lockMeter{env: e, stop: make(chan struct{})}
	var err error
	if m.deadlocks, err = m.countDeadlocks(ctx); err != nil {
		return nil, err
	}
	m.watching.Go(func() { m.err = m.watch(ctx) })
	return m, nil
}

// watch counts until stop is closed. A session that waits for another transaction's row waits for a transactionid or a tuple;
// the relay of a replica waits for an advisory lock until the one of another has finished its round.
func (m *lockMeter) watch(ctx context.Context) error {
	tick := time.NewTicker(lockInterval)
	defer tick.Stop()
	for {
		select {
		case <-m.stop:
			return nil
		case <-tick.C:
		}
		var rows, advisory float64
		err := m.env.admin.QueryRowContext(ctx, `
			SELECT count(*) FILTER (WHERE wait_event <> 'advisory'), count(*) FILTER (WHERE wait_event = 'advisory')
			FROM pg_stat_activity WHERE datname = $1 AND wait_event_type = 'Lock'`, m.env.name).Scan(&rows, &advisory)
		if err != nil {
			return fmt.Errorf("looking who waits for a lock: %w", err)
		}
		m.looks++
		m.rows += rows
		m.advisory += advisory
		m.most = max(m.most, rows)
	}
}

func (m *lockMeter) countDeadlocks(ctx context.Context) (n float64, err error) {
	err = m.env.admin.QueryRowContext(ctx, `SELECT deadlocks FROM pg_stat_database WHERE datname = $1`, m.env.name).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("counting deadlocks: %w", err)
	}
	return n, nil
}

// close ends the counting. It may be called again.
func (m *lockMeter) close() {
	if m.stop != nil {
		close(m.stop)
		m.stop = nil
		m.watching.Wait()
	}
}

// read adds what was counted to the figures.
func (m *lockMeter) read(ctx context.Context, f Figures) error {
	m.close()
	if m.err != nil {
		return m.err
	}
	after, err := m.countDeadlocks(ctx)
	if err != nil {
		return err
	}
	f[deadlocks] = after - m.deadlocks
	f[lockedMax], f[lockedMean], f[relaysWaiting] = m.most, m.rows/max(m.looks, 1), m.advisory/max(m.looks, 1)
	return nil
}

// span is when an order was accepted and when it was decided.
type span struct{ accepted, decided time.Time }

// spans are those of the orders that were seen to be accepted and decided. read says if that is not all of them.
func (c *confirms) spans() (orders []span) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range c.times {
		if !t[0].IsZero() && !t[1].IsZero() {
			orders = append(orders, span{t[0], t[1]})
		}
	}
	return orders
}

// addFairness adds how far the order of decisions differs from that of acceptance. What an order waits for besides those that
// were in the queue before it are those that came later and were decided earlier: they have overtaken it.
func (f Figures) addFairness(orders []span) {
	if len(orders) == 0 {
		return
	}
	slices.SortFunc(orders, func(a, b span) int { return a.accepted.Compare(b.accepted) })
	turn := make([]int, len(orders)) // by decision: the place in the order of acceptance
	for i := range turn {
		turn[i] = i
	}
	slices.SortStableFunc(turn, func(a, b int) int { return orders[a].decided.Compare(orders[b].decided) })
	var sorted, overtakenBy []int // those decided so far
	for _, place := range turn {
		before, _ := slices.BinarySearch(sorted, place)
		overtakenBy = append(overtakenBy, len(sorted)-before)
		sorted = slices.Insert(sorted, before, place)
	}
	slices.Sort(overtakenBy)
	f[overtakenP99], f[overtakenMax] = float64(overtakenBy[len(orders)*99/100]), float64(overtakenBy[len(orders)-1])
	f[queueMax] = float64(longestQueue(orders))
	for _, o := range orders {
		f[confirmMax] = max(f[confirmMax], float64(o.decided.Sub(o.accepted).Microseconds())/1000)
	}
}

// longestQueue is how many orders were accepted and not decided at the same time.
func longestQueue(orders []span) (longest int) {
	type event struct {
		at   time.Time
		step int
	}
	var events []event
	for _, o := range orders {
		if o.decided.After(o.accepted) { // the answer may come last
			events = append(events, event{o.accepted, 1}, event{o.decided, -1})
		}
	}
	slices.SortFunc(events, func(a, b event) int { return cmp.Or(a.at.Compare(b.at), a.step-b.step) })
	waiting := 0
	for _, e := range events {
		waiting += e.step
		longest = max(longest, waiting)
	}
	return longest
}

const (
	confirmMax    = "confirmed_max_ms"
	queueMax      = "queue_max"
	overtakenP99  = "overtaken_p99"
	overtakenMax  = "overtaken_max"
	deadlocks     = "deadlocks"
	lockedMax     = "sessions_locked_max"
	lockedMean    = "sessions_locked_mean"
	relaysWaiting = "relays_waiting_mean"
)

// contentionRows are the figures of runs that are about contention.
var contentionRows = []row{
	{confirmMax, "accept to CONFIRMED, the longest, ms"},
	{queueMax, "orders that waited at once, at most"},
	{overtakenP99, "overtaken by later orders p99"},
	{overtakenMax, "overtaken by later orders, at most"},
	{lockedMax, "sessions waiting for a row at once, at most"},
	{lockedMean, "sessions waiting for a row, mean"},
	{relaysWaiting, "relays waiting for another one, mean"},
	{deadlocks, "deadlocks"},
}
