package server

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"shop.example/gateway/access"
	"shop.example/gateway/access/issuertest"
	"shop.example/gateway/ingress"
	checkoutv1 "shop.example/gen/shop/checkout/v1"
	eventsv1 "shop.example/gen/shop/events/v1"
	intermediaryv1 "shop.example/gen/shop/intermediary/v1"
	loggingv1 "shop.example/gen/shop/logging/v1"
	moneyv1 "shop.example/gen/shop/money/v1"
	orderv1 "shop.example/gen/shop/order/v1"
	"shop.example/platform/apierror"
	"shop.example/platform/contract"
	"shop.example/platform/messaging"
	"shop.example/platform/telemetry"
	"shop.example/platform/testkit/brokertest"
	"shop.example/topology"
)

// testTimeout bounds every wait of these tests.
const testTimeout = 20 * time.Second

const order = `{"customer_name":"Ada Lovelace","customer_email":"ada@example.com","order_items":[` +
	`{"product_id":5,"quantity":3,"expected_unit_price":{"currency_code":"USD","units":"35"}},{"product_id":6,"quantity":4}]}`

// sampleOrder is the request that the demo's readme shows.
const sampleOrder = `{
"customer_name": "Adrian",
"customer_email": "[email protected]",
"order_items": [
{
"id": 1,
"product_name": "Laptop Stand",
"quantity": 3,
"price": 35
},
{
"id": 2,
"product_name": "Mouse Pad",
"quantity": 4,
"price": 25
}
]
}`

// other is another service on the broker.
type other struct {
	conn *messaging.Connection
	pub  *messaging.Publisher
}

