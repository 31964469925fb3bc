package eventlog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	amqp "github.com/rabbitmq/amqp091-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"shop.example/db/dbtest"
	eventsv1 "shop.example/gen/shop/events/v1"
	loggingv1 "shop.example/gen/shop/logging/v1"
	"shop.example/platform/messaging"
	"shop.example/platform/postgres"
	"shop.example/topology"
)

// orders is an order service that does as the test says.
type orders struct {
	verdict atomic.Pointer[error]
	got     chan messaging.Message[*eventsv1.OrderPlaced]
}

func (f *fixture) orders(t *testing.T) *orders {
	t.Helper()
	o := &orders{got: make(chan messaging.Message[*eventsv1.OrderPlaced], 100)}
	o.decide(nil)
	c := messaging.NewConsumer(f.consume, f.pub, topology.Order, messaging.ConsumerOptions{Batch: 1},
		messaging.Handle(func(_ context.Context, batch []messaging.Message[*eventsv1.OrderPlaced]) error {
			for _, m := range batch {
				o.got <- m
			}
			return *o.verdict.Load()
		}))
	runUntilDone(t, c.Run)
	return o
}

func (o *orders) decide(err error) { o.verdict.Store(&err) }

func (o *orders) next(t *testing.T) messaging.Message[*eventsv1.OrderPlaced] {
	t.Helper()
	select {
	case m := <-o.got:
		return m
	case <-time.After(testTimeout):
		t.Fatal("no order came")
		panic("unreachable")
	}
}

// openLetters waits until there are n open dead letters.
func (f *fixture) openLetters(t *testing.T, n int) []*loggingv1.DeadLetter {
	t.Helper()
	var letters []*loggingv1.DeadLetter
	// RabbitMQ sends a dead letter again if its own confirm has not come for three minutes, which happens on a busy machine.
	waitFor(t, 4*time.Minute, fmt.Sprintf("%d open dead letters", n), func() bool {
		reply, err := f.letters.ListDeadLetters(within(t), &loggingv1.ListDeadLettersRequest{State: loggingv1.DeadLetter_OPEN})
		if err != nil {
			t.Fatal(err)
		}
		letters = reply.GetDeadLetters()
		return len(letters) == n
	})
	return letters
}

