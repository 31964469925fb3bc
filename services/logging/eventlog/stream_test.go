package eventlog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"shop.example/db/dbtest"
	"shop.example/platform/messaging"
)

func TestTail_MissesNothingWhileTwoWrite(t *testing.T) {
	t.Parallel()
	url := dbtest.New(t)
	db := openDB(t, url)
	runTail := newTail(db, slog.New(slog.DiscardHandler))
	runUntilDone(t, runTail.run)
	write(t, db, deliveryOf(t, placed(newOrderID())))

	// Each listener stops now and then and goes on behind the last row it has seen.
	const writers, batches, size = 2, 40, 60 // more rows than the tail holds
	const want = writers*batches*size + 1
	listeners := make([]func() []int64, 3)
	for i := range listeners {
		result := make(chan []int64, 1)
		go func() { result <- listenInPieces(within(t), runTail, 500*(i+1), want) }()
		listeners[i] = func() []int64 { return <-result }
	}
	var wg sync.WaitGroup
	for range writers {
		db := openDB(t, url)
		wg.Go(func() {
			for range batches {
				var batch []messaging.Delivery
				for range size {
					batch = append(batch, deliveryOf(t, placed(newOrderID())))
				}
				write(t, db, batch...)
			}
		})
	}
	wg.Wait()
	var ids []int64
	if err := db.Select(&ids, "SELECT id FROM event_log ORDER BY id"); err != nil || len(ids) != want {
		t.Fatalf("%d rows, %v", len(ids), err)
	}
	for i, listener := range listeners {
		if got := listener(); !slices.Equal(got, ids) {
			t.Errorf("listener %d saw %d rows, not the %d there are in their order", i, len(got), len(ids))
		}
	}
}

func (t *tail) isActive() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.active
}

// ignore is for listeners that do not want to know where they are.
func ignore(int64) error { return nil }

// listenInPieces listens from the beginning until it has seen want rows, and begins anew after every piece.
func listenInPieces(ctx context.Context, tail *tail, piece, want int) (ids []int64) {
	enough := errors.New("enough")
	cursor := int64(0)
	for len(ids) < want {
		tail.join()
		end, err := lastID(ctx, tail.db)
		if err != nil {
			return ids
		}
		err = tail.listen(ctx, filter{}, cursor, end, func(r *row) error {
			ids = append(ids, r.ID)
			cursor = r.ID
			if len(ids)%piece == 0 || len(ids) == want {
				return enough
			}
			return nil
		}, ignore)
		tail.leave()
		if !errors.Is(err, enough) {
			return ids
		}
	}
	return ids
}

func TestTail_ASlowListenerMissesNothing(t *testing.T) {
	t.Parallel()
	db := openDB(t, dbtest.New(t))
	tail := newTail(db, slog.New(slog.DiscardHandler))
	runUntilDone(t, tail.run)
	tail.join()
	defer tail.leave()
	eventually(t, "the tail to follow", tail.isActive)

	rejectedOnly := filter{key: parseKeyPattern("shop.*.rejected")}
	var got []int64
	busy, goOn, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	enough := errors.New("enough")
	go func() {
		done <- tail.listen(within(t), rejectedOnly, 0, 0, func(r *row) error {
			if len(got) == 0 {
				close(busy)
				<-goOn
			}
			if got = append(got, r.ID); len(got) == 12 {
				return enough
			}
			return nil
		}, ignore)
	}()
	var want []int64
	for i := range 12 {
		var batch []messaging.Delivery
		if i > 0 {
			for range readRows {
				batch = append(batch, deliveryOf(t, placed(newOrderID())))
			}
		}
		rows := write(t, db, append(batch, deliveryOf(t, rejected(newOrderID())))...)
		want = append(want, rows[len(rows)-1].id)
		if i == 0 {
			<-busy
		}
	}
	eventually(t, "the tail to forget what the listener has not seen", func() bool {
		tail.mu.Lock()
		defer tail.mu.Unlock()
		return tail.from > want[1]
	})
	close(goOn)
	if err := <-done; !errors.Is(err, enough) || !slices.Equal(got, want) {
		t.Errorf("saw %v, want %v (%v)", got, want, err)
	}
}

func TestTail_SendsRowsOfItsOwnReplicaAtOnce(t *testing.T) {
	t.Parallel()
	db := openDB(t, dbtest.New(t))
	tail := newTail(db, slog.New(slog.DiscardHandler))
	tail.pollInterval = time.Hour
	runUntilDone(t, tail.run)
	tail.join()
	defer tail.leave()
	eventually(t, "the tail to follow", tail.isActive)
	s := &Service{db: db, log: slog.New(slog.DiscardHandler), tail: tail}
	for want := range 3 {
		if err := s.logEvents(within(t), []messaging.Delivery{deliveryOf(t, placed(newOrderID()))}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the tail to have the row", func() bool {
			tail.mu.Lock()
			defer tail.mu.Unlock()
			return len(tail.rows) == want+1
		})
	}
}

