package webhook

import (
	"math"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"shop.example/domain/customer"
	"shop.example/domain/enduser"
	customerv1 "shop.example/gen/shop/customer/v1"
	webhooksv1 "shop.example/gen/shop/webhooks/v1"
	"shop.example/platform/apierror"
)

func updateRequest(hook *webhooksv1.Webhook, fields ...string) *webhooksv1.UpdateWebhookRequest {
	return &webhooksv1.UpdateWebhookRequest{Webhook: hook, UpdateMask: &fieldmaskpb.FieldMask{Paths: fields}}
}

func TestWebhooks_WhatIsWrongIsNamed(t *testing.T) {
	t.Parallel()
	r := start(t, Delivery{})
	for want, hook := range map[string]*webhooksv1.Webhook{
		"url: must be a URL":                       {Url: "example", EventTypes: []string{"#"}},
		"url: must begin with https://":            {Url: "http://example.org/", EventTypes: []string{"#"}},
		"url: must have no user and password":      {Url: "https://ada:secret@example.org/", EventTypes: []string{"#"}},
		"url: must have no fragment":               {Url: "https://example.org/#a", EventTypes: []string{"#"}},
		"event_types: must name at least one":      {Url: "https://example.org/"},
		"event_types[1]: must be a routing key":    {Url: "https://example.org/", EventTypes: []string{"shop.order.*", "shop..order"}},
		"event_types[0]: must be a routing key":    {Url: "https://example.org/", EventTypes: []string{"#.#"}},
		"webhook.event_types[0]: must be at least": {Url: "https://example.org/", EventTypes: []string{""}},
	} {
		_, err := r.hooks.CreateWebhook(as(t, "operator"), &webhooksv1.CreateWebhookRequest{Webhook: hook})
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(status.Convert(err).Message(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	good := &webhooksv1.Webhook{Url: "https://example.org/", EventTypes: []string{"shop.order.#"}}
	created, err := r.hooks.CreateWebhook(as(t, "operator"), &webhooksv1.CreateWebhookRequest{Webhook: good})
	if err != nil {
		t.Fatal(err)
	}
	for want, req := range map[string]*webhooksv1.UpdateWebhookRequest{
		"state: must be ENABLED or PAUSED": updateRequest(&webhooksv1.Webhook{Id: created.GetWebhook().GetId(), State: webhooksv1.Webhook_DISABLED}, "state"),
		"update_mask: may name url":        updateRequest(&webhooksv1.Webhook{Id: created.GetWebhook().GetId()}, "secret"),
		"url: must be a URL":               updateRequest(&webhooksv1.Webhook{Id: created.GetWebhook().GetId()}, "url"),
	} {
		if _, err := r.hooks.UpdateWebhook(as(t, "operator"), req); status.Code(err) != codes.InvalidArgument || !strings.Contains(status.Convert(err).Message(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	// What was read can be sent back with a change.
	read := created.GetWebhook()
	read.Description = "of the warehouse"
	got := update(t, r, read, "id", "url", "event_types", "format", "description", "state", "created_at", "updated_at")
	if got.GetDescription() != "of the warehouse" || got.GetState() != webhooksv1.Webhook_ENABLED || got.GetUrl() != good.GetUrl() {
		t.Errorf("got %v", got)
	}
}

// Over gRPC and Connect an update without a mask was answered with OK, and nothing had changed.
func TestWebhooks_AnUpdateWithoutAMaskChangesWhatIsSet(t *testing.T) {
	t.Parallel()
	r := start(t, Delivery{})
	hook, _ := r.create(t, "https://example.org/")
	pause := &webhooksv1.Webhook{Id: hook.GetId(), State: webhooksv1.Webhook_PAUSED}
	if got := update(t, r, pause); got.GetState() != webhooksv1.Webhook_PAUSED || got.GetUrl() != hook.GetUrl() {
		t.Errorf("without a mask: %v", got)
	}
	hook.Description, hook.EventTypes = "all of it", []string{"#"}
	if got := update(t, r, hook, "*"); got.GetDescription() != "all of it" || got.GetEventTypes()[0] != "#" || got.GetState() != webhooksv1.Webhook_ENABLED {
		t.Errorf("with *: %v", got)
	}
}

func TestWebhooks_PauseKeepsEventsAndRedeliverySendsThemAgain(t *testing.T) {
	t.Parallel()
	r := start(t, quick)
	v := newReceiver(t, nil)
	hook, _ := r.create(t, v.URL)
	hook.State = webhooksv1.Webhook_PAUSED
	update(t, r, hook, "state")
	logged := r.log.add(t, newOrder("").events...)
	eventually(t, func() error {
		if n := len(r.deliveries(t, hook.GetId())); n != 2 {
			return status.Errorf(codes.Unknown, "%d deliveries", n)
		}
		return nil
	})
	pause(t, 2*deliverInterval)
	if n := len(v.requests()); n > 0 {
		t.Errorf("a paused webhook got %d requests", n)
	}
	first := r.deliveries(t, hook.GetId())[1]
	again := &webhooksv1.RedeliverWebhookRequest{WebhookId: hook.GetId(), DeliveryId: first.GetId()}
	if _, err := r.hooks.RedeliverWebhook(as(t, "operator"), again); apierror.ReasonOf(err) != "WEBHOOK_NOT_ENABLED" {
		t.Errorf("redelivery to a paused webhook: %v", err)
	}
	hook.State = webhooksv1.Webhook_ENABLED
	update(t, r, hook, "state")
	v.await(t, 2)
	eventually(t, func() error { return r.allDelivered(hook.GetId(), 2) })
	if _, err := r.hooks.RedeliverWebhook(as(t, "operator"), again); err != nil {
		t.Fatal(err)
	}
	if got := v.await(t, 3)[2]; got.id() != logged[0].GetMessageId() {
		t.Errorf("%s was sent again", got.body)
	}
	eventually(t, func() error { return r.allDelivered(hook.GetId(), 2) })
	again.DeliveryId = 1 << 40
	if _, err := r.hooks.RedeliverWebhook(as(t, "operator"), again); apierror.ReasonOf(err) != "WEBHOOK_DELIVERY_NOT_FOUND" {
		t.Errorf("redelivery of nothing: %v", err)
	}
}

// All attempts that there had ever been counted: who sent a delivery again by hand waited an hour if the first attempt failed.
func TestWebhooks_RedeliveryBeginsWithTheFirstWait(t *testing.T) {
	t.Parallel()
	r := start(t, quick)
	v := newReceiver(t, func(w http.ResponseWriter, _ request, n int) {
		if n == 2 {
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
	hook, _ := r.create(t, v.URL)
	r.log.add(t, newOrder("").events[0])
	eventually(t, func() error { return r.allDelivered(hook.GetId(), 1) })
	if _, err := r.db.Exec(`UPDATE delivery SET state = 'FAILED', attempts = 10, failures = 10`); err != nil {
		t.Fatal(err)
	}
	_, err := r.hooks.RedeliverWebhook(as(t, "operator"), &webhooksv1.RedeliverWebhookRequest{
		WebhookId: hook.GetId(), DeliveryId: r.deliveries(t, hook.GetId())[0].GetId(),
	})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error { return r.allDelivered(hook.GetId(), 1) })
	if n := r.deliveries(t, hook.GetId())[0].GetAttempts(); n != 12 {
		t.Errorf("attempts: %d, want those from before too", n)
	}
}

// The list of what was given up read all deliveries of a webhook that had few such, or none.
func TestWebhooks_FailedDeliveriesAreFoundByTheirIndex(t *testing.T) {
	t.Parallel()
	r := start(t, quick)
	hook, _ := r.create(t, newReceiver(t, nil).URL)
	r.keep(t, hook.GetId(), "DELIVERED", 5000)
	if plan := r.planOf(t, pageOfDeliveries, hook.GetId(), int64(math.MaxInt64), "FAILED", 51); !strings.Contains(plan, "delivery_failed") {
		t.Errorf("they are looked for among all:\n%s", plan)
	}
}

// A client of gRPC could not read a page of 1,000 deliveries whose receiver had answered with a text, nor one of webhooks with long URLs.
func TestWebhooks_PagesAreBoundedByBytes(t *testing.T) {
	t.Parallel()
	r := start(t, quick)
	hook, _ := r.create(t, newReceiver(t, nil).URL)
	r.keep(t, hook.GetId(), "FAILED", 1000)
	for _, statement := range []string{
		`UPDATE delivery SET response_body = repeat('x', 4096)`,
		`INSERT INTO webhook (id, owner, url, event_types, format, description, secret)
			SELECT ('00000000-0000-7000-8000-' || lpad(n::text, 12, '0'))::uuid, '', 'https://receiver.example/' || repeat('x', 4500), '{}', 'STANDARD', '', ''
			FROM generate_series(1, 999) AS n`,
	} {
		if _, err := r.db.Exec(statement); err != nil {
			t.Fatal(err)
		}
	}
	deliveries, webhooks := map[int64]bool{}, map[string]bool{}
	for token, first := "", true; first || token != ""; first = false {
		page, err := r.hooks.ListWebhookDeliveries(t.Context(), &webhooksv1.ListWebhookDeliveriesRequest{WebhookId: hook.GetId(), PageSize: 1000, PageToken: token})
		if err != nil || len(page.GetDeliveries()) == 0 {
			t.Fatalf("a page has %d deliveries, %v", len(page.GetDeliveries()), err)
		}
		for _, d := range page.GetDeliveries() {
			deliveries[d.GetId()] = true
		}
		token = page.GetNextPageToken()
	}
	for token, first := "", true; first || token != ""; first = false {
		page, err := r.hooks.ListWebhooks(as(t, "operator"), &webhooksv1.ListWebhooksRequest{PageSize: 1000, PageToken: token})
		if err != nil || len(page.GetWebhooks()) == 0 {
			t.Fatalf("a page has %d webhooks, %v", len(page.GetWebhooks()), err)
		}
		for _, w := range page.GetWebhooks() {
			webhooks[w.GetId()] = true
		}
		token = page.GetNextPageToken()
	}
	if len(deliveries) != 1000 || len(webhooks) != 1000 {
		t.Errorf("%d deliveries and %d webhooks are listed, want 1,000 of each", len(deliveries), len(webhooks))
	}
}

func TestWebhooks_AreListedInPagesAndDeleted(t *testing.T) {
	t.Parallel()
	r := start(t, quick)
	v := newReceiver(t, nil)
	var ids []string
	for range 5 {
		hook, _ := r.create(t, v.URL)
		ids = append(ids, hook.GetId())
	}
	r.log.add(t, newOrder("").events...)
	v.await(t, 10)
	var listed []string
	for token := ""; ; {
		page, err := r.hooks.ListWebhooks(as(t, "operator"), &webhooksv1.ListWebhooksRequest{PageSize: 2, PageToken: token})
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range page.GetWebhooks() {
			listed = append([]string{w.GetId()}, listed...)
		}
		if token = page.GetNextPageToken(); token == "" {
			break
		}
	}
	if strings.Join(listed, " ") != strings.Join(ids, " ") {
		t.Errorf("listed %v, want %v", listed, ids)
	}
	page, err := r.hooks.ListWebhookDeliveries(as(t, "operator"), &webhooksv1.ListWebhookDeliveriesRequest{WebhookId: ids[0], PageSize: 1})
	if err != nil || len(page.GetDeliveries()) != 1 || page.GetNextPageToken() == "" {
		t.Fatalf("got %v, %v", page, err)
	}
	page, err = r.hooks.ListWebhookDeliveries(as(t, "operator"), &webhooksv1.ListWebhookDeliveriesRequest{WebhookId: ids[0], PageSize: 1, PageToken: page.GetNextPageToken()})
	if err != nil || len(page.GetDeliveries()) != 1 || page.GetNextPageToken() != "" || page.GetDeliveries()[0].GetEventType() != "shop.order.placed" {
		t.Fatalf("got %v, %v", page, err)
	}
	for _, id := range ids {
		if _, err := r.hooks.DeleteWebhook(as(t, "operator"), &webhooksv1.DeleteWebhookRequest{WebhookId: id}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.hooks.GetWebhook(as(t, "operator"), &webhooksv1.GetWebhookRequest{WebhookId: ids[0]}); apierror.ReasonOf(err) != "WEBHOOK_NOT_FOUND" {
		t.Errorf("a deleted webhook: %v", err)
	}
	// Nobody wants anything: the log is not followed any more. One that is created follows it from its end.
	eventually(t, r.isIdle)
	r.log.add(t, newOrder("").events...)
	before := len(v.requests())
	r.create(t, v.URL)
	o := newOrder("")
	r.log.add(t, o.events[0])
	if got := v.await(t, before+1)[before].envelope(t); got.Data.OrderID != o.id {
		t.Errorf("the first event is of order %s", got.Data.OrderID)
	}
}

// Whoever creates a webhook gets what happens from then on, also if others have webhooks for other events.
func TestWebhooks_NothingIsMissedAfterTheCreation(t *testing.T) {
	t.Parallel()
	r := start(t, quick)
	narrow, wide := newReceiver(t, nil), newReceiver(t, nil)
	for _, c := range []struct {
		url  string
		kind string
	}{{narrow.URL, "shop.order.placed"}, {wide.URL, "shop.order.rejected"}} {
		_, err := r.hooks.CreateWebhook(as(t, "operator"), &webhooksv1.CreateWebhookRequest{Webhook: &webhooksv1.Webhook{Url: c.url, EventTypes: []string{c.kind}}})
		if err != nil {
			t.Fatal(err)
		}
		r.log.add(t, newOrder("").events...)
	}
	wide.await(t, 1)
	for i, req := range narrow.await(t, 2) {
		if e := req.envelope(t); e.Type != "shop.order.placed" {
			t.Errorf("request %d is of %s", i, e.Type)
		}
	}
}

// The log had lost how the order began, and got it again later.
func TestWebhooks_AnOrderThatIsKnownLateIsItsOwnersFromThenOn(t *testing.T) {
	t.Parallel()
	r := start(t, quick)
	adas := newReceiver(t, nil)
	if _, err := r.hooks.CreateWebhook(as(t, "ada"), &webhooksv1.CreateWebhookRequest{Webhook: &webhooksv1.Webhook{Url: adas.URL, EventTypes: []string{"#"}}}); err != nil {
		t.Fatal(err)
	}
	late, other := newOrder(enduser.Owner(issuer, "ada")), newOrder(enduser.Owner(issuer, "ada"))
	r.log.add(t, late.events[1])
	r.log.add(t, other.events...)
	adas.await(t, 2) // those of the other order: the follower has given up waiting
	r.log.add(t, late.events...)
	types := map[string]int{}
	for _, req := range adas.await(t, 4) {
		if e := req.envelope(t); e.Data.OrderID == late.id {
			types[e.Type]++
		}
	}
	if types["shop.order.placed"] != 1 || types["shop.order.rejected"] != 1 {
		t.Errorf("Ada got %v of the order", types)
	}
}

func TestWebhooks_ACustomerGetsWhatIsTheirs(t *testing.T) {
	t.Parallel()
	r := start(t, quick)
	adas, eves, all := newReceiver(t, nil), newReceiver(t, nil), newReceiver(t, nil)
	before := newOrder(enduser.Owner(issuer, "ada"))
	r.log.add(t, before.events[0])
	r.create(t, all.URL)
	ids := map[string]string{}
	for subject, v := range map[string]*receiver{"ada": adas, "eve": eves} {
		created, err := r.hooks.CreateWebhook(as(t, subject), &webhooksv1.CreateWebhookRequest{Webhook: &webhooksv1.Webhook{Url: v.URL, EventTypes: []string{"#"}}})
		if err != nil {
			t.Fatal(err)
		}
		ids[subject] = created.GetWebhook().GetId()
	}
	adasOrder, nobodys := newOrder(enduser.Owner(issuer, "ada")), newOrder("")
	r.log.add(t, nobodys.events...)
	r.log.add(t, adasOrder.events...)
	r.log.add(t, before.events[1])
	all.await(t, 5)
	for _, req := range adas.await(t, 3) {
		if e := req.envelope(t); e.Data.OrderID != adasOrder.id && e.Data.OrderID != before.id {
			t.Errorf("Ada got %s", req.body)
		}
	}
	pause(t, 2*deliverInterval)
	if got := eves.requests(); len(got) > 0 {
		t.Errorf("Eve got %s", got[0].body)
	}
	if n := len(adas.requests()); n != 3 {
		t.Errorf("Ada got %d requests, want 3", n)
	}
	for who, sees := range map[string]int{"ada": 1, "eve": 1, "operator": 3, "nobody": 0} {
		list, err := r.hooks.ListWebhooks(as(t, who), &webhooksv1.ListWebhooksRequest{})
		if err != nil || len(list.GetWebhooks()) != sees {
			t.Errorf("%s sees %v, %v", who, list, err)
		}
	}
	eve := as(t, "eve")
	_, getErr := r.hooks.GetWebhook(eve, &webhooksv1.GetWebhookRequest{WebhookId: ids["ada"]})
	_, updateErr := r.hooks.UpdateWebhook(eve, updateRequest(&webhooksv1.Webhook{Id: ids["ada"], Url: "https://example.org"}, "url"))
	_, rotateErr := r.hooks.RotateWebhookSecret(eve, &webhooksv1.RotateWebhookSecretRequest{WebhookId: ids["ada"]})
	_, testErr := r.hooks.TestWebhook(eve, &webhooksv1.TestWebhookRequest{WebhookId: ids["ada"]})
	_, listErr := r.hooks.ListWebhookDeliveries(eve, &webhooksv1.ListWebhookDeliveriesRequest{WebhookId: ids["ada"]})
	_, againErr := r.hooks.RedeliverWebhook(eve, &webhooksv1.RedeliverWebhookRequest{WebhookId: ids["ada"], DeliveryId: 1})
	_, deleteErr := r.hooks.DeleteWebhook(eve, &webhooksv1.DeleteWebhookRequest{WebhookId: ids["ada"]})
	for what, err := range map[string]error{"get": getErr, "update": updateErr, "rotate": rotateErr, "test": testErr, "list": listErr, "redeliver": againErr, "delete": deleteErr} {
		if apierror.ReasonOf(err) != "WEBHOOK_NOT_FOUND" {
			t.Errorf("Eve may %s Ada's: %v", what, err)
		}
	}
	for range maxOfOwner - 1 {
		if _, err := r.hooks.CreateWebhook(eve, &webhooksv1.CreateWebhookRequest{Webhook: &webhooksv1.Webhook{Url: eves.URL, EventTypes: []string{"#"}}}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.hooks.CreateWebhook(eve, &webhooksv1.CreateWebhookRequest{Webhook: &webhooksv1.Webhook{Url: eves.URL, EventTypes: []string{"#"}}}); apierror.ReasonOf(err) != "TOO_MANY_WEBHOOKS" {
		t.Errorf("one too many: %v", err)
	}
}

// The follower passed by, and the customer was never told.
func TestWebhooks_ACustomerGetsAnEventThatWasLoggedBeforeTheirOrder(t *testing.T) {
	t.Parallel()
	r := start(t, quick)
	adas, all := newReceiver(t, nil), newReceiver(t, nil)
	r.create(t, all.URL)
	if _, err := r.hooks.CreateWebhook(as(t, "ada"), &webhooksv1.CreateWebhookRequest{Webhook: &webhooksv1.Webhook{Url: adas.URL, EventTypes: []string{"#"}}}); err != nil {
		t.Fatal(err)
	}
	adasOrder := newOrder(enduser.Owner(issuer, "ada"))
	r.log.add(t, adasOrder.events[1])
	pause(t, 2*deliverInterval)
	r.log.add(t, adasOrder.events[0])
	for i, want := range []string{"shop.order.rejected", "shop.order.placed"} { // as the log has them
		if got := adas.await(t, 2)[i].envelope(t); got.Type != want {
			t.Errorf("request %d is about %s, want %s", i, got.Type, want)
		}
	}

	orphan, next := newOrder(""), newOrder("")
	r.log.add(t, orphan.events[1]) // its OrderPlaced was deleted with the old events: it holds nobody up for long
	r.log.add(t, next.events...)
	all.await(t, 5)
	if n := len(adas.requests()); n != 2 {
		t.Errorf("Ada got %d requests, want 2", n)
	}
}

func TestWebhooks_ATestSaysWhatCameOfIt(t *testing.T) {
	t.Parallel()
	r := start(t, quick)
	v := newReceiver(t, nil)
	hook, _ := r.create(t, v.URL)
	got, err := r.hooks.TestWebhook(as(t, "operator"), &webhooksv1.TestWebhookRequest{WebhookId: hook.GetId()})
	if err != nil || !got.GetDelivered() || got.GetResponseStatus() != 200 {
		t.Errorf("got %v, %v", got, err)
	}
	if e := v.await(t, 1)[0].envelope(t); e.Type != testType {
		t.Errorf("it got %+v", e)
	}
	v.Close()
	got, err = r.hooks.TestWebhook(as(t, "operator"), &webhooksv1.TestWebhookRequest{WebhookId: hook.GetId()})
	if err != nil || got.GetDelivered() || !strings.Contains(got.GetErrorMessage(), "connection refused") {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestPersonalData_IsExportedAndErased(t *testing.T) {
	t.Parallel()
	r := start(t, quick)
	v := newReceiver(t, nil)
	hook, _ := r.create(t, v.URL)
	adasHook, err := r.hooks.CreateWebhook(as(t, "ada"), &webhooksv1.CreateWebhookRequest{Webhook: &webhooksv1.Webhook{Url: v.URL, EventTypes: []string{"#"}}})
	if err != nil {
		t.Fatal(err)
	}
	hook.State = webhooksv1.Webhook_PAUSED
	update(t, r, hook, "state")
	r.log.add(t, newOrder(enduser.Owner(issuer, "ada")).events...)
	v.await(t, 2)
	eventually(t, func() error { return r.allDelivered(adasHook.GetWebhook().GetId(), 2) })
	person := &customerv1.Person{Email: "ADA@example.org", Owner: enduser.Owner(issuer, "ada")}
	found, err := r.personal.FindPersonalData(as(t, "operator"), &customerv1.FindPersonalDataRequest{Person: person})
	if err != nil || len(found.GetRecords()) != 2 || found.GetRecords()[0].GetWebhook().GetId() != adasHook.GetWebhook().GetId() ||
		found.GetRecords()[1].GetEvent().GetPayload().GetFields()["customer_name"].GetStringValue() != "Ada" {
		t.Errorf("found %v, %v", found, err)
	}
	erased, err := r.personal.ErasePersonalData(as(t, "operator"), &customerv1.ErasePersonalDataRequest{Person: person})
	if err != nil || erased.GetWebhooks() != 1 || erased.GetWebhookEvents() != 1 {
		t.Errorf("erased %v, %v", erased, err)
	}
	found, err = r.personal.FindPersonalData(as(t, "operator"), &customerv1.FindPersonalDataRequest{Person: person})
	if err != nil || len(found.GetRecords()) > 0 {
		t.Errorf("found again %v, %v", found, err)
	}
	var left string
	if err := r.db.Get(&left, `SELECT string_agg(payload, ' ') FROM event`); err != nil || regexp.MustCompile(`(?i)\bada\b`).MatchString(left) || !strings.Contains(left, customer.Erased) {
		t.Errorf("left: %s, %v", left, err)
	}
	// What is left of it is not sent, and the next event of the order is.
	before := len(v.requests())
	hook.State = webhooksv1.Webhook_ENABLED
	update(t, r, hook, "state")
	if e := v.await(t, before+1)[before].envelope(t); e.Type != "shop.order.rejected" {
		t.Errorf("it got %+v", e)
	}
}