func joinBroker(t *testing.T, url string) other {
	t.Helper()
	dial := func(role string) *messaging.Connection {
		conn, err := messaging.Dial(url, messaging.Options{Topology: topology.Broker(), Service: "other", Role: role, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		run(t, conn.Run)
		return conn
	}
	pub := messaging.NewPublisher(dial("publish"))
	run(t, pub.Run)
	return other{conn: dial("consume"), pub: pub}
}

// take hands over what comes to a queue.
func (o other) take(t *testing.T, queue string) <-chan messaging.Delivery {
	t.Helper()
	taken := make(chan messaging.Delivery, 100)
	consumer := messaging.NewConsumer(o.conn, o.pub, queue, messaging.ConsumerOptions{}, messaging.HandleRaw(
		func(_ context.Context, batch []messaging.Delivery) error {
			for _, d := range batch {
				taken <- d
			}
			return nil
		}))
	run(t, consumer.Run)
	return taken
}

// receive is the next OrderPlaced of a queue.
func receive(t *testing.T, from <-chan messaging.Delivery) (*eventsv1.OrderPlaced, messaging.Delivery) {
	t.Helper()
	select {
	case d := <-from:
		var placed eventsv1.OrderPlaced
		if d.Type != "shop.events.v1.OrderPlaced" {
			t.Fatalf("a message of type %s", d.Type)
		}
		if err := proto.Unmarshal(d.Body, &placed); err != nil {
			t.Fatal(err)
		}
		return &placed, d
	case <-time.After(testTimeout):
		t.Fatal("no order came")
		return nil, messaging.Delivery{}
	}
}

// The trace of a caller with a token goes on.
func TestPlaceOrder_ContinuesTheTraceOfACallerWithAToken(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	g := startGateway(t, Config{AMQPURL: broker.URL})
	placed := joinBroker(t, broker.URL).take(t, "order")
	got := send(t, http.MethodPost, "http://"+g.HTTPAddr()+"/v1/orders", order, "Content-Type: application/json", "Authorization: Bearer "+operatorToken,
		"Traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	if got.status != http.StatusAccepted {
		t.Fatalf("answered with %d %s", got.status, got.body)
	}
	if _, delivery := receive(t, placed); delivery.Trace.TraceID().String() != "0af7651916cd43dd8448eb211c80319c" {
		t.Errorf("published with trace id %s", delivery.Trace.TraceID())
	}
}

// With a header that says anything, a stranger could have their calls recorded, and join the traces of others.
func TestTraces_OfCallersWhoAreNotKnownAreNotContinued(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t)
	g := startOIDCGateway(t, access.OIDC{Issuer: i.URL})
	const theirs = "0af7651916cd43dd8448eb211c80319c"
	traces := func(line string) (found []bool) { // of lines of the log, whether they are of the caller's trace
		for text := range strings.Lines(g.log.String()) {
			if strings.Contains(text, line) {
				found = append(found, strings.Contains(text, theirs))
			}
		}
		return found
	}
	const parent = "00-" + theirs + "-b7ad6b7169203331-01"
	list := func(token string) int {
		return send(t, http.MethodGet, "http://"+g.HTTPAddr()+"/v1/orders", "", "Traceparent: "+parent, "Authorization: "+token).status
	}
	for _, token := range []string{"Bearer nonsense", "Bearer a.b.c", "nonsense"} {
		if got := list(token); got != http.StatusUnauthorized {
			t.Errorf("%s: %d", token, got)
		}
	}
	ctx := metadata.AppendToOutgoingContext(t.Context(), "traceparent", parent, "authorization", "Bearer nonsense")
	if _, err := orderv1.NewOrderServiceClient(client(t, g.HTTPAddr())).ListOrders(ctx, &orderv1.ListOrdersRequest{}); status.Code(err) != codes.Unauthenticated {
		t.Error(err)
	}
	if got := traces(`"login failed"`); !slices.Equal(got, []bool{false, false, false, false}) {
		t.Errorf("continued: %v", got)
	}

	token := "Bearer " + i.Token(t, nil)
	before := len(traces(`"REST call"`))
	for range 2 {
		if got := list(token); got != http.StatusOK {
			t.Fatalf("%d", got)
		}
	}
	if got := list("Bearer " + operatorToken); got != http.StatusOK {
		t.Fatalf("%d", got)
	}
	if got := traces(`"REST call"`)[before:]; !slices.Equal(got, []bool{false, true, true}) {
		t.Errorf("of a token the first time, the second time, and of an operator, continued: %v", got)
	}
}

func TestPlaceOrder_IsPublishedAndAnsweredAsPending(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	g := startGateway(t, Config{AMQPURL: broker.URL})
	placed := joinBroker(t, broker.URL).take(t, "order")

	got := send(t, http.MethodPost, "http://"+g.HTTPAddr()+"/v1/orders", order, "Content-Type: application/json",
		"Traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	if got.status != http.StatusAccepted {
		t.Fatalf("answered with %d %s", got.status, got.body)
	}
	event, delivery := receive(t, placed)
	id := event.GetOrderId()
	if v := uuid.MustParse(id).Version(); v != 7 {
		t.Errorf("the order id %s is of version %d", id, v)
	}
	if location := got.header.Get("Location"); location != "/v1/orders/"+id {
		t.Errorf("Location is %q", location)
	}
	at, _ := protojson.Marshal(event.GetPlacedAt()) // which leaves no zero out, as time.Time does
	want := fmt.Sprintf(`{"id":%q,"state":"PENDING","customer_name":"Ada Lovelace","customer_email":"ada@example.com","order_items":[`+
		`{"line":1,"product_id":5,"product_name":"","quantity":3},{"line":2,"product_id":6,"product_name":"","quantity":4}],`+
		`"total_items":7,"created_at":%s,"updated_at":%s}`, id, at, at)
	if !sameJSON(t, got.body, want) {
		t.Errorf("answered with %s\nwant %s", got.body, want)
	}
	wantEvent := &eventsv1.OrderPlaced{
		OrderId: id, CustomerName: "Ada Lovelace", CustomerEmail: "ada@example.com", PlacedAt: event.GetPlacedAt(),
		Lines: []*eventsv1.RequestedLine{
			{ProductId: 5, Quantity: 3, ExpectedUnitPrice: &moneyv1.Money{CurrencyCode: "USD", Units: 35}}, {ProductId: 6, Quantity: 4},
		},
	}
	wantEvent.Fingerprint = event.GetFingerprint() // which the tests of package intake are about
	if !proto.Equal(event, wantEvent) {
		t.Errorf("published %v\nwant %v", event, wantEvent)
	}
	if delivery.MessageID != contract.MessageID(event).String() || delivery.CorrelationID != id {
		t.Errorf("published with message id %s and correlation id %s", delivery.MessageID, delivery.CorrelationID)
	}
	trace := delivery.Trace.TraceID() // a trace of its own: whoever sends no token does not say which
	if theirs := "0af7651916cd43dd8448eb211c80319c"; !trace.IsValid() || trace.String() == theirs {
		t.Errorf("published with trace id %s", trace)
	}
	if err := contract.Validate(event); err != nil {
		t.Errorf("what was published is not valid: %v", err)
	}
	log := g.log.String()
	if !strings.Contains(log, "order published") || !strings.Contains(log, telemetry.ShortID(id)) || !strings.Contains(log, trace.String()) {
		t.Errorf("the log does not say that %s was published:\n%s", id, log)
	}
	for _, personal := range []string{"Ada", "Lovelace", "ada@example.com", id} {
		if strings.Contains(log, personal) {
			t.Errorf("the log has personal data (%s):\n%s", personal, log)
		}
	}
}

func TestCreateOrder_TheDemosSampleAsItIsPrinted(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	g := startGateway(t, Config{AMQPURL: broker.URL})
	placed := joinBroker(t, broker.URL).take(t, "order")

	got := send(t, http.MethodPost, "http://"+g.HTTPAddr()+"/intermediary/order", sampleOrder, "Content-Type: application/json")
	if got.status != http.StatusOK || got.body != "Order successfully published." {
		t.Errorf("answered with %d %q", got.status, got.body)
	}
	if kind := got.header.Get("Content-Type"); kind != "text/plain; charset=utf-8" {
		t.Errorf("Content-Type is %q", kind)
	}
	event, _ := receive(t, placed)
	if location := got.header.Get("Location"); location != "/v1/orders/"+event.GetOrderId() {
		t.Errorf("Location is %q", location)
	}
	want := &eventsv1.OrderPlaced{
		OrderId: event.GetOrderId(), CustomerName: "Adrian", CustomerEmail: "[email protected]", PlacedAt: event.GetPlacedAt(),
		Lines: []*eventsv1.RequestedLine{
			{ProductName: "Laptop Stand", Quantity: 3, ExpectedUnitPrice: &moneyv1.Money{CurrencyCode: "USD", Units: 35}},
			{ProductName: "Mouse Pad", Quantity: 4, ExpectedUnitPrice: &moneyv1.Money{CurrencyCode: "USD", Units: 25}},
		},
	}
	want.Fingerprint = event.GetFingerprint()
	if !proto.Equal(event, want) {
		t.Errorf("published %v\nwant %v", event, want)
	}
}

func TestCreateOrder_IDCountsOnlyWithoutAName(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	g := startGateway(t, Config{AMQPURL: broker.URL})
	placed := joinBroker(t, broker.URL).take(t, "order")
	body := `{"customer_name":"A","customer_email":"any text","order_items":[{"id":8,"quantity":1,"price":19.99},{"id":8,"product_name":"Phone","quantity":1,"price":0}]}`
	if got := send(t, http.MethodPost, "http://"+g.HTTPAddr()+"/intermediary/order", body); got.status != http.StatusOK {
		t.Fatalf("answered with %d %s", got.status, got.body)
	}
	event, _ := receive(t, placed)
	want := []*eventsv1.RequestedLine{
		{ProductId: 8, Quantity: 1, ExpectedUnitPrice: &moneyv1.Money{CurrencyCode: "USD", Units: 19, Nanos: 990_000_000}},
		{ProductName: "Phone", Quantity: 1, ExpectedUnitPrice: &moneyv1.Money{CurrencyCode: "USD"}},
	}
	for i, line := range event.GetLines() {
		if !proto.Equal(line, want[i]) {
			t.Errorf("line %d: %v, want %v", i+1, line, want[i])
		}
	}
}

func TestOrders_GarbagePublishesNothing(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	g := startGateway(t, Config{AMQPURL: broker.URL})
	logged := joinBroker(t, broker.URL).take(t, "logging") // every event comes here
	base := "http://" + g.HTTPAddr()
	for _, path := range []string{"/v1/orders", "/intermediary/order"} {
		for _, garbage := range []string{`{"garbage":true}`, `{}`, ``, `[`, `{"customer_name":"A","customer_email":"a@example.com","order_items":[]}`} {
			if got := send(t, http.MethodPost, base+path, garbage); got.status != http.StatusBadRequest {
				t.Errorf("POST %s %s: %d %s", path, garbage, got.status, got.body)
			}
		}
	}
	_, err := checkoutv1.NewCheckoutServiceClient(client(t, g.HTTPAddr())).PlaceOrder(t.Context(), &checkoutv1.PlaceOrderRequest{CustomerName: "A"})
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("gRPC: %v", err)
	}
	taken := send(t, http.MethodPost, base+"/v1/orders", order)
	if event, _ := receive(t, logged); taken.header.Get("Location") != "/v1/orders/"+event.GetOrderId() {
		t.Errorf("the first event is of %s, the order that was taken is %s", event.GetOrderId(), taken.header.Get("Location"))
	}
}