func TestTail_DoesNotQueryIfNobodyListens(t *testing.T) {
	t.Parallel()
	db := openDB(t, dbtest.New(t))
	tail := newTail(db, slog.New(slog.DiscardHandler))
	runUntilDone(t, tail.run)
	for range 2 {
		tail.join()
		eventually(t, "the tail to follow", tail.isActive)
		tail.leave()
		eventually(t, "the tail to rest", func() bool { return !tail.isActive() })
	}
}

func TestTail_ARowWakesOnlyTheListenersThatMatch(t *testing.T) {
	t.Parallel()
	tail := newTail(nil, slog.New(slog.DiscardHandler))
	tail.activate(0)
	attached := func(f filter) *listener {
		l := &listener{filter: f, news: make(chan struct{}, 1)}
		if do := tail.next(l, 0); do.row != nil || do.behind {
			t.Fatalf("a listener at the end of the log: %+v", do)
		}
		return l
	}
	ids := func(l *listener) (got []int64) {
		for cursor := int64(0); ; {
			do := tail.next(l, cursor)
			if do.row == nil {
				return got
			}
			cursor = do.row.ID
			got = append(got, cursor)
		}
	}
	const orders = 1000
	ofOrder := make([]*listener, orders)
	for i := range ofOrder {
		ofOrder[i] = attached(filter{orderID: fmt.Sprint("order ", i)})
	}
	confirmed := attached(filter{orderID: "order 7", key: parseKeyPattern("*.order.confirmed")})
	rejections := []*listener{attached(filter{key: parseKeyPattern("#.rejected")}), attached(filter{key: parseKeyPattern("#.rejected")})}
	stock, all := attached(filter{key: parseKeyPattern("shop.stock.changed")}), attached(filter{})
	var rows []*row
	for i, r := range []row{
		{OrderID: "order 7", RoutingKey: "shop.order.placed"}, {OrderID: "order 5000", RoutingKey: "shop.order.placed"},
		{RoutingKey: "shop.stock.changed"}, {OrderID: "order 7", RoutingKey: "shop.order.confirmed"}, {OrderID: "order 5000", RoutingKey: "shop.order.rejected"},
	} {
		r.ID = int64(i + 1)
		rows = append(rows, &r)
	}
	tail.addRows(rows)
	for what, test := range map[string]struct {
		l    *listener
		want []int64
	}{
		"of order 7": {ofOrder[7], []int64{1, 4}}, "confirmed of order 7": {confirmed, []int64{4}}, "rejections": {rejections[0], []int64{5}},
		"rejections again": {rejections[1], []int64{5}}, "of stock": {stock, []int64{3}}, "all": {all, []int64{1, 2, 3, 4, 5}},
	} {
		if got := ids(test.l); len(test.l.news) != 1 || !slices.Equal(got, test.want) {
			t.Errorf("%s: %v, want %v", what, got, test.want)
		}
	}
	if len(tail.byKey) != 3 {
		t.Errorf("%d patterns are looked at, want 3", len(tail.byKey))
	}
	for i, l := range ofOrder {
		if i != 7 && (len(l.news) > 0 || len(l.queue) > 0) {
			t.Fatalf("listener %d is told of what it does not want", i)
		}
		if do := tail.next(l, 0); do.cursor != 5 {
			t.Fatalf("listener %d is at %d, although nothing up to 5 is for it", i, do.cursor)
		}
	}
	for _, l := range append(ofOrder, confirmed, rejections[0], rejections[1], stock, all) {
		tail.detach(l)
		tail.detach(l) // changes nothing more
	}
	if len(tail.byOrder) > 0 || len(tail.byKey) > 0 {
		t.Errorf("%d orders and %d patterns are left although nobody listens", len(tail.byOrder), len(tail.byKey))
	}
}

func TestTail_AStreamThatBeginsAheadOfTheTailSeesNothingBeforeItsBeginning(t *testing.T) {
	t.Parallel()
	tail := newTail(nil, slog.New(slog.DiscardHandler))
	tail.activate(3)
	l := &listener{news: make(chan struct{}, 1)}
	if do := tail.next(l, 5); do.cursor != 5 {
		t.Fatalf("at 5: %+v", do)
	}
	tail.addRows([]*row{{ID: 4}, {ID: 5}, {ID: 6}})
	if do := tail.next(l, 5); do.row == nil || do.row.ID != 6 {
		t.Errorf("behind 5: %+v", do)
	}
}

func TestTail_AStuckListenerBuffersNoMoreThanTheTail(t *testing.T) {
	t.Parallel()
	tail := newTail(nil, slog.New(slog.DiscardHandler))
	tail.activate(0)
	slow := &listener{news: make(chan struct{}, 1)}
	tail.next(slow, 0)
	for id := int64(1); id <= 3*tailRows; id++ {
		tail.addRows([]*row{{ID: id}})
		if held := len(slow.queue); held > tailRows {
			t.Fatalf("it holds %d rows", held)
		}
	}
	if do := tail.next(slow, 0); !do.behind || do.head != 3*tailRows {
		t.Errorf("%+v, want it to read from the database", do)
	}
}

