package eventlog

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
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

// listenInPieces listens from the beginning until it has seen want rows, and begins anew after every piece.
func listenInPieces(ctx context.Context, tail *tail, piece, want int) (ids []int64) {
	enough := errors.New("enough")
	cursor := int64(0)
	for len(ids) < want {
		tail.join()
		err := tail.listen(ctx, filter{}, cursor, func(r *row) error {
			ids = append(ids, r.ID)
			cursor = r.ID
			if len(ids)%piece == 0 || len(ids) == want {
				return enough
			}
			return nil
		})
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
	eventually(t, "the tail to follow", func() bool { return tail.view(0).warm })

	rejectedOnly := filter{key: parseKeyPattern("shop.*.rejected")}
	var got []int64
	busy, goOn, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	enough := errors.New("enough")
	go func() {
		done <- tail.listen(within(t), rejectedOnly, 0, func(r *row) error {
			if len(got) == 0 {
				close(busy)
				<-goOn
			}
			if got = append(got, r.ID); len(got) == 12 {
				return enough
			}
			return nil
		})
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
	eventually(t, "the tail to forget what the listener has not seen", func() bool { return !tail.view(want[0]).holds })
	close(goOn)
	if err := <-done; !errors.Is(err, enough) || !slices.Equal(got, want) {
		t.Errorf("saw %v, want %v (%v)", got, want, err)
	}
}

func TestTail_DoesNotWaitForWhatItsOwnReplicaHasWritten(t *testing.T) {
	t.Parallel()
	db := openDB(t, dbtest.New(t))
	tail := newTail(db, slog.New(slog.DiscardHandler))
	tail.wait = time.Hour
	runUntilDone(t, tail.run)
	tail.join()
	defer tail.leave()
	eventually(t, "the tail to follow", func() bool { return tail.view(0).warm })
	s := &Service{db: db, log: slog.New(slog.DiscardHandler), tail: tail}
	for want := range 3 {
		if err := s.logEvents(within(t), []messaging.Delivery{deliveryOf(t, placed(newOrderID()))}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the tail to have the row", func() bool { return len(tail.view(0).rows) == want+1 })
	}
}

func TestTail_AsksNothingWhereNobodyListens(t *testing.T) {
	t.Parallel()
	db := openDB(t, dbtest.New(t))
	tail := newTail(db, slog.New(slog.DiscardHandler))
	runUntilDone(t, tail.run)
	for range 2 {
		tail.join()
		eventually(t, "the tail to follow", func() bool { return tail.view(0).warm })
		tail.leave()
		eventually(t, "the tail to rest", func() bool { return !tail.view(0).warm })
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