func TestPlaceOrder_SameIdempotencyKeyIsTheSameOrder(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	first := startGateway(t, Config{AMQPURL: broker.URL, IDSecret: "a secret of all replicas"})
	second := startGateway(t, Config{AMQPURL: broker.URL, IDSecret: "a secret of all replicas"})
	stranger := startGateway(t, Config{AMQPURL: broker.URL, IDSecret: "the secret of another shop"})
	placed := joinBroker(t, broker.URL).take(t, "order")
	place := func(g *gateway, headers ...string) (orderID, messageID string) {
		t.Helper()
		if got := send(t, http.MethodPost, "http://"+g.HTTPAddr()+"/v1/orders", order, headers...); got.status != http.StatusAccepted {
			t.Fatalf("answered with %d %s", got.status, got.body)
		}
		event, delivery := receive(t, placed)
		return event.GetOrderId(), delivery.MessageID
	}
	id, message := place(first, "Idempotency-Key: my order")
	if v := uuid.MustParse(id); v.Version() != 8 || v.Variant() != uuid.RFC4122 {
		t.Errorf("the order id %s is of version %d", id, v.Version())
	}
	if again, messageAgain := place(second, "Idempotency-Key: my order"); again != id || messageAgain != message {
		t.Errorf("the same key gave order %s, message %s and then order %s, message %s", id, message, again, messageAgain)
	}
	ctx := metadata.AppendToOutgoingContext(t.Context(), "idempotency-key", "my order")
	reply, err := checkoutv1.NewCheckoutServiceClient(client(t, first.HTTPAddr())).PlaceOrder(ctx, &checkoutv1.PlaceOrderRequest{
		CustomerName: "Ada Lovelace", CustomerEmail: "ada@example.com", OrderItems: []*checkoutv1.PlaceOrderRequest_Item{
			{ProductId: 5, Quantity: 3, ExpectedUnitPrice: &moneyv1.Money{CurrencyCode: "USD", Units: 35}}, {ProductId: 6, Quantity: 4},
		},
	})
	if err != nil || reply.GetOrder().GetId() != id {
		t.Errorf("over gRPC the key gave %v, %v", reply.GetOrder().GetId(), err)
	}
	receive(t, placed)
	if other, _ := place(first, "Idempotency-Key: another order"); other == id {
		t.Error("another key gave the same order")
	}
	if other, _ := place(stranger, "Idempotency-Key: my order"); other == id {
		t.Error("another secret gave the same order")
	}
	if other, _ := place(first); other == id {
		t.Error("no key gave the same order")
	}
	for _, headers := range [][]string{
		{"Idempotency-Key: "}, {"Idempotency-Key: a", "Idempotency-Key: b"}, {"Idempotency-Key: schlüssel"},
		{"Idempotency-Key: " + strings.Repeat("k", 256)},
	} {
		got := send(t, http.MethodPost, "http://"+first.HTTPAddr()+"/v1/orders", order, headers...)
		if got.status != http.StatusBadRequest || got.failure(t).violations()[0].Field != "Idempotency-Key" {
			t.Errorf("%q: %d %s", headers, got.status, got.body)
		}
	}
}

