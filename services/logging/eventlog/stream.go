package eventlog

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/jmoiron/sqlx"
)

const (
	// tailInterval is how often the tail asks the database while someone listens: how late a stream may be for what other
	// replicas write.
	tailInterval = 100 * time.Millisecond
	// tailPause is the least time between two questions, however fast this replica writes.
	tailPause = 5 * time.Millisecond
	// tailRows and tailBytes are how many of the newest rows the tail holds for all listeners together, and how large
	// their payloads may be. Who is slower than that reads from the database.
	tailRows  = 4096
	tailBytes = 16 << 20
	// readRows is how many rows are read at once, or are at hand for one listener, and mostBytes how large their payloads.
	readRows = 500
)

// tail reads the end of the log, once for all streams of this process, while there is any. It asks the database, so
// rows that other replicas have written are there too.
type tail struct {
	db   *sqlx.DB
	log  *slog.Logger
	wake chan struct{} // tells run that someone listens
	news chan struct{} // tells run that this replica has written
	wait time.Duration // tailInterval

	mu        sync.Mutex
	listeners int
	changed   chan struct{} // closed and replaced when what follows changes
	warm      bool          // whether run follows the log
	rows      []*row        // every row with from < id <= head, in the order of the ids
	size      int           // of the payloads of rows
	from      int64
	head      int64
}

func newTail(db *sqlx.DB, log *slog.Logger) *tail {
	return &tail{db: db, log: log, wake: make(chan struct{}, 1), news: make(chan struct{}, 1), wait: tailInterval, changed: make(chan struct{})}
}

// run follows the log while someone listens, until ctx ends.
func (t *tail) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.wake:
		}
		t.follow(ctx)
	}
}

// follow reads what is added to the log until nobody listens.
func (t *tail) follow(ctx context.Context) {
	tick := time.NewTicker(t.wait)
	defer tick.Stop()
	pause := time.NewTimer(0)
	defer pause.Stop()
	failing := false
	for {
		err := t.advance(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil && !failing {
			t.log.WarnContext(ctx, "streams stand still: the log cannot be read", "err", err)
		}
		failing = err != nil
		pause.Reset(tailPause)
		select {
		case <-ctx.Done():
			return
		case <-pause.C:
		}
		select {
		case <-ctx.Done():
			return
		case <-t.news:
		case <-tick.C:
		}
		if t.cool() {
			return
		}
	}
}

// advance reads all rows behind the head.
func (t *tail) advance(ctx context.Context) error {
	if !t.warm { // only this goroutine changes it
		head, err := lastID(ctx, t.db)
		if err != nil {
			return err
		}
		t.update(func() { t.warm, t.from, t.head = true, head, head })
	}
	for more := true; more; {
		rows, others, err := after(ctx, t.db, filter{}, t.head, readRows)
		if err != nil {
			return err
		}
		if len(rows) > 0 {
			t.update(func() { t.grow(rows) })
		}
		more = others
	}
	return nil
}

// grow adds rows and forgets the oldest beyond tailRows and tailBytes.
func (t *tail) grow(rows []*row) {
	t.rows = append(t.rows, rows...)
	for _, r := range rows {
		t.size += len(r.Payload)
	}
	surplus := 0
	for ; len(t.rows)-surplus > tailRows || t.size > tailBytes; surplus++ {
		t.size -= len(t.rows[surplus].Payload)
	}
	if surplus > 0 {
		t.from = t.rows[surplus-1].ID
		clear(t.rows[:surplus]) // for the memory; listeners have copies
		t.rows = t.rows[surplus:]
	}
	t.head = rows[len(rows)-1].ID
}

// cool lets go of the rows where nobody listens any more.
func (t *tail) cool() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.listeners > 0 {
		return false
	}
	t.warm, t.rows, t.size = false, nil, 0
	return true
}

func (t *tail) update(change func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	change()
	close(t.changed)
	t.changed = make(chan struct{})
}

func (t *tail) join() {
	t.mu.Lock()
	t.listeners++
	t.mu.Unlock()
	select {
	case t.wake <- struct{}{}:
	default: // run has been told
	}
}

// written tells the tail that this replica has written to the log, so that it need not wait for its next turn.
func (t *tail) written() {
	select {
	case t.news <- struct{}{}:
	default: // it is about to look
	}
}

func (t *tail) leave() {
	t.mu.Lock()
	t.listeners--
	t.mu.Unlock()
}

// view is what the tail holds behind a cursor.
type view struct {
	warm    bool   // whether the tail follows the log
	holds   bool   // whether it holds everything from the cursor to next
	rows    []*row // the next ones, where holds
	next    int64  // where the tail is, or the cursor behind rows
	changed <-chan struct{}
}

func (t *tail) view(cursor int64) view {
	t.mu.Lock()
	defer t.mu.Unlock()
	v := view{warm: t.warm, holds: t.warm && cursor >= t.from, next: t.head, changed: t.changed}
	if !v.holds {
		return v
	}
	i, _ := slices.BinarySearchFunc(t.rows, cursor+1, func(r *row, id int64) int { return cmp.Compare(r.ID, id) })
	v.rows = t.rows[i:]
	size := 0
	for n, r := range v.rows {
		if size += len(r.Payload); n == readRows || n > 0 && size > mostBytes {
			v.rows, v.next = v.rows[:n], v.rows[n-1].ID
			break
		}
	}
	// A copy: a slow listener must not keep all that the tail has held.
	v.rows = slices.Clone(v.rows)
	v.next = max(v.next, cursor)
	return v
}

// listen sends the rows behind cursor that match f, in the order of their ids, each once, as they are added, until ctx
// ends or send fails. The caller has joined.
func (t *tail) listen(ctx context.Context, f filter, cursor int64, send func(*row) error) error {
	for {
		v := t.view(cursor)
		switch {
		case v.holds && v.next > cursor:
			// A listener that is slow to take them holds no others.
			for _, r := range slices.DeleteFunc(v.rows, func(r *row) bool { return !f.matches(r) }) {
				if err := send(r); err != nil {
					return err
				}
			}
			cursor = v.next
		case v.warm && !v.holds:
			next, err := t.catchUp(ctx, f, cursor, v.next, send)
			if err != nil {
				return err
			}
			cursor = next
		default:
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-v.changed:
			}
		}
	}
}

// catchUp sends a piece of the log that the tail does not hold, and returns where it ended. head is a place that the
// tail has reached: a read that began after that and found the end has missed nothing up to there.
func (t *tail) catchUp(ctx context.Context, f filter, cursor, head int64, send func(*row) error) (int64, error) {
	rows, more, err := after(ctx, t.db, f, cursor, readRows)
	if err != nil {
		return cursor, err
	}
	for _, r := range rows {
		if err := send(r); err != nil {
			return cursor, err
		}
		cursor = r.ID
	}
	if !more {
		cursor = max(cursor, head)
	}
	return cursor, nil
}
