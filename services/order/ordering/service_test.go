package ordering

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"shop.example/db/dbtest"
	eventsv1 "shop.example/gen/shop/events/v1"
	inventoryv1 "shop.example/gen/shop/inventory/v1"
	orderv1 "shop.example/gen/shop/order/v1"
	"shop.example/platform/contract"
	"shop.example/platform/messaging"
	"shop.example/platform/telemetry"
	"shop.example/platform/testkit/brokertest"
	"shop.example/platform/testkit/netproxy"
	"shop.example/topology"
)

// testTimeout bounds every wait of these tests; none waits that long unless something is broken.
const testTimeout = 30 * time.Second

// fakePeers are the other services as far as the order service meets them: a publisher, and what the queues of
// others receive.
type fakePeers struct {
	consume *messaging.Connection
	pub     *messaging.Publisher
	events  chan messaging.Delivery // what goes to the log: every event
	dead    chan messaging.Delivery
	run     func(func(context.Context) error)
}

func newFakePeers(t testing.TB, broker *brokertest.Broker) *fakePeers {
	t.Helper()
	n := &fakePeers{events: make(chan messaging.Delivery, 50_000), dead: make(chan messaging.Delivery, 1000)}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() { cancel(); wg.Wait() })
	n.run = func(f func(context.Context) error) {
		wg.Go(func() {
			if err := f(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	dial := func(role string) *messaging.Connection {
		c, err := messaging.Dial(broker.URL, messaging.Options{Topology: topology.Broker(), Service: "test", Role: role})
		if err != nil {
			t.Fatal(err)
		}
		n.run(c.Run)
		return c
	}
	n.consume = dial("consume")
	n.pub = messaging.NewPublisher(dial("publish"))
	n.run(n.pub.Run)
	for queue, to := range map[string]chan messaging.Delivery{topology.Logging: n.events, messaging.DeadLetterQueue: n.dead} {
		n.run(messaging.NewConsumer(n.consume, n.pub, queue, messaging.ConsumerOptions{},
			messaging.HandleRaw(func(_ context.Context, batch []messaging.Delivery) error {
				for _, d := range batch {
					to <- d
				}
				return nil
			})).Run)
	}
	return n
}

// stock is an inventory that answers with a function of the test.
type stock struct {
	inventoryv1.UnimplementedStockServiceServer
	check func(*inventoryv1.CheckStockRequest) (*inventoryv1.CheckStockResponse, error)
}

func (s stock) CheckStock(_ context.Context, req *inventoryv1.CheckStockRequest) (*inventoryv1.CheckStockResponse, error) {
	return s.check(req)
}

// each decides every order of a request with answer.
func each(answer func(*eventsv1.OrderPlaced) *inventoryv1.StockDecision) func(*inventoryv1.CheckStockRequest) (*inventoryv1.CheckStockResponse, error) {
	return func(req *inventoryv1.CheckStockRequest) (*inventoryv1.CheckStockResponse, error) {
		resp := &inventoryv1.CheckStockResponse{}
		for _, o := range req.GetOrders() {
			resp.Decisions = append(resp.Decisions, answer(&eventsv1.OrderPlaced{OrderId: o.GetOrderId(), Lines: o.GetLines()}))
		}
		return resp, nil
	}
}

// inventory starts the inventory.
func (n *fakePeers) inventory(check func(*inventoryv1.CheckStockRequest) (*inventoryv1.CheckStockResponse, error)) {
	server := messaging.NewRPCServer(n.consume, n.pub, 4, nil)
	inventoryv1.RegisterStockServiceServer(server, stock{check: check})
	n.run(server.Run)
}

func (n *fakePeers) publish(t testing.TB, messages ...*eventsv1.OrderPlaced) {
	t.Helper()
	out := make([]messaging.Outgoing, len(messages))
	for i, m := range messages {
		var err error
		if out[i], err = messaging.NewOutgoing(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.pub.Send(t.Context(), out); err != nil {
		t.Fatal(err)
	}
}

// next takes from ch or fails.
func next(t testing.TB, ch <-chan messaging.Delivery) messaging.Delivery {
	t.Helper()
	select {
	case d := <-ch:
		return d
	case <-time.After(testTimeout):
		t.Fatalf("waited %s for a message", testTimeout)
		panic("unreachable")
	}
}

// until takes events until there are n with the routing key, and returns those.
func (n *fakePeers) until(t testing.TB, key string, count int) (ids []string) {
	t.Helper()
	for len(ids) < count {
		if d := next(t, n.events); d.RoutingKey == key {
			ids = append(ids, d.CorrelationID)
		}
	}
	return ids
}

// logs keeps what a service logs and tells who waits for a line.
type logs struct {
	mu      sync.Mutex
	text    bytes.Buffer
	changed *sync.Cond
}

func (l *logs) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.changed.Broadcast()
	return l.text.Write(b)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// await returns when a line contains text.
func (l *logs) await(t *testing.T, text string) {
	t.Helper()
	late := false
	timer := time.AfterFunc(testTimeout, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		late = true
		l.changed.Broadcast()
	})
	defer timer.Stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	for !strings.Contains(l.text.String(), text) {
		if late {
			t.Fatalf("waited %s for the log to say %q", testTimeout, text)
		}
		l.changed.Wait()
	}
}

// start runs the order service; stop waits until it has ended.
func start(t testing.TB, broker *brokertest.Broker, database string) (s *Service, l *logs, stop func()) {
	t.Helper()
	l = &logs{}
	l.changed = sync.NewCond(&l.mu)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the service's log:\n%s", l)
		}
	})
	tel, err := telemetry.New(t.Context(), telemetry.Config{Service: "order", Output: l})
	if err != nil {
		t.Fatal(err)
	}
	s, err = New(t.Context(), Config{
		AMQPURL: broker.URL, DatabaseURL: database, GRPCAddr: "localhost:0", AdminAddr: "localhost:0",
	}, tel)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the service ended with: %v", err)
		}
		tel.Shutdown(context.Background())
	})
	t.Cleanup(stop)
	return s, l, stop
}

