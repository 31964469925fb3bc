package eventlog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	amqp "github.com/rabbitmq/amqp091-go"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"shop.example/db/dbtest"
	eventsv1 "shop.example/gen/shop/events/v1"
	loggingv1 "shop.example/gen/shop/logging/v1"
	"shop.example/platform/contract"
	"shop.example/platform/messaging"
	"shop.example/platform/messaging/brokertest"
	"shop.example/platform/postgres"
	"shop.example/platform/telemetry"
)

// fixture is one or more replicas of the service on a database and a broker of their own, and the rest of the shop as
// far as they meet it.
type fixture struct {
	url     string // of the database
	broker  *brokertest.Broker
	db      *sqlx.DB
	consume *messaging.Connection
	pub     *messaging.Publisher
	events  loggingv1.EventLogServiceClient
	letters loggingv1.DeadLetterServiceClient
	admin   string // address of the admin listener
	log     *lines
}

// lines keeps what is logged.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func start(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{url: dbtest.New(t), broker: brokertest.New(t), log: &lines{}}
	f.db = openDB(t, f.url)
	dial := func(role string) *messaging.Connection {
		c, err := messaging.Dial(f.broker.URL, messaging.Options{Service: "test", Role: role})
		if err != nil {
			t.Fatal(err)
		}
		runUntilDone(t, c.Run)
		return c
	}
	f.consume = dial("consume")
	f.pub = messaging.NewPublisher(dial("publish"))
	runUntilDone(t, f.pub.Run)
	f.events, f.letters = f.replica(t)
	eventually(t, "the service to be ready", func() bool {
		reply, err := http.Get("http://" + f.admin + "/readyz")
		if err != nil {
			return false
		}
		defer reply.Body.Close()
		return reply.StatusCode == http.StatusOK
	})
	return f
}