func TestPlaceOrder_WithoutABrokerIsUnavailable(t *testing.T) {
	t.Parallel()
	g := startGateway(t, Config{})
	for _, path := range []string{"/v1/orders", "/intermediary/order"} {
		body := map[string]string{"/v1/orders": order, "/intermediary/order": sampleOrder}[path]
		got := send(t, http.MethodPost, "http://"+g.HTTPAddr()+path, body, "Grpc-Timeout: 300m")
		f := got.failure(t)
		if got.status != http.StatusServiceUnavailable || f.Code != int(codes.Unavailable) || f.reason() != "BROKER_UNAVAILABLE" ||
			got.header.Get("Retry-After") != "2" || f.Details[1].RetryDelay != "2s" {
			t.Errorf("POST %s: %d %s", path, got.status, got.body)
		}
		if strings.Contains(got.body, nowhere) {
			t.Errorf("the answer tells where the broker is: %s", got.body)
		}
	}
	ready := send(t, http.MethodGet, "http://"+g.AdminAddr()+"/readyz", "")
	if ready.status != http.StatusServiceUnavailable || !strings.Contains(ready.body, "broker: ") {
		t.Errorf("readyz: %d %s", ready.status, ready.body)
	}
}

func TestListInventory_IsAskedOverTheBroker(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	g := startGateway(t, Config{AMQPURL: broker.URL})
	inventory := joinBroker(t, broker.URL)
	at := timestamppb.New(time.Date(2023, 9, 4, 4, 13, 21, 165e6, time.UTC))
	listed := &eventsv1.InventoryListed{Items: []*eventsv1.InventoryListed_Item{
		{Id: 1, ProductName: "Laptop", Quantity: 132, Price: &moneyv1.Money{CurrencyCode: "USD", Units: 1000}, CreatedAt: at, UpdatedAt: at},
		{Id: 2, ProductName: "Pen", Quantity: 0, Price: &moneyv1.Money{CurrencyCode: "USD", Units: 19, Nanos: 900_000_000}, CreatedAt: at, UpdatedAt: at},
	}}
	run(t, messaging.NewConsumer(inventory.conn, inventory.pub, "inventory", messaging.ConsumerOptions{}, messaging.Handle(
		func(ctx context.Context, batch []messaging.Message[*eventsv1.ListInventory]) error {
			for _, m := range batch {
				if err := inventory.pub.Reply(ctx, m.Meta, listed, nil); err != nil {
					t.Errorf("answering: %v", err)
				}
				listed = &eventsv1.InventoryListed{}
			}
			return nil
		})).Run)
	const want = `[{"id":1,"product_name":"Laptop","quantity":"132","price":"1000","created_at":"2023-09-04T04:13:21.165Z","updated_at":"2023-09-04T04:13:21.165Z"},` +
		`{"id":2,"product_name":"Pen","quantity":"0","price":"19.90","created_at":"2023-09-04T04:13:21.165Z","updated_at":"2023-09-04T04:13:21.165Z"}]`
	for _, want := range []string{want, `[]`} {
		got := send(t, http.MethodGet, "http://"+g.HTTPAddr()+"/intermediary/inventory", "", "Content-Type: application/json")
		if got.status != http.StatusOK || !sameJSON(t, got.body, want) {
			t.Errorf("answered with %d %s\nwant %s", got.status, got.body, want)
		}
	}
}