// It ended, and was started again later and later.
func TestNew_AServiceThatIsStartedBeforeItsDatabaseWaitsForIt(t *testing.T) {
	t.Parallel()
	broker, database := brokertest.New(t), netproxy.New(t, dbtest.New(t))
	database.Down()
	l := &logs{}
	l.changed = sync.NewCond(&l.mu)
	tel, err := telemetry.New(t.Context(), telemetry.Config{Service: "order", Output: l})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tel.Shutdown(context.Background()) })
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		s, err := New(ctx, Config{AMQPURL: broker.URL, DatabaseURL: database.URL, GRPCAddr: "localhost:0", AdminAddr: "localhost:0"}, tel)
		if err == nil {
			err = s.Run(ctx)
		}
		ended <- err
	}()
	l.await(t, "cannot start yet, trying again")
	l.await(t, "the database that DATABASE_URL names")
	l.await(t, "connection refused")
	database.Up(t)
	l.await(t, "serving")
	stop()
	if err := <-ended; err != nil {
		t.Errorf("the service ended with: %v", err)
	}
}

func TestOrderPlaced_IsConfirmedThenDecremented(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	n := newFakePeers(t, broker)
	n.inventory(each(held))
	s, logged, _ := start(t, broker, dbtest.New(t))

	span := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1, 2, 3}, SpanID: trace.SpanID{4}, TraceFlags: trace.FlagsSampled})
	placed := newPlaced()
	if err := n.pub.Publish(trace.ContextWithRemoteSpanContext(t.Context(), span), placed); err != nil {
		t.Fatal(err)
	}
	var confirmed eventsv1.OrderConfirmed
	var decrement eventsv1.DecrementQuantity
	want := []struct {
		key  string
		body proto.Message
	}{{"shop.order.placed", &eventsv1.OrderPlaced{}}, {"shop.order.confirmed", &confirmed}, {"shop.inventory.decrement.quantity", &decrement}}
	for _, w := range want {
		d := next(t, n.events)
		if err := proto.Unmarshal(d.Body, w.body); err != nil {
			t.Fatal(err)
		}
		if err := contract.Validate(w.body); err != nil {
			t.Error(err)
		}
		if d.RoutingKey != w.key || d.MessageID != contract.MessageID(w.body).String() || d.CorrelationID != placed.GetOrderId() {
			t.Errorf("message %s has the id %s and belongs to order %s; want %s of order %s", d.RoutingKey, d.MessageID, d.CorrelationID, w.key, placed.GetOrderId())
		}
		if d.Trace.TraceID() != span.TraceID() {
			t.Errorf("%s belongs to the trace %s, the order was placed in %s", d.RoutingKey, d.Trace.TraceID(), span.TraceID())
		}
	}
	if confirmed.GetTotalItems() != 7 || confirmed.GetTotalValue().GetUnits() != 245 || len(confirmed.GetLines()) != 2 || len(decrement.GetLines()) != 2 {
		t.Errorf("events are %v and %v", &confirmed, &decrement)
	}

	conn, err := grpc.NewClient(s.GRPCAddr(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	resp, err := orderv1.NewOrderServiceClient(conn).GetOrder(t.Context(), &orderv1.GetOrderRequest{OrderId: placed.GetOrderId()})
	if err != nil || resp.GetOrder().GetState() != orderv1.Order_CONFIRMED || !resp.GetOrder().GetUpdatedAt().AsTime().Equal(confirmed.GetConfirmedAt().AsTime()) {
		t.Errorf("the order is %v, %v", resp.GetOrder(), err)
	}
	logged.await(t, "order created")
	if text := logged.String(); strings.Contains(text, placed.GetCustomerName()) || strings.Contains(text, placed.GetCustomerEmail()) {
		t.Errorf("the log has personal data:\n%s", text)
	}
}

func TestOrderPlaced_IsRejected(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	n := newFakePeers(t, broker)
	n.inventory(each(refused))
	s, _, _ := start(t, broker, dbtest.New(t))
	placed := newPlaced()
	n.publish(t, placed)
	next(t, n.events) // as it was placed
	d := next(t, n.events)
	var rejected eventsv1.OrderRejected
	if err := proto.Unmarshal(d.Body, &rejected); err != nil || d.RoutingKey != "shop.order.rejected" {
		t.Fatalf("%s: %v", d.RoutingKey, err)
	}
	if err := contract.Validate(&rejected); err != nil || rejected.GetReason() != eventsv1.OrderRejected_OUT_OF_STOCK || rejected.GetDetail() != "line 1: 2 of 3 left" {
		t.Errorf("rejection is %v, %v", &rejected, err)
	}
	if got := mustGet(t, s, placed.GetOrderId()); got.GetState() != orderv1.Order_REJECTED {
		t.Errorf("order is %v", got)
	}
}

func TestOrderPlaced_WaitsForInventory(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	n := newFakePeers(t, broker)
	s, logged, _ := start(t, broker, dbtest.New(t))
	placed := make([]*eventsv1.OrderPlaced, 20)
	want := make([]string, len(placed))
	for i := range placed {
		placed[i] = newPlaced()
		want[i] = placed[i].GetOrderId()
	}
	n.publish(t, placed...)
	logged.await(t, "a dependency is down")
	if orders := count(t, s, "orders"); orders != 0 {
		t.Errorf("%d orders are stored that nobody decided", orders)
	}
	n.inventory(each(held))
	got := n.until(t, "shop.order.confirmed", len(want))
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("confirmed orders are\n%v, want\n%v", got, want)
	}
	if orders := count(t, s, "orders"); orders != len(want) || len(n.dead) != 0 {
		t.Errorf("%d orders are stored and %d are dead letters, want %d and none", orders, len(n.dead), len(want))
	}
}

