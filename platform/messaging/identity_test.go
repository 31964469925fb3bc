package messaging_test

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	eventsv1 "shop.example/gen/shop/events/v1"
	inventoryv1 "shop.example/gen/shop/inventory/v1"
	moneyv1 "shop.example/gen/shop/money/v1"
	"shop.example/platform/contract"
	"shop.example/platform/messaging"
	"shop.example/platform/testkit/brokertest"
)

// rogue is a connection to the broker that says what it likes.
type rogue struct {
	*amqp.Channel
	user string
}

func rogueAt(t *testing.T, url string) rogue {
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
	if err := ch.Confirm(false); err != nil {
		t.Fatal(err)
	}
	return rogue{ch, userOf(t, url)}
}

func userOf(t *testing.T, url string) string {
	t.Helper()
	uri, err := amqp.ParseURI(url)
	if err != nil {
		t.Fatal(err)
	}
	return uri.Username
}

// publish publishes m under its own name, as the broker demands.
func (r rogue) publish(t *testing.T, exchange, key string, m proto.Message, headers amqp.Table) {
	t.Helper()
	r.send(t, exchange, key, r.user, m, headers)
}

func (r rogue) send(t *testing.T, exchange, key, user string, m proto.Message, headers amqp.Table) {
	t.Helper()
	body, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	confirm, err := r.PublishWithDeferredConfirm(exchange, key, true, false, amqp.Publishing{
		MessageId: uuid.NewString(), AppId: "gateway", UserId: user, DeliveryMode: amqp.Persistent, Headers: headers, Body: body,
	})
	if err != nil {
		t.Fatal(err)
	}
	if ok, err := confirm.WaitContext(within(t)); err != nil || !ok {
		t.Fatalf("publishing to %q %s: %v %v", exchange, key, ok, err)
	}
}

// watched is a party whose log and metrics the test reads.
type watched struct {
	*party
	metrics *sdkmetric.ManualReader
	mu      sync.Mutex
	log     strings.Builder
}

func (w *watched) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.log.Write(p)
}

func (w *watched) said(text string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Contains(w.log.String(), text)
}

func watch(t *testing.T, url, service string) *watched {
	t.Helper()
	w := &watched{metrics: sdkmetric.NewManualReader()}
	w.party = joinAs(t, url, messaging.Options{
		Topology: brokertest.Topology(), Service: service, Logger: slog.New(slog.NewTextHandler(w, nil)), Meter: sdkmetric.NewMeterProvider(sdkmetric.WithReader(w.metrics)),
	})
	return w
}

// counted returns the counter's values by the service whose user they name, "other" for nobody's; "" if they name none.
func (w *watched) counted(t *testing.T, name string) map[string]int64 {
	t.Helper()
	var all metricdata.ResourceMetrics
	if err := w.metrics.Collect(t.Context(), &all); err != nil {
		t.Fatal(err)
	}
	counts := map[string]int64{}
	for _, scope := range all.ScopeMetrics {
		for _, m := range scope.Metrics {
			if m.Name != name {
				continue
			}
			for _, p := range m.Data.(metricdata.Sum[int64]).DataPoints {
				user, _ := p.Attributes.Value("user")
				counts[user.AsString()] += p.Value
			}
		}
	}
	return counts
}