func TestListInventory_HasALimitForEachClientWhateverTheRateLimitIs(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	g := startGateway(t, Config{AMQPURL: broker.URL})
	inventory := joinBroker(t, broker.URL)
	logged := inventory.take(t, "logging")
	run(t, messaging.NewConsumer(inventory.conn, inventory.pub, "inventory", messaging.ConsumerOptions{}, messaging.Handle(
		func(ctx context.Context, batch []messaging.Message[*eventsv1.ListInventory]) error {
			for _, m := range batch {
				if err := inventory.pub.Reply(ctx, m.Meta, &eventsv1.InventoryListed{}, nil); err != nil {
					t.Errorf("answering: %v", err)
				}
			}
			return nil
		})).Run)
	base, lists := "http://"+g.HTTPAddr(), intermediaryv1.NewIntermediaryServiceClient(client(t, g.HTTPAddr()))
	overGRPC := func() error {
		_, err := lists.ListInventory(t.Context(), &intermediaryv1.ListInventoryRequest{})
		return err
	}
	const listBurst = 10
	begin := time.Now()
	answered := 0
	for i := range 4 * listBurst {
		path := []string{"/intermediary/inventory", "/intermediary/inventory?", "/%69ntermediary/inventory"}[i%3]
		got := send(t, http.MethodGet, base+path, "")
		switch {
		case got.status == http.StatusOK:
			answered++
		case got.status != http.StatusTooManyRequests || got.failure(t).reason() != "RATE_LIMITED" || got.header.Get("Retry-After") != "1":
			t.Fatalf("answered with %d %s", got.status, got.body)
		}
	}
	if most := listBurst + int(time.Since(begin).Seconds()) + 1; answered < listBurst || answered > most {
		t.Errorf("%d calls were answered in %s", answered, time.Since(begin))
	}
	if err := overGRPC(); err == nil {
		answered++
	} else if apierror.ReasonOf(err) != "RATE_LIMITED" {
		t.Errorf("over gRPC: %v", err)
	}
	if got := send(t, http.MethodGet, base+"/intermediary/inventory", "", asOperator); got.status != http.StatusOK {
		t.Errorf("the operator from the same address: %d %s", got.status, got.body)
	}
	if got := send(t, http.MethodGet, base+"/openapi.json", ""); got.status != http.StatusOK {
		t.Errorf("another call: %d %s", got.status, got.body)
	}
	// What was answered is logged, and nothing else. A request that was sent again has the same id.
	ids := map[string]bool{}
	for len(ids) < answered+1 {
		select {
		case d := <-logged:
			ids[d.MessageID] = true
		case <-time.After(testTimeout):
			t.Fatal("a call that was answered is not logged")
		}
	}
	select {
	case d := <-logged:
		if !ids[d.MessageID] {
			t.Errorf("a call that was refused is logged: %s", d.RoutingKey)
		}
	default:
	}
}

