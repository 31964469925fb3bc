package webhook

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
	"go.opentelemetry.io/otel/metric/noop"

	loggingv1 "shop.example/gen/shop/logging/v1"
	webhooksv1 "shop.example/gen/shop/webhooks/v1"
)

func TestDelivery_IsWhatStandardWebhooksSay(t *testing.T) {
	t.Parallel()
	r := start(t, quick)
	v := newReceiver(t, nil)
	hook, secret := r.create(t, v.URL+"/events?source=shop")
	o := newOrder("")
	logged := r.log.add(t, o.events...)
	got := v.await(t, 2)
	library, err := standardwebhooks.NewWebhook(secret)
	if err != nil {
		t.Fatal(err)
	}
	for i, req := range got {
		if err := library.Verify(req.body, req.header); err != nil {
			t.Errorf("request %d: %v", i, err)
		}
		e := req.envelope(t)
		if req.id() != logged[i].GetMessageId() || e.Type != logged[i].GetRoutingKey() || e.Data.OrderID != o.id || req.header.Get("Content-Type") != "application/json" ||
			!e.Timestamp.Equal(logged[i].GetPublishedAt().AsTime().Truncate(time.Microsecond)) {
			t.Errorf("request %d: %v %s", i, req.header, req.body)
		}
		if err := library.Verify(append(req.body, ' '), req.header); err == nil {
			t.Error("a changed body is verified")
		}
	}
	eventually(t, func() error { return r.allDelivered(hook.GetId(), 2) })
	d := r.deliveries(t, hook.GetId())
	if len(d) != 2 || d[1].GetEventType() != "shop.order.placed" || d[1].GetMessageId() != logged[0].GetMessageId() || d[1].GetOrderId() != o.id ||
		d[1].GetAttempts() != 1 || d[1].GetResponseStatus() != 200 || d[1].GetNextAttemptAt() != nil {
		t.Errorf("deliveries: %v", d)
	}
}

func TestDelivery_BothSecretsAreGoodForADay(t *testing.T) {
	t.Parallel()
	r := start(t, quick)
	v := newReceiver(t, nil)
	hook, old := r.create(t, v.URL)
	rotated, err := r.hooks.RotateWebhookSecret(as(t, "operator"), &webhooksv1.RotateWebhookSecretRequest{WebhookId: hook.GetId()})
	if err != nil {
		t.Fatal(err)
	}
	if left := time.Until(rotated.GetPreviousValidUntil().AsTime()); left < 23*time.Hour || left > 25*time.Hour || rotated.GetSecret() == old {
		t.Errorf("the previous secret is good for %s", left)
	}
	verified := func(req request) (list []bool) {
		for _, secret := range []string{old, rotated.GetSecret()} {
			library, err := standardwebhooks.NewWebhook(secret)
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, library.Verify(req.body, req.header) == nil)
		}
		return list
	}
	r.log.add(t, newOrder("").events[0])
	if got := verified(v.await(t, 1)[0]); !slices.Equal(got, []bool{true, true}) {
		t.Errorf("verified with the old and the new secret: %v", got)
	}
	if _, err := r.db.Exec(`UPDATE webhook SET previous_until = now() - interval '1 second'`); err != nil {
		t.Fatal(err)
	}
	r.log.add(t, newOrder("").events[0])
	if got := verified(v.await(t, 2)[1]); !slices.Equal(got, []bool{false, true}) {
		t.Errorf("verified with the old and the new secret a day later: %v", got)
	}
}

// Who had not got the answer repeated the call, and the secret that the receiver had was not valid any more.
func TestDelivery_ASecretStaysGoodForADayAlthoughItIsRotatedAgain(t *testing.T) {
	t.Parallel()
	r := start(t, quick)
	v := newReceiver(t, nil)
	hook, first := r.create(t, v.URL)
	secrets := []string{first}
	for range 2 {
		rotated, err := r.hooks.RotateWebhookSecret(as(t, "operator"), &webhooksv1.RotateWebhookSecretRequest{WebhookId: hook.GetId()})
		if err != nil {
			t.Fatal(err)
		}
		secrets = append(secrets, rotated.GetSecret())
	}
	verified := func(req request) (list []bool) {
		for _, secret := range secrets {
			library, err := standardwebhooks.NewWebhook(secret)
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, library.Verify(req.body, req.header) == nil)
		}
		return list
	}
	r.log.add(t, newOrder("").events[0])
	if got := verified(v.await(t, 1)[0]); !slices.Equal(got, []bool{true, true, true}) {
		t.Errorf("verified with the secrets from the first on: %v", got)
	}
	if _, err := r.db.Exec(`UPDATE webhook SET older_until = ARRAY[now() - interval '1 second']`); err != nil {
		t.Fatal(err)
	}
	r.log.add(t, newOrder("").events[0])
	if got := verified(v.await(t, 2)[1]); !slices.Equal(got, []bool{false, true, true}) {
		t.Errorf("verified with the secrets from the first on, when its day is over: %v", got)
	}
}

