package messaging_test

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	eventsv1 "shop.example/gen/shop/events/v1"
	inventoryv1 "shop.example/gen/shop/inventory/v1"
	"shop.example/platform/messaging"
	"shop.example/platform/messaging/provision"
	"shop.example/platform/testkit/brokertest"
)

// background runs f until the test ends.
func background(t *testing.T, f func(context.Context) error) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- f(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// lines keeps what is logged.
type lines struct {
	mu sync.Mutex
	b  strings.Builder
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

func openChannel(t *testing.T, url string) *amqp.Channel {
	t.Helper()
	conn, err := amqp.Dial(url)
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

func mustDelete(t *testing.T, res *http.Response, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	if res.StatusCode >= 300 {
		t.Fatalf("deleting: %s", res.Status)
	}
}

// deletions are what somebody may do to the topology behind the services' backs.
var deletions = map[string]func(*testing.T, *brokertest.Broker){
	"queue order":              deleteQueue("order"),
	"queue inventory":          deleteQueue("inventory"),
	"queue logging":            deleteQueue("logging"),
	"queue dead-letter":        deleteQueue("dead-letter"),
	"retry queue":              deleteQueue("order.retry.10s"),
	"exchange shop.topic":      deleteExchange("shop.topic"),
	"exchange shop.dlx":        deleteExchange("shop.dlx"),
	"exchange shop.direct":     deleteExchange("shop.direct"),
	"binding of order":         unbind("order", "shop.topic"),
	"bindings of inventory":    unbind("inventory", "shop.topic"),
	"binding of dead-letter":   unbind("dead-letter", "shop.dlx"),
	"binding of stock's calls": unbind("inventory-rpc-queue", "shop.direct"),
}

func deleteQueue(name string) func(*testing.T, *brokertest.Broker) {
	return func(t *testing.T, b *brokertest.Broker) {
		res, err := b.Manage.DeleteQueue(b.Vhost, name)
		mustDelete(t, res, err)
	}
}

func deleteExchange(name string) func(*testing.T, *brokertest.Broker) {
	return func(t *testing.T, b *brokertest.Broker) {
		res, err := b.Manage.DeleteExchange(b.Vhost, name)
		mustDelete(t, res, err)
	}
}

func unbind(queue, exchange string) func(*testing.T, *brokertest.Broker) {
	return func(t *testing.T, b *brokertest.Broker) {
		bindings, err := b.Manage.ListQueueBindings(b.Vhost, queue)
		if err != nil {
			t.Fatal(err)
		}
		removed := 0
		for _, binding := range bindings {
			if binding.Source == exchange {
				res, err := b.Manage.DeleteBinding(b.Vhost, binding)
				mustDelete(t, res, err)
				removed++
			}
		}
		if removed == 0 {
			t.Fatalf("queue %s is not bound to %s: nothing was shown", queue, exchange)
		}
	}
}

// whole says what is missing in the topology, the binding of stock's calls included.
func whole(t *testing.T, b *brokertest.Broker) error {
	if err := provision.Compare(t.Context(), brokertest.Topology(), os.Getenv("AMQP_MANAGEMENT_URL"), b.Vhost); err != nil {
		return err
	}
	bindings, err := b.Manage.ListQueueBindings(b.Vhost, "inventory-rpc-queue")
	if err != nil {
		return err
	}
	for _, binding := range bindings {
		if binding.Source == "shop.direct" {
			return nil
		}
	}
	return errors.New("stock's calls are not bound")
}

func TestTopology_WhatIsDeletedWhileConnectionsLiveIsDeclaredAgain(t *testing.T) {
	t.Parallel()
	for name, remove := range deletions {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			broker := brokertest.New(t)
			order, inventory := join(t, broker.URL, "order"), join(t, broker.URL, "inventory")
			join(t, broker.URL, "logging")
			stock := messaging.NewRPCServer(inventory.consume, inventory.pub, 4, nil)
			inventoryv1.RegisterStockServiceServer(stock, stockServer{})
			inventory.run(stock.Run)
			orders := make(chan string, 10)
			order.orders(func(_ context.Context, batch []messaging.Message[*eventsv1.OrderPlaced]) error {
				for _, m := range batch {
					orders <- m.Body.GetOrderId()
				}
				return nil
			})
			publish(t, order, placed())
			next(t, orders, "the order before")
			eventually(t, func() error { return whole(t, broker) })

			remove(t, broker)
			eventually(t, func() error { return whole(t, broker) })
			last := placed()
			publish(t, order, last)
			if id := next(t, orders, "the order after"); id != last.GetOrderId() {
				t.Errorf("order %s came", id)
			}
			for _, p := range []*party{order, inventory} {
				eventually(t, func() error { return p.consume.Topology(t.Context()) })
			}
		})
	}
}

// In operation a service may declare no exchange. What is its own it declares again, and for the rest it says who can.
func TestTopology_WhatAUserMayNotDeclareIsRefusedWithOneClearLine(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	urls := broker.Services(t, brokertest.Topology())
	log := &lines{}
	conn, err := messaging.Dial(urls["order"], messaging.Options{
		Topology: brokertest.Topology(), Service: "order", Role: "consume", KeepTopology: true, Logger: slog.New(slog.NewTextHandler(log, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	background(t, conn.Run)
	eventually(t, func() error { return conn.Ready(t.Context()) })
	for _, own := range []string{"queue order", "retry queue", "binding of order"} {
		deletions[own](t, broker)
		eventually(t, func() error {
			return provision.Compare(t.Context(), brokertest.Topology(), os.Getenv("AMQP_MANAGEMENT_URL"), broker.Vhost)
		})
	}

	deletions["exchange shop.topic"](t, broker)
	const clear = "exchange shop.topic is missing in the broker, and this service's user may not declare it: import the shop's definitions"
	eventually(t, func() error {
		if err := conn.Topology(t.Context()); err == nil || !strings.Contains(err.Error(), clear) {
			return errors.Join(errors.New("it does not say so"), err)
		}
		return nil
	})
	if err := conn.Ready(t.Context()); err != nil {
		t.Errorf("the connection suffers: %v", err)
	}
	if err := provision.Topology(t.Context(), brokertest.Topology(), os.Getenv("AMQP_MANAGEMENT_URL"), broker.Vhost); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error { return conn.Topology(t.Context()) })
	if n := strings.Count(log.String(), clear); n != 1 {
		t.Errorf("it is said %d times:\n%s", n, log)
	}
}

// A publisher tried for ten seconds, and whoever waited for it as long.
func TestPublish_WithoutItsExchangeIsAnErrorAtOnce(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	gateway := join(t, broker.Services(t, brokertest.Topology())["gateway"], "gateway")
	publish(t, gateway, placed())
	deletions["exchange shop.topic"](t, broker)
	begin := time.Now()
	err := gateway.pub.Publish(within(t), placed())
	if took := time.Since(begin); !errors.Is(err, messaging.ErrUnroutable) || !strings.Contains(err.Error(), "no exchange 'shop.topic'") || took > testTimeout/3 {
		t.Errorf("after %s: %v", took, err)
	}
	provisioned(t, broker)
	publish(t, gateway, placed())
}

// Orders that were in the broker's hands when it failed over a queue that was deleted hung for ten seconds: a connection
// without that queue is of no use, and the gateway may not declare it.
func TestPublish_WhatOthersHaveToDeclareIsNotAwaited(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	urls := broker.Services(t, brokertest.Topology())
	deletions["queue order"](t, broker)
	gateway := join(t, urls["gateway"], "gateway")
	begin := time.Now()
	err := gateway.pub.Publish(within(t), placed())
	if took := time.Since(begin); !errors.Is(err, messaging.ErrNotConnected) || !strings.Contains(err.Error(), "queue order is missing in the broker") || took > testTimeout/6 {
		t.Errorf("after %s: %v", took, err)
	}
	provisioned(t, broker)
	eventually(t, func() error { return gateway.pub.Ready(t.Context()) })
	publish(t, gateway, placed())
}

// Somebody deletes a queue and declares it with other arguments: the service does not fight over it.
func TestTopology_AQueueThatWasDeclaredWithOtherArgumentsIsLeftAlone(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	order := join(t, broker.URL, "order")
	orders := make(chan string, 10)
	order.orders(func(_ context.Context, batch []messaging.Message[*eventsv1.OrderPlaced]) error {
		for _, m := range batch {
			orders <- m.Body.GetOrderId()
		}
		return nil
	})
	publish(t, order, placed())
	next(t, orders, "the order before")
	ch := openChannel(t, broker.URL)
	declareAnother := func() error { // the service may be quicker
		// Without waiting in between: RabbitMQ 3.10 fails with an internal error if two declare the queue at once.
		_, err := ch.QueueDelete("order", false, false, true)
		if err == nil {
			_, err = ch.QueueDeclare("order", true, false, false, true, nil)
		}
		if err == nil {
			_, err = ch.QueueDeclare("order", true, false, false, false, nil)
		}
		if err != nil {
			ch = openChannel(t, broker.URL)
		}
		return err
	}
	eventually(t, declareAnother)
	// It is bound again, and consumed.
	eventually(t, func() error {
		if order.consume.Ready(t.Context()) != nil {
			// The internal error was the service's, which has to connect again, and refuses such a queue then: from the beginning.
			if _, err := ch.QueueDelete("order", false, false, false); err != nil {
				return err
			}
			eventually(t, func() error { return order.consume.Ready(t.Context()) })
			eventually(t, declareAnother)
		}
		bindings, err := broker.Manage.ListQueueBindings(broker.Vhost, "order")
		if err == nil && len(bindings) < 2 { // one to the default exchange
			err = errors.New("it is not bound")
		}
		return err
	})
	last := placed()
	publish(t, order, last)
	if id := next(t, orders, "the order after"); id != last.GetOrderId() {
		t.Errorf("order %s came", id)
	}
	if err := order.consume.Topology(t.Context()); err != nil {
		t.Error(err)
	}
	queue, err := broker.Manage.GetQueue(broker.Vhost, "order")
	if err != nil || queue.Type != "classic" {
		t.Errorf("it is %v, %v", queue, err)
	}
}

// RabbitMQ keeps the consumer of a quorum queue that is deleted and declared again at once, and nothing arrives.
func TestTopology_AConsumerThatGetsNothingAnyMoreFromAQueueDeclaredAgainAtOnceComesBack(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	order := join(t, broker.URL, "order")
	orders := make(chan string, 10)
	order.orders(func(_ context.Context, batch []messaging.Message[*eventsv1.OrderPlaced]) error {
		for _, m := range batch {
			orders <- m.Body.GetOrderId()
		}
		return nil
	})
	publish(t, order, placed())
	next(t, orders, "the order before")
	ch := openChannel(t, broker.URL)
	if _, err := ch.QueueDelete("order", false, false, false); err != nil {
		t.Fatal(err)
	}
	if _, err := ch.QueueDeclare("order", true, false, false, false, amqp.Table{amqp.QueueTypeArg: amqp.QueueTypeQuorum}); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		return provision.Compare(t.Context(), brokertest.Topology(), os.Getenv("AMQP_MANAGEMENT_URL"), broker.Vhost)
	})
	last := placed()
	publish(t, order, last)
	if id := next(t, orders, "the order after"); id != last.GetOrderId() {
		t.Errorf("order %s came", id)
	}
}

// One connection whose broker stops to answer after the handshake had every other one of the process wait for it.
func TestConnect_ABrokerThatHangsHoldsUpNobodyElse(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	dial := func(url string) *messaging.Connection {
		conn, err := messaging.Dial(url, messaging.Options{Topology: brokertest.Topology(), Service: "order", Role: "consume", Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
		if err != nil {
			t.Fatal(err)
		}
		background(t, conn.Run)
		return conn
	}
	hanging, asked := hangingBroker(t, broker.URL)
	stuck := dial(hanging)
	next(t, asked, "the hanging broker to be asked")
	begin := time.Now()
	good := dial(broker.URL)
	eventually(t, func() error { return good.Ready(t.Context()) })
	if took := time.Since(begin); took > testTimeout/3 {
		t.Errorf("another connection was ready after %s", took)
	}
	eventually(t, func() error {
		// Either the limit of an answer comes first, or that of a heartbeat: the library resets that when it finds the time.
		err := stuck.Ready(t.Context())
		if err == nil || !strings.Contains(err.Error(), "the broker has not answered within 10s") && !strings.Contains(err.Error(), "i/o timeout") {
			return errors.Join(errors.New("the hanging connection says"), err)
		}
		return nil
	})
}

// hangingBroker is a way to the broker on which nothing comes back after the handshake. asked gets something for each
// connection that has come so far.
func hangingBroker(t *testing.T, address string) (_ string, asked <-chan struct{}) {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	target := u.Host
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = lis.Close() })
	u.Host = lis.Addr().String()
	hangs := make(chan struct{}, 100)
	go func() {
		for {
			client, err := lis.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", target)
			if err != nil {
				_ = client.Close()
				continue
			}
			go func() { _, _ = io.Copy(server, client); _ = server.Close() }()
			go func() {
				handshake(client, server)
				hangs <- struct{}{}
				_, _ = io.Copy(io.Discard, server)
				_ = client.Close()
			}()
		}
	}()
	return u.String(), hangs
}

// handshake passes frames on up to connection.open-ok.
func handshake(client io.Writer, server io.Reader) {
	for {
		header := make([]byte, 7) // type, channel, length of the payload
		if _, err := io.ReadFull(server, header); err != nil {
			return
		}
		rest := make([]byte, binary.BigEndian.Uint32(header[3:])+1)
		if _, err := io.ReadFull(server, rest); err != nil {
			return
		}
		if _, err := client.Write(append(header, rest...)); err != nil {
			return
		}
		if header[0] == 1 && binary.BigEndian.Uint32(rest) == 10<<16|41 {
			return
		}
	}
}

func TestQueueWatch_SaysSoWhenAQueueOrItsExchangeIsMissing(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"queue order", "queue logging", "exchange shop.topic"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			broker := brokertest.New(t)
			watch := watching(t, broker.Services(t, brokertest.Topology())["gateway"])
			begin := time.Now()
			deletions[name](t, broker)
			eventually(t, func() error {
				if watch.Ready(t.Context()) == nil {
					return errors.New("it has not noticed")
				}
				return nil
			})
			if took := time.Since(begin); took > testTimeout/3 {
				t.Errorf("noticed after %s", took)
			}
			provisioned(t, broker)
			eventually(t, func() error { return watch.Ready(t.Context()) })
		})
	}
}

