package eventlog

import (
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"shop.example/db/dbtest"
	eventsv1 "shop.example/gen/shop/events/v1"
	"shop.example/platform/messaging"
	"shop.example/platform/postgres"
)

func TestPartitions_RowsOfAWeekWithoutOneMoveIntoIt(t *testing.T) {
	t.Parallel()
	db := openDB(t, dbtest.New(t))
	p := &partitions{db: db, log: slog.New(slog.DiscardHandler)}
	var deliveries []messaging.Delivery
	for range 10 {
		deliveries = append(deliveries, deliveryOf(t, placed(newOrderID())))
	}
	write(t, db, deliveries...)
	if n := count(t, db, "SELECT count(*) FROM event_log_default"); n != 10 {
		t.Fatalf("%d rows in the default partition, want 10", n)
	}
	before := allRows(t, db, filter{})
	for range 2 { // the second time there is nothing to do
		if err := p.maintain(t.Context(), time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	if n := count(t, db, "SELECT count(*) FROM event_log_default"); n != 0 {
		t.Errorf("%d rows stayed in the default partition", n)
	}
	after := allRows(t, db, filter{})
	if !slices.EqualFunc(before, after, func(a, b *row) bool {
		return a.ID == b.ID && a.MessageID == b.MessageID && a.CreatedAt.Equal(b.CreatedAt)
	}) {
		t.Error("the rows are not as they were")
	}
	// The partitions have the indexes, and new rows find their place.
	if rows := write(t, db, append(deliveries, deliveryOf(t, placed(newOrderID())))...); len(rows) != 1 || rows[0].id <= after[9].ID {
		t.Errorf("made %+v, want one row with a higher id", rows)
	}
	if n := count(t, db, "SELECT count(*) FROM "+partition{From: time.Now().Truncate(week)}.name()); n != 11 {
		t.Errorf("%d rows in the partition of this week, want 11", n)
	}
	if n := count(t, db, "SELECT count(*) FROM pg_inherits WHERE inhparent = 'event_log'::regclass"); n != 1+2 {
		t.Errorf("%d partitions, want the default, this week's and the next one's", n)
	}
}

func TestPartitions_WhatIsOlderThanTheRetentionGoes(t *testing.T) {
	t.Parallel()
	db := openDB(t, dbtest.New(t))
	p := &partitions{db: db, log: slog.New(slog.DiscardHandler), retention: 3 * day}
	now := time.Now()
	if err := p.maintain(t.Context(), now.Add(-10*day)); err != nil { // makes the partitions of those days
		t.Fatal(err)
	}
	for _, age := range []time.Duration{0, 2 * day, 5 * day, 9 * day, 400 * day} {
		d := deliveryOf(t, placed(newOrderID()))
		d.Timestamp = now.Add(-age)
		write(t, db, d)
	}
	if err := p.maintain(t.Context(), now); err != nil {
		t.Fatal(err)
	}
	if n := count(t, db, "SELECT count(*) FROM event_log"); n != 2 {
		t.Errorf("%d rows are left, want 2", n)
	}
	keepsAll := &partitions{db: db, log: p.log}
	if err := keepsAll.maintain(t.Context(), now.Add(1000*day)); err != nil {
		t.Fatal(err)
	}
	if n := count(t, db, "SELECT count(*) FROM event_log"); n != 2 {
		t.Errorf("%d rows are left where everything is kept, want 2", n)
	}
}

// Each statement on the log costs something for each of its partitions, and the days of 400 were as many.
func TestPartitions_DaysAndWeeksFollowEachOtherWithoutAHole(t *testing.T) {
	t.Parallel()
	db := openDB(t, dbtest.New(t))
	monday := time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)
	at := func(days int) time.Time { return monday.Add(time.Duration(days) * day) }
	daily := &partitions{db: db, log: slog.New(slog.DiscardHandler), retention: 30 * day}
	weekly := &partitions{db: db, log: daily.log, retention: 400 * day}
	var want []partition
	for _, step := range []struct {
		p    *partitions
		now  time.Time
		made []partition
	}{
		{daily, at(2).Add(time.Hour), []partition{{at(2), at(3)}, {at(3), at(4)}, {at(4), at(5)}, {at(5), at(6)}, {at(6), at(7)}, {at(7), at(8)}, {at(8), at(9)}, {at(9), at(10)}}},
		// The rest of the week, and the days of this one that have none.
		{weekly, at(3), []partition{{at(0), at(2)}, {at(10), at(14)}}},
		{weekly, at(7), []partition{{at(14), at(21)}}},
		{weekly, at(13), nil},
		{daily, at(14), []partition{{at(21), at(22)}}},
		{weekly, at(100), []partition{{at(98), at(105)}, {at(105), at(112)}}},
	} {
		if err := step.p.maintain(t.Context(), step.now); err != nil {
			t.Fatal(err)
		}
		want = append(want, step.made...)
		slices.SortFunc(want, func(a, b partition) int { return a.From.Compare(b.From) })
		got, err := existingPartitions(t.Context(), db)
		if err != nil || !slices.EqualFunc(got, want, func(a, b partition) bool { return a.From.Equal(b.From) && a.To.Equal(b.To) }) {
			t.Errorf("at %s: %v, %v, want %v", step.now, got, err, want)
		}
	}
	// A week goes when its last day is old enough, and not before.
	weekly.retention = 60 * day
	last := partition{at(98), at(105)}
	for _, early := range []time.Duration{time.Hour, 0} {
		if err := weekly.maintain(t.Context(), last.To.Add(weekly.retention-early)); err != nil {
			t.Fatal(err)
		}
		if n := count(t, db, "SELECT count(*) FROM pg_class WHERE relname = '"+last.name()+"'"); n == 1 != (early > 0) {
			t.Errorf("%s before a week is old enough there are %d partitions of it", early, n)
		}
	}
}

func TestPartitions_RequestsAreKeptADayHoweverLongTheLogIs(t *testing.T) {
	t.Parallel()
	db := openDB(t, dbtest.New(t))
	p := &partitions{db: db, log: slog.New(slog.DiscardHandler)}
	now := time.Now()
	if err := p.maintain(t.Context(), now.Add(-6*day)); err != nil { // makes the partitions of those days
		t.Fatal(err)
	}
	for _, age := range []time.Duration{0, day - time.Hour, day + time.Hour, 5 * day, 400 * day} {
		request, event := deliveryOf(t, &eventsv1.ListInventory{}), deliveryOf(t, placed(newOrderID()))
		request.Timestamp, event.Timestamp = now.Add(-age), now.Add(-age)
		write(t, db, request, event)
	}
	dead := deliveryOf(t, &eventsv1.ListInventory{})
	dead.Timestamp, dead.Body = now.Add(-5*day), []byte("no protobuf")
	write(t, db, dead)
	// As many as somebody may have made before there was a limit.
	const many = expireBatch + 1
	if _, err := db.Exec(`
		INSERT INTO event_log (routing_key, exchange, payload, status, message_id, published_at)
		SELECT 'shop.inventory.list', 'shop.topic', '{}', 'success', gen_random_uuid(), $1 FROM generate_series(1, $2)`,
		now.Add(-3*day), many); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time there is nothing to do
		p.tryMaintain(t.Context())
		if n := count(t, db, "SELECT count(*) FROM event_log WHERE routing_key = 'shop.inventory.list' AND status = 'success'"); n != 2 {
			t.Errorf("%d requests are left, want the 2 of a day", n)
		}
		if n := count(t, db, "SELECT count(*) FROM event_log"); n != 2+5+1 {
			t.Errorf("%d rows are left, want 2 requests, 5 events and a request that could not be read", n)
		}
	}
}

func TestPartitions_ManyReplicasAndWritersAtOnce(t *testing.T) {
	t.Parallel()
	url := dbtest.New(t)
	var wg sync.WaitGroup
	for i := range 4 {
		db := openDB(t, url)
		wg.Go(func() {
			if i%2 == 0 {
				p := &partitions{db: db, log: slog.New(slog.DiscardHandler)}
				for n := range 10 {
					if err := p.maintain(t.Context(), time.Now().Add(time.Duration(n-5)*day)); err != nil && !errors.Is(err, postgres.ErrRetry) {
						t.Error(err)
					}
				}
				return
			}
			for n := range 50 {
				d := deliveryOf(t, placed(newOrderID()))
				d.Timestamp = time.Now().Add(time.Duration(n%10-9) * day)
				write(t, db, d)
			}
		})
	}
	wg.Wait()
	if n := count(t, openDB(t, url), "SELECT count(*) FROM event_log"); n != 100 {
		t.Errorf("%d rows, want 100", n)
	}
}