func TestOrderPlaced_WaitsForTheDatabaseThatWentAfterTheStockWasHeld(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	n := newFakePeers(t, broker)
	database := dbtest.New(t)
	proxy := netproxy.New(t, database)
	var asked atomic.Int32
	n.inventory(func(req *inventoryv1.CheckStockRequest) (*inventoryv1.CheckStockResponse, error) {
		switch asked.Add(1) {
		case 1:
			proxy.Down()
		case 2:
			proxy.Up(t)
		}
		return each(held)(req)
	})
	start(t, broker, proxy.URL)
	placed := newPlaced()
	n.publish(t, placed)
	if got := n.until(t, "shop.order.confirmed", 1); got[0] != placed.GetOrderId() {
		t.Errorf("order %s is confirmed, want %s", got[0], placed.GetOrderId())
	}
	after := openStore(t, database)
	if orders := count(t, after, "orders"); orders != 1 || asked.Load() < 2 {
		t.Errorf("%d orders after inventory was asked %d times; want one, asked twice", orders, asked.Load())
	}
}

func TestOrderPlaced_DeliveredTwiceHasOneEffect(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	n := newFakePeers(t, broker)
	asked := make(chan string, 100)
	n.inventory(each(func(m *eventsv1.OrderPlaced) *inventoryv1.StockDecision {
		asked <- m.GetOrderId()
		return held(m)
	}))
	database := dbtest.New(t)
	_, _, stop := start(t, broker, database)
	placed := newPlaced()
	for range 2 {
		n.publish(t, placed)
		select {
		case <-asked:
		case <-time.After(testTimeout):
			t.Fatal("inventory was not asked")
		}
	}
	n.until(t, "shop.order.confirmed", 1)
	stop() // finishes what is in hand
	after := openStore(t, database)
	if orders := count(t, after, "orders"); orders != 1 {
		t.Errorf("%d orders, want one", orders)
	}
	var published int
	if err := after.db.GetContext(t.Context(), &published, "SELECT last_value FROM outbox_id_seq"); err != nil || published != 2 {
		t.Errorf("%d messages were written to the outbox (%v), want 2", published, err)
	}
}