func TestQueueWatch_SaysSoWhenTheBrokerDoesNotAnswer(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	provisioned(t, broker)
	proxy := broker.Proxy(t)
	watch := watching(t, proxy.URL)
	proxy.DropResponses()
	begin := time.Now()
	eventually(t, func() error {
		if err := watch.Ready(t.Context()); !errors.Is(err, messaging.ErrNoAnswer) || !strings.Contains(err.Error(), "has not said within 2s") {
			return errors.Join(errors.New("it has not noticed"), err)
		}
		return nil
	})
	if took := time.Since(begin); took > testTimeout/3 {
		t.Errorf("noticed after %s", took)
	}
	proxy.Down()
	proxy.Up(t)
	eventually(t, func() error { return watch.Ready(t.Context()) })
}

func provisioned(t *testing.T, b *brokertest.Broker) {
	t.Helper()
	if err := provision.Topology(t.Context(), brokertest.Topology(), os.Getenv("AMQP_MANAGEMENT_URL"), b.Vhost); err != nil {
		t.Fatal(err)
	}
}

// watching watches the order queue as the gateway does, and returns when it has looked.
func watching(t *testing.T, url string) *messaging.QueueWatch {
	t.Helper()
	conn, err := messaging.Dial(url, messaging.Options{Topology: brokertest.Topology(), Service: "gateway", Role: "consume", Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	background(t, conn.Run)
	watch := messaging.NewQueueWatch(conn, &eventsv1.OrderPlaced{})
	background(t, watch.Run)
	eventually(t, func() error { return errors.Join(conn.Ready(t.Context()), watch.Ready(t.Context())) })
	return watch
}
