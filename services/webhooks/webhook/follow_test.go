package webhook

import (
	"fmt"
	"testing"

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