func TestDeadLetter_IsRedrivenAndBecomesADeadLetterAgain(t *testing.T) {
	t.Parallel()
	f := start(t)
	o := f.orders(t)
	o.decide(messaging.Permanent(errors.New("the shelf has burned down")))
	m := placed(newOrderID())
	f.publish(t, m)
	died := o.next(t)

	letter := f.openLetters(t, 1)[0]
	if !strings.Contains(letter.GetReason(), "the shelf has burned down") || letter.GetSourceQueue() != "order" || letter.GetAttempts() != 1 ||
		letter.GetRoutingKey() != "shop.order.placed" || letter.GetExchange() != "shop.topic" || letter.GetMessageId() != died.ID.String() ||
		letter.GetOrderId() != m.GetOrderId() || letter.GetType() != "shop.events.v1.OrderPlaced" || letter.GetBody() != nil || letter.GetPayload() != nil {
		t.Errorf("listed as %v", letter)
	}
	full, err := f.letters.GetDeadLetter(within(t), &loggingv1.GetDeadLetterRequest{Id: letter.GetId()})
	if err != nil {
		t.Fatal(err)
	}
	kept := &eventsv1.OrderPlaced{}
	if err := proto.Unmarshal(full.GetDeadLetter().GetBody(), kept); err != nil || !proto.Equal(kept, m) ||
		full.GetDeadLetter().GetPayload().GetFields()["customer_name"].GetStringValue() != "Ada" {
		t.Errorf("shown as %v, %v", full, err)
	}
	isError := func() bool {
		e := f.event(t, m)
		return e.GetStatus() == loggingv1.Event_error && strings.Contains(e.GetErrorMessage(), "the shelf has burned down")
	}
	eventually(t, "the event to be an error", isError)

	o.decide(nil)
	redrive := &loggingv1.RedriveDeadLetterRequest{Id: letter.GetId()}
	done, err := f.letters.RedriveDeadLetter(within(t), redrive)
	if err != nil || done.GetDeadLetter().GetState() != loggingv1.DeadLetter_REDRIVEN {
		t.Fatalf("redriven: %v, %v", done, err)
	}
	again := o.next(t)
	if again.ID != died.ID || again.Attempt != 0 || again.RoutingKey != died.RoutingKey || again.Exchange != died.Exchange ||
		again.CorrelationID != died.CorrelationID || !again.Timestamp.Equal(died.Timestamp) || !proto.Equal(again.Body, m) {
		t.Errorf("came again as %+v, first as %+v", again, died)
	}
	if e := f.event(t, m); e.GetStatus() != loggingv1.Event_success || e.GetErrorMessage() != "" {
		t.Errorf("the event is %v after the redrive", e)
	}
	// A caller that did not hear the answer asks again: nothing is sent twice.
	if done, err = f.letters.RedriveDeadLetter(within(t), redrive); err != nil || done.GetDeadLetter().GetState() != loggingv1.DeadLetter_REDRIVEN {
		t.Errorf("redriven again: %v, %v", done, err)
	}
	if _, err := f.letters.DiscardDeadLetter(within(t), &loggingv1.DiscardDeadLetterRequest{Id: letter.GetId()}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("discarding what was redriven: %v", err)
	}

	// The same message dies once more: a letter of its own, and the event is an error again.
	o.decide(messaging.Permanent(errors.New("the shelf has burned down again")))
	f.publish(t, m)
	if got := o.next(t); got.ID != died.ID {
		t.Errorf("redriving twice sent something: %+v", got)
	}
	second := f.openLetters(t, 1)[0]
	if second.GetId() == letter.GetId() {
		t.Error("the letter that was redriven is open again")
	}
	eventually(t, "the event to be an error again", isError)
	gone, err := f.letters.DiscardDeadLetter(within(t), &loggingv1.DiscardDeadLetterRequest{Id: second.GetId()})
	if err != nil || gone.GetDeadLetter().GetState() != loggingv1.DeadLetter_DISCARDED {
		t.Errorf("discarded: %v, %v", gone, err)
	}
	if _, err := f.letters.RedriveDeadLetter(within(t), &loggingv1.RedriveDeadLetterRequest{Id: second.GetId()}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("redriving what was discarded: %v", err)
	}
	if !isError() {
		t.Error("the event is no error although it was given up")
	}
	if _, err := f.letters.GetDeadLetter(within(t), &loggingv1.GetDeadLetterRequest{Id: 1 << 40}); status.Code(err) != codes.NotFound {
		t.Errorf("one that is not there: %v", err)
	}
	reply, err := f.letters.ListDeadLetters(within(t), &loggingv1.ListDeadLettersRequest{PageSize: 1})
	if err != nil || len(reply.GetDeadLetters()) != 1 || reply.GetDeadLetters()[0].GetId() != second.GetId() {
		t.Fatalf("the first page is %v, %v", reply, err)
	}
	reply, err = f.letters.ListDeadLetters(within(t), &loggingv1.ListDeadLettersRequest{PageSize: 1, PageToken: reply.GetNextPageToken()})
	if err != nil || len(reply.GetDeadLetters()) != 1 || reply.GetDeadLetters()[0].GetId() != letter.GetId() || reply.GetNextPageToken() != "" {
		t.Errorf("the second page is %v, %v", reply, err)
	}
}

func TestRedrive_WhatCannotBeReadStaysAnError(t *testing.T) {
	t.Parallel()
	f := start(t)
	f.orders(t)
	f.raw(t, "shop.order.placed", amqp.Publishing{Body: []byte("garbage"), MessageId: uuid.NewString()})
	letter := f.openLetters(t, 1)[0]
	if _, err := f.letters.RedriveDeadLetter(within(t), &loggingv1.RedriveDeadLetterRequest{Id: letter.GetId()}); err != nil {
		t.Fatal(err)
	}
	second := f.openLetters(t, 1)[0] // it dies again
	if second.GetId() == letter.GetId() || second.GetMessageId() != letter.GetMessageId() {
		t.Errorf("first %v, then %v", letter, second)
	}
	if n := count(t, f.db, "SELECT count(*) FROM event_log WHERE status = 'error' AND message_id = $1", letter.GetMessageId()); n != 1 {
		t.Errorf("%d rows say that it is an error, want 1", n)
	}
}