func TestDelivery_AsCloudEvents(t *testing.T) {
	t.Parallel()
	r := start(t, quick)
	v := newReceiver(t, nil)
	hook, secret := r.create(t, v.URL)
	hook.Format = webhooksv1.Webhook_CLOUD_EVENTS
	update(t, r, hook, "format")
	o := newOrder("")
	logged := r.log.add(t, o.events[0])
	req := v.await(t, 1)[0]
	library, err := standardwebhooks.NewWebhook(secret)
	if err == nil {
		err = library.Verify(req.body, req.header)
	}
	var got map[string]any
	if err := errors.Join(err, json.Unmarshal(req.body, &got)); err != nil {
		t.Fatal(err)
	}
	data, _ := got["data"].(map[string]any)
	delete(got, "data")
	delete(got, "time")
	want := map[string]any{
		"specversion": "1.0", "id": logged[0].GetMessageId(), "source": "/shop", "type": "shop.order.placed", "subject": o.id, "datacontenttype": "application/json",
	}
	if fmt.Sprint(got) != fmt.Sprint(want) || data["order_id"] != o.id || req.header.Get("Content-Type") != "application/cloudevents+json; charset=utf-8" {
		t.Errorf("got %v %s, want %v", req.header, req.body, want)
	}
}

// checkOrder fails unless each order's events came first in their order: an event may come again, but none for the first time
// after a later one.
func checkOrder(t *testing.T, orders []order, got []request) {
	t.Helper()
	first := map[string][]string{} // the types of each order by when they came first
	for _, req := range got {
		e := req.envelope(t)
		if !slices.Contains(first[e.Data.OrderID], e.Type) {
			first[e.Data.OrderID] = append(first[e.Data.OrderID], e.Type)
		}
	}
	for _, o := range orders {
		if got, want := first[o.id], []string{"shop.order.placed", "shop.order.rejected"}; !slices.Equal(got, want) {
			t.Errorf("order %s: %q", o.id, got)
		}
	}
}

func TestDelivery_EventsOfAnOrderComeInTheirOrderAlthoughAttemptsFail(t *testing.T) {
	t.Parallel()
	r := start(t, quick)
	accepted := make(chan request, 1000)
	v := newReceiver(t, func(w http.ResponseWriter, req request, n int) {
		pause(t, rand.N(5*time.Millisecond))
		switch {
		case n%4 == 0:
			w.WriteHeader(http.StatusInternalServerError)
		default:
			accepted <- req
		}
	})
	hook, _ := r.create(t, v.URL)
	var orders []order
	for range 60 {
		o := newOrder("")
		orders = append(orders, o)
		r.log.add(t, o.events...)
	}
	eventually(t, func() error { return r.allDelivered(hook.GetId(), 120) })
	close(accepted)
	var got []request
	for req := range accepted {
		got = append(got, req)
	}
	checkOrder(t, orders, got)
}