// Messages were believed by their app_id, which anyone can write: whoever reached the queue could place orders.
func TestUser_AnEventOfOneWhoMayNotPublishItIsADeadLetter(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	urls := broker.Services(t, brokertest.Topology())
	order := watch(t, urls["order"], "order")
	handled := make(chan messaging.Message[*eventsv1.OrderPlaced], 10)
	order.orders(func(_ context.Context, batch []messaging.Message[*eventsv1.OrderPlaced]) error {
		for _, m := range batch {
			handled <- m
		}
		return nil
	})
	letters := join(t, urls["logging"], "logging").deadLetters()

	claims := amqp.Table{"shop-routing-key": "shop.order.placed", "shop-exchange": "shop.topic", "shop-user": userOf(t, urls["gateway"])}
	inventory, stranger := rogueAt(t, urls["inventory"]), rogueAt(t, broker.URL)
	inventory.publish(t, "", "order", placed(), claims) // the rights of the broker let it
	stranger.publish(t, "shop.topic", "shop.order.placed", placed(), nil)
	for range 2 {
		d := next(t, letters, "the dead letter")
		switch {
		case d.User == inventory.user && strings.Contains(d.Reason, "may not publish to the queue order"):
		case d.User == stranger.user && strings.Contains(d.Reason, "may not publish shop.events.v1.OrderPlaced"):
		default:
			t.Errorf("published by %q, dead because %s", d.User, d.Reason)
		}
	}
	sent := placed()
	publish(t, join(t, urls["gateway"], "gateway"), sent)
	m := next(t, handled, "the gateway's order")
	if !proto.Equal(m.Body, sent) || m.User != userOf(t, urls["gateway"]) {
		t.Errorf("handled the order of %q", m.User)
	}
	if got := order.counted(t, "messaging.user.wrong"); got["other"] != 1 || got["inventory"] != 1 {
		t.Errorf("the alarm has counted %v", got)
	}
	if !order.said("a message comes from a user of the broker who may not send it") {
		t.Error("the log does not say so")
	}
}

// A publisher of events could say that an event had been tried often enough: the first failure made it a dead letter.
func TestUser_AnAttemptThatAnotherCountedIsTheFirst(t *testing.T) {
	t.Parallel()
	urls := brokertest.New(t).Services(t, brokertest.Topology())
	attempts := make(chan int, 10)
	join(t, urls["order"], "order").orders(func(_ context.Context, batch []messaging.Message[*eventsv1.OrderPlaced]) error {
		for _, m := range batch {
			attempts <- m.Attempt
			if m.Attempt == 0 {
				return errors.New("later")
			}
		}
		return nil
	})
	rogueAt(t, urls["gateway"]).publish(t, "shop.topic", "shop.order.placed", placed(), amqp.Table{"shop-attempt": int32(3)})
	for want := range 2 {
		if got := next(t, attempts, "the order"); got != want {
			t.Errorf("attempt %d, want %d", got, want)
		}
	}
}

func TestUser_TheBrokerRefusesTheNameOfAnother(t *testing.T) {
	t.Parallel()
	urls := brokertest.New(t).Services(t, brokertest.Topology())
	inventory := rogueAt(t, urls["inventory"])
	closed := inventory.NotifyClose(make(chan *amqp.Error, 1))
	if err := inventory.PublishWithContext(t.Context(), "", "order", true, false, amqp.Publishing{UserId: userOf(t, urls["gateway"])}); err != nil {
		t.Fatal(err)
	}
	if err := next(t, closed, "the broker's refusal"); err == nil || err.Code != amqp.PreconditionFailed {
		t.Errorf("closed with %v", err)
	}
}

func TestUser_RetriesAndRedrivesKeepWhoPublishedFirst(t *testing.T) {
	t.Parallel()
	urls := brokertest.New(t).Services(t, brokertest.Topology())
	gateway, order, logging := join(t, urls["gateway"], "gateway"), join(t, urls["order"], "order"), join(t, urls["logging"], "logging")
	handled := make(chan messaging.Message[*eventsv1.OrderPlaced], 10)
	order.orders(func(_ context.Context, batch []messaging.Message[*eventsv1.OrderPlaced]) error {
		for _, m := range batch {
			if m.Body.GetCustomerName() == "Never" {
				return messaging.Permanent(errors.New("never"))
			}
			if m.Body.GetCustomerName() == "Later" && m.Attempt == 0 {
				return errors.New("later")
			}
		}
		for _, m := range batch {
			handled <- m
		}
		return nil
	})
	letters := logging.deadLetters()
	first := userOf(t, urls["gateway"])

	later := placed()
	later.CustomerName = "Later"
	publish(t, gateway, later)
	if m := next(t, handled, "the second attempt"); m.Attempt != 1 || m.User != first {
		t.Errorf("attempt %d of what %q published", m.Attempt, m.User)
	}

	never := placed()
	never.CustomerName = "Never"
	publish(t, gateway, never)
	d := next(t, letters, "the dead letter")
	if d.User != first || d.SourceQueue != "order" {
		t.Errorf("the dead letter of %q comes from queue %q", d.User, d.SourceQueue)
	}

	redrive := func(user string) {
		m := placed()
		body, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		err = logging.pub.Send(within(t), []messaging.Outgoing{{
			RoutingKey: "order", MessageID: uuid.NewString(), Body: body, Timestamp: time.Now(), Headers: map[string]any{
				messaging.HeaderExchange: "shop.topic", messaging.HeaderRoutingKey: "shop.order.placed", messaging.HeaderUser: user,
			},
		}})
		if err != nil {
			t.Fatal(err)
		}
	}
	redrive(first)
	if m := next(t, handled, "what was redriven"); m.User != first {
		t.Errorf("what %q published was redriven", m.User)
	}
	redrive(userOf(t, urls["inventory"])) // it was refused before
	if d := next(t, letters, "what was redriven and is refused again"); !strings.Contains(d.Reason, "may not publish shop.events.v1.OrderPlaced") {
		t.Errorf("dead because %s", d.Reason)
	}
}

