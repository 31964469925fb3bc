package eventlog

import (
	"strings"
	"testing"
	"time"

	"shop.example/platform/messaging"
)

// The tail is held for all listeners, and a view of it for each that is slow.
func TestTail_IsBoundedInBytes(t *testing.T) {
	t.Parallel()
	tail := newTail(nil, nil)
	tail.warm = true
	const size, rows = 90_000, 1000
	id := int64(0)
	for range rows / 10 {
		batch := make([]*row, 10)
		for i := range batch {
			id++
			batch[i] = &row{ID: id, Payload: make([]byte, size)}
		}
		tail.grow(batch)
	}
	if held := len(tail.rows) * size; held > tailBytes || held < tailBytes-2*size || tail.size != held {
		t.Errorf("the tail holds %d bytes and counts %d", held, tail.size)
	}
	cursor := tail.from
	for cursor < id {
		v := tail.view(cursor)
		if !v.holds || len(v.rows) == 0 || len(v.rows)*size > mostBytes || v.rows[0].ID != cursor+1 || v.next != v.rows[len(v.rows)-1].ID {
			t.Fatalf("behind %d: %d rows up to %d", cursor, len(v.rows), v.next)
		}
		cursor = v.next
	}
	tail.grow([]*row{{ID: id + 1, Payload: make([]byte, tailBytes+1)}})
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
	if r.payload != nil || len(r.body) != len(d.Body) || r.problem != "the body has 1048578 bytes, and an event 1048576 at most" {
		t.Errorf("%d bytes of payload, %d of body: %s", len(r.payload), len(r.body), r.problem)
	}
}