func TestTail_SendsHeartbeatsWithThePosition(t *testing.T) {
	t.Parallel()
	db := openDB(t, dbtest.New(t))
	tail := newTail(db, slog.New(slog.DiscardHandler))
	tail.heartbeatInterval = 10 * time.Millisecond
	runUntilDone(t, tail.run)
	tail.join()
	defer tail.leave()
	eventually(t, "the tail to follow", tail.isActive)
	last := write(t, db, deliveryOf(t, placed(newOrderID())), deliveryOf(t, placed(newOrderID())))[1].id
	enough := errors.New("enough")
	err := tail.listen(within(t), filter{orderID: newOrderID()}, 0, 0, func(r *row) error {
		t.Errorf("row %d came", r.ID)
		return nil
	}, func(cursor int64) error {
		if cursor == last { // that of others' rows: nothing before it has to be looked at again
			return enough
		}
		return nil
	})
	if !errors.Is(err, enough) {
		t.Errorf("ended with %v", err)
	}
}

// Positions went on while the log could not be read: webhooks stood still, and webhooks_log_age_seconds, which they keep low, said nothing.
func TestTail_SendsNoPositionWhileTheLogCannotBeRead(t *testing.T) {
	t.Parallel()
	db := openDB(t, dbtest.New(t))
	tail := newTail(db, slog.New(slog.DiscardHandler))
	tail.heartbeatInterval = time.Millisecond
	runUntilDone(t, tail.run)
	tail.join()
	defer tail.leave()
	eventually(t, "the tail to follow", tail.isActive)
	var beats atomic.Int64
	runUntilDone(t, func(ctx context.Context) error {
		_ = tail.listen(ctx, filter{}, 0, 0, func(*row) error { return nil }, func(int64) error { beats.Add(1); return nil })
		return nil
	})
	rename := func(from, to string) {
		t.Helper()
		if _, err := db.ExecContext(t.Context(), `ALTER TABLE `+from+` RENAME TO `+to); err != nil {
			t.Fatal(err)
		}
	}
	rename("event_log", "away")
	var last int64
	silent := 0 // looks at least 10 ms apart that saw no new position
	eventually(t, "no more positions", func() bool {
		now := beats.Load()
		if silent++; now > last {
			last, silent = now, 0
		}
		return silent == 10
	})
	rename("away", "event_log")
	eventually(t, "positions again", func() bool { return beats.Load() > last })
}

// A stream of a rare event that had much to read did so in one statement, which exceeded its time limit, each time anew.
func TestTail_ARareEventIsLookedForInPartsAndEachIsTold(t *testing.T) {
	t.Parallel()
	db := openDB(t, dbtest.New(t))
	_, err := db.ExecContext(t.Context(), `
		INSERT INTO event_log (routing_key, exchange, payload, status, message_id, published_at)
		SELECT CASE n WHEN 2 * $1 + 5 THEN 'shop.inventory.delete' ELSE 'shop.order.placed' END, 'shop.topic', '{}', 'success', gen_random_uuid(), now()
		FROM generate_series(1, 2 * $1::integer + 10) AS n`, searchLimit)
	if err != nil {
		t.Fatal(err)
	}
	tail := newTail(db, slog.New(slog.DiscardHandler))
	tail.heartbeatInterval = time.Hour
	runUntilDone(t, tail.run)
	tail.join()
	defer tail.leave()
	eventually(t, "the tail to follow", tail.isActive)
	enough := errors.New("enough")
	var told []int64
	err = tail.listen(within(t), filter{key: parseKeyPattern("shop.inventory.delete.#")}, 0, 0, func(r *row) error {
		told = append(told, r.ID)
		return enough
	}, func(cursor int64) error {
		told = append(told, cursor)
		return nil
	})
	if want := []int64{searchLimit, 2 * searchLimit, 2*searchLimit + 5}; !errors.Is(err, enough) || !slices.Equal(told, want) {
		t.Errorf("it is told %v, want %v (%v)", told, want, err)
	}
}

// BenchmarkTail_OrdersThatSomebodyWatches is what 1,000 rows cost that are not for any of the streams.
func BenchmarkTail_OrdersThatSomebodyWatches(b *testing.B) {
	for _, streams := range []int{1, 1000} {
		b.Run(fmt.Sprint(streams, " streams"), func(b *testing.B) {
			tail := newTail(nil, slog.New(slog.DiscardHandler))
			tail.activate(0)
			ctx, stop := context.WithCancel(context.Background())
			var listening sync.WaitGroup
			for range streams {
				listening.Go(func() {
					_ = tail.listen(ctx, filter{orderID: newOrderID()}, 0, 0, func(*row) error { return nil }, ignore)
				})
			}
			for attached := 0; attached < streams; runtime.Gosched() {
				tail.mu.Lock()
				attached = len(tail.byOrder)
				tail.mu.Unlock()
			}
			id := int64(0)
			for b.Loop() {
				rows := make([]*row, 1000)
				for i := range rows {
					id++
					rows[i] = &row{ID: id, OrderID: "another", RoutingKey: "shop.order.placed"}
				}
				tail.addRows(rows)
			}
			stop()
			listening.Wait()
		})
	}
}

func runUntilDone(t *testing.T, run func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