// replica starts the service, once more where it runs already.
func (f *fixture) replica(t *testing.T) (loggingv1.EventLogServiceClient, loggingv1.DeadLetterServiceClient) {
	t.Helper()
	tel, err := telemetry.New(t.Context(), telemetry.Config{Service: name, LogFormat: telemetry.JSON, Output: f.log})
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(t.Context(), Config{AMQPURL: f.broker.URL, DatabaseURL: f.url, GRPCAddr: "127.0.0.1:0", AdminAddr: "127.0.0.1:0"}, tel)
	if err != nil {
		t.Fatal(err)
	}
	runUntilDone(t, s.Run)
	f.admin = s.AdminAddr()
	conn, err := grpc.NewClient(s.GRPCAddr(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return loggingv1.NewEventLogServiceClient(conn), loggingv1.NewDeadLetterServiceClient(conn)
}

func (f *fixture) publish(t *testing.T, messages ...proto.Message) {
	t.Helper()
	for _, m := range messages {
		if err := f.pub.Publish(within(t), m); err != nil {
			t.Fatal(err)
		}
	}
}

// raw publishes as a client would that knows nothing of our ways.
func (f *fixture) raw(t *testing.T, key string, messages ...amqp.Publishing) {
	t.Helper()
	conn, err := amqp.Dial(f.broker.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ch, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range messages {
		if err := ch.Publish("shop.topic", key, false, false, m); err != nil {
			t.Fatal(err)
		}
	}
	if err := ch.Close(); err != nil { // the broker answers when it has read what came before
		t.Fatal(err)
	}
}

// stream follows the log from where it is when stream returns, or from behind afterID.
func stream(t *testing.T, events loggingv1.EventLogServiceClient, req *loggingv1.StreamEventsRequest) grpc.ServerStreamingClient[loggingv1.StreamEventsResponse] {
	t.Helper()
	s, err := events.StreamEvents(within(t), req)
	if err != nil {
		t.Fatal(err)
	}
	if begin, err := s.Recv(); err != nil || begin.GetEvent() != nil {
		t.Fatalf("the stream begins with %v (%v)", begin, err)
	}
	return s
}

func receive(t *testing.T, s grpc.ServerStreamingClient[loggingv1.StreamEventsResponse], n int) (events []*loggingv1.Event) {
	t.Helper()
	for range n {
		reply, err := s.Recv()
		if err != nil {
			t.Fatalf("after %d of %d events: %v", len(events), n, err)
		}
		events = append(events, reply.GetEvent())
	}
	return events
}

func (f *fixture) event(t *testing.T, m proto.Message) (found *loggingv1.Event) {
	t.Helper()
	eventually(t, fmt.Sprintf("%T to be in the log", m), func() bool {
		reply, err := f.events.ListEvents(within(t), &loggingv1.ListEventsRequest{OrderId: contract.OrderID(m)})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range reply.GetEvents() {
			if e.GetMessageId() == contract.MessageID(m).String() {
				found = e
			}
		}
		return found != nil
	})
	return found
}

func TestService_EveryEventIsLoggedOnce(t *testing.T) {
	t.Parallel()
	f := start(t)
	f.replica(t) // both consume
	s := stream(t, f.events, &loggingv1.StreamEventsRequest{})
	id := newOrderID()
	first := placed(id)
	f.publish(t, first, rejected(id), first, &eventsv1.StockDepleted{ProductId: 1, Version: 2, ProductName: "Laptop", DepletedAt: first.GetPlacedAt()}, first)
	receive(t, s, 3)
	last := placed(newOrderID())
	f.publish(t, last)
	if e := receive(t, s, 1)[0]; e.GetOrderId() != last.GetOrderId() {
		t.Errorf("event %v came, want the last one alone", e)
	}
	reply, err := f.events.ListEvents(within(t), &loggingv1.ListEventsRequest{OrderId: id})
	if err != nil || len(reply.GetEvents()) != 2 {
		t.Fatalf("events of the order: %v, %v", reply.GetEvents(), err)
	}
	e := reply.GetEvents()[0]
	if e.GetRoutingKey() != "shop.order.placed" || e.GetStatus() != loggingv1.Event_success || e.GetSource() != "test" ||
		e.GetPayload().GetFields()["customer_name"].GetStringValue() != "Ada" || e.GetCreatedAt() == nil {
		t.Errorf("first event is %v", e)
	}
	for _, want := range []string{`"msg":"log created"`, `"id":`, `"routing_key":"shop.order.placed"`, e.GetMessageId(), id} {
		if !strings.Contains(f.log.String(), want) {
			t.Errorf("the log does not say %s:\n%s", want, f.log)
		}
	}
	if n := strings.Count(f.log.String(), "log created"); n != 4 {
		t.Errorf("%d lines for 4 rows", n)
	}
	if strings.Contains(f.log.String(), "Ada") || strings.Contains(f.log.String(), "ada@") {
		t.Error("personal data is in the log")
	}
}

func TestService_GarbageIsLoggedAndNothingIsLost(t *testing.T) {
	t.Parallel()
	f := start(t)
	s := stream(t, f.events, &loggingv1.StreamEventsRequest{})
	m := placed(newOrderID())
	body := deliveryOf(t, m).Body
	f.raw(t, "shop.order.confirmed", amqp.Publishing{Body: []byte(`{"garbage":true}`)})
	f.raw(t, "shop.never.heard.of", amqp.Publishing{Body: body, CorrelationId: "\xff", MessageId: "\xfe\x00", AppId: "x\x00", Headers: amqp.Table{
		"timestamp_in_ms": int64(1 << 62), "traceparent": "nonsense", "shop-attempt": "many", "shop-exchange": strings.Repeat("long", 5000)}})
	f.raw(t, "shop.stock.changed", amqp.Publishing{})
	f.raw(t, "shop.order.cancelled.", amqp.Publishing{Body: body})
	f.raw(t, "shop.order.rejected", amqp.Publishing{Body: deliveryOf(t, rejected(m.GetOrderId())).Body})
	got := receive(t, s, 5)
	for i, want := range []string{"the body is not a shop.events.v1.OrderConfirmed", "no message has the routing key", "breaks its contract", "no message has the routing key", ""} {
		e := got[i]
		if !strings.Contains(e.GetErrorMessage(), want) || (e.GetStatus() == loggingv1.Event_error) != (want != "") {
			t.Errorf("event %d: %s %q, want %q", i, e.GetStatus(), e.GetErrorMessage(), want)
		}
		if age := time.Since(e.GetPublishedAt().AsTime()); age < 0 || age > patience {
			t.Errorf("event %d was published %s ago", i, age)
		}
	}
	if e := got[4]; e.GetMessageId() != contract.MessageID(rejected(m.GetOrderId())).String() || e.GetOrderId() != m.GetOrderId() || e.GetSource() != "" {
		t.Errorf("the event without properties is %v", e)
	}
	reply, err := f.events.ListEvents(within(t), &loggingv1.ListEventsRequest{Status: loggingv1.Event_error})
	if err != nil || len(reply.GetEvents()) != 4 {
		t.Errorf("%d errors, want 4 (%v)", len(reply.GetEvents()), err)
	}
	letters, err := f.letters.ListDeadLetters(within(t), &loggingv1.ListDeadLettersRequest{})
	if err != nil || len(letters.GetDeadLetters()) != 0 {
		t.Errorf("the logging service made dead letters: %v, %v", letters.GetDeadLetters(), err)
	}
}

func TestListEvents_PagesStandStillWhileRowsArrive(t *testing.T) {
	t.Parallel()
	f := start(t)
	id := newOrderID()
	add := func(n int) {
		for range n {
			other := deliveryOf(t, placed(newOrderID()))
			mine := deliveryOf(t, &eventsv1.DecrementQuantity{OrderId: id})
			mine.Body, mine.MessageID = []byte("different each time"), uuid.NewString()
			write(t, f.db, other, mine)
		}
	}
	add(25)
	pages := func(req *loggingv1.ListEventsRequest) (ids []int64) {
		for {
			reply, err := f.events.ListEvents(within(t), req)
			if err != nil {
				t.Fatal(err)
			}
			if len(reply.GetEvents()) > int(req.GetPageSize()) {
				t.Fatalf("%d events on a page of %d", len(reply.GetEvents()), req.GetPageSize())
			}
			for _, e := range reply.GetEvents() {
				ids = append(ids, e.GetId())
			}
			if req.PageToken = reply.GetNextPageToken(); req.PageToken == "" {
				return ids
			}
			add(1)
		}
	}
	all := pages(&loggingv1.ListEventsRequest{PageSize: 7})
	if len(all) != 50 || !slices.IsSortedFunc(all, func(a, b int64) int { return int(b - a) }) {
		t.Errorf("newest first, %d events: %v", len(all), all)
	}
	before := len(allRows(t, f.db, filter{orderID: id}))
	mine := pages(&loggingv1.ListEventsRequest{PageSize: 7, OrderId: id})
	if !slices.IsSorted(mine) || len(mine) < before || len(slices.Compact(mine)) != len(mine) {
		t.Errorf("events of one order, oldest first, at least %d: %v", before, mine)
	}
}

func TestListEvents_ATokenOfAnotherListIsRefused(t *testing.T) {
	t.Parallel()
	f := start(t)
	for range 3 {
		write(t, f.db, deliveryOf(t, placed(newOrderID())))
	}
	reply, err := f.events.ListEvents(within(t), &loggingv1.ListEventsRequest{PageSize: 1})
	if err != nil {
		t.Fatal(err)
	}
	token := reply.GetNextPageToken()
	if _, err := f.events.ListEvents(within(t), &loggingv1.ListEventsRequest{PageSize: 2, PageToken: token}); err != nil {
		t.Errorf("another page size: %v", err)
	}
	for _, req := range []*loggingv1.ListEventsRequest{
		{PageToken: token, RoutingKey: "shop.#"}, {PageToken: "made up"}, {PageToken: token[1:]},
	} {
		if _, err := f.events.ListEvents(within(t), req); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%v: %v, want INVALID_ARGUMENT", req, err)
		}
	}
	if _, err := f.letters.ListDeadLetters(within(t), &loggingv1.ListDeadLettersRequest{PageToken: token}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a token of events on dead letters: %v", err)
	}
}

func TestStreamEvents_ShowsWhatAnyReplicaLogs(t *testing.T) {
	t.Parallel()
	f := start(t)
	other, _ := f.replica(t)
	id := newOrderID()
	ofOrder := &loggingv1.StreamEventsRequest{OrderId: id}
	ofKey := &loggingv1.StreamEventsRequest{RoutingKey: "shop.*.rejected"}
	streams := []grpc.ServerStreamingClient[loggingv1.StreamEventsResponse]{
		stream(t, f.events, ofOrder), stream(t, other, ofOrder), stream(t, f.events, ofKey), stream(t, other, ofKey),
	}
	f.publish(t, placed(newOrderID()), placed(id), placed(newOrderID()), rejected(id))
	for i, want := range []string{"shop.order.placed", "shop.order.placed", "shop.order.rejected", "shop.order.rejected"} {
		if e := receive(t, streams[i], 1)[0]; e.GetRoutingKey() != want || e.GetOrderId() != id {
			t.Errorf("stream %d begins with %v", i, e)
		}
	}
	seen := f.event(t, placed(id))
	resumed := stream(t, other, &loggingv1.StreamEventsRequest{AfterId: seen.GetId(), OrderId: id})
	if e := receive(t, resumed, 1)[0]; e.GetRoutingKey() != "shop.order.rejected" {
		t.Errorf("behind event %d comes %v", seen.GetId(), e)
	}
}

func TestStreamEvents_BeginsWhereItIsTold(t *testing.T) {
	t.Parallel()
	f := start(t)
	begin := func(req *loggingv1.StreamEventsRequest) (int64, grpc.ServerStreamingClient[loggingv1.StreamEventsResponse]) {
		s, err := f.events.StreamEvents(within(t), req)
		if err != nil {
			t.Fatal(err)
		}
		first, err := s.Recv()
		if err != nil || first.GetEvent() != nil {
			t.Fatalf("the first response is %v (%v)", first, err)
		}
		return first.GetPosition(), s
	}
	if position, _ := begin(&loggingv1.StreamEventsRequest{}); position != 0 {
		t.Errorf("a stream of an empty log begins at %d", position)
	}
	id := newOrderID()
	write(t, f.db, deliveryOf(t, placed(newOrderID())), deliveryOf(t, placed(id)), deliveryOf(t, rejected(id)))
	for _, test := range []struct {
		req      *loggingv1.StreamEventsRequest
		position int64
		first    int64 // the id of the first event, 0 where it is still to come
	}{
		{&loggingv1.StreamEventsRequest{}, 3, 0},
		{&loggingv1.StreamEventsRequest{FromBeginning: true}, 0, 1},
		{&loggingv1.StreamEventsRequest{AfterId: 1}, 1, 2},
		{&loggingv1.StreamEventsRequest{AfterId: 1, FromBeginning: true}, 1, 2},
		{&loggingv1.StreamEventsRequest{OrderId: id}, 0, 2},
		{&loggingv1.StreamEventsRequest{OrderId: id, AfterId: 2}, 2, 3},
		{&loggingv1.StreamEventsRequest{AfterId: 1000}, 3, 0}, // seen before the log was restored from a copy
	} {
		position, s := begin(test.req)
		if position != test.position {
			t.Errorf("%v begins at %d, want %d", test.req, position, test.position)
		}
		if test.first == 0 {
			continue
		}
		reply, err := s.Recv()
		if err != nil || reply.GetEvent().GetId() != test.first || reply.GetPosition() != test.first {
			t.Errorf("%v: first comes %v (%v), want event %d", test.req, reply, err, test.first)
		}
	}
}

func TestStreamEvents_EndsWhenTheServiceStops(t *testing.T) {
	t.Parallel()
	f := &fixture{url: dbtest.New(t), broker: brokertest.New(t), log: &lines{}}
	var s grpc.ServerStreamingClient[loggingv1.StreamEventsResponse]
	t.Run("service", func(t *testing.T) { // stops at the end of this
		events, _ := f.replica(t)
		var err error
		if s, err = events.StreamEvents(context.Background(), &loggingv1.StreamEventsRequest{}); err != nil {
			t.Fatal(err)
		}
		if _, err = s.Recv(); err != nil {
			t.Fatal(err)
		}
	})
	if _, err := s.Recv(); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("the stream ended with %v", err)
	}
}

// orders is an order service that does as the test says.
type orders struct {
	verdict atomic.Pointer[error]
	got     chan messaging.Message[*eventsv1.OrderPlaced]
}

func (f *fixture) orders(t *testing.T) *orders {
	t.Helper()
	o := &orders{got: make(chan messaging.Message[*eventsv1.OrderPlaced], 100)}
	o.decide(nil)
	c := messaging.NewConsumer(f.consume, f.pub, messaging.OrderQueue, messaging.ConsumerOptions{Batch: 1},
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
	case <-time.After(patience):
		t.Fatal("no order came")
		panic("unreachable")
	}
}

// openLetters waits until there are n open dead letters.
func (f *fixture) openLetters(t *testing.T, n int) []*loggingv1.DeadLetter {
	t.Helper()
	var letters []*loggingv1.DeadLetter
	eventually(t, fmt.Sprintf("%d open dead letters", n), func() bool {
		reply, err := f.letters.ListDeadLetters(within(t), &loggingv1.ListDeadLettersRequest{State: loggingv1.DeadLetter_OPEN})
		if err != nil {
			t.Fatal(err)
		}
		letters = reply.GetDeadLetters()
		return len(letters) == n
	})
	return letters
}

func TestDeadLetter_DiesIsRedrivenAndDiesAgain(t *testing.T) {
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
	letter, problem := readDeadLetter(d, time.Now())
	id, err := storeDeadLetter(t.Context(), db, letter, problem)
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
	letters, err := listDeadLetters(t.Context(), db, "", 0, 10)
	if err != nil || len(letters) != 1 || letters[0].Reason != "it failed once more" || letters[0].Attempts != 4 {
		t.Errorf("stored: %+v, %v", letters, err)
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
func TestRedrive_AMessageThatDiesMeanwhileIsALetterOfItsOwn(t *testing.T) {
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
			letter, problem := readDeadLetter(d, time.Now())
			id, err := storeDeadLetter(t.Context(), other, letter, problem)
			if err != nil {
				t.Error(err)
			}
			second <- id
		}()
		eventually(t, "the second death to wait for the redrive", func() bool {
			return count(t, db, "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()") == 1
		})
		if err := setState(t.Context(), tx, &letter, redriven); err != nil {
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
