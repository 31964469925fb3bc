package webhook

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"shop.example/domain/enduser"
	webhooksv1 "shop.example/gen/shop/webhooks/v1"
)

// createEvents makes a webhook of an operator for events of the given types.
func (r *rig) createEvents(t *testing.T, url string, types ...string) *webhooksv1.Webhook {
	t.Helper()
	created, err := r.hooks.CreateWebhook(as(t, "operator"), &webhooksv1.CreateWebhookRequest{Webhook: &webhooksv1.Webhook{Url: url, EventTypes: types}})
	if err != nil {
		t.Fatal(err)
	}
	return created.GetWebhook()
}

// isAt returns nil once the log has been read up to a position.
func (r *rig) isAt(position int64) error {
	var at int64
	err := r.db.Get(&at, `SELECT position FROM log_position`)
	if err == nil && at != position {
		err = fmt.Errorf("the log has been read up to %d, want %d", at, position)
	}
	return err
}

// The position stayed at the last event that somebody wanted: a new stream had all to read that had come since.
func TestFollower_WhatNobodyWantsIsNotReadAgain(t *testing.T) {
	t.Parallel()
	r := start(t, quick)
	v := newReceiver(t, nil)
	r.createEvents(t, v.URL, "shop.order.placed")
	r.log.add(t, newOrder("").events[1], newOrder("").events[1])
	eventually(t, func() error { return r.isAt(2) })
	r.log.add(t, newOrder("").events...)
	v.await(t, 1)
	eventually(t, func() error { return r.isAt(4) })
}

// The log was restored from a backup, and gave ids again: a customer got the event of another one that was kept under the same id,
// and who had got that one got nothing.
func TestFollower_AnIdThatTheLogGivesAgainIsOfAnotherEvent(t *testing.T) {
	t.Parallel()
	r := start(t, quick)
	all, bobs := newReceiver(t, nil), newReceiver(t, nil)
	hook, _ := r.create(t, all.URL)
	bobsHook := r.createFor(t, "bob", bobs.URL)
	adas, bobsOrder := newOrder(enduser.Owner(issuer, "ada")), newOrder(enduser.Owner(issuer, "bob"))
	r.log.add(t, newOrder("").events[0], adas.events[0])
	eventually(t, func() error { return r.allDelivered(hook.GetId(), 2) })
	r.stop()
	r.log.restore(1)
	r.replica(t, quick)
	eventually(t, func() error { return r.isAt(1) })
	r.log.add(t, bobsOrder.events...)
	for who, got := range map[string]request{"Bob": bobs.await(t, 1)[0], "an operator": all.await(t, 3)[2]} {
		if e := got.envelope(t); e.Data.OrderID != bobsOrder.id {
			t.Errorf("%s got %s", who, got.body)
		}
	}
	eventually(t, func() error { return r.allDelivered(bobsHook, 2) })
	eventually(t, func() error { return r.allDelivered(hook.GetId(), 3) })
}

// Orders whose OrderPlaced the log has not were waited for one after the other, and everybody's events behind them.
func TestFollower_OrdersWithoutABeginningAreWaitedForTogether(t *testing.T) {
	t.Parallel()
	r := start(t, quick)
	all := newReceiver(t, nil)
	r.create(t, all.URL)
	r.createFor(t, "ada", newReceiver(t, nil).URL)
	const orders = 24
	var events []proto.Message
	for range orders {
		events = append(events, newOrder("").events[1])
	}
	r.log.add(t, events...)
	begun := time.Now()
	all.await(t, orders)
	if took := time.Since(begun); took > orders*placedWithin/3 {
		t.Errorf("%d orders took %s", orders, took)
	}
}
