package webhook

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	"shop.example/domain/customer"
	"shop.example/domain/enduser"
	customerv1 "shop.example/gen/shop/customer/v1"
	eventsv1 "shop.example/gen/shop/events/v1"
	webhooksv1 "shop.example/gen/shop/webhooks/v1"
	"shop.example/platform/contract"
)

// markedIn are the fields of a message, and of those in it, that the contract marks as personal data.
func markedIn(md protoreflect.MessageDescriptor, path string, in []protoreflect.FullName) (paths []string) {
	if slices.Contains(in, md.FullName()) {
		return nil
	}
	for i := range md.Fields().Len() {
		fd := md.Fields().Get(i)
		if options, ok := fd.Options().(*descriptorpb.FieldOptions); ok && options.GetDebugRedact() {
			paths = append(paths, path+string(fd.Name()))
		} else if fd.Message() != nil {
			paths = append(paths, markedIn(fd.Message(), path+string(fd.Name())+".", append(in, md.FullName()))...)
		}
	}
	return paths
}

// An event that gets a field with personal data is delivered with it. Whoever adds one has to say here who gets it, and in
// personal.go how it is erased.
func TestPersonalData_EventsThatMayCarryIt(t *testing.T) {
	t.Parallel()
	want := map[protoreflect.Name][]string{
		// To operators, and to the customer whose order it is.
		"OrderPlaced": {"customer_email", "customer_name", "owner"},
		// To operators alone: it belongs to no order. Their names are kept as records are, and not erased.
		"OperatorActed": {"operator"},
	}
	got := map[protoreflect.Name][]string{}
	protoregistry.GlobalTypes.RangeMessages(func(mt protoreflect.MessageType) bool {
		event, ok := contract.EventOf(mt.Zero().Interface())
		if marked := markedIn(mt.Descriptor(), "", nil); ok && !event.IsRequest() && len(marked) > 0 {
			got[mt.Descriptor().Name()] = slices.Sorted(slices.Values(marked))
		}
		return true
	})
	if !maps.EqualFunc(got, want, slices.Equal) {
		t.Errorf("marked as personal data are %v, want %v", got, want)
	}
}

// placedBy is an OrderPlaced in which each field that is marked has a value of its own.
func placedBy(who string) (placed *eventsv1.OrderPlaced, marks []string) {
	placed = newOrder("").events[0].(*eventsv1.OrderPlaced)
	for _, field := range customer.PersonalFields(placed) {
		mark := fmt.Sprintf("%s.%s@example.org", who, field.Name())
		if field.Name() == "owner" {
			mark = enduser.Owner(issuer, who)
		}
		placed.ProtoReflect().Set(field, protoreflect.ValueOfString(mark))
		marks = append(marks, mark)
	}
	return placed, marks
}

// dump is all that the service has stored.
func (r *rig) dump(t *testing.T) string {
	t.Helper()
	var all []string
	for _, table := range []string{"webhook", "event", "delivery", "log_position"} {
		var rows []string
		if err := r.db.Select(&rows, `SELECT t::text FROM `+table+` t`); err != nil {
			t.Fatal(err)
		}
		all = append(all, rows...)
	}
	return strings.Join(all, "\n")
}

// createFor makes a webhook of somebody for all events.
func (r *rig) createFor(t *testing.T, who, url string) string {
	t.Helper()
	created, err := r.hooks.CreateWebhook(as(t, who), &webhooksv1.CreateWebhookRequest{Webhook: &webhooksv1.Webhook{Url: url, EventTypes: []string{"#"}}})
	if err != nil {
		t.Fatal(err)
	}
	return created.GetWebhook().GetId()
}

func (r *rig) erase(t *testing.T, person *customerv1.Person) {
	t.Helper()
	if _, err := r.personal.ErasePersonalData(as(t, "operator"), &customerv1.ErasePersonalDataRequest{Person: person}); err != nil {
		t.Fatal(err)
	}
}