// A later event may not overtake one that waits for its next attempt, whoever sends.
func TestDelivery_AnEventWaitsForTheOneBeforeIt(t *testing.T) {
	t.Parallel()
	d := quick
	d.FirstRetry = 300 * time.Millisecond
	r := start(t, d)
	o := newOrder("")
	v := newReceiver(t, func(w http.ResponseWriter, _ request, n int) {
		if n == 1 {
			w.WriteHeader(http.StatusBadRequest)
		}
	})
	r.create(t, v.URL)
	r.log.add(t, o.events[0])
	v.await(t, 1)
	r.log.add(t, o.events[1])
	other := newOrder("")
	r.log.add(t, other.events[0])
	var got []string
	for _, req := range v.await(t, 4) {
		e := req.envelope(t)
		got = append(got, strings.TrimPrefix(e.Type, "shop.order.")+map[bool]string{true: " of the other order"}[e.Data.OrderID == other.id])
	}
	if want := []string{"placed", "placed of the other order", "placed", "rejected"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// One that was sent again by hand waited behind an event of its order that was to be retried in an hour, and was said to be sent now.
func TestDelivery_WhatIsBeforeOneThatIsSentAgainIsSentAtOnce(t *testing.T) {
	t.Parallel()
	d := quick
	d.FirstRetry = time.Hour
	r := start(t, d)
	v := newReceiver(t, func(w http.ResponseWriter, _ request, n int) {
		if n == 1 {
			w.WriteHeader(http.StatusBadRequest)
		}
	})
	hook, _ := r.create(t, v.URL)
	o := newOrder("")
	r.log.add(t, o.events[0])
	eventually(t, func() error {
		if list := r.deliveries(t, hook.GetId()); len(list) != 1 || list[0].GetAttempts() != 1 {
			return fmt.Errorf("deliveries: %v", list)
		}
		return nil
	})
	r.log.add(t, o.events[1])
	eventually(t, func() error { return r.isAt(2) })
	_, err := r.hooks.RedeliverWebhook(as(t, "operator"), &webhooksv1.RedeliverWebhookRequest{
		WebhookId: hook.GetId(), DeliveryId: r.deliveries(t, hook.GetId())[0].GetId(),
	})
	if err != nil {
		t.Fatal(err)
	}
	checkOrder(t, []order{o}, v.await(t, 3))
	eventually(t, func() error { return r.allDelivered(hook.GetId(), 2) })
}

func TestDelivery_ADeadReceiverCostsOthersNothing(t *testing.T) {
	t.Parallel()
	r := start(t, quick)
	hang := make(chan struct{})
	dead := newReceiver(t, func(http.ResponseWriter, request, int) { <-hang })
	t.Cleanup(func() { close(hang) })
	lively := newReceiver(t, nil)
	hook, _ := r.create(t, lively.URL)
	latency := func(from, n int) time.Duration {
		var took []time.Duration
		for i := range n {
			begun := time.Now()
			r.log.add(t, newOrder("").events[0])
			took = append(took, lively.await(t, from+i+1)[from+i].at.Sub(begun))
		}
		slices.Sort(took)
		return took[n/2]
	}
	alone := latency(0, 50)
	deadHook, _ := r.create(t, dead.URL)
	const many = 10_000
	for batch := range many / 500 {
		var events []order
		for range 500 {
			events = append(events, newOrder(""))
		}
		for _, o := range events {
			r.log.add(t, o.events[0])
		}
		eventually(t, func() error { return r.allDelivered(hook.GetId(), 50+500*(batch+1)) })
	}
	dead.await(t, 1)
	var waiting int
	if err := r.db.Get(&waiting, `SELECT count(*) FROM delivery WHERE webhook_id = $1 AND state = 'PENDING'`, deadHook.GetId()); err != nil || waiting != many {
		t.Errorf("%d wait for the dead receiver: %v", waiting, err)
	}
	beside := latency(50+many, 50)
	t.Logf("median latency %s alone, %s beside a dead receiver with %d deliveries", alone, beside, many)
	if beside > 2*alone+50*time.Millisecond {
		t.Errorf("median latency %s beside a dead receiver, %s alone", beside, alone)
	}
	if n := len(dead.requests()); n > 40 {
		t.Errorf("the dead receiver got %d requests", n)
	}
}

// A receiver that is slow and succeeds was quick again for each event that came alone.
func TestDelivery_ASlowReceiverIsStillSlowAtTheNextEvent(t *testing.T) {
	t.Parallel()
	r := start(t, quick)
	hook, _ := r.create(t, newReceiver(t, nil).URL)
	first := r.lease(t, hook.GetId())
	var err error
	if first.metrics, err = newMetrics(noop.NewMeterProvider(), r.db); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		took time.Duration
		slow bool // the next worker
	}{{time.Millisecond, false}, {2 * slowAnswer, true}, {time.Millisecond, false}} {
		r.log.add(t, newOrder("").events[0])
		w := &worker{deliverer: first.deliverer, id: first.id, limit: 1, leasedUntil: first.leasedUntil, inHand: map[int64]bool{}}
		eventually(t, func() error {
			if _, err := w.fill(t.Context()); err != nil || len(w.queue) != 1 {
				return fmt.Errorf("%d are due: %w", len(w.queue), err)
			}
			return nil
		})
		done := result{delivery: w.queue[0], url: w.hook.URL, answer: answer{status: http.StatusOK, took: c.took}, begun: time.Now()}
		if err := w.record(t.Context(), []result{done}); err != nil {
			t.Fatal(err)
		}
		next := &worker{deliverer: first.deliverer, id: first.id, limit: 1, leasedUntil: first.leasedUntil, inHand: map[int64]bool{}}
		if _, err := next.fill(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := next.places() == next.slow; got != c.slow {
			t.Errorf("after an answer that took %s the next attempt takes a slow place: %t", c.took, got)
		}
	}
}

func TestDelivery_RetryAfterIsHonoured(t *testing.T) {
	t.Parallel()
	r := start(t, quick)
	v := newReceiver(t, func(w http.ResponseWriter, _ request, n int) {
		if n == 1 {
			w.Header().Set("Retry-After", "2")
			w.WriteHeader(http.StatusTooManyRequests)
		}
	})
	r.create(t, v.URL)
	r.log.add(t, newOrder("").events[0])
	got := v.await(t, 2)
	if waited := got[1].at.Sub(got[0].at); waited < 1900*time.Millisecond {
		t.Errorf("the next attempt came after %s", waited)
	}
}

func TestDelivery_AReceiverThatIsGoneIsDisabledAndSaidSo(t *testing.T) {
	t.Parallel()
	r := start(t, quick)
	v := newReceiver(t, func(w http.ResponseWriter, _ request, _ int) { w.WriteHeader(http.StatusGone) })
	hook, _ := r.create(t, v.URL)
	r.log.add(t, newOrder("").events...)
	eventually(t, func() error { return r.isDisabled(t, hook.GetId(), "410") })
	d := r.deliveries(t, hook.GetId())
	if len(d) != 2 || d[1].GetState() != webhooksv1.WebhookDelivery_FAILED || d[0].GetState() != webhooksv1.WebhookDelivery_PENDING {
		t.Errorf("deliveries: %v", d)
	}
	if n := len(v.requests()); n != 1 {
		t.Errorf("it got %d requests", n)
	}
}

// A receiver's last answer came when the webhook had another URL, and disabled it.
func TestDelivery_AnAnswerOfTheURLBeforeSaysNothingAboutTheNewOne(t *testing.T) {
	t.Parallel()
	for name, code := range map[string]int{"410": http.StatusGone, "503 for too long": http.StatusServiceUnavailable} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := quick
			d.Timeout, d.RetryFor = time.Minute, time.Hour
			r := start(t, d)
			moved := make(chan struct{})
			old := newReceiver(t, func(w http.ResponseWriter, _ request, _ int) {
				<-moved
				w.WriteHeader(code)
			})
			other := newReceiver(t, nil)
			hook, _ := r.create(t, old.URL)
			if _, err := r.db.Exec(`UPDATE webhook SET failures = 1, failing_since = now() - interval '2 hours'`); err != nil {
				t.Fatal(err)
			}
			r.log.add(t, newOrder("").events[0])
			old.await(t, 1)
			hook.Url = other.URL
			update(t, r, hook, "url")
			close(moved)
			other.await(t, 1)
			eventually(t, func() error { return r.allDelivered(hook.GetId(), 1) })
			got, err := r.hooks.GetWebhook(t.Context(), &webhooksv1.GetWebhookRequest{WebhookId: hook.GetId()})
			if err != nil || got.GetWebhook().GetState() != webhooksv1.Webhook_ENABLED || got.GetWebhook().GetFailingSince() != nil {
				t.Errorf("the webhook is %v, %v", got, err)
			}
		})
	}
}