func TestListInventory_WithoutInventoryIsSaidSo(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	g := startGateway(t, Config{AMQPURL: broker.URL})
	var got answer
	for range 20 { // until the gateway has found the broker, which is another failure
		got = send(t, http.MethodGet, "http://"+g.HTTPAddr()+"/intermediary/inventory", "", "Grpc-Timeout: 1500m")
		if got.status != http.StatusServiceUnavailable {
			break
		}
	}
	f := got.failure(t)
	if got.status != http.StatusGatewayTimeout || f.Message != "inventory service did not answer in time" {
		t.Errorf("answered with %d %s", got.status, got.body)
	}
}

func TestForward_WhatTheServiceAnswersPassesUnchanged(t *testing.T) {
	t.Parallel()
	addr := backend(t, func(s grpc.ServiceRegistrar) { orderv1.RegisterOrderServiceServer(s, orderServer{}) })
	g := startGateway(t, Config{OrderAddr: addr})
	direct, through := orderv1.NewOrderServiceClient(client(t, addr)), orderv1.NewOrderServiceClient(client(t, g.HTTPAddr()))
	for _, id := range []string{storedOrder, missingOrder, lockedOrder} {
		want, wantErr := direct.GetOrder(t.Context(), &orderv1.GetOrderRequest{OrderId: id})
		got, err := through.GetOrder(t.Context(), &orderv1.GetOrderRequest{OrderId: id})
		if !proto.Equal(got, want) || !proto.Equal(status.Convert(err).Proto(), status.Convert(wantErr).Proto()) {
			t.Errorf("%s:\nthrough the gateway: %v, %v\ndirect: %v, %v", id, got, err, want, wantErr)
		}
	}
	for id, want := range map[string]int{storedOrder: 200, missingOrder: 404, lockedOrder: 503, brokenOrder: 500} {
		got := send(t, http.MethodGet, "http://"+g.HTTPAddr()+"/v1/orders/"+id, "")
		if got.status != want || strings.Contains(got.body, "10.0.0.7") {
			t.Errorf("GET %s: %d %s", id, got.status, got.body)
		}
	}
}

