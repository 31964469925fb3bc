package stock

import (
	"bytes"
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"shop.example/db/dbtest"
	eventsv1 "shop.example/gen/shop/events/v1"
	inventoryv1 "shop.example/gen/shop/inventory/v1"
	"shop.example/platform/messaging"
	"shop.example/platform/service"
	"shop.example/platform/telemetry"
	"shop.example/platform/testkit/brokertest"
	"shop.example/topology"
)

// running is the service as it is run, and a client of the broker beside it.
type running struct {
	log   *lines
	items inventoryv1.InventoryServiceClient // over gRPC
	stock inventoryv1.StockServiceClient     // over the broker
	pub   *messaging.Publisher
	asker *messaging.RPCClient
}

// lines is a log that tests can wait on.
type lines struct {
	mu      sync.Mutex
	text    bytes.Buffer
	changed chan struct{}
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case l.changed <- struct{}{}:
	default:
	}
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// await returns when the log has all parts on one line.
func (l *lines) await(t *testing.T, parts ...string) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		for line := range strings.Lines(l.String()) {
			missing := false
			for _, p := range parts {
				missing = missing || !strings.Contains(line, p)
			}
			if !missing {
				return
			}
		}
		select {
		case <-l.changed:
		case <-deadline:
			t.Fatalf("no line with %q in the log:\n%s", parts, l)
		}
	}
}