func (r *rig) isDisabled(t *testing.T, id, reason string) error {
	got, err := r.hooks.GetWebhook(t.Context(), &webhooksv1.GetWebhookRequest{WebhookId: id})
	if err == nil && (got.GetWebhook().GetState() != webhooksv1.Webhook_DISABLED || !strings.Contains(got.GetWebhook().GetDisabledReason(), reason)) {
		err = fmt.Errorf("the webhook is %v", got)
	}
	return err
}

func TestDelivery_AWebhookThatFailsForTooLongIsDisabledAndGoesOnWhenItIsEnabled(t *testing.T) {
	t.Parallel()
	d := quick
	d.RetryFor = 500 * time.Millisecond
	r := start(t, d)
	var well bool
	mended := make(chan struct{})
	v := newReceiver(t, func(w http.ResponseWriter, _ request, _ int) {
		select {
		case <-mended:
		default:
			w.WriteHeader(http.StatusBadGateway)
		}
	})
	hook, _ := r.create(t, v.URL)
	logged := r.log.add(t, newOrder("").events[0], newOrder("").events[0], newOrder("").events[0])
	eventually(t, func() error {
		return r.isDisabled(t, hook.GetId(), "no delivery has succeeded for 500ms: the answer is 502")
	})
	eventually(t, r.isIdle)
	r.log.add(t, newOrder("").events[0]) // while it is disabled: not for it
	close(mended)
	before := len(v.requests())
	hook.State = webhooksv1.Webhook_ENABLED
	update(t, r, hook, "state")
	eventually(t, func() error {
		waiting := 0
		for _, d := range r.deliveries(t, hook.GetId()) {
			if d.GetState() == webhooksv1.WebhookDelivery_PENDING {
				waiting++
			}
		}
		if waiting > 0 {
			return fmt.Errorf("%d wait", waiting)
		}
		return nil
	})
	for _, req := range v.requests()[before:] {
		well = true
		if !slices.ContainsFunc(logged, func(e *loggingv1.Event) bool { return e.GetMessageId() == req.id() }) {
			t.Errorf("it got %s, which happened while it was disabled", req.body)
		}
	}
	if !well {
		t.Error("it got nothing of what waited")
	}
}

