package messaging_test

import (
	"context"
	"errors"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	eventsv1 "shop.example/gen/shop/events/v1"
	inventoryv1 "shop.example/gen/shop/inventory/v1"
	"shop.example/platform/messaging"
	"shop.example/platform/testkit/brokertest"
)

type stockFunc func(context.Context, *inventoryv1.CheckStockRequest) (*inventoryv1.CheckStockResponse, error)

type stockServer struct {
	inventoryv1.UnimplementedStockServiceServer
	check stockFunc
}

func (s stockServer) CheckStock(ctx context.Context, r *inventoryv1.CheckStockRequest) (*inventoryv1.CheckStockResponse, error) {
	return s.check(ctx, r)
}

// call returns a client and, if check is given, runs a server for it.
func call(t testing.TB, url string, check stockFunc) inventoryv1.StockServiceClient {
	t.Helper()
	if check != nil {
		p := join(t, url, "inventory")
		server := messaging.NewRPCServer(p.consume, p.pub, 4, nil)
		inventoryv1.RegisterStockServiceServer(server, stockServer{check: check})
		p.run(server.Run)
		eventually(t, func() error { return server.Ready(t.Context()) })
	}
	p := join(t, url, "order")
	client := messaging.NewRPCClient(p.consume, p.pub)
	p.run(client.Run)
	return inventoryv1.NewStockServiceClient(client)
}

func eventually(t testing.TB, f func() error) {
	t.Helper()
	deadline := time.Now().Add(testTimeout)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		<-tick.C
	}
}

func check(id string) *inventoryv1.CheckStockRequest {
	return &inventoryv1.CheckStockRequest{Orders: []*inventoryv1.CheckStockRequest_Order{{OrderId: id}}}
}

func TestRPC_AnswersDeadlineAndMetadataCross(t *testing.T) {
	t.Parallel()
	client := call(t, brokertest.New(t).URL, func(ctx context.Context, r *inventoryv1.CheckStockRequest) (*inventoryv1.CheckStockResponse, error) {
		deadline, ok := ctx.Deadline()
		if left := time.Until(deadline); !ok || left > 20*time.Second {
			return nil, status.Errorf(codes.FailedPrecondition, "deadline in %s", left)
		}
		md, _ := metadata.FromIncomingContext(ctx)
		detail := ""
		if v := md.Get("tenant"); len(v) > 0 {
			detail = v[0]
		}
		return &inventoryv1.CheckStockResponse{Decisions: []*inventoryv1.StockDecision{{
			OrderId: r.GetOrders()[0].GetOrderId(), Rejection: &inventoryv1.StockDecision_Rejection{Detail: detail},
		}}}, nil
	})
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), "tenant", "north"), 20*time.Second)
	defer cancel()
	r, err := client.CheckStock(ctx, check("a"))
	if err != nil {
		t.Fatal(err)
	}
	if d := r.GetDecisions()[0]; d.GetOrderId() != "a" || d.GetRejection().GetDetail() != "north" {
		t.Errorf("answer %v", r)
	}
}

func TestRPC_StatusAndDetailsCross(t *testing.T) {
	t.Parallel()
	client := call(t, brokertest.New(t).URL, func(context.Context, *inventoryv1.CheckStockRequest) (*inventoryv1.CheckStockResponse, error) {
		st, err := status.New(codes.FailedPrecondition, "other lines").WithDetails(&errdetails.ErrorInfo{Reason: "OTHER_LINES"})
		if err != nil {
			return nil, err
		}
		return nil, st.Err()
	})
	_, err := client.CheckStock(within(t), check("a"))
	st := status.Convert(err)
	if st.Code() != codes.FailedPrecondition || st.Message() != "other lines" || len(st.Details()) != 1 {
		t.Fatalf("got %v with %v", st, st.Details())
	}
	if info, ok := st.Details()[0].(*errdetails.ErrorInfo); !ok || info.GetReason() != "OTHER_LINES" {
		t.Errorf("details %v", st.Details())
	}
}

func TestRPC_NobodyThereIsUnavailableAtOnce(t *testing.T) {
	t.Parallel()
	client := call(t, brokertest.New(t).URL, nil)
	// No deadline: the call would wait 10 s for an answer if it were not for the broker's word.
	_, err := client.CheckStock(t.Context(), check("a"))
	if status.Code(err) != codes.Unavailable {
		t.Errorf("got %v, want Unavailable", err)
	}
}

func TestRPC_ASlowAnswerIsDeadlineExceededAndDoesNotDisturbTheNext(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	client := call(t, brokertest.New(t).URL, func(_ context.Context, r *inventoryv1.CheckStockRequest) (*inventoryv1.CheckStockResponse, error) {
		id := r.GetOrders()[0].GetOrderId()
		if id == "slow" {
			<-release
		}
		return &inventoryv1.CheckStockResponse{Decisions: []*inventoryv1.StockDecision{{OrderId: id}}}, nil
	})
	if _, err := client.CheckStock(within(t), check("warm")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := client.CheckStock(ctx, check("slow")); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("got %v, want DeadlineExceeded", err)
	}
	close(release)
	for _, id := range []string{"b", "c"} {
		r, err := client.CheckStock(within(t), check(id))
		if err != nil || r.GetDecisions()[0].GetOrderId() != id {
			t.Errorf("the late answer took the place of another: %v, %v", r, err)
		}
	}
}

func TestRPC_APanicIsInternalAndTheServerLives(t *testing.T) {
	t.Parallel()
	client := call(t, brokertest.New(t).URL, func(_ context.Context, r *inventoryv1.CheckStockRequest) (*inventoryv1.CheckStockResponse, error) {
		if r.GetOrders()[0].GetOrderId() == "boom" {
			panic("boom")
		}
		return &inventoryv1.CheckStockResponse{}, nil
	})
	if _, err := client.CheckStock(within(t), check("boom")); status.Code(err) != codes.Internal {
		t.Errorf("got %v, want Internal", err)
	}
	if _, err := client.CheckStock(within(t), check("a")); err != nil {
		t.Errorf("after the panic: %v", err)
	}
}

