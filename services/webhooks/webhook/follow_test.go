package webhook

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"shop.example/domain/enduser"
	eventsv1 "shop.example/gen/shop/events/v1"
	loggingv1 "shop.example/gen/shop/logging/v1"
	webhooksv1 "shop.example/gen/shop/webhooks/v1"
	"shop.example/platform/messaging"
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

// While services were upgraded, webhooks of the release before passed over each event with a new field.
func TestFollower_AnEventWithAFieldOfANewerReleaseIsDelivered(t *testing.T) {
	t.Parallel()
	r := start(t, quick)
	v := newReceiver(t, nil)
	r.create(t, v.URL)
	r.stop()
	o := newOrder("")
	r.log.add(t, o.events[0])[0].Payload.Fields["gift_note"] = structpb.NewStringValue("for Bob")
	r.log.add(t, o.events[1])
	r.replica(t, quick)
	got := v.await(t, 2)
	if e := got[0].envelope(t); e.Type != "shop.order.placed" || !strings.Contains(string(got[0].body), `"gift_note":"for Bob"`) {
		t.Errorf("it got %s first", got[0].body)
	}
}

// An event of 1 MiB, which breaks its contract and is a dead letter, is larger than 4 MiB in the log: nothing that came after it was sent.
func TestFollower_AnEventThatIsLargeInTheLogIsPassedOver(t *testing.T) {
	t.Parallel()
	r := start(t, quick)
	v := newReceiver(t, nil)
	r.createEvents(t, v.URL, "shop.#")
	large := &eventsv1.UpdateItems{RequestId: uuid.NewString(), Items: make([]*eventsv1.UpdateItems_Item, 100_000)}
	for i := range large.Items {
		large.Items[i] = &eventsv1.UpdateItems_Item{Id: 1, Quantity: new(int32)}
	}
	event := r.log.add(t, large)[0]
	if body, logged := proto.Size(large), proto.Size(event); body > messaging.MaxEvent || logged <= 4<<20 {
		t.Errorf("its body has %d bytes, the event in the log %d", body, logged)
	}
	o := newOrder("")
	r.log.add(t, o.events[0])
	if e := v.await(t, 1)[0].envelope(t); e.Data.OrderID != o.id {
		t.Errorf("it got a %s", e.Type)
	}
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

// brokenLog ends each stream with an error, after some responses.
type brokenLog struct {
	loggingv1.EventLogServiceClient
	responses int
	streams   chan struct{}
}

func (l brokenLog) StreamEvents(ctx context.Context, req *loggingv1.StreamEventsRequest, _ ...grpc.CallOption) (grpc.ServerStreamingClient[loggingv1.StreamEventsResponse], error) {
	select {
	case l.streams <- struct{}{}:
	case <-ctx.Done():
	}
	return &brokenStream{left: l.responses, next: req.GetAfterId()}, nil
}

type brokenStream struct {
	grpc.ServerStreamingClient[loggingv1.StreamEventsResponse]
	left int
	next int64 // position
}

func (s *brokenStream) Recv() (*loggingv1.StreamEventsResponse, error) {
	if s.left == 0 {
		return nil, errors.New("the log cannot be read")
	}
	s.left, s.next = s.left-1, s.next+1
	return &loggingv1.StreamEventsResponse{Position: s.next - 1}, nil
}

// Webhooks stood still, and no metric said so. That a stream begins does not say that the log can be read.
func TestFollower_ThatTheLogCannotBeFollowedIsMeasured(t *testing.T) {
	t.Parallel()
	r := start(t, quick)
	r.create(t, newReceiver(t, nil).URL)
	r.log.add(t, newOrder("").events[0])
	eventually(t, func() error { return r.isAt(1) })
	r.stop()
	for responses, getsOn := range map[int]bool{0: false, 1: false, 2: true} {
		m, l := &metrics{}, brokenLog{responses: responses, streams: make(chan struct{})}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() {
			ended <- newFollower(r.db, l, uuid.New(), func() {}, m, slog.New(slog.DiscardHandler)).run(ctx)
		}()
		<-l.streams
		first := m.followed.Load()
		for range 3 {
			<-l.streams
		}
		if last := m.followed.Load(); first == nil || (last != first) != getsOn || m.logAge() <= 0 {
			t.Errorf("with %d responses it got on at %v, and at %v", responses, first, last)
		}
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if m.follows(false); m.logAge() != 0 {
			t.Errorf("who does not follow the log is behind by %s", m.logAge())
		}
	}
}

// Batches were bounded by number: 500 of the largest events, and 500 more that were read ahead, are 84 MB before they are decoded.
func TestFollower_ABatchOfLargeEventsIsSmall(t *testing.T) {
	t.Parallel()
	responses, room := make(chan *loggingv1.StreamEventsResponse, followAhead), make(chan struct{}, 1000)
	large := func(position int64) *loggingv1.StreamEventsResponse {
		e := &loggingv1.Event{Id: position, ErrorMessage: strings.Repeat("x", followBytes/4)}
		for range roomOf(&loggingv1.StreamEventsResponse{Event: e, Position: position}) {
			room <- struct{}{}
		}
		return &loggingv1.StreamEventsResponse{Event: e, Position: position}
	}
	first := large(1)
	for position := int64(2); position <= 10; position++ {
		responses <- large(position)
	}
	if n := len(room); n <= 2*followAhead {
		t.Errorf("ten events of a quarter of a batch count as %d", n)
	}
	if b := gather(first, responses, room); len(b.events) != 4 || b.position != 4 {
		t.Errorf("a batch has %d events, up to %d", len(b.events), b.position)
	}
}

// What one webhook waits for was bounded by number, too, and there are a thousand of them.
func TestDelivery_FewLargeEventsAreReadAtOnce(t *testing.T) {
	t.Parallel()
	r := start(t, quick)
	hook, _ := r.create(t, newReceiver(t, nil).URL)
	w := r.lease(t, hook.GetId())
	for range fetchSize {
		r.log.add(t, newOrder("").events[0])
	}
	eventually(t, func() error { return r.isAt(fetchSize) })
	if _, err := r.db.Exec(`UPDATE event SET payload = repeat('x', $1)`, fetchBytes*2/3); err != nil {
		t.Fatal(err)
	}
	if _, err := w.fill(t.Context()); err != nil || len(w.queue) != 2 {
		t.Errorf("%d are read, %v", len(w.queue), err)
	}
}

// While it had to wait, a worker forgot what it had read, and took it for in hand: newer events went first, until nothing was due.
func TestDelivery_WhatWasReadBeforeAPauseIsReadAgainAfterIt(t *testing.T) {
	t.Parallel()
	r := start(t, quick)
	hook, _ := r.create(t, newReceiver(t, nil).URL)
	w := r.lease(t, hook.GetId())
	for range fetchSize {
		r.log.add(t, newOrder("").events[0])
	}
	eventually(t, func() error { return r.isAt(fetchSize) })
	for i, retry := range []string{"0", "1 hour", "0"} {
		if _, err := r.db.Exec(`UPDATE webhook SET retry_at = now() + $1::interval`, retry); err != nil {
			t.Fatal(err)
		}
		goOn, err := w.fill(t.Context())
		if waits := i == 1; err != nil || goOn == waits || !waits && len(w.queue) != fetchSize || waits && len(w.queue) > 0 {
			t.Errorf("with %s to wait %d deliveries are read, goes on: %t, %v", retry, len(w.queue), goOn, err)
		}
	}
}