func TestForward_AServiceThatIsAwayIsUnavailableAndItsAddressNotShown(t *testing.T) {
	t.Parallel()
	g := startGateway(t, Config{})
	conn := client(t, g.HTTPAddr())
	events, err := loggingv1.NewEventLogServiceClient(conn).StreamEvents(t.Context(), &loggingv1.StreamEventsRequest{OrderId: storedOrder})
	if err == nil {
		_, err = events.Recv()
	}
	if status.Code(err) != codes.Unavailable || status.Convert(err).Message() != "logging service is not available" || apierror.ReasonOf(err) != "SERVICE_UNAVAILABLE" {
		t.Errorf("stream: %v", err)
	}
	for path, name := range map[string]string{"/v1/orders/" + storedOrder: "order", "/v1/inventory": "inventory", "/v1/orders/" + storedOrder + "/events": "logging"} {
		got := send(t, http.MethodGet, "http://"+g.HTTPAddr()+path, "")
		f := got.failure(t)
		if got.status != http.StatusServiceUnavailable || f.Message != name+" service is not available" || got.header.Get("Retry-After") != "2" {
			t.Errorf("GET %s: %d %s", path, got.status, got.body)
		}
		if strings.Contains(got.body, "127.0.0.1") {
			t.Errorf("the answer tells an address: %s", got.body)
		}
	}
}

func TestForward_AServiceThatComesBackIsFoundAgain(t *testing.T) {
	t.Parallel()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := lis.Addr().String()
	_ = lis.Close()
	g := startGateway(t, Config{OrderAddr: addr})
	url := "http://" + g.HTTPAddr() + "/v1/orders/" + storedOrder
	if got := send(t, http.MethodGet, url, ""); got.status != http.StatusServiceUnavailable {
		t.Fatalf("before it came: %d %s", got.status, got.body)
	}
	if lis, err = net.Listen("tcp", addr); err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	orderv1.RegisterOrderServiceServer(server, orderServer{})
	run(t, func(ctx context.Context) error {
		defer context.AfterFunc(ctx, server.Stop)()
		return server.Serve(lis)
	})
	for deadline := time.Now().Add(testTimeout); ; {
		got := send(t, http.MethodGet, url, "")
		if got.status == http.StatusOK {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s after it came: %d %s", testTimeout, got.status, got.body)
		}
	}
}

