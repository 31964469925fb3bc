package command

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	checkoutv1 "shop.example/gen/shop/checkout/v1"
	inventoryv1 "shop.example/gen/shop/inventory/v1"
	loggingv1 "shop.example/gen/shop/logging/v1"
	orderv1 "shop.example/gen/shop/order/v1"
	webhooksv1 "shop.example/gen/shop/webhooks/v1"
	"shop.example/platform/apierror"
	"shop.example/shop/cli"
)

// fakeShop answers calls as a test wants it.
type fakeShop struct {
	checkoutv1.UnimplementedCheckoutServiceServer
	inventoryv1.UnimplementedInventoryServiceServer
	loggingv1.UnimplementedDeadLetterServiceServer
	loggingv1.UnimplementedEventLogServiceServer
	loggingv1.UnimplementedOperatorActionServiceServer
	orderv1.UnimplementedOrderServiceServer
	webhooksv1.UnimplementedWebhookServiceServer

	place  func(context.Context) (*orderv1.Order, error)
	get    func() (*orderv1.Order, error)
	stream func(grpc.ServerStreamingServer[loggingv1.StreamEventsResponse]) error
	events []*loggingv1.Event // in the log

	letters []*loggingv1.DeadLetter // the newest first
	redrive func(id int64) error

	next string // the token of the page behind each page
}

func (f *fakeShop) PlaceOrder(ctx context.Context, _ *checkoutv1.PlaceOrderRequest) (*checkoutv1.PlaceOrderResponse, error) {
	order, err := f.place(ctx)
	return &checkoutv1.PlaceOrderResponse{Order: order}, err
}

func (f *fakeShop) GetOrder(context.Context, *orderv1.GetOrderRequest) (*orderv1.GetOrderResponse, error) {
	order, err := f.get()
	return &orderv1.GetOrderResponse{Order: order}, err
}

func (f *fakeShop) StreamEvents(_ *loggingv1.StreamEventsRequest, s grpc.ServerStreamingServer[loggingv1.StreamEventsResponse]) error {
	return f.stream(s)
}

func (f *fakeShop) ListEvents(context.Context, *loggingv1.ListEventsRequest) (*loggingv1.ListEventsResponse, error) {
	return &loggingv1.ListEventsResponse{Events: f.events, NextPageToken: f.next}, nil
}

func (f *fakeShop) ListDeadLetters(context.Context, *loggingv1.ListDeadLettersRequest) (*loggingv1.ListDeadLettersResponse, error) {
	return &loggingv1.ListDeadLettersResponse{DeadLetters: f.letters, NextPageToken: f.next}, nil
}

func (f *fakeShop) ListOrders(context.Context, *orderv1.ListOrdersRequest) (*orderv1.ListOrdersResponse, error) {
	return &orderv1.ListOrdersResponse{Orders: []*orderv1.Order{{}}, NextPageToken: f.next}, nil
}

func (f *fakeShop) ListOperatorActions(context.Context, *loggingv1.ListOperatorActionsRequest) (*loggingv1.ListOperatorActionsResponse, error) {
	return &loggingv1.ListOperatorActionsResponse{OperatorActions: []*loggingv1.OperatorAction{{}}, NextPageToken: f.next}, nil
}

func (f *fakeShop) ListStockMovements(context.Context, *inventoryv1.ListStockMovementsRequest) (*inventoryv1.ListStockMovementsResponse, error) {
	return &inventoryv1.ListStockMovementsResponse{Movements: []*inventoryv1.StockMovement{{}}, NextPageToken: f.next}, nil
}

func (f *fakeShop) ListWebhookDeliveries(context.Context, *webhooksv1.ListWebhookDeliveriesRequest) (*webhooksv1.ListWebhookDeliveriesResponse, error) {
	return &webhooksv1.ListWebhookDeliveriesResponse{Deliveries: []*webhooksv1.WebhookDelivery{{}}, NextPageToken: f.next}, nil
}

func (f *fakeShop) RedriveDeadLetter(_ context.Context, req *loggingv1.RedriveDeadLetterRequest) (*loggingv1.RedriveDeadLetterResponse, error) {
	return &loggingv1.RedriveDeadLetterResponse{DeadLetter: &loggingv1.DeadLetter{Id: req.GetId()}}, f.redrive(req.GetId())
}

// serve starts the shop and returns its address.
func (f *fakeShop) serve(t *testing.T) string {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	// Requests are validated as the gateway does.
	server := grpc.NewServer(grpc.UnaryInterceptor(apierror.NewInterceptor(slog.New(slog.DiscardHandler)).Unary))
	checkoutv1.RegisterCheckoutServiceServer(server, f)
	loggingv1.RegisterDeadLetterServiceServer(server, f)
	loggingv1.RegisterEventLogServiceServer(server, f)
	loggingv1.RegisterOperatorActionServiceServer(server, f)
	inventoryv1.RegisterInventoryServiceServer(server, f)
	webhooksv1.RegisterWebhookServiceServer(server, f)
	orderv1.RegisterOrderServiceServer(server, f)
	healthv1.RegisterHealthServer(server, health.NewServer())
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(lis) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return lis.Addr().String()
}

// said is the output and the end of a command.
type said struct {
	out, errs string
	err       error
	status    int
}

func (s said) String() string {
	return fmt.Sprintf("exit status %d, error %v\n%s%s", s.status, s.err, s.out, s.errs)
}

// run runs `shop` with args against the shop.
func (f *fakeShop) run(ctx context.Context, t *testing.T, args ...string) said {
	t.Helper()
	var out, errs lockedBuffer
	root := Root()
	root.SetIn(strings.NewReader(""))
	root.SetOut(&out)
	root.SetErr(&errs)
	root.SetArgs(append(args, "--server", f.serve(t), "--token", "the operator's"))
	err := root.ExecuteContext(ctx)
	return said{out.String(), errs.String(), err, cli.ExitStatus(err)}
}

// lockedBuffer is written to by several goroutines, as a file is.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
