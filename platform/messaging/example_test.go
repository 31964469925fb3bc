package messaging_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/timestamppb"

	eventsv1 "shop.example/gen/shop/events/v1"
	inventoryv1 "shop.example/gen/shop/inventory/v1"
	"shop.example/platform/messaging"
	"shop.example/platform/testkit/brokertest"
)

// product is what its services share on the broker. Its contracts say the rest.
var product = messaging.Topology{
	EventExchange: "shop.topic", CallExchange: "shop.direct", DeadLetterExchange: "shop.dlx", DeadLetterService: "logging",
	Services: []messaging.Service{
		{Name: "gateway"},
		{Name: "order", Bindings: []string{"shop.order.placed"}, Required: true},
		{Name: "logging", Bindings: []string{"shop.#"}},
	},
}

// connect returns the two connections of a service, which run until ctx ends.
func connect(ctx context.Context, g *errgroup.Group, service string) (publish, consume *messaging.Connection, err error) {
	o := messaging.Options{Service: service, Role: "publish", Topology: product}
	if publish, err = messaging.Dial(os.Getenv("AMQP_URL"), o); err != nil {
		return nil, nil, err
	}
	o.Role, o.KeepTopology = "consume", true
	if consume, err = messaging.Dial(os.Getenv("AMQP_URL"), o); err != nil {
		return nil, nil, err
	}
	g.Go(func() error { return publish.Run(ctx) })
	g.Go(func() error { return consume.Run(ctx) })
	return publish, consume, nil
}

// Publish an event, and handle it in batches.
func Example() {
	var g errgroup.Group
	ctx, stop := context.WithTimeout(context.Background(), time.Minute)
	defer stop()
	publish, consume, err := connect(ctx, &g, "order")
	if err != nil {
		fmt.Println(err)
		return
	}
	publisher := messaging.NewPublisher(publish)
	g.Go(func() error { return publisher.Run(ctx) })

	handled := make(chan string, 1)
	handle := func(_ context.Context, batch []messaging.Message[*eventsv1.OrderPlaced]) error {
		for _, m := range batch { // all of it in one transaction, or none
			handled <- m.Body.GetCustomerName()
		}
		return nil
	}
	consumer := messaging.NewConsumer(consume, publisher, "order", messaging.ConsumerOptions{}, messaging.Handle(handle))
	g.Go(func() error { return consumer.Run(ctx) })

	err = publisher.Publish(ctx, &eventsv1.OrderPlaced{ // nil: the broker has it on disk, in every queue it belongs to
		OrderId: "018f3b1c-7c00-7000-8000-0123456789ab", CustomerName: "Ada", CustomerEmail: "ada@example.org",
		Lines: []*eventsv1.RequestedLine{{ProductId: 5, Quantity: 3}}, PlacedAt: timestamppb.Now(),
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("an order of", <-handled)
	stop()
	fmt.Println(g.Wait())
}

// stock answers CheckStock. It is an ordinary gRPC server.
type stock struct {
	inventoryv1.UnimplementedStockServiceServer
}

func (stock) CheckStock(_ context.Context, r *inventoryv1.CheckStockRequest) (*inventoryv1.CheckStockResponse, error) {
	return &inventoryv1.CheckStockResponse{Decisions: make([]*inventoryv1.StockDecision, len(r.GetOrders()))}, nil
}

// Call a gRPC method over the broker, by the stubs that protoc-gen-go-grpc writes.
func ExampleRPCClient() {
	var g errgroup.Group
	ctx, stop := context.WithTimeout(context.Background(), time.Minute)
	defer stop()
	publish, consume, err := connect(ctx, &g, "order")
	if err != nil {
		fmt.Println(err)
		return
	}
	publisher := messaging.NewPublisher(publish)
	server := messaging.NewRPCServer(consume, publisher, 4, nil)
	inventoryv1.RegisterStockServiceServer(server, stock{})
	client := messaging.NewRPCClient(consume, publisher)
	for _, run := range []func(context.Context) error{publisher.Run, server.Run, client.Run} {
		g.Go(func() error { return run(ctx) })
	}
	for server.Ready(ctx) != nil { // a call that nobody can answer fails at once
		<-time.After(10 * time.Millisecond)
	}

	reply, err := inventoryv1.NewStockServiceClient(client).CheckStock(ctx, &inventoryv1.CheckStockRequest{
		Orders: []*inventoryv1.CheckStockRequest_Order{{OrderId: "018f3b1c-7c00-7000-8000-0123456789ab"}},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(len(reply.GetDecisions()), "decision")
	stop()
	fmt.Println(g.Wait())
}

// The examples need a broker, which `go test` alone has not: they run here.
func TestExamples_SayWhatTheyDo(t *testing.T) {
	t.Setenv("AMQP_URL", brokertest.New(t).URL)
	for want, example := range map[string]func(){"an order of Ada\n<nil>\n": Example, "1 decision\n<nil>\n": ExampleRPCClient} {
		if got := output(t, example); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// The page of the package shows the examples as they run.
func TestReadme_ShowsTheExamplesAsTheyRun(t *testing.T) {
	t.Parallel()
	source, err := os.ReadFile("example_test.go")
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	shown := 0
	for _, part := range bytes.Split(page, []byte("```go\n"))[1:] {
		code, _, _ := bytes.Cut(part, []byte("```"))
		shown++
		if !bytes.Contains(source, code) {
			t.Errorf("README.md shows what is not in example_test.go:\n%s", code)
		}
	}
	if shown < 3 {
		t.Errorf("README.md shows %d pieces of code", shown)
	}
}

// output returns what f prints.
func output(t *testing.T, f func()) string {
	t.Helper()
	stdout := os.Stdout
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	os.Stdout = w
	f()
	os.Stdout = stdout
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	printed, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(printed)
}