// What had waited was given up at the first failure after the webhook was enabled again: it had been tried for the first time long ago.
func TestDelivery_WhatHasWaitedIsRetriedAnewWhenTheWebhookIsEnabled(t *testing.T) {
	t.Parallel()
	r := start(t, quick)
	v := newReceiver(t, func(w http.ResponseWriter, _ request, n int) {
		if n == 1 {
			w.WriteHeader(http.StatusBadRequest)
		}
	})
	hook, _ := r.create(t, v.URL)
	hook.State = webhooksv1.Webhook_PAUSED
	update(t, r, hook, "state")
	r.log.add(t, newOrder("").events[0])
	eventually(t, func() error { return r.isAt(1) })
	if _, err := r.db.Exec(`UPDATE delivery SET attempts = 9, failures = 9, first_attempt_at = now() - interval '30 days'`); err != nil {
		t.Fatal(err)
	}
	hook.State = webhooksv1.Webhook_ENABLED
	update(t, r, hook, "state")
	v.await(t, 1)
	eventually(t, func() error {
		if d := r.deliveries(t, hook.GetId())[0]; d.GetState() == webhooksv1.WebhookDelivery_PENDING {
			return fmt.Errorf("it waits: %v", d)
		}
		return nil
	})
	if err := r.allDelivered(hook.GetId(), 1); err != nil {
		t.Error(err)
	}
}

// An event was given up, nothing happened for days, and one failure at the next event, or at the same one when it was sent again,
// disabled the webhook.
func TestDelivery_AFailureAfterAQuietTimeDoesNotDisableTheWebhook(t *testing.T) {
	t.Parallel()
	for name, again := range map[string]bool{"the next event": false, "the same event": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := start(t, quick)
			v := newReceiver(t, func(w http.ResponseWriter, _ request, n int) {
				if n == 2 {
					w.WriteHeader(http.StatusServiceUnavailable)
				}
			})
			hook, _ := r.create(t, v.URL)
			r.log.add(t, newOrder("").events[0])
			eventually(t, func() error { return r.allDelivered(hook.GetId(), 1) })
			for _, statement := range []string{
				`UPDATE delivery SET state = 'FAILED', attempts = 50, failures = 50, first_attempt_at = now() - interval '9 days'`,
				`UPDATE webhook SET failures = 50, failing_since = now() - interval '9 days', retry_at = now() - interval '7 days'`,
			} {
				if _, err := r.db.Exec(statement); err != nil {
					t.Fatal(err)
				}
			}
			if again {
				_, err := r.hooks.RedeliverWebhook(as(t, "operator"), &webhooksv1.RedeliverWebhookRequest{
					WebhookId: hook.GetId(), DeliveryId: r.deliveries(t, hook.GetId())[0].GetId(),
				})
				if err != nil {
					t.Fatal(err)
				}
			} else {
				r.log.add(t, newOrder("").events[0])
			}
			v.await(t, 2)
			eventually(t, func() error {
				got, err := r.hooks.GetWebhook(t.Context(), &webhooksv1.GetWebhookRequest{WebhookId: hook.GetId()})
				if err == nil && time.Since(got.GetWebhook().GetFailingSince().AsTime()) > time.Hour {
					err = fmt.Errorf("the webhook is %v", got)
				}
				return err
			})
			if got, err := r.hooks.GetWebhook(t.Context(), &webhooksv1.GetWebhookRequest{WebhookId: hook.GetId()}); err != nil || got.GetWebhook().GetState() != webhooksv1.Webhook_ENABLED {
				t.Errorf("the webhook is %v, %v", got, err)
			}
		})
	}
}

// Its first failures set no pause, and each one was taken for the first after a quiet time.
func TestDelivery_TheBeginningOfFailuresStaysTheFirst(t *testing.T) {
	t.Parallel()
	r := start(t, quick)
	v := newReceiver(t, func(w http.ResponseWriter, _ request, _ int) { w.WriteHeader(http.StatusInternalServerError) })
	hook, _ := r.create(t, v.URL)
	if _, err := r.db.Exec(`UPDATE webhook SET retry_at = now() - interval '1 day'`); err != nil {
		t.Fatal(err)
	}
	r.log.add(t, newOrder("").events[0])
	failing := func(failures int) (since time.Time) {
		eventually(t, func() error {
			var n int
			err := r.db.QueryRow(`SELECT failures, coalesce(failing_since, 'epoch') FROM webhook WHERE id = $1`, hook.GetId()).Scan(&n, &since)
			if err == nil && n < failures {
				err = fmt.Errorf("it has failed %d times", n)
			}
			return err
		})
		return since
	}
	if first := failing(1); !failing(3).Equal(first) {
		t.Errorf("it failed for the first time at %s, and after three times %s", first, failing(3))
	}
}

// A webhook may have millions of deliveries that wait, few of which were tried.
func TestDelivery_ThoseThatWereTriedAreFoundByTheirIndex(t *testing.T) {
	t.Parallel()
	r := start(t, quick)
	hook, _ := r.create(t, newReceiver(t, nil).URL)
	hook.State = webhooksv1.Webhook_PAUSED
	update(t, r, hook, "state")
	r.keep(t, hook.GetId(), "PENDING", 5000)
	if plan := r.planOf(t, beginAnew, hook.GetId()); !strings.Contains(plan, "delivery_tried") {
		t.Errorf("they are looked for among all that wait:\n%s", plan)
	}
}

