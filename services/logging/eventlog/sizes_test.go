package eventlog

import (
	"strings"
	"testing"
	"time"

	"shop.example/platform/messaging"
)

// The tail is held for all listeners together. One that takes nothing holds no more than that, and then reads the database.
func TestTail_IsBoundedInBytes(t *testing.T) {
	t.Parallel()
	tail := newTail(nil, nil)
	tail.active = true
	slow, fast := &listener{news: make(chan struct{}, 1)}, &listener{news: make(chan struct{}, 1)}
	tail.next(slow, 0)
	const size, rows = 90_000, 1000
	id := int64(0)
	for range rows / 10 {
		batch := make([]*row, 10)
		for i := range batch {
			id++
			batch[i] = &row{ID: id, Payload: make([]byte, size)}
		}
		tail.addRows(batch)
		taken := int64(0)
		for do := tail.next(fast, id-10); do.row != nil; do = tail.next(fast, id-10) {
			taken = do.row.ID
		}
		if taken != id || len(slow.queue)*size > tailBytes {
			t.Fatalf("behind %d: a fast listener was handed up to %d, and %d rows wait for a slow one", id-10, taken, len(slow.queue))
		}
	}
	if do := tail.next(slow, 0); !do.behind || len(slow.queue) > 0 {
		t.Errorf("the slow listener does next: %+v, with %d rows", do, len(slow.queue))
	}
	if held := len(tail.rows) * size; held > tailBytes || held < tailBytes-2*size || tail.size != held {
		t.Errorf("the tail holds %d bytes and counts %d", held, tail.size)
	}
	tail.addRows([]*row{{ID: id + 1, Payload: make([]byte, tailBytes+1)}})
	if len(tail.rows) != 0 || tail.from != id+1 || tail.head != id+1 || tail.size != 0 {
		t.Errorf("behind a row that is too large for it: %d rows from %d to %d", len(tail.rows), tail.from, tail.head)
	}
}

// To read a message takes many times its size: what no contract allows to be so large is kept as it came.
func TestReadDelivery_WhatIsTooLargeForAnEventIsNotRead(t *testing.T) {
	t.Parallel()
	d := deliveryOf(t, placed(newOrderID()))
	d.Body = []byte(strings.Repeat("\x22\x00", messaging.MaxEvent/2+1)) // lines of an order, as many as there is room for
	r := readDelivery(d, time.Now())
	if r.payload != nil || len(r.body) != len(d.Body) || r.errText != "the body has 1048578 bytes, and an event 1048576 at most" {
		t.Errorf("%d bytes of payload, %d of body: %s", len(r.payload), len(r.body), r.errText)
	}
}
