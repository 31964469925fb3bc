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
	// tailInterval is how often the tail reads from the database while somebody listens: by so much a stream may lag behind
	// what other replicas write.
	tailInterval = 100 * time.Millisecond
	// tailPause is the minimum time between two reads, however fast this replica writes.
	tailPause = 5 * time.Millisecond
	// tailRows and tailBytes are how many of the newest rows the tail keeps for all listeners together, and how large their
	// payloads may be together. Slower listeners read from the database.
	tailRows  = 4096
	tailBytes = 16 << 20
	// readRows is how many rows are read at once, or wait for one listener, and maxReadBytes how large their payloads.
	readRows = 500
	// heartbeat is how often a stream sends its position when nothing happens: proxies close connections that are silent
	// for a minute.
	heartbeat = 15 * time.Second
	// maxRemembered is for how many routing keys a pattern caches whether it matches.
	maxRemembered = 1000
)

// tail reads new rows of the log, once for all streams of this process and only while there are any. It reads from the
// database, so it also has the rows of other replicas. It gives a row only to the streams that want it: those that want its
// order, and those that want its routing key.
type tail struct {
	db                *sqlx.DB
	log               *slog.Logger
	wake              chan struct{} // tells run that someone listens
	written           chan struct{} // tells run that this replica has written
	pollInterval      time.Duration // tailInterval
	heartbeatInterval time.Duration // heartbeat

	mu        sync.Mutex
	listeners int
	failing   bool          // whether the log could not be read the last time
	active    bool          // whether run follows the log
	activated chan struct{} // closed while it does
	rows      []*row        // every row with from < id <= head, in the order of the ids. Never changed in place.
	size      int           // of the payloads of rows
	from      int64
	head      int64
	byOrder   map[string]map[*listener]bool // those that are attached and want one order
	byKey     map[string]*keyListeners      // the others that are attached, by what they want
}

// keyListeners are the listeners that want the same routing keys.
type keyListeners struct {
	pattern   keyPattern
	matches   map[string]bool // by routing key, as far as it has been seen
	listeners map[*listener]bool
}

func (k *keyListeners) wants(key string) bool {
	matches, seen := k.matches[key]
	if !seen {
		if len(k.matches) == maxRemembered {
			clear(k.matches)
		}
		matches = k.pattern.matches(key)
		k.matches[key] = matches
	}
	return matches
}

// listener is a stream. The tail's mutex guards the fields that change.
type listener struct {
	filter   filter
	end      int64         // of the log when the stream began
	news     chan struct{} // says that something has changed
	attached bool          // whether it is handed rows
	queue    []*row        // those that it has not taken yet
}

func newTail(db *sqlx.DB, log *slog.Logger) *tail {
	return &tail{
		db: db, log: log, wake: make(chan struct{}, 1), written: make(chan struct{}, 1), pollInterval: tailInterval, heartbeatInterval: heartbeat,
		activated: make(chan struct{}), byOrder: map[string]map[*listener]bool{}, byKey: map[string]*keyListeners{},
	}
}

// run follows the log while somebody listens, until ctx ends.
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
	tick := time.NewTicker(t.pollInterval)
	defer tick.Stop()
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		err := t.advance(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil && !t.isFailing() {
			t.log.WarnContext(ctx, "streams get no events: the log cannot be read", "error", err)
		}
		t.setFailing(err != nil)
		pause.Reset(tailPause)
		select {
		case <-ctx.Done():
			return
		case <-pause.C:
		}
		select {
		case <-ctx.Done():
			return
		case <-t.written:
		case <-tick.C:
		}
		if t.stop() {
			return
		}
	}
}

// advance reads all rows after the head.
func (t *tail) advance(ctx context.Context) error {
	if !t.active { // only this goroutine changes it
		head, err := lastID(ctx, t.db)
		if err != nil {
			return err
		}
		t.activate(head)
	}
	for more := true; more; {
		rows, next, err := rowsAfter(ctx, t.db, filter{}, t.head, readRows)
		if err != nil {
			return err
		}
		if len(rows) > 0 {
			t.addRows(rows)
		}
		more = next > 0
	}
	return nil
}

func (t *tail) isFailing() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.failing
}

func (t *tail) setFailing(failing bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.failing = failing
}

// activate starts following the log after head.
func (t *tail) activate(head int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.active, t.from, t.head = true, head, head
	close(t.activated)
}

// addRows adds rows, drops the oldest beyond tailRows and tailBytes, and delivers the new ones to the listeners that want
// them.
func (t *tail) addRows(rows []*row) {
	t.mu.Lock()
	defer t.mu.Unlock()
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
	for _, r := range rows {
		for l := range t.byOrder[r.OrderID] {
			if l.filter.matches(r) {
				t.deliver(l, r)
			}
		}
		for _, same := range t.byKey {
			if same.wants(r.RoutingKey) {
				for l := range same.listeners {
					t.deliver(l, r)
				}
			}
		}
	}
}

// deliver queues a row for a listener. A listener that is further behind than the tail's oldest row has to read from the
// database, so that no queue holds more than the tail.
func (t *tail) deliver(l *listener, r *row) {
	l.queue = append(l.queue, r)
	if l.queue[0].ID <= t.from {
		t.detach(l)
	}
	select {
	case l.news <- struct{}{}:
	default: // it has been told
	}
}