func TestDelivery_OneThatFailsForTooLongIsGivenUpAndTheNextOfItsOrderIsDelivered(t *testing.T) {
	t.Parallel()
	d := quick
	d.RetryFor = 500 * time.Millisecond
	r := start(t, d)
	bad := newOrder("")
	v := newReceiver(t, func(w http.ResponseWriter, req request, _ int) {
		if strings.Contains(string(req.body), bad.id) && strings.Contains(string(req.body), "placed") {
			w.WriteHeader(http.StatusUnprocessableEntity)
			_, _ = w.Write([]byte("who is Ada?\x00"))
		}
	})
	hook, _ := r.create(t, v.URL)
	r.log.add(t, bad.events...)
	stop := make(chan struct{})
	ended := make(chan struct{})
	go func() { // others succeed meanwhile, so the webhook is not disabled
		defer close(ended)
		for {
			select {
			case <-stop:
				return
			case <-time.After(50 * time.Millisecond):
				r.log.add(t, newOrder("").events[0])
			}
		}
	}()
	eventually(t, func() error {
		list := r.deliveries(t, hook.GetId())
		if len(list) < 2 {
			return errors.New("there is no delivery")
		}
		first, second := list[len(list)-1], list[len(list)-2]
		if first.GetState() != webhooksv1.WebhookDelivery_FAILED || second.GetState() != webhooksv1.WebhookDelivery_DELIVERED {
			return fmt.Errorf("the first two: %v, %v", first, second)
		}
		if first.GetErrorMessage() != "the answer is 422" || first.GetResponseBody() != "who is Ada?\uFFFD" || first.GetAttempts() < 2 {
			return fmt.Errorf("the failed one: %v", first)
		}
		return nil
	})
	close(stop)
	<-ended
}

func TestDelivery_ReplicasShareTheWebhooksAndNothingIsSentTwice(t *testing.T) {
	t.Parallel()
	r := start(t, quick)
	r.replica(t, quick)
	var receivers []*receiver
	var orders []order
	for range 4 {
		v := newReceiver(t, nil)
		receivers = append(receivers, v)
		r.create(t, v.URL)
	}
	for range 100 {
		o := newOrder("")
		orders = append(orders, o)
		r.log.add(t, o.events...)
	}
	for _, v := range receivers {
		got := v.await(t, 200)
		checkOrder(t, orders, got)
	}
	pause(t, 2*deliverInterval) // for what is sent twice
	for i, v := range receivers {
		if n := len(v.requests()); n != 200 {
			t.Errorf("receiver %d got %d requests, want 200", i, n)
		}
	}
}

func TestDelivery_GoesOnAfterARestart(t *testing.T) {
	t.Parallel()
	r := start(t, quick)
	v := newReceiver(t, func(http.ResponseWriter, request, int) { pause(t, 2*time.Millisecond) })
	hook, _ := r.create(t, v.URL)
	var orders []order
	for i := range 100 {
		o := newOrder("")
		orders = append(orders, o)
		r.log.add(t, o.events...)
		if i%33 == 32 {
			r.stop()
			r.replica(t, quick)
		}
	}
	eventually(t, func() error { return r.allDelivered(hook.GetId(), 200) })
	checkOrder(t, orders, v.requests())
}

// A replica died while the database's clock was an hour ahead, which has gone back since.
func TestDelivery_ALeaseThatWasGivenWhileTheClockWasAheadIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	r := start(t, quick)
	v := newReceiver(t, nil)
	hook, _ := r.create(t, v.URL)
	r.log.add(t, newOrder("").events...)
	eventually(t, func() error { return r.allDelivered(hook.GetId(), 2) })
	r.stop()
	for _, statement := range []string{
		`UPDATE webhook SET lessee = gen_random_uuid(), leased_until = now() + interval '1 hour'`,
		`UPDATE log_position SET lessee = gen_random_uuid(), leased_until = now() + interval '1 hour'`,
	} {
		if _, err := r.db.Exec(statement); err != nil {
			t.Fatal(err)
		}
	}
	r.log.add(t, newOrder("").events...)
	r.replica(t, quick)
	eventually(t, func() error { return r.allDelivered(hook.GetId(), 4) })
}

func update(t *testing.T, r *rig, hook *webhooksv1.Webhook, fields ...string) *webhooksv1.Webhook {
	t.Helper()
	got, err := r.hooks.UpdateWebhook(as(t, "operator"), updateRequest(hook, fields...))
	if err != nil {
		t.Fatal(err)
	}
	return got.GetWebhook()
}