// A field that is marked as personal data in the contract and forgotten here would stay in what is kept to be delivered, and so
// would what receivers have answered: it may repeat what they got, for a later event of the order too.
func TestPersonalData_EachMarkedFieldReachesWhoMaySeeItAndIsErased(t *testing.T) {
	t.Parallel()
	r := start(t, quick)
	placed, marks := placedBy("ada")
	later := &eventsv1.OrderRejected{OrderId: placed.GetOrderId(), Reason: eventsv1.OrderRejected_OUT_OF_STOCK, RejectedAt: placed.GetPlacedAt()}
	echo := func(w http.ResponseWriter, req request, _ int) {
		if strings.Contains(string(req.body), placed.GetOrderId()) {
			_, _ = fmt.Fprintf(w, "an order of %s", strings.Join(marks, ", "))
		}
	}
	operators, adas, eves := newReceiver(t, echo), newReceiver(t, echo), newReceiver(t, echo)
	hooks := map[string]int{r.createFor(t, "operator", operators.URL): 3, r.createFor(t, "ada", adas.URL): 2, r.createFor(t, "eve", eves.URL): 0}
	acted := enduser.Acted("olive", "/shop.inventory.v1.InventoryService/DeleteItem", "item 1", "deleted")
	r.log.add(t, placed, later, acted)
	for hook, n := range hooks {
		eventually(t, func() error { return r.allDelivered(hook, n) })
	}
	for who, v := range map[string]*receiver{"an operator": operators, "Ada": adas} {
		var got strings.Builder
		for _, req := range v.requests() {
			got.Write(req.body)
		}
		for _, mark := range marks {
			if !strings.Contains(got.String(), mark) {
				t.Errorf("%s did not get %q: %s", who, mark, &got)
			}
		}
		if strings.Contains(got.String(), "olive") != (v == operators) {
			t.Errorf("%s got what an operator did: %s", who, &got)
		}
	}
	if got := eves.requests(); len(got) > 0 {
		t.Errorf("Eve got %s", got[0].body)
	}
	before := r.dump(t)
	for _, mark := range marks {
		if strings.Count(before, mark) < 3 { // the event, and the answers to both events
			t.Errorf("%q is not stored: %s", mark, before)
		}
	}
	r.erase(t, &customerv1.Person{Email: placed.GetCustomerEmail()})
	left := r.dump(t)
	for i, field := range customer.PersonalFields(placed) {
		// Ada's webhook is hers until her owner is erased.
		if strings.Count(left, marks[i]) > 0 && field.Name() != "owner" || strings.Count(left, marks[i]) > 1 {
			t.Errorf("OrderPlaced.%s is personal data and not erased: %s", field.Name(), left)
		}
	}
	r.erase(t, &customerv1.Person{Owner: placed.GetOwner()})
	if left := r.dump(t); strings.Contains(left, placed.GetOwner()) {
		t.Errorf("the owner is left: %s", left)
	}
}

