package server

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	rabbithole "github.com/michaelklishin/rabbit-hole/v3"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	eventsv1 "shop.example/gen/shop/events/v1"
	moneyv1 "shop.example/gen/shop/money/v1"
	orderv1 "shop.example/gen/shop/order/v1"
	"shop.example/platform/apierror"
	"shop.example/platform/messaging"
	"shop.example/platform/testkit/brokertest"
	"shop.example/topology"
)

// orderBook is an order service that takes note of what it is asked for.
type orderBook struct {
	orderv1.UnimplementedOrderServiceServer

	mu    sync.Mutex
	known map[string]*orderv1.Order
	asked []string
}

func (b *orderBook) GetOrder(_ context.Context, req *orderv1.GetOrderRequest) (*orderv1.GetOrderResponse, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.asked = append(b.asked, req.GetOrderId())
	if o := b.known[req.GetOrderId()]; o != nil {
		return &orderv1.GetOrderResponse{Order: o}, nil
	}
	return nil, apierror.New(codes.NotFound, "ORDER_NOT_FOUND", "there is no such order")
}

func (b *orderBook) CancelOrder(context.Context, *orderv1.CancelOrderRequest) (*orderv1.CancelOrderResponse, error) {
	return nil, apierror.New(codes.NotFound, "ORDER_NOT_FOUND", "there is no such order")
}

func (b *orderBook) store(id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.known[id] = &orderv1.Order{Id: id, State: orderv1.Order_CONFIRMED, CustomerName: "as it is stored"}
}

func (b *orderBook) questions() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.asked)
}

// serveOrderBook returns an order service and its address.
func serveOrderBook(t *testing.T) (*orderBook, string) {
	t.Helper()
	book := &orderBook{known: map[string]*orderv1.Order{}}
	return book, backend(t, func(s grpc.ServiceRegistrar) { orderv1.RegisterOrderServiceServer(s, book) })
}

// confirm decides an order as the order service does.
func (o other) confirm(ctx context.Context, placed *eventsv1.OrderPlaced) error {
	e := &eventsv1.OrderConfirmed{
		OrderId: placed.GetOrderId(), TotalValue: &moneyv1.Money{CurrencyCode: "USD", Units: 205}, ConfirmedAt: timestamppb.Now(),
	}
	for i, l := range placed.GetLines() {
		e.TotalItems += l.GetQuantity()
		e.Lines = append(e.Lines, &eventsv1.PricedLine{
			Line: int32(i + 1), ProductId: l.GetProductId(), ProductName: "Product", Quantity: l.GetQuantity(), UnitPrice: &moneyv1.Money{CurrencyCode: "USD", Units: 1},
		})
	}
	return o.pub.Publish(ctx, e)
}

func waitFor(t *testing.T, g *gateway, seconds int, headers ...string) <-chan answer {
	t.Helper()
	answered := make(chan answer, 1)
	go func() {
		answered <- send(t, http.MethodPost, "http://"+g.HTTPAddr()+"/v1/orders", order, append(headers, fmt.Sprintf("Prefer: wait=%d", seconds))...)
	}()
	return answered
}

func TestPreferWait_ManyWhoWaitAskTheOrderServiceNothing(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	book, addr := serveOrderBook(t)
	g := startGateway(t, Config{AMQPURL: broker.Services(t, topology.Broker())["gateway"], OrderAddr: addr})
	o := joinBroker(t, broker.URL)
	const waiters = 300
	// All are placed before the first is decided, but for one before them: then the gateway has subscribed.
	subscribed := false
	var placed []*eventsv1.OrderPlaced
	run(t, messaging.NewConsumer(o.conn, o.pub, "order", messaging.ConsumerOptions{}, messaging.Handle(
		func(ctx context.Context, batch []messaging.Message[*eventsv1.OrderPlaced]) error {
			for _, m := range batch {
				placed = append(placed, m.Body)
			}
			if subscribed && len(placed) < waiters {
				return nil
			}
			subscribed = true
			for _, p := range placed {
				if err := o.confirm(ctx, p); err != nil {
					return err
				}
			}
			placed = nil
			return nil
		})).Run)
	if first := <-waitFor(t, g, 20); first.status != http.StatusOK {
		t.Fatalf("the first order: %d %s", first.status, first.body)
	}
	before := len(book.questions())
	transport := &http.Transport{Protocols: protocolOf(2)}
	defer transport.CloseIdleConnections()
	var calls errgroup.Group
	for range waiters {
		calls.Go(func() error {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+g.HTTPAddr()+"/v1/orders", strings.NewReader(order))
			if err != nil {
				return err
			}
			req.Header.Set("Prefer", "wait=20")
			res, err := transport.RoundTrip(req)
			if err != nil {
				return err
			}
			defer res.Body.Close()
			if res.StatusCode != http.StatusOK {
				return fmt.Errorf("answered with %s", res.Status)
			}
			return nil
		})
	}
	if err := calls.Wait(); err != nil {
		t.Fatal(err)
	}
	if asked := len(book.questions()) - before; asked > 0 {
		t.Errorf("the order service was asked %d times", asked)
	}
}