// The release before sets no user. Its messages are not lost while it is replaced.
func TestUser_AMessageWithoutOneIsTakenInThisRelease(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	order := watch(t, broker.Services(t, brokertest.Topology())["order"], "order")
	handled := make(chan messaging.Message[*eventsv1.OrderPlaced], 10)
	order.orders(func(_ context.Context, batch []messaging.Message[*eventsv1.OrderPlaced]) error {
		for _, m := range batch {
			handled <- m
		}
		return nil
	})
	old := rogueAt(t, broker.URL)
	old.send(t, "shop.topic", "shop.order.placed", "", placed(), nil)
	old.send(t, "", "order", "", placed(), amqp.Table{"shop-routing-key": "shop.order.placed", "shop-exchange": "shop.topic", "shop-user": "gateway"})
	for range 2 {
		if m := next(t, handled, "the order"); m.User != "" {
			t.Errorf("published by %q", m.User)
		}
	}
	if got := order.counted(t, "messaging.user.missing"); got[""] != 2 {
		t.Errorf("counted %v", got)
	}
	if !order.said("messages without user_id are accepted") {
		t.Error("the log does not say so")
	}
}

// With one user for all services nothing can be told, and nothing is refused.
func TestUser_IsNotCheckedIfAllShareOne(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	p := watch(t, broker.URL, "order")
	handled := make(chan messaging.Message[*eventsv1.OrderPlaced], 10)
	p.orders(func(_ context.Context, batch []messaging.Message[*eventsv1.OrderPlaced]) error {
		for _, m := range batch {
			handled <- m
		}
		return nil
	})
	publish(t, p.party, placed()) // by then the topology is there
	stranger := rogueAt(t, broker.URL)
	stranger.publish(t, "shop.topic", "shop.order.placed", placed(), amqp.Table{"shop-user": "gateway"})
	for range 2 {
		if m := next(t, handled, "the order"); m.User != "" {
			t.Errorf("published by %q", m.User)
		}
	}
	if p.consume.KnowsUsers() || len(p.counted(t, "messaging.user.wrong"))+len(p.counted(t, "messaging.user.missing")) > 0 {
		t.Error("the users were checked")
	}
}