// attach registers a listener for rows, and queues those after cursor, which the tail holds.
func (t *tail) attach(l *listener, cursor int64) {
	i, _ := slices.BinarySearchFunc(t.rows, cursor+1, func(r *row, id int64) int { return cmp.Compare(r.ID, id) })
	for _, r := range t.rows[i:] {
		if l.filter.matches(r) {
			l.queue = append(l.queue, r)
		}
	}
	l.attached = true
	if order := l.filter.orderID; order != "" {
		if t.byOrder[order] == nil {
			t.byOrder[order] = map[*listener]bool{}
		}
		t.byOrder[order][l] = true
		return
	}
	pattern := l.filter.key.String()
	if t.byKey[pattern] == nil {
		t.byKey[pattern] = &keyListeners{pattern: l.filter.key, matches: map[string]bool{}, listeners: map[*listener]bool{}}
	}
	t.byKey[pattern].listeners[l] = true
}

// detach undoes attach.
func (t *tail) detach(l *listener) {
	l.attached, l.queue = false, nil
	if order := l.filter.orderID; order != "" {
		if delete(t.byOrder[order], l); len(t.byOrder[order]) == 0 {
			delete(t.byOrder, order)
		}
		return
	}
	pattern := l.filter.key.String()
	if same := t.byKey[pattern]; same != nil {
		if delete(same.listeners, l); len(same.listeners) == 0 {
			delete(t.byKey, pattern)
		}
	}
}

// stop drops the rows if nobody listens any more, and reports whether it did.
func (t *tail) stop() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.listeners > 0 {
		return false
	}
	t.failing, t.active, t.activated, t.rows, t.size = false, false, make(chan struct{}), nil, 0
	return true
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

// notifyWritten tells the tail that this replica has written to the log, so that it does not wait for its next poll.
func (t *tail) notifyWritten() {
	select {
	case t.written <- struct{}{}:
	default: // it is about to look
	}
}

func (t *tail) leave() {
	t.mu.Lock()
	t.listeners--
	t.mu.Unlock()
}

// nextStep is what a listener has to do next.
type nextStep struct {
	row    *row  // send it
	behind bool  // read from the database what the tail does not hold
	head   int64 // an id that the log had reached before
	// Otherwise wait: there is nothing for the listener up to cursor.
	cursor  int64
	changed <-chan struct{}
}

// next returns what a listener at cursor has to do next. It is handed no row that the tail may have read before the stream
// began: a person may have been erased in the log since, and whoever erases expects new streams to show that.
func (t *tail) next(l *listener, cursor int64) nextStep {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.active {
		return nextStep{cursor: cursor, changed: t.activated}
	}
	if !l.attached {
		if cursor < max(t.from, l.end) {
			return nextStep{behind: true, head: max(t.head, l.end)}
		}
		t.attach(l, cursor)
	}
	for len(l.queue) > 0 {
		r := l.queue[0]
		l.queue[0], l.queue = nil, l.queue[1:]
		if r.ID > cursor { // a stream may begin ahead of the tail
			return nextStep{row: r}
		}
	}
	return nextStep{cursor: max(cursor, t.head), changed: l.news}
}

// listen sends the rows after cursor that match f, each once and in the order of their ids, as they are added, until ctx
// ends or a send fails. While there is nothing to send it calls idle from time to time, with the id up to which that is
// true, unless the log cannot be read. The caller must have joined, and end be the last id that the database had after the stream began.
func (t *tail) listen(ctx context.Context, f filter, cursor, end int64, send func(*row) error, idle func(cursor int64) error) error {
	l := &listener{filter: f, end: end, news: make(chan struct{}, 1)}
	defer func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.detach(l)
	}()
	beat := time.NewTicker(t.heartbeatInterval)
	defer beat.Stop()
	for {
		do := t.next(l, cursor)
		var err error
		switch {
		case do.row != nil:
			cursor, err = do.row.ID, send(do.row)
		case do.behind:
			cursor, err = t.catchUp(ctx, f, cursor, do.head, send, idle)
		default:
			cursor = do.cursor
			select {
			case <-ctx.Done():
				err = ctx.Err()
			case <-do.changed:
			case <-beat.C:
				// Who follows the log would take a position for a sign that it can be read.
				if !t.isFailing() {
					err = idle(cursor)
				}
			}
		}
		if err != nil {
			return err
		}
	}
}

// catchUp sends rows that the tail has not for this stream, and returns the id that it got to. head is an id that the log has
// reached: a read that began after that and found no more rows has missed nothing up to there. A part of the log in which there is
// nothing to send is told with idle: who has to begin again need not begin before it.
func (t *tail) catchUp(ctx context.Context, f filter, cursor, head int64, send func(*row) error, idle func(cursor int64) error) (int64, error) {
	rows, next, err := rowsAfter(ctx, t.db, f, cursor, readRows)
	if err != nil {
		return cursor, err
	}
	for _, r := range rows {
		if err := send(r); err != nil {
			return cursor, err
		}
		cursor = r.ID
	}
	switch {
	case next == 0:
		return max(cursor, head), nil
	case len(rows) == 0:
		return next, idle(next)
	}
	return next, nil
}