func TestRPC_ACutFailsCallsInFlightAndTheNextWorks(t *testing.T) {
	t.Parallel()
	proxy := brokertest.New(t).Proxy(t)
	entered := make(chan struct{}, 1)
	client := call(t, proxy.URL, func(ctx context.Context, r *inventoryv1.CheckStockRequest) (*inventoryv1.CheckStockResponse, error) {
		if r.GetOrders()[0].GetOrderId() == "stuck" {
			entered <- struct{}{}
			<-ctx.Done()
		}
		return &inventoryv1.CheckStockResponse{}, nil
	})
	failed := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_, err := client.CheckStock(ctx, check("stuck"))
		failed <- err
	}()
	next(t, entered, "the call")
	proxy.Down()
	if err := next(t, failed, "the call to fail"); status.Code(err) != codes.Unavailable {
		t.Errorf("got %v, want Unavailable", err)
	}
	proxy.Up(t)
	eventually(t, func() error {
		_, err := client.CheckStock(within(t), check("a"))
		return err
	})
}

func TestRequest_TopicRequestIsAnsweredToTheAskerAlone(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	inventory := join(t, broker.URL, "inventory")
	inventory.run(messaging.NewConsumer(inventory.consume, inventory.pub, "inventory", messaging.ConsumerOptions{},
		messaging.Handle(func(ctx context.Context, batch []messaging.Message[*eventsv1.ListInventory]) error {
			for _, m := range batch {
				answer := &eventsv1.InventoryListed{Items: []*eventsv1.InventoryListed_Item{{Id: 1, ProductName: "Laptop"}}}
				if err := inventory.pub.Reply(ctx, m.Meta, answer, nil); err != nil {
					return err
				}
			}
			return nil
		})).Run)
	gateway := join(t, broker.URL, "gateway")
	client := messaging.NewRPCClient(gateway.consume, gateway.pub)
	gateway.run(client.Run)
	var listed eventsv1.InventoryListed
	if err := client.Request(within(t), &eventsv1.ListInventory{}, &listed); err != nil {
		t.Fatal(err)
	}
	if len(listed.GetItems()) != 1 || listed.GetItems()[0].GetProductName() != "Laptop" {
		t.Errorf("answer %v", &listed)
	}
}

// The broker has come up empty, and the log's queue is the first to be declared.
func TestRequest_ThatOnlyTheLogGotIsSentAgain(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	log := join(t, broker.URL, "logging")
	logged := make(chan string, 10)
	log.run(messaging.NewConsumer(log.consume, log.pub, "logging", messaging.ConsumerOptions{}, messaging.HandleRaw(
		func(_ context.Context, batch []messaging.Delivery) error {
			for _, d := range batch {
				logged <- d.MessageID
			}
			return nil
		})).Run)
	gateway := join(t, broker.URL, "gateway")
	client := messaging.NewRPCClient(gateway.consume, gateway.pub)
	gateway.run(client.Run)
	for _, p := range []*party{log, gateway} { // what is missing is declared by a connection that comes, and only then
		eventually(t, func() error { return errors.Join(p.consume.Ready(t.Context()), p.publish.Ready(t.Context())) })
	}
	if res, err := broker.Manage.DeleteQueue(broker.Vhost, "inventory"); err != nil || res.StatusCode != http.StatusNoContent {
		t.Fatalf("deleting the queue: %v, %v", res, err)
	}
	answered := make(chan error, 1)
	go func() { answered <- client.Request(within(t), &eventsv1.ListInventory{}, &eventsv1.InventoryListed{}) }()
	first := next(t, logged, "the request")

	inventory := join(t, broker.URL, "inventory")
	inventory.run(messaging.NewConsumer(inventory.consume, inventory.pub, "inventory", messaging.ConsumerOptions{}, messaging.Handle(
		func(ctx context.Context, batch []messaging.Message[*eventsv1.ListInventory]) error {
			return inventory.pub.Reply(ctx, batch[0].Meta, &eventsv1.InventoryListed{}, nil)
		})).Run)
	if err := next(t, answered, "the answer"); err != nil {
		t.Errorf("got %v", err)
	}
	if again := next(t, logged, "the request that was sent again"); again != first {
		t.Errorf("the ids differ, %s and %s: the log has the request twice", first, again)
	}
}

// The first server freezes with the request in its hands, or the node goes on which it lay in the queue.
func TestRPC_ACallThatIsNotAnsweredIsSentAgain(t *testing.T) {
	t.Parallel()
	frozen := make(chan struct{})
	defer close(frozen)
	var calls atomic.Int32
	client := call(t, brokertest.New(t).URL, func(_ context.Context, r *inventoryv1.CheckStockRequest) (*inventoryv1.CheckStockResponse, error) {
		if calls.Add(1) == 1 {
			<-frozen
		}
		return &inventoryv1.CheckStockResponse{Decisions: []*inventoryv1.StockDecision{{OrderId: r.GetOrders()[0].GetOrderId()}}}, nil
	})
	ctx, cancel := context.WithTimeout(t.Context(), 9*time.Second)
	defer cancel()
	r, err := client.CheckStock(ctx, check("a"))
	if err != nil || r.GetDecisions()[0].GetOrderId() != "a" {
		t.Errorf("got %v, %v", r, err)
	}
	if calls.Load() != 2 {
		t.Errorf("%d calls, want 2", calls.Load())
	}
}