func start(t *testing.T) *running {
	t.Helper()
	broker := brokertest.New(t)
	r := &running{log: &lines{changed: make(chan struct{}, 1)}}
	tel, err := telemetry.New(t.Context(), telemetry.Config{Service: "inventory", Output: r.log, LogLevel: slog.LevelDebug}) // at info many lines at once would be one
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(t.Context(), Config{
		AMQPURL: broker.URL, DatabaseURL: dbtest.New(t), GRPCAddr: "localhost:0", AdminAddr: "localhost:0", Currency: "USD",
		OrderAddr: "localhost:1", // nobody: no hold grows old here
	}, tel)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := messaging.Dial(broker.URL, messaging.Options{Topology: topology.Broker(), Service: "test", Role: "test"})
	if err != nil {
		t.Fatal(err)
	}
	r.pub = messaging.NewPublisher(conn)
	r.asker = messaging.NewRPCClient(conn, r.pub)
	r.stock = inventoryv1.NewStockServiceClient(r.asker)

	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, run := range []func(context.Context) error{s.Run, conn.Run, r.pub.Run, r.asker.Run} {
		wg.Go(func() {
			if err := run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	client, err := grpc.NewClient(s.GRPCAddr(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	r.items = inventoryv1.NewInventoryServiceClient(client)
	awaitReady(t, s.AdminAddr())
	return r
}

func awaitReady(t *testing.T, addr string) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for {
		err := service.Probe(t.Context(), addr)
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal(err)
		}
	}
}

func TestService_AnOrderIsCheckedSettledAndCancelled(t *testing.T) {
	t.Parallel()
	r := start(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	id, poor := uuid.NewString(), uuid.NewString()
	resp, err := r.stock.CheckStock(ctx, &inventoryv1.CheckStockRequest{Orders: []*inventoryv1.CheckStockRequest_Order{
		{OrderId: id, Lines: []*eventsv1.RequestedLine{
			{ProductId: 1, ProductName: "Laptop Stand", Quantity: 3, ExpectedUnitPrice: usd(35)},
			{ProductId: 2, ProductName: "Mouse Pad", Quantity: 4, ExpectedUnitPrice: usd(25)},
		}},
		{OrderId: poor, Lines: []*eventsv1.RequestedLine{{ProductId: 1, Quantity: 51}}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	yes, no := resp.GetDecisions()[0], resp.GetDecisions()[1]
	if yes.GetOrderId() != id || len(yes.GetLines()) != 2 || yes.GetLines()[0].GetProductId() != laptopStand || yes.GetLines()[1].GetUnitPrice().GetUnits() != 25 {
		t.Errorf("the first decision is %v", yes)
	}
	if no.GetOrderId() != poor || no.GetRejection().GetReason() != eventsv1.OrderRejected_OUT_OF_STOCK {
		t.Errorf("the second decision is %v", no)
	}
	r.log.await(t, "stock available", "order_id="+telemetry.ShortID(id), "pieces=7")
	r.log.await(t, "stock refused", "order_id="+telemetry.ShortID(poor), "Laptop: you asked for 51, only 50 available")
	r.log.await(t, "stock updated", "Laptop Stand", "on_hand=150", "reserved=3", "quantity=147")

	if err := r.pub.Publish(ctx, &eventsv1.DecrementQuantity{OrderId: id, Lines: yes.GetLines()}); err != nil {
		t.Fatal(err)
	}
	r.log.await(t, "stock updated", "Mouse Pad", "on_hand=196", "reserved=0", "quantity=196")
	cancelled := &eventsv1.OrderCancelled{OrderId: id, Lines: yes.GetLines(), CancelledAt: timestamppb.Now()}
	if err := r.pub.Publish(ctx, cancelled); err != nil {
		t.Fatal(err)
	}
	r.log.await(t, "stock updated", "Mouse Pad", "on_hand=200", "reserved=0", "quantity=200")

	_, err = r.stock.CheckStock(ctx, &inventoryv1.CheckStockRequest{Orders: []*inventoryv1.CheckStockRequest_Order{
		{OrderId: id, Lines: []*eventsv1.RequestedLine{{ProductId: 1, Quantity: 1}}},
	}})
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), id) {
		t.Errorf("the same order with other lines: %v", err)
	}
	_, err = r.stock.CheckStock(ctx, &inventoryv1.CheckStockRequest{Orders: []*inventoryv1.CheckStockRequest_Order{
		{OrderId: uuid.NewString(), Lines: []*eventsv1.RequestedLine{{ProductId: 1, Quantity: -1}}},
	}})
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("a negative quantity: %v", err)
	}
}

func TestNew_AHoldLimitWithinTheTimeOfAnOrderIsRefused(t *testing.T) {
	t.Parallel()
	_, err := New(t.Context(), Config{HoldLimit: 4 * time.Minute}, nil)
	if err == nil || !strings.Contains(err.Error(), "HOLD_LIMIT is 4m0s") || !strings.Contains(err.Error(), "5m0s or more") {
		t.Errorf("New: %v", err)
	}
}

func TestService_TheCatalogueByMessagesAndCalls(t *testing.T) {
	t.Parallel()
	r := start(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := r.pub.Publish(ctx, createOf(&eventsv1.CreateItems_Item{ProductName: "Tablet", Quantity: 7, Price: usd(300)})); err != nil {
		t.Fatal(err)
	}
	r.log.await(t, "stock updated", "Tablet", "on_hand=7", "quantity=7")
	listed := &eventsv1.InventoryListed{}
	if err := r.asker.Request(ctx, &eventsv1.ListInventory{}, listed); err != nil {
		t.Fatal(err)
	}
	if n := len(listed.GetItems()); n != 9 {
		t.Fatalf("%d items are listed", n)
	}
	tablet := listed.GetItems()[8]
	if tablet.GetProductName() != "Tablet" || tablet.GetQuantity() != 7 || tablet.GetPrice().GetUnits() != 300 || tablet.GetCreatedAt() == nil {
		t.Errorf("listed %v", tablet)
	}
	got, err := r.items.GetItem(ctx, &inventoryv1.GetItemRequest{Id: tablet.GetId()})
	if err != nil || got.GetItem().GetOnHand() != 7 {
		t.Errorf("read %v, %v", got, err)
	}
	if _, err := r.items.GetItem(ctx, &inventoryv1.GetItemRequest{Id: 99}); status.Code(err) != codes.NotFound {
		t.Errorf("an unknown id: %v", err)
	}
	// What can never be done is a dead letter, with the reason.
	if err := r.pub.Publish(ctx, createOf(&eventsv1.CreateItems_Item{ProductName: "Tablet", Quantity: 7, Price: usd(300)})); err != nil {
		t.Fatal(err)
	}
	r.log.await(t, "dead letter", "ITEM_EXISTS", "Tablet")
}

// Inventory was away: who asked has asked again.
func TestListInventory_ARequestThatWasSentAgainIsAnsweredOnce(t *testing.T) {
	t.Parallel()
	var batch []messaging.Message[*eventsv1.ListInventory]
	for _, call := range []string{"x a", "x b", "x a", "y a", "x ", "x ", "x b"} {
		replyTo, id, _ := strings.Cut(call, " ")
		batch = append(batch, messaging.Message[*eventsv1.ListInventory]{Meta: messaging.Meta{ReplyTo: replyTo, CorrelationID: id}})
	}
	var answered []string
	for _, m := range withoutRepeats(batch) {
		answered = append(answered, m.ReplyTo+" "+m.CorrelationID)
	}
	if want := []string{"x a", "x b", "y a", "x ", "x "}; !slices.Equal(answered, want) {
		t.Errorf("answered are %q, want %q", answered, want)
	}
}

// The demo's interface has no pages. A list that is too large for one message costs its asker an error and nobody else
// anything: the broker would close the channel that answers to all go over.
func TestListInventory_ACatalogueThatIsTooLargeIsRefused(t *testing.T) {
	t.Parallel()
	r := start(t)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for range 2 {
		items := make([]*eventsv1.CreateItems_Item, 1000) // the largest event that there is
		for i := range items {
			name := strings.Repeat("\U0001F6D2", 164) + uuid.NewString()
			items[i] = &eventsv1.CreateItems_Item{ProductName: name, Quantity: 1_000_000_000, Price: usd(10)}
		}
		if err := r.pub.Publish(ctx, createOf(items...)); err != nil {
			t.Fatal(err)
		}
		r.log.await(t, "stock updated", items[len(items)-1].GetProductName())
	}
	err := r.asker.Request(ctx, &eventsv1.ListInventory{}, &eventsv1.InventoryListed{})
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "/v1/inventory has pages") {
		t.Errorf("got %v", err)
	}
	id := uuid.NewString()
	resp, err := r.stock.CheckStock(ctx, &inventoryv1.CheckStockRequest{Orders: []*inventoryv1.CheckStockRequest_Order{
		{OrderId: id, Lines: []*eventsv1.RequestedLine{{ProductId: 1, Quantity: 1}}},
	}})
	if err != nil || resp.GetDecisions()[0].GetOrderId() != id {
		t.Errorf("another call: %v, %v", resp, err)
	}
}