func TestOrderPlaced_AnOrderThatInventoryRefusesDoesNotAffectOthers(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	n := newFakePeers(t, broker)
	orders := make([]*eventsv1.OrderPlaced, 10)
	for i := range orders {
		orders[i] = newPlaced()
	}
	bad := orders[4].GetOrderId()
	n.inventory(func(req *inventoryv1.CheckStockRequest) (*inventoryv1.CheckStockResponse, error) {
		for _, o := range req.GetOrders() {
			if o.GetOrderId() == bad {
				return nil, status.Error(codes.FailedPrecondition, "the order was decided with other lines")
			}
		}
		return each(held)(req)
	})
	n.publish(t, orders...)
	s, _, _ := start(t, broker, dbtest.New(t))
	if d := next(t, n.dead); d.CorrelationID != bad || !strings.Contains(d.Reason, "other lines") || d.SourceQueue != topology.Order {
		t.Errorf("dead letter of order %s from %s: %s", d.CorrelationID, d.SourceQueue, d.Reason)
	}
	if got := n.until(t, "shop.order.confirmed", 9); slices.Contains(got, bad) {
		t.Errorf("the order that inventory refused is among the confirmed ones: %v", got)
	}
	if stored := count(t, s, "orders"); stored != 9 {
		t.Errorf("%d orders are stored, want 9", stored)
	}
}

// BenchmarkOrderPlaced measures how fast a backlog of orders is worked off, with an inventory that only says yes.
func BenchmarkOrderPlaced(b *testing.B) {
	const backlog = 5000
	for b.Loop() {
		b.StopTimer()
		broker := brokertest.New(b)
		n := newFakePeers(b, broker)
		n.inventory(each(held))
		placed := make([]*eventsv1.OrderPlaced, backlog)
		for i := range placed {
			placed[i] = newPlaced()
		}
		n.publish(b, placed...)
		b.StartTimer()
		_, _, stop := start(b, broker, dbtest.New(b))
		n.until(b, "shop.inventory.decrement.quantity", backlog)
		b.StopTimer()
		stop()
		b.StartTimer()
	}
	b.ReportMetric(float64(backlog*b.N)/b.Elapsed().Seconds(), "orders/s")
}
