package eventlog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	amqp "github.com/rabbitmq/amqp091-go"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"shop.example/db/dbtest"
	eventsv1 "shop.example/gen/shop/events/v1"
	inventoryv1 "shop.example/gen/shop/inventory/v1"
	loggingv1 "shop.example/gen/shop/logging/v1"
	moneyv1 "shop.example/gen/shop/money/v1"
	orderv1 "shop.example/gen/shop/order/v1"
	"shop.example/platform/contract"
	"shop.example/platform/messaging"
	"shop.example/platform/testkit/brokertest"
	"shop.example/topology"
)

// services are order and inventory as far as logging asks them.
type services struct {
	orderv1.UnimplementedIntakeServiceServer
	inventoryv1.UnimplementedSettlementServiceServer
	conn *grpc.ClientConn

	mu       sync.Mutex
	err      error // of every call
	handled  map[string]bool
	held     []string
	held2    []string                         // the second page
	stored   map[string]*eventsv1.OrderPlaced // by order id
	asked    int                              // about so many events
	rejected []*orderv1.RejectDiscardedRequest
}

func startServices(t *testing.T) *services {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &services{handled: map[string]bool{}}
	server := grpc.NewServer()
	orderv1.RegisterIntakeServiceServer(server, s)
	inventoryv1.RegisterSettlementServiceServer(server, s)
	runUntilDone(t, func(ctx context.Context) error {
		defer context.AfterFunc(ctx, server.Stop)()
		return server.Serve(lis)
	})
	if s.conn, err = grpc.NewClient(lis.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.conn.Close() })
	return s
}

func (s *services) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

// handles notes that events of orders are handled.
func (s *services) handles(orders ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range orders {
		s.handled[id] = true
	}
}

func (s *services) find(ids [][]byte) (unhandled [][]byte, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked += len(ids)
	for _, id := range ids {
		if !s.handled[uuid.UUID(id).String()] {
			unhandled = append(unhandled, id)
		}
	}
	return unhandled, s.err
}

func (s *services) FindUnknown(_ context.Context, req *orderv1.FindUnknownRequest) (*orderv1.FindUnknownResponse, error) {
	ids, err := s.find(req.GetOrderIds())
	return &orderv1.FindUnknownResponse{OrderIds: ids}, err
}

func (s *services) FindUnhandled(_ context.Context, req *inventoryv1.FindUnhandledRequest) (*inventoryv1.FindUnhandledResponse, error) {
	ids, err := s.find(req.GetOrderIds())
	return &inventoryv1.FindUnhandledResponse{OrderIds: ids}, err
}

func (s *services) FindHeld(_ context.Context, req *inventoryv1.FindHeldRequest) (*inventoryv1.FindHeldResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	resp, page := &inventoryv1.FindHeldResponse{}, s.held
	switch {
	case req.GetPageToken() != "":
		page = s.held2
	case s.held2 != nil:
		resp.NextPageToken = "2"
	}
	for _, order := range page {
		if id := uuid.MustParse(order); !s.handled[order] {
			resp.OrderIds = append(resp.OrderIds, id[:])
		}
	}
	return resp, s.err
}

func (s *services) FindPlaced(_ context.Context, req *orderv1.FindPlacedRequest) (*orderv1.FindPlacedResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	resp := &orderv1.FindPlacedResponse{}
	for _, id := range req.GetOrderIds() {
		if m := s.stored[uuid.UUID(id).String()]; m != nil {
			resp.Placed = append(resp.Placed, m)
		}
	}
	return resp, s.err
}

func (s *services) RejectDiscarded(_ context.Context, req *orderv1.RejectDiscardedRequest) (*orderv1.RejectDiscardedResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.rejected = append(s.rejected, req)
	}
	return &orderv1.RejectDiscardedResponse{}, s.err
}

// resending is a reconciler, the log and the queues that it works on, and what has come to those queues.
type resending struct {
	*reconciler
	*services
	db      *sqlx.DB
	broker  *brokertest.Broker
	pub     *messaging.Publisher
	consume *messaging.Connection
	log     *lines
	came    chan messaging.Delivery
}