// What receivers had answered was erased only if the OrderPlaced, which says whose the order is, was kept for some webhook.
func TestPersonalData_AnswersToOtherEventsThanOrderPlacedAreErased(t *testing.T) {
	t.Parallel()
	r := start(t, quick)
	adas, bobs := newOrder("").events[1], newOrder("").events[1]
	v := newReceiver(t, func(w http.ResponseWriter, req request, _ int) {
		who := "bob@example.org"
		if strings.Contains(string(req.body), adas.(*eventsv1.OrderRejected).GetOrderId()) {
			who = "Ada@Example.org"
		}
		_, _ = fmt.Fprintf(w, "mailed %s.", who)
	})
	created, err := r.hooks.CreateWebhook(as(t, "operator"), &webhooksv1.CreateWebhookRequest{
		Webhook: &webhooksv1.Webhook{Url: v.URL, EventTypes: []string{"shop.order.rejected"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	r.log.add(t, adas, bobs)
	eventually(t, func() error { return r.allDelivered(created.GetWebhook().GetId(), 2) })
	if before := r.dump(t); !strings.Contains(before, "mailed Ada@Example.org.") {
		t.Fatalf("stored is %s", before)
	}
	r.erase(t, &customerv1.Person{Email: "ada@example.org"})
	if left := r.dump(t); strings.Contains(left, "Ada@") || !strings.Contains(left, "mailed bob@example.org.") {
		t.Errorf("left is %s", left)
	}
}

// planOf returns how PostgreSQL would execute a statement.
func (r *rig) planOf(t *testing.T, statement string, args ...any) string {
	t.Helper()
	var plan []string
	if err := r.db.Select(&plan, `EXPLAIN `+statement, args...); err != nil {
		t.Fatal(err)
	}
	return strings.Join(plan, "\n")
}

// keep stores n deliveries of a webhook in a state, each of an event of its own, and has PostgreSQL count them.
func (r *rig) keep(t *testing.T, hook, state string, n int) {
	t.Helper()
	_, err := r.db.Exec(`
		WITH kept AS (
			INSERT INTO event (id, message_id, routing_key, order_id, payload, published_at)
			SELECT 1000000 + n, gen_random_uuid(), 'shop.order.rejected', gen_random_uuid(), '{}', now() FROM generate_series(1, $3::bigint) AS n
			RETURNING id, order_id)
		INSERT INTO delivery (event_id, webhook_id, order_id, state) SELECT id, $1, order_id, $2 FROM kept ORDER BY id`, hook, state, n)
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range []string{"event", "delivery"} {
		if _, err := r.db.Exec(`ANALYZE ` + table); err != nil {
			t.Fatal(err)
		}
	}
}

// The erasure of somebody read all deliveries once for each of their orders, and never came to its end with some millions.
func TestPersonalData_TheErasureOfAnOrderDoesNotReadAllDeliveries(t *testing.T) {
	t.Parallel()
	r := start(t, quick)
	hook, _ := r.create(t, newReceiver(t, nil).URL)
	r.keep(t, hook.GetId(), "DELIVERED", 5000)
	if plan := r.planOf(t, eraseAnswers, 1000001, uuid.NewString()); strings.Contains(plan, "Seq Scan") || !strings.Contains(plan, "delivery_pkey") {
		t.Errorf("deliveries are not found by their event:\n%s", plan)
	}
}

// The deliveries of somebody's webhooks went with the webhooks, in one statement, which many of them do not get through in time.
func TestPersonalData_ManyDeliveriesOfSomebodysWebhookAreDeletedInParts(t *testing.T) {
	t.Parallel()
	r := start(t, quick)
	hook := r.createFor(t, "ada", newReceiver(t, nil).URL)
	r.keep(t, hook, "DELIVERED", 2*deleteSlice+1)
	_, err := r.db.Exec(`
		CREATE FUNCTION refuse_many() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
			IF (SELECT count(*) FROM gone) > ` + strconv.Itoa(deleteSlice) + ` THEN RAISE 'the statement deletes too much to end in time'; END IF;
			RETURN NULL;
		END $$;
		CREATE TRIGGER refuse_many AFTER DELETE ON delivery REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION refuse_many()`)
	if err != nil {
		t.Fatal(err)
	}
	r.erase(t, &customerv1.Person{Owner: enduser.Owner(issuer, "ada")})
	var left int
	if err := r.db.Get(&left, `SELECT count(*) FROM delivery`); err != nil || left > 0 {
		t.Errorf("%d deliveries are left, %v", left, err)
	}
}

// What the follower had read of the log when a person was erased there was written afterwards, and delivered.
func TestPersonalData_WhatWasReadOfTheLogBeforeIsReadAgain(t *testing.T) {
	t.Parallel()
	r := start(t, quick)
	v := newReceiver(t, nil)
	hook, _ := r.create(t, v.URL)
	r.log.add(t, newOrder("").events[1])
	v.await(t, 1) // so it follows the log
	placed, marks := placedBy("ada")
	tx, err := r.db.Beginx()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }()
	if _, err := tx.Exec(`UPDATE log_position SET generation = generation + 1`); err != nil { // as an erasure begins
		t.Fatal(err)
	}
	logged := r.log.add(t, placed)[0]
	eventually(t, func() error {
		var waiting bool
		err := r.db.Get(&waiting, `
			SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%UPDATE log_position%')`)
		if err == nil && !waiting {
			err = errors.New("the follower does not write")
		}
		return err
	})
	customer.Erase(placed)
	r.log.replace(t, logged.GetId(), placed)
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	next := newOrder("").events[1]
	r.log.add(t, next)
	if got := v.await(t, 2)[1].envelope(t); got.Type != "shop.order.rejected" {
		t.Errorf("the next event is %+v", got)
	}
	eventually(t, func() error { return r.allDelivered(hook.GetId(), 2) })
	if left := r.dump(t); strings.Contains(left, marks[0]) {
		t.Errorf("stored is %s", left)
	}
}

// What a replica had read to be sent when a person was erased was sent afterwards.
func TestPersonalData_WhatWaitsToBeSentIsReadAgain(t *testing.T) {
	t.Parallel()
	r := start(t, quick)
	hold := make(chan struct{})
	v := newReceiver(t, func(_ http.ResponseWriter, _ request, n int) {
		if n == 1 {
			<-hold
		}
	})
	hook, _ := r.create(t, v.URL)
	hook.State = webhooksv1.Webhook_PAUSED
	update(t, r, hook, "state")
	bobs, _ := placedBy("bob")
	adas, marks := placedBy("ada")
	r.log.add(t, bobs, adas)
	eventually(t, func() error {
		if n := len(r.deliveries(t, hook.GetId())); n != 2 {
			return fmt.Errorf("%d deliveries", n)
		}
		return nil
	})
	hook.State = webhooksv1.Webhook_ENABLED
	update(t, r, hook, "state")
	v.await(t, 1) // the other one was read with it
	r.erase(t, &customerv1.Person{Email: adas.GetCustomerEmail()})
	close(hold)
	r.log.add(t, newOrder("").events[1])
	for _, req := range v.await(t, 2) {
		if strings.Contains(string(req.body), marks[0]) {
			t.Errorf("sent is %s", req.body)
		}
	}
}

// An attempt waits for its place as long as other receivers take theirs, and then sent what it had been given: to whom did not want it any
// more, and with the personal data of somebody who had been erased.
func TestDelivery_WhatHasChangedWhileAnAttemptWaitedIsNotSent(t *testing.T) {
	t.Parallel()
	r := start(t, quick)
	for change, do := range map[string]func(t *testing.T, hook *webhooksv1.Webhook, person *customerv1.Person){
		"nothing": nil,
		"the person was erased": func(t *testing.T, _ *webhooksv1.Webhook, person *customerv1.Person) {
			r.erase(t, person)
		},
		"the webhook was paused": func(t *testing.T, hook *webhooksv1.Webhook, _ *customerv1.Person) {
			hook.State = webhooksv1.Webhook_PAUSED
			update(t, r, hook, "state")
		},
		"the webhook was deleted": func(t *testing.T, hook *webhooksv1.Webhook, _ *customerv1.Person) {
			if _, err := r.hooks.DeleteWebhook(as(t, "operator"), &webhooksv1.DeleteWebhookRequest{WebhookId: hook.GetId()}); err != nil {
				t.Fatal(err)
			}
		},
		"the URL was changed": func(t *testing.T, hook *webhooksv1.Webhook, _ *customerv1.Person) {
			hook.Url += "/new"
			update(t, r, hook, "url")
		},
	} {
		t.Run(change, func(t *testing.T) {
			v := newReceiver(t, nil)
			hook, _ := r.create(t, v.URL)
			w := r.lease(t, hook.GetId())
			placed, _ := placedBy(strings.ReplaceAll(change, " ", "-"))
			r.log.add(t, placed)
			eventually(t, func() error {
				if _, err := w.fill(t.Context()); err != nil || len(w.queue) == 0 {
					return fmt.Errorf("nothing is due: %w", err)
				}
				return nil
			})
			places, ended := make(chan struct{}), make(chan result, 1)
			go func() {
				ended <- w.attempt(t.Context(), t.Context(), w.hook, w.queue[0], time.Now().Add(time.Minute), places)
			}()
			if do != nil {
				do(t, hook, &customerv1.Person{Email: placed.GetCustomerEmail()})
			}
			<-places // it has one now
			places <- struct{}{}
			if got, n := <-ended, len(v.requests()); got.aborted != (do != nil) || (n == 0) != (do != nil) {
				t.Errorf("aborted %t, it got %d requests", got.aborted, n)
			}
		})
	}
}

// lease returns a worker for a webhook that no replica sends to.
func (r *rig) lease(t *testing.T, id string) *worker {
	t.Helper()
	d := quick
	d.Concurrency, d.MaxRequests = 1, 4
	s, err := newSender(d)
	if err != nil {
		t.Fatal(err)
	}
	w := &worker{
		deliverer: newDeliverer(d, r.db, s, uuid.New(), nil, nil, slog.New(slog.DiscardHandler)),
		id:        uuid.MustParse(id), limit: 1, leasedUntil: time.Now().Add(time.Hour), inHand: map[int64]bool{},
	}
	if _, err := r.db.Exec(`UPDATE webhook SET lessee = $2, leased_until = now() + interval '1 minute' WHERE id = $1`, id, w.replica); err != nil {
		t.Fatal(err)
	}
	return w
}