// A header names where a message was published first. Whoever might write it could publish what the broker forbids: the
// gateway, which strangers talk to, might change the catalogue.
func TestUser_HeadersOfTheFirstRouteCountOnlyFromServicesThatPublishAgain(t *testing.T) {
	t.Parallel()
	urls := brokertest.New(t).Services(t, brokertest.Topology())
	inventory := join(t, urls["inventory"], "inventory")
	changed, listed := make(chan bool, 10), make(chan bool, 10)
	inventory.run(messaging.NewConsumer(inventory.consume, inventory.pub, "inventory", messaging.ConsumerOptions{},
		messaging.Handle(func(context.Context, []messaging.Message[*eventsv1.CreateItems]) error {
			changed <- true
			return nil
		}),
		messaging.Handle(func(_ context.Context, batch []messaging.Message[*eventsv1.ListInventory]) error {
			for range batch {
				listed <- true
			}
			return nil
		})).Run)
	create := &eventsv1.CreateItems{RequestId: uuid.NewString(), Items: []*eventsv1.CreateItems_Item{
		{ProductName: "Gold", Quantity: 1, Price: &moneyv1.Money{CurrencyCode: "USD", Units: 1}},
	}}
	gateway := rogueAt(t, urls["gateway"])
	for _, headers := range []amqp.Table{
		{"shop-routing-key": "shop.inventory.create", "shop-exchange": "shop.topic"},
		{"x-death": []any{amqp.Table{"queue": "inventory", "exchange": "shop.topic", "routing-keys": []any{"shop.inventory.create"}}}},
	} {
		gateway.publish(t, "shop.topic", "shop.inventory.list", create, headers)
		select {
		case <-listed: // what the broker let through
		case <-changed:
			t.Errorf("the catalogue was changed by the gateway, with %v", headers)
		case <-time.After(testTimeout):
			t.Fatal("nothing was handled")
		}
	}
}

// A dead letter that is redriven is believed: so who published it must not come from whoever made it up.
func TestUser_OfADeadLetterIsNotMadeUp(t *testing.T) {
	t.Parallel()
	urls := brokertest.New(t).Services(t, brokertest.Topology())
	logging := watch(t, urls["logging"], "logging")
	letters := logging.deadLetters()
	inventory := rogueAt(t, urls["inventory"])
	claims := amqp.Table{
		"shop-source-queue": "order", "shop-user": userOf(t, urls["gateway"]), "shop-routing-key": "shop.order.placed", "shop-exchange": "shop.topic",
	}
	inventory.publish(t, "shop.dlx", "order", placed(), claims)
	if d := next(t, letters, "the letter"); d.User != inventory.user || d.SourceQueue != "" {
		t.Errorf("the letter of %q comes from queue %q", d.User, d.SourceQueue)
	}
	if got := logging.counted(t, "messaging.user.wrong"); got["inventory"] != 1 {
		t.Errorf("the alarm has counted %v", got)
	}
	own := maps.Clone(claims)
	own["shop-source-queue"] = "inventory"
	inventory.publish(t, "shop.dlx", "inventory", placed(), own)
	if d := next(t, letters, "the letter"); d.User != userOf(t, urls["gateway"]) || d.SourceQueue != "inventory" {
		t.Errorf("the letter of %q comes from queue %q", d.User, d.SourceQueue)
	}
}