func startResending(t *testing.T) *resending {
	t.Helper()
	f := &resending{services: startServices(t), db: openDB(t, dbtest.New(t)), broker: brokertest.New(t), log: &lines{}, came: make(chan messaging.Delivery, 1000)}
	dial := func(role string) *messaging.Connection {
		c, err := messaging.Dial(f.broker.URL, messaging.Options{Topology: topology.Broker(), Service: "test", Role: role})
		if err != nil {
			t.Fatal(err)
		}
		runUntilDone(t, c.Run)
		return c
	}
	f.consume, f.pub = dial("consume"), messaging.NewPublisher(dial("publish"))
	runUntilDone(t, f.pub.Run)
	f.reconciler = f.replica(t)
	return f
}

func (f *resending) replica(t *testing.T) *reconciler {
	t.Helper()
	r, err := newReconciler(f.db, f.pub, f.consume, orderv1.NewIntakeServiceClient(f.conn), inventoryv1.NewSettlementServiceClient(f.conn),
		slog.New(slog.NewTextHandler(f.log, nil)), metricnoop.NewMeterProvider())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// attach consumes queues: if none is named those of order and inventory.
func (f *resending) attach(t *testing.T, queues ...string) {
	t.Helper()
	if len(queues) == 0 {
		queues = []string{topology.Order, topology.Inventory}
	}
	for _, queue := range queues {
		c := messaging.NewConsumer(f.consume, f.pub, queue, messaging.ConsumerOptions{}, messaging.HandleRaw(func(_ context.Context, batch []messaging.Delivery) error {
			for _, d := range batch {
				f.came <- d
			}
			return nil
		}))
		runUntilDone(t, c.Run)
		eventually(t, "the consumer of "+queue, func() bool { return c.Ready(t.Context()) == nil })
	}
}

// logs writes events to the log alone, as if their queue had been gone, and lets time pass.
func (f *resending) logs(t *testing.T, events ...proto.Message) {
	t.Helper()
	var deliveries []messaging.Delivery
	for _, m := range events {
		deliveries = append(deliveries, deliveryOf(t, m))
	}
	if rows := write(t, f.db, deliveries...); len(rows) != len(events) {
		t.Fatalf("%d of %d events were logged", len(rows), len(events))
	}
	var err error
	if f.head, err = readLogEnd(t.Context(), f.db); err != nil {
		t.Fatal(err)
	}
	f.ages(10 * time.Second)
}

// ages lets time pass for what is in the database and for what was seen of the queues.
func (f *resending) ages(d time.Duration, others ...*reconciler) {
	f.db.MustExec(`UPDATE event_log SET created_at = created_at - $1 * interval '1 second'`, d.Seconds())
	f.db.MustExec(`UPDATE unhandled_event SET noticed_at = noticed_at - $1 * interval '1 second', sent_at = sent_at - $1 * interval '1 second'`, d.Seconds())
	f.db.MustExec(`UPDATE dead_letter SET updated_at = updated_at - $1 * interval '1 second'`, d.Seconds())
	for _, r := range append(others, f.reconciler) {
		r.head.at = r.head.at.Add(-d)
		for _, rt := range r.routes {
			for i := range rt.emptySince {
				rt.emptySince[i] = rt.emptySince[i].Add(-d)
			}
		}
	}
}

// passes makes passes with ten seconds between them.
func (f *resending) passes(t *testing.T, n int) {
	t.Helper()
	for range n {
		if err := f.pass(within(t)); err != nil {
			t.Fatal(err)
		}
		f.ages(10 * time.Second)
	}
}

// sends makes passes until so many events were sent again. On a busy machine RabbitMQ says now and then that nobody consumes a queue,
// and then it is not known to be empty.
func (f *resending) sends(t *testing.T, n int) {
	t.Helper()
	f.passesUntil(t, fmt.Sprintf(`SELECT count(*) >= %d FROM unhandled_event WHERE sent > 0`, n))
}

// passesUntil makes passes until a query says true.
func (f *resending) passesUntil(t *testing.T, query string) {
	t.Helper()
	for limit := time.Now().Add(testTimeout); ; f.passes(t, 1) {
		var done bool
		if err := f.db.Get(&done, query); err != nil {
			t.Fatal(err)
		}
		if done {
			return
		}
		if time.Now().After(limit) {
			t.Fatalf("not in time: %s", query)
		}
	}
}

func (f *resending) channel(t *testing.T) *amqp.Channel {
	t.Helper()
	conn, err := amqp.Dial(f.broker.URL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	ch, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	return ch
}

// next is what came to a queue.
func (f *resending) next(t *testing.T) messaging.Delivery {
	t.Helper()
	select {
	case d := <-f.came:
		return d
	case <-time.After(testTimeout):
		t.Fatal("nothing came")
		panic("unreachable")
	}
}

func (f *resending) outcome(t *testing.T, order string) (outcome string, sent int) {
	t.Helper()
	err := f.db.QueryRowx(`SELECT coalesce(outcome, ''), sent FROM unhandled_event WHERE order_id = $1`, order).Scan(&outcome, &sent)
	if err != nil {
		t.Fatalf("order %s: %v", order, err)
	}
	return outcome, sent
}

func decremented(orderID string) *eventsv1.DecrementQuantity {
	return &eventsv1.DecrementQuantity{OrderId: orderID, Lines: pricedLines()}
}

func cancelled(orderID string) *eventsv1.OrderCancelled {
	return &eventsv1.OrderCancelled{OrderId: orderID, Lines: pricedLines(), CancelledAt: timestamppb.Now()}
}

func confirmed(orderID string) *eventsv1.OrderConfirmed {
	return &eventsv1.OrderConfirmed{OrderId: orderID, Lines: pricedLines(), TotalItems: 2, TotalValue: &moneyv1.Money{CurrencyCode: "USD", Units: 10}, ConfirmedAt: timestamppb.Now()}
}

func pricedLines() []*eventsv1.PricedLine {
	return []*eventsv1.PricedLine{{Line: 1, ProductId: 1, ProductName: "Laptop", Quantity: 2, UnitPrice: &moneyv1.Money{CurrencyCode: "USD", Units: 5}}}
}

// The queue of the order service was deleted, or its binding: the log has orders that the service never got.
func TestReconciler_SendsALostEventOnce(t *testing.T) {
	t.Parallel()
	f := startResending(t)
	f.attach(t)
	lost, known := placed(newOrderID()), placed(newOrderID())
	lost.KeyHash, lost.Fingerprint, lost.Owner = []byte("01234567890123456789012345678901"), []byte("fingerprint"), "https://issuer ada"
	f.logs(t, known, lost)
	f.handles(known.GetOrderId())
	other := f.replica(t)
	for count(t, f.db, `SELECT count(*) FROM unhandled_event WHERE sent > 0`) == 0 && !t.Failed() { // both see the queue empty, in turns and at once
		var both sync.WaitGroup
		for _, r := range []*reconciler{f.reconciler, other} {
			both.Go(func() {
				if err := r.pass(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		both.Wait()
		f.ages(10*time.Second, other)
	}
	d := f.next(t)
	got := &eventsv1.OrderPlaced{}
	if err := proto.Unmarshal(d.Body, got); err != nil || !proto.Equal(got, lost) {
		t.Errorf("what came is %v, %v, want %v", got, err, lost)
	}
	want := deliveryOf(t, lost)
	if d.MessageID != want.MessageID || d.Type != want.Type || d.CorrelationID != lost.GetOrderId() || d.Attempt != 0 || d.RoutingKey != "shop.order.placed" || d.Exchange != "shop.topic" || d.AppID != "order" {
		t.Errorf("it came as %+v", d)
	}
	f.handles(lost.GetOrderId())
	f.passes(t, 3)
	if len(f.came) > 0 {
		t.Errorf("%d more came", len(f.came))
	}
	if outcome, sent := f.outcome(t, lost.GetOrderId()); outcome != outcomeHandled || sent != 1 {
		t.Errorf("it is %q and was sent %d times", outcome, sent)
	}
	if n := count(t, f.db, `SELECT count(*) FROM unhandled_event`); n != 1 {
		t.Errorf("%d events are written down, want 1", n)
	}
	asked := f.asked
	if f.passes(t, 3); f.asked != asked {
		t.Errorf("%d events were asked about although nothing was logged", f.asked-asked)
	}
}

// An outage of the order service can hold hundreds of thousands in its queue for hours: none of them is lost.
func TestReconciler_AWaitingEventIsNotSentAgain(t *testing.T) {
	t.Parallel()
	f := startResending(t)
	var waiting []proto.Message
	for range 20 {
		waiting = append(waiting, placed(newOrderID()))
	}
	for _, m := range waiting { // to the queue, too
		if err := f.pub.Publish(within(t), m); err != nil {
			t.Fatal(err)
		}
	}
	f.logs(t, waiting...)
	f.ages(time.Hour)
	f.passes(t, 5)
	if n := count(t, f.db, `SELECT count(*) FROM unhandled_event`); n != 0 {
		t.Errorf("%d of those that wait are called lost", n)
	}
	// Empty is not enough: nobody consumes it while the service is down.
	ch := f.channel(t)
	if _, err := ch.QueuePurge(topology.Order, false); err != nil {
		t.Fatal(err)
	}
	f.passes(t, 3)
	if n := count(t, f.db, `SELECT count(*) FROM unhandled_event`); n != 0 {
		t.Errorf("without a consumer %d are called lost", n)
	}
	f.attach(t)
	f.sends(t, len(waiting)) // now they are
	if n := count(t, f.db, `SELECT count(*) FROM unhandled_event WHERE sent = 1`); n != len(waiting) {
		t.Errorf("%d were sent, want %d", n, len(waiting))
	}
}

// A queue that never is empty proves nothing; what came clearly later does.
func TestReconciler_AnEventThatLaterOnesOvertookIsLost(t *testing.T) {
	t.Parallel()
	f := startResending(t)
	if err := f.pub.Publish(within(t), placed(newOrderID())); err != nil { // which nobody takes
		t.Fatal(err)
	}
	lost, early, late, last := placed(newOrderID()), placed(newOrderID()), placed(newOrderID()), placed(newOrderID())
	f.logs(t, lost)
	f.ages(overtakenAfter - time.Minute)
	f.logs(t, early)
	f.ages(2 * time.Minute)
	f.logs(t, late)
	f.logs(t, last)
	f.handles(early.GetOrderId())
	f.passes(t, 3)
	if n := count(t, f.db, `SELECT count(*) FROM unhandled_event`); n != 0 {
		t.Errorf("%d are called lost because of what came soon after", n)
	}
	f.handles(late.GetOrderId())
	f.sends(t, 1)
	if outcome, sent := f.outcome(t, lost.GetOrderId()); outcome != "" || sent != 1 {
		t.Errorf("it is %q and was sent %d times", outcome, sent)
	}
	if n := count(t, f.db, `SELECT count(*) FROM unhandled_event`); n != 1 {
		t.Errorf("%d are called lost, want 1", n)
	}
}

func TestReconciler_DeadLettersAreForPeopleUntilTheyAreRedriven(t *testing.T) {
	t.Parallel()
	f := startResending(t)
	f.attach(t)
	open, given, again := placed(newOrderID()), placed(newOrderID()), placed(newOrderID())
	f.logs(t, open, given, again)
	for m, state := range map[proto.Message]string{open: "OPEN", given: "DISCARDED", again: "REDRIVEN"} {
		d := deliveryOf(t, m)
		d.SourceQueue, d.Reason = "order", "for a test"
		f.db.MustExec(`UPDATE dead_letter SET state = $2, updated_at = clock_timestamp() WHERE id = $1`, storeLetter(t, f.db, d), state)
	}
	if err := f.pass(within(t)); err != nil {
		t.Fatal(err)
	}
	if len(f.came) > 0 {
		t.Errorf("%d came", len(f.came))
	}
	f.ages(10 * time.Second)
	f.sends(t, 1)
	if got := f.next(t); got.CorrelationID != again.GetOrderId() || len(f.came) > 0 {
		t.Errorf("order %s came, and %d more; want the one that was redriven and is lost", got.CorrelationID, len(f.came))
	}
}

// What was erased cannot be sent, and is nobody's loss.
func TestReconciler_AnUnreadableEventIsSkippedAndCounted(t *testing.T) {
	t.Parallel()
	f := startResending(t)
	f.attach(t)
	erased, whole := placed(newOrderID()), placed(newOrderID())
	f.logs(t, erased, whole)
	f.db.MustExec(`UPDATE event_log SET payload = payload - 'customer_name' - 'customer_email' WHERE order_id = $1`, erased.GetOrderId())
	f.sends(t, 1)
	if got := f.next(t); got.CorrelationID != whole.GetOrderId() || len(f.came) > 0 {
		t.Errorf("order %s came, and %d more", got.CorrelationID, len(f.came))
	}
	if outcome, sent := f.outcome(t, erased.GetOrderId()); outcome != outcomeUnreadable || sent != 0 {
		t.Errorf("it is %q and was sent %d times", outcome, sent)
	}
	if !strings.Contains(f.log.String(), "an event is lost and cannot be sent again") {
		t.Errorf("the log does not say so:\n%s", f.log)
	}
}

// A replica of the release before took it for unreadable, and nobody sent it again.
func TestReconciler_AnEventOfANewerReleaseIsLeftToAReplicaOfThat(t *testing.T) {
	t.Parallel()
	f := startResending(t)
	f.attach(t)
	newer, whole := placed(newOrderID()), placed(newOrderID())
	f.logs(t, newer, whole)
	f.db.MustExec(`UPDATE event_log SET payload = payload || '{"gift_note": "for Bob"}' WHERE order_id = $1`, newer.GetOrderId())
	limit := time.Now().Add(testTimeout)
	for err := error(nil); !errors.Is(err, errNewer); f.ages(10 * time.Second) {
		if err = f.pass(within(t)); err != nil && !errors.Is(err, errNewer) || time.Now().After(limit) {
			t.Fatalf("it is not said that a newer replica is needed: %v", err)
		}
	}
	if got := f.next(t); got.CorrelationID != whole.GetOrderId() || len(f.came) > 0 {
		t.Errorf("order %s came, and %d more", got.CorrelationID, len(f.came))
	}
	if outcome, sent := f.outcome(t, newer.GetOrderId()); outcome != "" || sent != 0 {
		t.Errorf("it is %q and was sent %d times", outcome, sent)
	}
	f.db.MustExec(`UPDATE event_log SET payload = payload - 'gift_note' WHERE order_id = $1`, newer.GetOrderId()) // the newer replica knows it
	f.passesUntil(t, `SELECT count(*) = 2 FROM unhandled_event WHERE sent > 0`)
	if got := f.next(t); got.CorrelationID != newer.GetOrderId() {
		t.Errorf("order %s came", got.CorrelationID)
	}
}

func TestReconciler_AsksUntilItGetsAnAnswer(t *testing.T) {
	t.Parallel()
	f := startResending(t)
	f.attach(t)
	f.logs(t, placed(newOrderID()))
	f.fail(status.Error(codes.Unavailable, "not today"))
	for range 3 {
		if err := f.pass(within(t)); status.Code(err) != codes.Unavailable && !strings.Contains(fmt.Sprint(err), "not today") {
			t.Errorf("got %v", err)
		}
		f.ages(10 * time.Second)
	}
	if len(f.came) > 0 {
		t.Error("it guessed")
	}
	f.fail(nil)
	f.sends(t, 1)
	f.next(t)
}

// Somebody deletes the queue again and again.
func TestReconciler_StopsAfterTheMaximumNumberOfSends(t *testing.T) {
	t.Parallel()
	f := startResending(t)
	f.attach(t)
	lost := placed(newOrderID())
	f.logs(t, lost)
	f.passesUntil(t, `SELECT closed_at IS NOT NULL FROM unhandled_event UNION ALL SELECT false LIMIT 1`)
	for range maxSends {
		f.next(t)
	}
	if outcome, sent := f.outcome(t, lost.GetOrderId()); outcome != outcomeLost || sent != maxSends || len(f.came) > 0 {
		t.Errorf("it is %q and was sent %d times", outcome, sent)
	}
}

func TestReconciler_StockThatIsNeitherSettledNorReleasedGetsItsEvent(t *testing.T) {
	t.Parallel()
	f := startResending(t)
	f.attach(t)
	confirmed, undone, settled := newOrderID(), newOrderID(), newOrderID()
	f.logs(t, decremented(confirmed), decremented(settled), cancelled(undone))
	f.held = []string{confirmed, newOrderID()} // the other one was never confirmed
	f.handles(settled)
	var got []string
	for n := range 2 {
		f.sends(t, n+1)
		d := f.next(t)
		f.handles(d.CorrelationID)
		got = append(got, d.RoutingKey+" "+d.CorrelationID)
	}
	slices.Sort(got)
	if want := []string{"shop.inventory.decrement.quantity " + confirmed, "shop.order.cancelled " + undone}; !slices.Equal(got, want) || len(f.came) > 0 {
		t.Errorf("came %q, and %d more; want %q", got, len(f.came), want)
	}
}

// Of what is held the oldest thousand were looked at, always the same once they stayed held: their events were discarded dead letters.
func TestReconciler_WhatStaysHeldDoesNotHideOthers(t *testing.T) {
	t.Parallel()
	f := startResending(t)
	f.attach(t)
	lost := newOrderID()
	f.logs(t, decremented(lost))
	f.held, f.held2 = []string{newOrderID()}, []string{lost}
	f.sends(t, 1)
	if d := f.next(t); d.CorrelationID != lost || d.RoutingKey != "shop.inventory.decrement.quantity" {
		t.Errorf("came %s of order %s", d.RoutingKey, d.CorrelationID)
	}
}

// Two of three nodes of the broker died while it took an order: the queue of the order service kept it, that of the log did not.
// The order was CONFIRMED, and the log had no beginning of it, for good.
func TestReconciler_ADecisionWhoseBeginningTheLogHasNotGetsIt(t *testing.T) {
	t.Parallel()
	f := startResending(t)
	f.attach(t, topology.Logging)
	whole, lost, refused, unknown := placed(newOrderID()), placed(newOrderID()), placed(newOrderID()), newOrderID()
	lost.Owner = "https://issuer ada"
	f.stored = map[string]*eventsv1.OrderPlaced{lost.GetOrderId(): lost, refused.GetOrderId(): refused}
	f.handles(whole.GetOrderId(), lost.GetOrderId(), refused.GetOrderId())
	f.logs(t, whole, confirmed(whole.GetOrderId()), confirmed(lost.GetOrderId()), confirmed(unknown), rejected(refused.GetOrderId()))
	for n := range 2 {
		f.sends(t, n+1)
		d, got := f.next(t), &eventsv1.OrderPlaced{}
		if err := proto.Unmarshal(d.Body, got); err != nil || !proto.Equal(got, f.stored[d.CorrelationID]) {
			t.Errorf("what came is %v, %v", got, err)
		}
		if want := deliveryOf(t, got); d.MessageID != want.MessageID || d.RoutingKey != "shop.order.placed" || d.Exchange != "shop.topic" || d.AppID != "gateway" || !d.Timestamp.Equal(got.GetPlacedAt().AsTime().Truncate(time.Millisecond)) {
			t.Errorf("it came as %+v", d)
		}
		write(t, f.db, d)
	}
	f.passes(t, 3)
	if len(f.came) > 0 {
		t.Errorf("%d more came", len(f.came))
	}
	for order, want := range map[string]string{lost.GetOrderId(): outcomeHandled, refused.GetOrderId(): outcomeHandled, unknown: outcomeUnreadable} {
		if outcome, _ := f.outcome(t, order); outcome != want {
			t.Errorf("order %s is %q, want %q", order, outcome, want)
		}
	}
	if n := count(t, f.db, `SELECT count(*) FROM unhandled_event`); n != 3 {
		t.Errorf("%d events are written down, want 3", n)
	}
	// An operator is told of the event that is missing, not of the decision.
	results, err := f.resendOrders(within(t), []uuid.UUID{uuid.MustParse(unknown)})
	if err != nil || len(results) != 1 {
		t.Fatalf("sent again: %v, %v", results, err)
	}
	want := contract.MessageID(&eventsv1.OrderPlaced{OrderId: unknown}).String()
	if got := results[0]; got.GetMessageId() != want || got.GetRoutingKey() != "shop.order.placed" || got.GetProblem() == "" {
		t.Errorf("sent again: %v, want the id %s and a problem", got, want)
	}
}

// A letter that is older than the log was discarded: the decision is new, and how the order began was deleted.
func TestReconciler_WhatTheLogHasDeletedForItsAgeIsNotMadeAgain(t *testing.T) {
	t.Parallel()
	f := startResending(t)
	f.retention = 24 * time.Hour
	f.attach(t, topology.Logging)
	old := placed(newOrderID())
	old.PlacedAt = timestamppb.New(time.Now().Add(-25 * time.Hour))
	f.stored = map[string]*eventsv1.OrderPlaced{old.GetOrderId(): old}
	f.logs(t, rejected(old.GetOrderId()))
	f.passesUntil(t, `SELECT EXISTS (SELECT FROM unhandled_event WHERE closed_at IS NOT NULL)`)
	if outcome, sent := f.outcome(t, old.GetOrderId()); outcome != outcomeUnreadable || sent != 0 {
		t.Errorf("it is %q and was sent %d times", outcome, sent)
	}
}

// The cost of a pass must not grow with what is stored, and many lost orders are more than one batch.
func TestReconciler_ManyLostOrdersAreAllSent(t *testing.T) {
	t.Parallel()
	f := startResending(t)
	f.attach(t)
	const lost = reconcileBatch + 50
	var events []proto.Message
	for range lost {
		events = append(events, placed(newOrderID()))
	}
	f.logs(t, events...)
	f.sends(t, lost)
	seen := map[string]bool{}
	for range lost {
		seen[f.next(t).CorrelationID] = true
	}
	if len(seen) != lost || len(f.came) > 0 {
		t.Errorf("%d orders came, and %d more", len(seen), len(f.came))
	}
}

func TestResendEvents_SendsAtOnceWhatAnOperatorNames(t *testing.T) {
	t.Parallel()
	f := start(t)
	o := f.orders(t)
	o.decide(messaging.Permanent(errors.New("not today")))
	dead := placed(newOrderID())
	f.publish(t, dead)
	o.next(t)
	f.openLetters(t, 1)
	eventually(t, "the event in the log", func() bool { // which is written beside the letter
		var logged bool
		return f.db.Get(&logged, `SELECT EXISTS (SELECT FROM event_log WHERE order_id = $1)`, dead.GetOrderId()) == nil && logged
	})
	o.decide(nil)
	lost, known, erased := placed(newOrderID()), placed(newOrderID()), placed(newOrderID())
	write(t, f.db, deliveryOf(t, lost), deliveryOf(t, known), deliveryOf(t, erased))
	f.db.MustExec(`UPDATE event_log SET payload = '{}' WHERE order_id = $1`, erased.GetOrderId())
	f.others.handles(known.GetOrderId())
	req := &loggingv1.ResendEventsRequest{}
	for _, m := range []*eventsv1.OrderPlaced{dead, lost, known, erased} {
		req.OrderIds = append(req.OrderIds, m.GetOrderId())
	}
	resp, err := f.events.ResendEvents(within(t), req)
	if err != nil {
		t.Fatal(err)
	}
	problems := map[string]string{}
	for _, e := range resp.GetEvents() {
		problems[e.GetOrderId()] = e.GetProblem()
		if e.GetQueue() != "order" || e.GetRoutingKey() != "shop.order.placed" || e.GetMessageId() == "" {
			t.Errorf("got %v", e)
		}
	}
	errText, sent := problems[lost.GetOrderId()]
	if len(problems) != 3 || !sent || errText != "" || !strings.Contains(problems[dead.GetOrderId()], "dead letter") || !strings.Contains(problems[erased.GetOrderId()], "contract") {
		t.Errorf("got %q", problems)
	}
	if m := o.next(t); m.Body.GetOrderId() != lost.GetOrderId() {
		t.Errorf("order %s came", m.Body.GetOrderId())
	}
	f.others.fail(status.Error(codes.Unavailable, "not today"))
	if _, err := f.events.ResendEvents(within(t), req); status.Code(err) != codes.Unavailable {
		t.Errorf("without the order service: %v", err)
	}
}

// While many orders waited to be settled, each pass looked for them in every partition of the log, every three seconds: a third of a
// core with 390 partitions.
func TestReconciler_OldPartitionsAreNotSearchedForNewOrders(t *testing.T) {
	t.Parallel()
	made := uuid.Must(uuid.NewV7())
	if oldest := oldestOf([]uuid.UUID{made, uuid.Must(uuid.NewV7())}); time.Since(oldest) < day || time.Since(oldest) > day+time.Minute {
		t.Errorf("orders of now are looked for from %s on, want a day ago", oldest)
	}
	if oldest := oldestOf([]uuid.UUID{made, uuid.New()}); !oldest.IsZero() {
		t.Errorf("an order whose id has no time is looked for from %s on, want everywhere", oldest)
	}
}

// The beginnings of a thousand orders were looked for among those of all orders of two days, or all of those for each of the thousand:
// two seconds at 20,000 orders.
func TestReconciler_BeginningsAreFoundByTheirOrderNotAmongAll(t *testing.T) {
	t.Parallel()
	const stored, asked, missing = 20_000, 100, 10
	db := openDB(t, dbtest.New(t))
	db.SetMaxOpenConns(1) // whose counters are read
	var orders [][]byte
	err := db.SelectContext(t.Context(), &orders, `
		WITH stored AS (
		    INSERT INTO event_log (routing_key, exchange, payload, status, message_id, order_id, published_at)
		    SELECT 'shop.order.placed', 'shop.topic', '{}', 'success', gen_random_uuid(), gen_random_uuid(), now() FROM generate_series(1, $1) RETURNING order_id)
		SELECT * FROM (SELECT uuid_send(order_id) FROM stored LIMIT $2) AS known
		UNION ALL SELECT uuid_send(gen_random_uuid()) FROM generate_series(1, $3)`, stored, asked, missing)
	if err != nil {
		t.Fatal(err)
	}
	read := func() (rows int) {
		t.Helper()
		db.MustExec(`SELECT pg_stat_force_next_flush()`)
		if err := db.GetContext(t.Context(), &rows, `
			SELECT (SELECT sum(seq_tup_read) FROM pg_stat_user_tables) + (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes)`); err != nil {
			t.Fatal(err)
		}
		return rows
	}
	before := read()
	for range 8 { // a prepared statement has another plan after five
		if lost, err := (&reconciler{db: db}).withoutPlaced(t.Context(), orders); err != nil || len(lost) != missing {
			t.Fatalf("%d are missing, %v", len(lost), err)
		}
	}
	if n := read() - before; n > 8*2*asked {
		t.Errorf("%d rows were read for %d orders, 8 times", n, asked)
	}
}
