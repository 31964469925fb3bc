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
	"shop.example/domain/orderid"
	customerv1 "shop.example/gen/shop/customer/v1"
	eventsv1 "shop.example/gen/shop/events/v1"
	loggingv1 "shop.example/gen/shop/logging/v1"
	"shop.example/platform/contract"
	"shop.example/platform/messaging"
	"shop.example/platform/telemetry"
	"shop.example/platform/testkit/brokertest"
	"shop.example/topology"
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
	conn    *grpc.ClientConn // to the replica that was started last
	admin   string           // address of the admin listener
	others  *services
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
		c, err := messaging.Dial(f.broker.URL, messaging.Options{Topology: topology.Broker(), Service: "test", Role: role})
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
	t.Cleanup(func() {
		if t.Failed() {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			queues, err := f.consume.Queues(ctx)
			t.Logf("queues %+v, %v; what the service logged:\n%s", queues, err, f.log)
		}
	})
	f.ready(t)
	return f
}

// ready waits until the replica that was started last is ready.
func (f *fixture) ready(t *testing.T) {
	t.Helper()
	eventually(t, "the service to be ready", func() bool {
		reply, err := http.Get("http://" + f.admin + "/readyz")
		if err != nil {
			return false
		}
		defer reply.Body.Close()
		return reply.StatusCode == http.StatusOK
	})
}

// replica starts the service, once more if it runs already.
func (f *fixture) replica(t *testing.T) (loggingv1.EventLogServiceClient, loggingv1.DeadLetterServiceClient) {
	t.Helper()
	tel, err := telemetry.New(t.Context(), telemetry.Config{Service: name, LogFormat: telemetry.JSON, Output: f.log})
	if err != nil {
		t.Fatal(err)
	}
	if f.others == nil {
		f.others = startServices(t)
	}
	others := f.others.conn.Target()
	s, err := New(t.Context(), Config{
		AMQPURL: f.broker.URL, DatabaseURL: f.url, GRPCAddr: "127.0.0.1:0", AdminAddr: "127.0.0.1:0", OrderAddr: others, InventoryAddr: others,
	}, tel)
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
	f.conn = conn
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
	if err := ch.Confirm(false); err != nil { // without confirms, what is on its way to a queue is lost with the channel
		t.Fatal(err)
	}
	for _, m := range messages {
		confirm, err := ch.PublishWithDeferredConfirm("shop.topic", key, false, false, m)
		if err != nil {
			t.Fatal(err)
		}
		if taken, err := confirm.WaitContext(within(t)); err != nil || !taken {
			t.Fatalf("the broker has taken it: %t, %v", taken, err)
		}
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
		reply, err := f.events.ListEvents(within(t), &loggingv1.ListEventsRequest{OrderId: orderid.Of(m)})
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
	f.ready(t)
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
	e := f.event(t, first) // the first or the second: two replicas may have taken them
	if e.GetRoutingKey() != "shop.order.placed" || e.GetStatus() != loggingv1.Event_success || e.GetSource() != "test" ||
		e.GetPayload().GetFields()["customer_name"].GetStringValue() != "Ada" || e.GetCreatedAt() == nil {
		t.Errorf("the order's event is %v", e)
	}
	for _, want := range []string{`"msg":"log created"`, `"id":`, `"routing_key":"shop.order.placed"`, e.GetMessageId(), telemetry.ShortID(id)} {
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
		if age := time.Since(e.GetPublishedAt().AsTime()); age < 0 || age > testTimeout {
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

func TestListEvents_PagesAreStableWhileRowsArrive(t *testing.T) {
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
		first    int64 // the id of the first event, 0 if it is still to come
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

// A stream that began after a person was erased was handed what had been read for others before.
func TestStreamEvents_WhatIsErasedIsNotSentFromMemory(t *testing.T) {
	t.Parallel()
	f := start(t)
	open := stream(t, f.events, &loggingv1.StreamEventsRequest{})
	adas := placedBy("ada@example.org", "")
	f.publish(t, adas)
	id := receive(t, open, 1)[0].GetId()
	erased, err := customerv1.NewPersonalDataServiceClient(f.conn).ErasePersonalData(asOperator(within(t), "bob"),
		&customerv1.ErasePersonalDataRequest{Person: &customerv1.Person{Email: "ada@example.org"}})
	if err != nil || erased.GetEvents() != 1 {
		t.Fatalf("erased %v, %v", erased, err)
	}
	for what, req := range map[string]*loggingv1.StreamEventsRequest{
		"the whole log": {AfterId: id - 1, FromBeginning: true}, "the order": {OrderId: adas.GetOrderId()},
	} {
		late := stream(t, f.events, req)
		if got := receive(t, late, 1)[0]; got.GetId() != id || strings.Contains(got.String(), "ada@") || strings.Contains(got.String(), "Ada") {
			t.Errorf("a stream of %s that began after it has %v", what, got)
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