func TestSend_WhatMayNotBeCalledIsNotCalled(t *testing.T) {
	t.Parallel()
	v := newReceiver(t, nil)
	s, err := newSender(Delivery{Timeout: time.Second, Concurrency: 1})
	if err != nil {
		t.Fatal(err)
	}
	secure := strings.Replace(v.URL, "http://", "https://", 1)
	for _, url := range []string{v.URL, secure, strings.Replace(secure, "127.0.0.1", "localhost", 1), "https://[::1]:1/", "https://[::ffff:10.0.0.1]:1/", "https://169.254.169.254/latest"} {
		a := s.send(t.Context(), &webhook{URL: url, Secret: newSecret()}, event{Payload: "{}"})
		if a.delivered() || a.problem != errPrivateAddress.Error() {
			t.Errorf("%s: %+v", url, a)
		}
	}
	if n := len(v.requests()); n > 0 {
		t.Errorf("it got %d requests", n)
	}
}

func TestSend_ReceiversThatMisbehave(t *testing.T) {
	t.Parallel()
	elsewhere := newReceiver(t, nil)
	hang := make(chan struct{})
	d := quick
	d.Concurrency = 1
	s, err := newSender(d)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		answer      func(w http.ResponseWriter, r request, n int)
		delivered   bool
		status      int
		problem     string
		unreachable bool
	}{
		"a redirect": {func(w http.ResponseWriter, _ request, _ int) {
			w.Header().Set("Location", elsewhere.URL)
			w.WriteHeader(http.StatusTemporaryRedirect)
		}, false, 307, "the answer is a redirect (307), which is not followed: change the URL", false},
		"no answer":           {func(http.ResponseWriter, request, int) { <-hang }, false, 0, "no answer within 1s", true},
		"a connection closed": {func(http.ResponseWriter, request, int) { panic(http.ErrAbortHandler) }, false, 0, "EOF", true},
		"an endless answer": {func(w http.ResponseWriter, _ request, _ int) {
			for {
				if _, err := w.Write([]byte(strings.Repeat("x", 1000))); err != nil {
					return
				}
			}
		}, true, 200, "", false},
		"an endless header": {func(w http.ResponseWriter, _ request, _ int) {
			w.Header().Set("X-Long", strings.Repeat("x", 100_000))
		}, false, 0, "server response headers exceeded 16384 bytes", true},
	} {
		t.Run(name, func(t *testing.T) {
			v := newReceiver(t, c.answer)
			a := s.send(t.Context(), &webhook{URL: v.URL, Secret: newSecret()}, event{MessageID: "m", Payload: "{}"})
			if a.delivered() != c.delivered || a.status != c.status || !strings.Contains(a.problem, c.problem) || a.unreachable != c.unreachable || len(a.body) > maxAnswer {
				t.Errorf("got %+v", a)
			}
			if name == "no answer" {
				close(hang)
			}
		})
	}
	if n := len(elsewhere.requests()); n > 0 {
		t.Error("the redirect was followed")
	}
}

// lossy is a connection that takes what is written once it is dead, and loses it.
type lossy struct {
	net.Conn
	dead *atomic.Bool
}

func (l lossy) Write(b []byte) (int, error) {
	if l.dead.Load() {
		return len(b), nil
	}
	return l.Conn.Write(b)
}

// losing is a proxy whose first connection loses everything, in both directions, once dead is true.
func losing(t *testing.T, server string, dead *atomic.Bool) (address string) {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = lis.Close() })
	go func() {
		for loses := dead; ; loses = new(atomic.Bool) {
			from, err := lis.Accept()
			if err != nil {
				return
			}
			to, err := net.Dial("tcp", server)
			if err != nil {
				t.Error(err)
				return
			}
			t.Cleanup(func() { _ = errors.Join(from.Close(), to.Close()) })
			go func() { _, _ = io.Copy(lossy{to, loses}, from) }()
			go func() { _, _ = io.Copy(lossy{from, loses}, to) }()
		}
	}()
	return lis.Addr().String()
}

// A receiver that failed over without a word got nothing for minutes: each attempt went to the connection that nobody listened to.
func TestSend_ADeadConnectionOverHTTP2IsGivenUp(t *testing.T) {
	t.Parallel()
	v := &receiver{answer: func(w http.ResponseWriter, _ request, _ int) { w.WriteHeader(http.StatusNoContent) }, came: make(chan struct{}, 1)}
	v.Server = httptest.NewUnstartedServer(v)
	v.EnableHTTP2 = true
	v.StartTLS()
	t.Cleanup(v.Close)
	s, err := newSender(quick)
	if err != nil {
		t.Fatal(err)
	}
	s.clients["https"].Transport.(*http.Transport).TLSClientConfig = v.Client().Transport.(*http.Transport).TLSClientConfig
	dead := &atomic.Bool{}
	hook := &webhook{URL: "https://" + losing(t, v.Listener.Addr().String(), dead), Secret: newSecret()}
	if a := s.send(t.Context(), hook, event{MessageID: "m", Payload: "{}"}); !a.delivered() {
		t.Fatalf("got %+v", a)
	}
	dead.Store(true)
	if a := s.send(t.Context(), hook, event{MessageID: "m", Payload: "{}"}); a.problem != "no answer within 1s" {
		t.Errorf("over a dead connection: %+v", a)
	}
	eventually(t, func() error {
		if a := s.send(t.Context(), hook, event{MessageID: "m", Payload: "{}"}); !a.delivered() {
			return errors.New(a.problem)
		}
		return nil
	})
}