func TestUser_AStockCheckOfOneWhoMayNotAskIsRefused(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	urls := broker.Services(t, brokertest.Topology())
	inventory := watch(t, urls["inventory"], "inventory")
	server := messaging.NewRPCServer(inventory.consume, inventory.pub, 4, nil)
	asked := make(chan bool, 10)
	inventoryv1.RegisterStockServiceServer(server, stockServer{check: func(context.Context, *inventoryv1.CheckStockRequest) (*inventoryv1.CheckStockResponse, error) {
		asked <- true
		return &inventoryv1.CheckStockResponse{}, nil
	}})
	inventory.run(server.Run)
	eventually(t, func() error { return server.Ready(t.Context()) })

	stranger := rogueAt(t, broker.URL)
	q, err := stranger.QueueDeclare("", false, true, true, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	replies, err := stranger.Consume(q.Name, "", true, true, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	body, err := proto.Marshal(check(uuid.NewString()))
	if err != nil {
		t.Fatal(err)
	}
	err = stranger.PublishWithContext(t.Context(), "shop.direct", "shop.inventory.check", true, false,
		amqp.Publishing{UserId: stranger.user, AppId: "order", CorrelationId: "1", ReplyTo: q.Name, Body: body})
	if err != nil {
		t.Fatal(err)
	}
	if code := next(t, replies, "the refusal").Headers["grpc-status"]; code != int32(codes.PermissionDenied) {
		t.Errorf("answered with status %v", code)
	}
	if got := inventory.counted(t, "messaging.user.wrong"); got["other"] != 1 || len(asked) != 0 {
		t.Errorf("the alarm has counted %v, and stock was checked %d times", got, len(asked))
	}
	order := join(t, urls["order"], "order")
	client := messaging.NewRPCClient(order.consume, order.pub)
	order.run(client.Run)
	if _, err := inventoryv1.NewStockServiceClient(client).CheckStock(within(t), check(uuid.NewString())); err != nil {
		t.Errorf("asked by the order service: %v", err)
	}
}

func TestUser_AReplyOfOneWhoMayNotAnswerIsNotTaken(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	urls := broker.Services(t, brokertest.Topology())
	order := watch(t, urls["order"], "order")
	client := messaging.NewRPCClient(order.consume, order.pub)
	order.run(client.Run)
	eventually(t, func() error { return client.Ready(t.Context()) })

	// Somebody who takes the requests in inventory's place.
	stranger, inventory := rogueAt(t, broker.URL), rogueAt(t, urls["inventory"])
	route, err := contract.MethodOf(inventoryv1.StockService_CheckStock_FullMethodName)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stranger.QueueDeclare(route.Queue, true, true, false, false, amqp.Table{amqp.QueueTypeArg: amqp.QueueTypeClassic}); err != nil {
		t.Fatal(err)
	}
	if err := stranger.QueueBind(route.Queue, route.RoutingKey, route.Exchange, false, nil); err != nil {
		t.Fatal(err)
	}
	requests, err := stranger.Consume(route.Queue, "", true, false, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	answered := make(chan error, 1)
	go func() {
		d := <-requests
		var errs []error
		for _, from := range []rogue{stranger, inventory} {
			body, err := proto.Marshal(&inventoryv1.CheckStockResponse{Decisions: []*inventoryv1.StockDecision{{OrderId: from.user}}})
			errs = append(errs, err, from.PublishWithContext(context.Background(), "", d.ReplyTo, false, false, amqp.Publishing{
				UserId: from.user, AppId: "inventory", CorrelationId: d.CorrelationId, Headers: amqp.Table{"grpc-status": int32(0)}, Body: body,
			}))
			if from == stranger { // its reply is seen first
				deadline := time.Now().Add(testTimeout)
				for order.counted(t, "messaging.user.wrong")["other"] == 0 && time.Now().Before(deadline) {
					<-time.After(time.Millisecond)
				}
			}
		}
		answered <- errors.Join(errs...)
	}()
	reply, err := inventoryv1.NewStockServiceClient(client).CheckStock(within(t), check(uuid.NewString()))
	if err != nil || len(reply.GetDecisions()) != 1 || reply.GetDecisions()[0].GetOrderId() != inventory.user {
		t.Errorf("answered by %v, %v (%v)", reply.GetDecisions(), err, status.Code(err))
	}
	if err := next(t, answered, "the answers"); err != nil {
		t.Error(err)
	}
	if got := order.counted(t, "messaging.user.wrong"); got["other"] != 1 {
		t.Errorf("the alarm has counted %v", got)
	}
}

func TestUser_IsOfTheServiceAsItsURLSays(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]bool{
		"amqp://order:secret@broker/":                         true,
		"amqp://shop2-order:secret@broker/":                   true,
		"amqp://reorder:secret@broker/":                       false,
		"amqp://guest:guest@broker/":                          false,
		"amqp://broker/":                                      false,
		"amqp://gateway:secret@broker/":                       false,
		"amqp://order-2:secret@broker/":                       false,
		"amqps://order:x@broker/?auth_mechanism=EXTERNAL":     false, // the name is the certificate's
		"amqps://order:secret@broker/?auth_mechanism=plain":   true,
		"amqp://shop%2Done-order:secret@broker/":              true,
		"amqp://-order:secret@broker/":                        true,
		"amqp://Order:secret@broker/":                         false,
		"amqp://shop2-order:secret@broker/?heartbeat=10":      true,
		"amqp://shop2-inventory:secret@broker/?heartbeat=10":  false,
		"amqp://order:secret@broker/?connection_timeout=1000": true,
	} {
		conn, err := messaging.Dial(url, messaging.Options{Topology: brokertest.Topology(), Service: "order"})
		if err != nil {
			t.Errorf("%s: %v", url, err)
			continue
		}
		if conn.KnowsUsers() != want {
			t.Errorf("%s: users are known: %v", url, !want)
		}
	}
}