// What is no text in a property is stored as a character of three bytes each. The library then took the property for too long, and closed the
// connection with all that was being published.
func TestRedrive_PropertiesThatWereNoTextEndNoConnection(t *testing.T) {
	t.Parallel()
	f := start(t)
	f.orders(t)
	nothing := strings.Repeat("\x00", 255)
	f.raw(t, "shop.order.placed",
		amqp.Publishing{Body: []byte("garbage"), MessageId: nothing, Type: nothing, CorrelationId: nothing, AppId: strings.Repeat("\xff", 255)})
	letter := f.openLetters(t, 1)[0]
	if _, err := f.letters.RedriveDeadLetter(within(t), &loggingv1.RedriveDeadLetterRequest{Id: letter.GetId()}); err != nil {
		t.Fatal(err)
	}
	second := f.openLetters(t, 1)[0] // it dies again
	if second.GetId() == letter.GetId() || second.GetMessageId() != letter.GetMessageId() {
		t.Errorf("first %v, then %v", letter, second)
	}
}

// A broker that did not confirm kept the letter's transaction waiting until the database ended it: the message could be sent although the
// letter stayed open.
func TestRedrive_EndsBeforeTheDatabaseEndsItsTransaction(t *testing.T) {
	t.Parallel()
	db := openDB(t, dbtest.New(t))
	id := storeLetter(t, db, deadDelivery(t))
	conn, err := messaging.Dial("amqp://nobody@localhost:1", messaging.Options{Topology: topology.Broker(), Service: "test"})
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	_, err = redrive(t.Context(), db, messaging.NewPublisher(conn), id, time.Hour)
	if took := time.Since(start); status.Code(err) != codes.Unavailable || took >= postgres.IdleInTransactionTimeout {
		t.Errorf("%v after %s", err, took)
	}
}

func TestRedrive_ToAQueueThatIsGone(t *testing.T) {
	t.Parallel()
	f := start(t)
	d := deliveryOf(t, placed(newOrderID()))
	d.SourceQueue, d.Reason = "closed-down", "for a test"
	id := storeLetter(t, f.db, d)
	_, err := f.letters.RedriveDeadLetter(within(t), &loggingv1.RedriveDeadLetterRequest{Id: id})
	if status.Code(err) != codes.FailedPrecondition {
		t.Errorf("got %v, want FAILED_PRECONDITION", err)
	}
	f.openLetters(t, 1)
}

// Whoever handles a message remembers it for a while, which begins at the latest when it died first: later deaths of the
// same message give no more time.
func TestRedrive_EndsWithTheHorizonOfTheFirstDeath(t *testing.T) {
	t.Parallel()
	f := start(t)
	age := func(id int64, days int) {
		t.Helper()
		f.db.MustExec("UPDATE dead_letter SET state = 'REDRIVEN', created_at = now() - $2 * interval '1 day' WHERE id = $1", id, days)
	}
	old := deadDelivery(t)
	age(storeLetter(t, f.db, old), 8)
	late := storeLetter(t, f.db, old)
	_, err := f.letters.RedriveDeadLetter(within(t), &loggingv1.RedriveDeadLetterRequest{Id: late})
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "can only be discarded") {
		t.Errorf("eight days after the first death: %v", err)
	}
	if letter := f.openLetters(t, 1)[0]; letter.GetRedrivableUntil().AsTime().After(time.Now()) {
		t.Errorf("listed as redrivable: %v", letter)
	}
	if _, err := f.letters.DiscardDeadLetter(within(t), &loggingv1.DiscardDeadLetterRequest{Id: late}); err != nil {
		t.Errorf("discarding it: %v", err)
	}

	recent := deadDelivery(t)
	age(storeLetter(t, f.db, recent), 6)
	inTime := storeLetter(t, f.db, recent)
	done, err := f.letters.RedriveDeadLetter(within(t), &loggingv1.RedriveDeadLetterRequest{Id: inTime})
	if err != nil || done.GetDeadLetter().GetState() != loggingv1.DeadLetter_REDRIVEN || done.GetDeadLetter().GetRedrivableUntil().AsTime().Before(time.Now()) {
		t.Errorf("six days after the first death: %v, %v", done, err)
	}
}