// A receiver that closed an idle connection as the next event was sent was an attempt that had failed with "EOF", and the event
// waited for the next one.
func TestSend_AConnectionThatTheReceiverClosesMeanwhileIsNoFailure(t *testing.T) {
	t.Parallel()
	v := newReceiver(t, func(_ http.ResponseWriter, _ request, n int) {
		if n == 2 {
			panic(http.ErrAbortHandler) // closes the connection without an answer
		}
	})
	s, err := newSender(quick)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if a := s.send(t.Context(), &webhook{URL: v.URL, Secret: newSecret()}, event{MessageID: "m", Payload: "{}"}); !a.delivered() {
			t.Errorf("got %+v", a)
		}
	}
	got := v.requests()
	if len(got) != 3 || got[2].id() != "m" || len(got[2].body) == 0 {
		t.Errorf("it got %+v", got)
	}
	for _, r := range got {
		if _, ok := r.header["Idempotency-Key"]; ok {
			t.Errorf("it got the header %v", r.header)
		}
	}
}

// Its owner could learn from what is wrong with an attempt what names resolve to inside.
func TestSend_AProblemNamesNoAddress(t *testing.T) {
	t.Parallel()
	d := quick
	d.Concurrency = 1
	s, err := newSender(d)
	if err != nil {
		t.Fatal(err)
	}
	closed := newReceiver(t, nil)
	closed.Close()
	resets := newReceiver(t, func(w http.ResponseWriter, _ request, _ int) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
		_ = conn.Close()
	})
	for want, url := range map[string]string{"connection refused": closed.URL, "connection reset by peer": resets.URL} {
		a := s.send(t.Context(), &webhook{URL: strings.Replace(url, "127.0.0.1", "localhost", 1), Secret: newSecret()}, event{MessageID: "m", Payload: "{}"})
		if !strings.Contains(a.problem, want) || regexp.MustCompile(`[0-9]+\.[0-9]+\.|::`).MatchString(a.problem) || !a.unreachable {
			t.Errorf("%s: %+v", want, a)
		}
	}
}

func TestRetryAfter_IsSecondsOrADate(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	for header, want := range map[string]time.Duration{
		"": 0, "30": 30 * time.Second, "-5": 0, "soon": 0, "Fri, 01 May 2026 12:01:00 GMT": time.Minute, "Fri, 01 May 2026 11:00:00 GMT": 0, "99999999": maxRetryAfter,
	} {
		if got := retryAfter(header, now); got != want {
			t.Errorf("%q: %s, want %s", header, got, want)
		}
	}
}

func TestCommonPattern_IsAsNarrowAsItCanBe(t *testing.T) {
	t.Parallel()
	for want, types := range map[string][]string{
		"shop.order.#":           {"shop.order.#"},
		"shop.order.confirmed.#": {"shop.order.confirmed"},
		"shop.#":                 {"shop.order.*", "shop.stock.changed"},
		"#":                      {"shop.order.#", "#"},
	} {
		if got := commonPattern([]subscriber{{EventTypes: types[:1]}, {EventTypes: types[1:]}}); got != want {
			t.Errorf("%q: %s, want %s", types, got, want)
		}
	}
}

func TestDelivery_WhileNothingIsDueTheDatabaseIsNotAsked(t *testing.T) {
	t.Parallel()
	r := start(t, quick)
	v := newReceiver(t, nil)
	hook, _ := r.create(t, v.URL)
	d := &deliverer{db: r.db, log: slog.New(slog.DiscardHandler)}
	until := func() time.Duration { return d.untilDue(t.Context()) }
	if wait := until(); wait != idleInterval {
		t.Errorf("before there is anything to deliver, looks again after %s", wait)
	}
	r.log.add(t, newOrder("").events...)
	eventually(t, func() error { return r.allDelivered(hook.GetId(), 2) })
	if wait := until(); wait != idleInterval {
		t.Errorf("when all is delivered, looks again after %s", wait)
	}
	r.stop()
	for due, want := range map[string]time.Duration{"-1 second": deliverInterval, "2 seconds": 2 * time.Second, "1 hour": idleInterval} {
		if _, err := r.db.Exec(`UPDATE delivery SET state = 'PENDING', next_attempt_at = now() + $1::interval`, due); err != nil {
			t.Fatal(err)
		}
		if wait := until(); wait > want || wait < max(want-time.Second, deliverInterval) {
			t.Errorf("with a delivery due in %s, looks again after %s", due, wait)
		}
	}
}