func TestPreferWait_AnOrderThatWasSentAgainIsReadOnce(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	book, addr := serveOrderBook(t)
	g := startGateway(t, Config{AMQPURL: broker.URL, OrderAddr: addr})
	o := joinBroker(t, broker.URL)
	queue := o.take(t, "order")
	answered := waitFor(t, g, 20, "Idempotency-Key: mine")
	placed, _ := receive(t, queue)
	book.store(placed.GetOrderId())
	if err := o.confirm(t.Context(), placed); err != nil {
		t.Fatal(err)
	}
	if got := <-answered; got.status != http.StatusOK || !strings.Contains(got.body, "as it is stored") || got.header.Get("Preference-Applied") != "wait=20" || got.header.Get("ETag") == "" {
		t.Errorf("answered with %d %s %v", got.status, got.body, got.header)
	}
	if asked := book.questions(); len(asked) != 1 { // when it was decided
		t.Errorf("the order service was asked %d times", len(asked))
	}
}

func TestPreferWait_WhatIsDecidedWhileTheBrokerIsAwayIsFound(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	proxy := broker.Proxy(t)
	book, addr := serveOrderBook(t)
	g := startGateway(t, Config{AMQPURL: proxy.URL, OrderAddr: addr})
	o := joinBroker(t, broker.URL)
	queue := o.take(t, "order")
	answered := waitFor(t, g, 20)
	placed, _ := receive(t, queue)
	proxy.Down()
	if err := o.confirm(t.Context(), placed); err != nil { // which the gateway does not hear
		t.Fatal(err)
	}
	book.store(placed.GetOrderId())
	proxy.Up(t)
	if got := <-answered; got.status != http.StatusOK || !strings.Contains(got.body, "as it is stored") {
		t.Errorf("answered with %d %s", got.status, got.body)
	}

	// An order that is decided when the connection is back is heard of again.
	answered = waitFor(t, g, 20)
	for first := placed.GetOrderId(); placed.GetOrderId() == first; { // which may have been published twice
		placed, _ = receive(t, queue)
	}
	before := len(book.questions())
	proxy.Down()
	proxy.Up(t)
	for deadline := time.Now().Add(testTimeout); len(book.questions()) == before; <-time.After(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nobody looks what was missed")
		}
	}
	for deadline := time.Now().Add(testTimeout); ; <-time.After(200 * time.Millisecond) { // what comes before it is bound again is missed
		if err := o.confirm(t.Context(), placed); err != nil {
			t.Fatal(err)
		}
		select {
		case got := <-answered:
			if got.status != http.StatusOK || !strings.Contains(got.body, `"Ada Lovelace"`) {
				t.Errorf("answered with %d %s", got.status, got.body)
			}
			return
		default:
		}
		if time.Now().After(deadline) {
			t.Fatal("the decision was not heard")
		}
	}
}

func TestPreferWait_AGatewayThatMayNotListenYetLooksNowAndThen(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	url := broker.Services(t, topology.Broker())["gateway"]
	// As definitions of before had it.
	res, err := broker.Manage.UpdatePermissionsIn(broker.Vhost, broker.Vhost+"-gateway", rabbithole.Permissions{Configure: "^amq\\.gen-.*$", Write: "^shop\\.topic$", Read: "^amq\\.gen-.*$"})
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	book, addr := serveOrderBook(t)
	g := startGateway(t, Config{AMQPURL: url, OrderAddr: addr})
	queue := joinBroker(t, broker.URL).take(t, "order")
	answered := waitFor(t, g, 20)
	placed, _ := receive(t, queue)
	book.store(placed.GetOrderId())
	if got := <-answered; got.status != http.StatusOK {
		t.Errorf("answered with %d %s", got.status, got.body)
	}
	if asked := book.questions(); len(asked) > 5 {
		t.Errorf("the order service was asked %d times", len(asked))
	}
}