func TestForward_StreamsPassAndOutliveTheLimitsOfRESTCalls(t *testing.T) {
	t.Parallel()
	addr := backend(t, func(s grpc.ServiceRegistrar) { loggingv1.RegisterEventLogServiceServer(s, eventServer{}) })
	g := startGateway(t, Config{LoggingAddr: addr})
	events := loggingv1.NewEventLogServiceClient(client(t, g.HTTPAddr()))
	stream, err := events.StreamEvents(t.Context(), &loggingv1.StreamEventsRequest{OrderId: storedOrder, AfterId: 41})
	if err != nil {
		t.Fatal(err)
	}
	for want := int64(42); want <= 44; want++ {
		reply, err := stream.Recv()
		if err != nil || reply.GetEvent().GetId() != want {
			t.Fatalf("event %d: %v, %v", want, reply, err)
		}
	}
	if _, err := stream.Recv(); apierror.ReasonOf(err) != "LOG_ENDED" || status.Code(err) != codes.OutOfRange {
		t.Errorf("the end of the stream: %v", err)
	}
	if got := send(t, http.MethodGet, "http://"+g.HTTPAddr()+"/v1/orders/"+storedOrder+"/events", ""); !strings.Contains(got.body, `"9007199254740993"`) {
		t.Errorf("an id beyond 2^53 is not a string: %s", got.body)
	}

	// The same, behind a server whose limits are short enough to wait for.
	const limit = 200 * time.Millisecond
	server := ingress.NewServer(&ingress.Ingress{GRPC: g.GRPC(), Clients: ingress.ClientIdentifier{Authorizer: access.New(nil, nil, nil)}, WriteTimeout: ingress.SlowReaderTimeout}, slog.New(slog.DiscardHandler))
	server.ReadTimeout, server.WriteTimeout = limit, limit
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	run(t, func(ctx context.Context) error {
		defer context.AfterFunc(ctx, func() { _ = server.Close() })()
		if err := server.Serve(lis); err != http.ErrServerClosed {
			return err
		}
		return nil
	})
	ctx, cancel := context.WithTimeout(t.Context(), 5*limit)
	defer cancel()
	stream, err = loggingv1.NewEventLogServiceClient(client(t, lis.Addr().String())).StreamEvents(ctx, &loggingv1.StreamEventsRequest{OrderId: storedOrder})
	for err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("the stream ended before the client wanted: %v", err)
	}
}

func TestRun_StopsInTimeWithAStreamOpen(t *testing.T) {
	t.Parallel()
	addr := backend(t, func(s grpc.ServiceRegistrar) { loggingv1.RegisterEventLogServiceServer(s, eventServer{}) })
	s, err := New(t.Context(), Config{
		AMQPURL: "amqp://" + nowhere, HTTPAddr: "127.0.0.1:0", OrderAddr: nowhere, InventoryAddr: nowhere, LoggingAddr: addr,
	}, newTelemetry(t, io.Discard))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	stream, err := loggingv1.NewEventLogServiceClient(client(t, s.HTTPAddr())).StreamEvents(t.Context(), &loggingv1.StreamEventsRequest{OrderId: storedOrder})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	stop()
	for err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.Unavailable {
		t.Errorf("the client of the stream was told: %v", err)
	}
	if err := <-ended; err != nil {
		t.Errorf("ended with: %v", err)
	}
	if took := time.Since(begin); took > 4*time.Second { // what calls in flight may take
		t.Errorf("the stop took %v", took)
	}
}

func TestNew_SaysWhatIsWrongWithTheConfiguration(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	good := Config{AMQPURL: "amqp://" + nowhere, HTTPAddr: "127.0.0.1:0", OrderAddr: nowhere, InventoryAddr: nowhere, LoggingAddr: nowhere}
	for want, change := range map[string]func(*Config){
		"AMQP_URL":                    func(c *Config) { c.AMQPURL = "localhost:5672" },
		"set HTTP_ADDR":               func(c *Config) { c.HTTPAddr = taken.Addr().String() },
		"set ADMIN_ADDR":              func(c *Config) { c.AdminAddr = taken.Addr().String() },
		"SHOP_ID_SECRET is too short": func(c *Config) { c.IDSecret = "short" },
		"SHOP_MAX_STREAMS":            func(c *Config) { c.MaxStreams = -1 },
		"TRACE_URL":                   func(c *Config) { c.TraceURL = "http://localhost:16686" },
		"DASHBOARD_URL":               func(c *Config) { c.DashboardURL = "javascript:alert(1)" },
		"SHOP_MAX_CALLS":              func(c *Config) { c.Ingress.MaxCalls = -1 },
		"SHOP_MAX_CONNECTIONS must":   func(c *Config) { c.Ingress.MaxConnections = -1 },
	} {
		cfg := good
		change(&cfg)
		if _, err := New(t.Context(), cfg, newTelemetry(t, io.Discard)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error with %q, got: %v", want, err)
		}
	}
}