func storeLetter(t *testing.T, db *sqlx.DB, d messaging.Delivery) int64 {
	t.Helper()
	letter, errText := readDeadLetter(d, time.Now())
	id, err := storeDeadLetter(t.Context(), db, letter, errText)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func deadDelivery(t *testing.T) messaging.Delivery {
	d := deliveryOf(t, placed(newOrderID()))
	d.SourceQueue, d.Reason, d.Attempt = "order", "it failed", 3
	d.Headers = amqp.Table{"nested": amqp.Table{"nul": "\x00", "not UTF-8": "\xff"}, "not a number": nan(), "bytes": []byte{0}}
	return d
}

func nan() float64 { zero := 0.0; return zero / zero }

func TestDeadLetter_DeliveredTwiceIsStoredOnce(t *testing.T) {
	t.Parallel()
	db := openDB(t, dbtest.New(t))
	d := deadDelivery(t)
	first := storeLetter(t, db, d)
	d.Reason = "it failed once more"
	if again := storeLetter(t, db, d); again != first {
		t.Errorf("stored as %d and %d", first, again)
	}
	letters, err := listDeadLetters(t.Context(), db, "", "", 0, 10)
	if err != nil || len(letters) != 1 || letters[0].Reason != "it failed once more" || letters[0].Attempts != 4 {
		t.Errorf("stored: %+v, %v", letters, err)
	}
}

// A header said that it was the attempt 2147483647. The database refused the number of attempts, one more, and with it every letter behind.
func TestDeadLetter_AnAttemptThatNobodyCountedIsStored(t *testing.T) {
	t.Parallel()
	f := start(t)
	f.orders(t)
	f.raw(t, "shop.order.placed", amqp.Publishing{Body: []byte("garbage"), Headers: amqp.Table{"shop-attempt": int32(math.MaxInt32)}})
	if got := f.openLetters(t, 1)[0].GetAttempts(); got != 4 {
		t.Errorf("%d attempts, want 4, the most there are", got)
	}
}

// Whatever the database refused was tried for ever, and held all letters behind it.
func TestDeadLetter_WhatTheDatabaseRefusesIsStoredWithoutItsProperties(t *testing.T) {
	t.Parallel()
	db := openDB(t, dbtest.New(t))
	db.MustExec("ALTER TABLE dead_letter ADD CHECK (correlation_id <> 'refused')")
	s := &Service{db: db, log: slog.New(slog.DiscardHandler)}
	good, bad := deadDelivery(t), deadDelivery(t)
	bad.CorrelationID, bad.User = "refused", "gateway"
	if err := s.storeDeadLetters(t.Context(), []messaging.Delivery{bad, good}); err != nil {
		t.Fatal(err)
	}
	letters, err := listDeadLetters(t.Context(), db, "", "", 0, 10)
	if err != nil || len(letters) != 2 || letters[0].Attempts != 4 {
		t.Fatalf("stored: %+v, %v", letters, err)
	}
	l, err := getDeadLetter(t.Context(), db, letters[1].ID, "")
	if err != nil || !bytes.Equal(l.Body, bad.Body) || l.SourceQueue != bad.SourceQueue || l.header(messaging.HeaderUser) != "gateway" ||
		!strings.Contains(l.Reason, "the database refused it") || !strings.Contains(l.Reason, "it failed") {
		t.Errorf("stored: %+v, %v", l, err)
	}
}

// Requests without a request_id had one id, that of a request without one, and so have messages of a program that gives all the same
// message_id: the log kept the first one, and the dead letters the reason of the last.
func TestDeadLetter_RefusedMessagesAreNotTakenForOneAnother(t *testing.T) {
	t.Parallel()
	db := openDB(t, dbtest.New(t))
	refused := func(m proto.Message) messaging.Delivery {
		d := deliveryOf(t, m)
		d.MessageID, d.SourceQueue, d.Reason, d.Attempt = "of my program", "inventory", "it breaks its contract", 3
		return d
	}
	var all []messaging.Delivery
	for name := range 3 {
		all = append(all, refused(&eventsv1.CreateItems{Items: []*eventsv1.CreateItems_Item{{ProductName: fmt.Sprint(name)}}}))
	}
	garbage := refused(placed(newOrderID()))
	for _, body := range []string{"garbage", "rubbish"} {
		garbage.Body = []byte(body)
		all = append(all, garbage)
	}
	for _, again := range []string{"", " once more"} {
		write(t, db, all...)
		for i := range all {
			all[i].Reason += again
			storeLetter(t, db, all[i])
		}
	}
	letters, err := listDeadLetters(t.Context(), db, "", "of my program", 0, 10)
	if err != nil || len(letters) != len(all) {
		t.Fatalf("%d dead letters, want %d (%v)", len(letters), len(all), err)
	}
	rows := allRows(t, db, filter{})
	if len(rows) != len(all) {
		t.Errorf("%d events in the log, want %d", len(rows), len(all))
	}
	for _, row := range rows {
		if row.ErrorMessage != "it breaks its contract once more" {
			t.Errorf("event %d: %q", row.ID, row.ErrorMessage)
		}
	}
	// What is sent again, and refused again, is the same message.
	for _, listed := range letters {
		l, err := getDeadLetter(t.Context(), db, listed.ID, "")
		if err != nil {
			t.Fatal(err)
		}
		again := garbage
		again.Body, again.RoutingKey, again.Type, again.MessageID = l.Body, l.RoutingKey, l.Type, l.outgoing().MessageID
		if stored, _ := readDeadLetter(again, time.Now()); stored.MessageID != l.MessageID {
			t.Errorf("dead letter %d has the id %s, and %s when it was redriven", l.ID, l.MessageID, stored.MessageID)
		}
	}
}

func TestDeadLetter_StoredBeforeItsEventMakesItAnError(t *testing.T) {
	t.Parallel()
	db := openDB(t, dbtest.New(t))
	d := deadDelivery(t)
	storeLetter(t, db, d)
	write(t, db, deliveryOf(t, placed(newOrderID())), d)
	rows := allRows(t, db, filter{})
	if len(rows) != 2 || rows[0].Status != "success" || rows[1].Status != "error" || rows[1].ErrorMessage != "it failed" {
		t.Errorf("rows: %+v %+v", rows[0], rows[1])
	}
}

// A message that is redriven can die again before the redrive is committed. Its death must not be taken for the one
// that the redrive is about.
func TestRedrive_AMessageThatFailsMeanwhileIsAnotherDeadLetter(t *testing.T) {
	t.Parallel()
	url := dbtest.New(t)
	db, other := openDB(t, url), openDB(t, url)
	d := deadDelivery(t)
	first := storeLetter(t, db, d)
	second := make(chan int64, 1)
	err := postgres.InTx(t.Context(), db, func(tx *sqlx.Tx) error {
		letter, err := getDeadLetter(t.Context(), tx, first, "FOR UPDATE")
		if err != nil {
			return err
		}
		go func() {
			letter, errText := readDeadLetter(d, time.Now())
			id, err := storeDeadLetter(t.Context(), other, letter, errText)
			if err != nil {
				t.Error(err)
			}
			second <- id
		}()
		eventually(t, "the second death to wait for the redrive", func() bool {
			return count(t, db, "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()") == 1
		})
		if err := setState(t.Context(), tx, &letter, stateRedriven); err != nil {
			return err
		}
		return markEvent(t.Context(), tx, letter.MessageID, "")
	})
	if err != nil {
		t.Fatal(err)
	}
	if id := <-second; id == first {
		t.Error("the second death was taken for the first")
	}
	if n := count(t, db, "SELECT count(*) FROM dead_letter WHERE state = 'OPEN'"); n != 1 {
		t.Errorf("%d letters are open, want 1", n)
	}
}

// What a message says about where it comes from, and where it died, is the same however often it is sent again.
func TestRedrive_TheMessageKeepsItsSource(t *testing.T) {
	t.Parallel()
	f := start(t)
	o := f.orders(t)
	o.decide(messaging.Permanent(errors.New("not today")))
	m := placed(newOrderID())
	f.publish(t, m)
	first := o.next(t)
	for range 2 {
		letter := f.openLetters(t, 1)[0]
		if letter.GetSourceQueue() != topology.Order || letter.GetRoutingKey() != "shop.order.placed" || letter.GetExchange() != "shop.topic" {
			t.Errorf("the letter is %v", letter)
		}
		if _, err := f.letters.RedriveDeadLetter(within(t), &loggingv1.RedriveDeadLetterRequest{Id: letter.GetId()}); err != nil {
			t.Fatal(err)
		}
		if again := o.next(t); again.AppID != first.AppID || again.AppID == "" {
			t.Errorf("it comes from %q, and came from %q first", again.AppID, first.AppID)
		}
	}
}

func TestRedrive_WhatTheBrokerRefusesForItsSizeIsSaid(t *testing.T) {
	t.Parallel()
	f := start(t)
	d := deadDelivery(t)
	d.Body = make([]byte, 16<<20+1) // from a broker that let messages be larger
	id := storeLetter(t, f.db, d)
	_, err := f.letters.RedriveDeadLetter(within(t), &loggingv1.RedriveDeadLetterRequest{Id: id})
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "max_message_size") {
		t.Errorf("got %v", err)
	}
	if got := f.openLetters(t, 1)[0]; got.GetId() != id {
		t.Errorf("%v is open", got)
	}
}

// An order whose OrderPlaced was discarded left its customer waiting for ever.
func TestDiscard_AnOrderThatCouldNotBeHandledIsRejectedFirst(t *testing.T) {
	t.Parallel()
	f := start(t)
	of := func(m proto.Message, queue string, change func(*messaging.Delivery)) (int64, messaging.Delivery) {
		d := deliveryOf(t, m)
		d.SourceQueue, d.Reason = queue, "for a test"
		if change != nil {
			change(&d)
		}
		return storeLetter(t, f.db, d), d
	}
	discard := func(id int64) error {
		_, err := f.letters.DiscardDeadLetter(within(t), &loggingv1.DiscardDeadLetterRequest{Id: id})
		return err
	}
	stateOf := func(id int64) (state string) {
		if err := f.db.Get(&state, `SELECT state FROM dead_letter WHERE id = $1`, id); err != nil {
			t.Fatal(err)
		}
		return state
	}
	id, whole := of(placed(newOrderID()), "order", nil)

	f.others.fail(status.Error(codes.Unavailable, "not today"))
	if err := discard(id); status.Code(err) != codes.Unavailable || stateOf(id) != "OPEN" {
		t.Errorf("without the order service: %v, the letter is %s", err, stateOf(id))
	}
	f.others.fail(nil)
	unreadable := newOrderID()
	byCorrelation, _ := of(placed(unreadable), "order", func(d *messaging.Delivery) { d.Body = []byte("no protobuf") })
	tooLarge := newOrderID()
	large, _ := of(placed(tooLarge), "order", func(d *messaging.Delivery) { d.Body = make([]byte, messaging.MaxEvent+1) })
	nobodys, _ := of(placed(newOrderID()), "order", func(d *messaging.Delivery) { d.Body, d.CorrelationID = []byte("no protobuf"), "" })
	ofTheLog, _ := of(placed(newOrderID()), "logging", nil)
	another, _ := of(rejected(newOrderID()), "order", nil)
	for _, id := range []int64{id, id, byCorrelation, large, nobodys, ofTheLog, another} { // discarded again, it is rejected again
		if err := discard(id); err != nil || stateOf(id) != "DISCARDED" {
			t.Errorf("discarding %d: %v, it is %s", id, err, stateOf(id))
		}
	}
	rejection := whole.CorrelationID + " " + string(whole.Body)
	want := []string{rejection, rejection, unreadable + " no protobuf", tooLarge + " "}
	var got []string
	for _, req := range f.others.rejected {
		got = append(got, req.GetOrderId()+" "+string(req.GetOrderPlaced()))
	}
	if !slices.Equal(got, want) {
		t.Errorf("rejected were %q, want %q", got, want)
	}
	if n := count(t, f.db, "SELECT count(*) FROM operator_action WHERE target = $1", fmt.Sprint("dead letter ", id)); n != 1 {
		t.Errorf("discarding it twice is recorded %d times", n)
	}
}
