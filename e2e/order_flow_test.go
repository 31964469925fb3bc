package e2e

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	_ "github.com/lib/pq"
	amqp "github.com/rabbitmq/amqp091-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	checkoutv1 "shop.example/gen/shop/checkout/v1"
	eventsv1 "shop.example/gen/shop/events/v1"
	moneyv1 "shop.example/gen/shop/money/v1"
	orderv1 "shop.example/gen/shop/order/v1"
	"shop.example/platform/service"
)

// sample is exactly the request body of the demo that the shop grew out of.
const sample = `{
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

func TestSampleOrder_PassesThroughAllServices(t *testing.T) {
	t.Parallel()
	s := start(t)
	a := s.call(t, http.MethodPost, "/intermediary/order", sample)
	if a.code != http.StatusOK || string(a.body) != "Order successfully published." {
		t.Fatalf("answer: %d %q", a.code, a.body)
	}
	location := a.header.Get("Location")
	o := s.decided(t, location)
	if o.State != "CONFIRMED" || o.TotalItems != 7 || o.TotalValue != (money{"USD", "205", 0}) || o.Name != "Adrian" || o.Email != "[email protected]" {
		t.Errorf("order %+v", o)
	}
	if len(o.Items) != 2 || o.Items[0].Name != "Laptop Stand" || o.Items[0].ProductID != 5 || o.Items[0].Price.Units != "35" ||
		o.Items[1].Name != "Mouse Pad" || o.Items[1].ProductID != 6 || o.Items[1].Quantity != 4 {
		t.Errorf("lines %+v", o.Items)
	}
	stock := s.settled(t)
	if stock["Laptop Stand"].OnHand != 147 || stock["Mouse Pad"].OnHand != 196 || stock["Laptop"].OnHand != 50 || stock["Phone"].OnHand != 200 {
		t.Errorf("stock %+v", stock)
	}

	var log struct {
		Events []struct {
			RoutingKey  string    `json:"routing_key"`
			Exchange    string    `json:"exchange"`
			Status      string    `json:"status"`
			OrderID     string    `json:"order_id"`
			TraceID     string    `json:"trace_id"`
			Source      string    `json:"source"`
			PublishedAt time.Time `json:"published_at"`
		}
	}
	eventually(t, func() error {
		s.get(t, location+"/events").json(t, &log)
		if len(log.Events) < 3 {
			return fmt.Errorf("%d events", len(log.Events))
		}
		return nil
	})
	want := []string{"shop.order.placed gateway", "shop.order.confirmed order", "shop.inventory.decrement.quantity order"}
	for i, e := range log.Events {
		if i >= len(want) || e.RoutingKey+" "+e.Source != want[i] || e.Exchange != "shop.topic" || e.Status != "success" || e.OrderID != o.ID {
			t.Errorf("event %d: %+v", i, e)
		}
		if e.TraceID == "" || e.TraceID != log.Events[0].TraceID {
			t.Errorf("event %d has trace %q, the first %q: one order is one trace", i, e.TraceID, log.Events[0].TraceID)
		}
		if i > 0 && e.PublishedAt.Before(log.Events[i-1].PublishedAt) {
			t.Errorf("event %d was published before the one before it", i)
		}
	}
}

func TestEventLog_HoldsOneRowForEachEventWithTheDemosColumns(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.decided(t, s.call(t, http.MethodPost, "/intermediary/order", sample).header.Get("Location"))
	s.settled(t)
	pool, err := sql.Open("postgres", s.database)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = pool.Close() }()
	// placed, confirmed, decrement; and for two products the hold and the settlement
	want := map[string]int{"shop.order.placed": 1, "shop.order.confirmed": 1, "shop.inventory.decrement.quantity": 1, "shop.stock.changed": 4}
	var got map[string]int
	eventually(t, func() error {
		rows, err := pool.QueryContext(t.Context(), `SELECT routing_key, exchange, payload::text, status, error_message, id FROM logging.event_log`)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = rows.Close() }()
		got = map[string]int{}
		for rows.Next() {
			var key, exchange, payload, status, message string
			var id int64
			if err := rows.Scan(&key, &exchange, &payload, &status, &message, &id); err != nil {
				t.Fatal(err)
			}
			got[key]++
			if exchange != "shop.topic" || status != "success" || message != "" || !json.Valid([]byte(payload)) || id <= 0 {
				t.Errorf("row %d: %s %s %s %s %s", id, key, exchange, payload, status, message)
			}
			if key == "shop.order.placed" && !strings.Contains(payload, `"customer_name": "Adrian"`) {
				t.Errorf("payload %s", payload)
			}
		}
		if err := rows.Err(); err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			return fmt.Errorf("rows by routing key: %v, want %v", got, want)
		}
		return nil
	})
}

func TestIntermediaryInventory_IsTheDemosArray(t *testing.T) {
	t.Parallel()
	s := start(t)
	var list []map[string]any
	s.get(t, "/intermediary/inventory").json(t, &list)
	if len(list) != 8 {
		t.Fatalf("%d products: %v", len(list), list)
	}
	first := list[0]
	if first["id"] != float64(1) || first["product_name"] != "Laptop" || first["quantity"] != "50" || first["price"] != "1000" {
		t.Errorf("first product %v", first)
	}
	if len(first) != 6 || first["created_at"] == nil || first["updated_at"] == nil {
		t.Errorf("fields %v", first)
	}
}

func TestGRPC_ServesEverythingOnOnePort(t *testing.T) {
	t.Parallel()
	s := start(t)
	conn := s.dial(t)
	stream, err := grpc_reflection_v1.NewServerReflectionClient(conn).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&grpc_reflection_v1.ServerReflectionRequest{MessageRequest: &grpc_reflection_v1.ServerReflectionRequest_ListServices{}}); err != nil {
		t.Fatal(err)
	}
	listed, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, service := range listed.GetListServicesResponse().GetService() {
		names = append(names, service.GetName())
	}
	for _, want := range []string{
		"shop.checkout.v1.CheckoutService", "shop.order.v1.OrderService", "shop.inventory.v1.InventoryService",
		"shop.logging.v1.EventLogService", "shop.logging.v1.DeadLetterService", "shop.intermediary.v1.IntermediaryService", "grpc.health.v1.Health",
	} {
		if !slices.Contains(names, want) {
			t.Errorf("%s is not listed: %v", want, names)
		}
	}

	placed, err := checkoutv1.NewCheckoutServiceClient(conn).PlaceOrder(t.Context(), &checkoutv1.PlaceOrderRequest{
		CustomerName: "Ada", CustomerEmail: "ada@example.org",
		OrderItems: []*checkoutv1.PlaceOrderRequest_Item{{ProductId: 1, Quantity: 2}, {ProductId: 1, Quantity: 1}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if placed.GetOrder().GetState() != orderv1.Order_PENDING {
		t.Errorf("accepted as %v", placed.GetOrder().GetState())
	}
	var o *orderv1.Order
	eventually(t, func() error {
		r, err := orderv1.NewOrderServiceClient(conn).GetOrder(t.Context(), &orderv1.GetOrderRequest{OrderId: placed.GetOrder().GetId()})
		if o = r.GetOrder(); err == nil && o.GetState() == orderv1.Order_PENDING {
			err = errors.New("it is not decided")
		}
		return err
	})
	if o.GetState() != orderv1.Order_CONFIRMED || o.GetTotalItems() != 3 || o.GetTotalValue().GetUnits() != 3000 {
		t.Errorf("order %v", o)
	}
	if stock := s.settled(t)["Laptop"]; stock.OnHand != 47 {
		t.Errorf("two lines of one product took %d", 50-stock.OnHand)
	}
}

func TestOrders_RefusedForAReasonHoldNothing(t *testing.T) {
	t.Parallel()
	s := start(t)
	for want, items := range map[string]string{
		"OUT_OF_STOCK":    `[{"product_id":2,"quantity":1},{"product_id":1,"quantity":26},{"product_id":1,"quantity":25}]`,
		"UNKNOWN_PRODUCT": `[{"product_id":1,"quantity":1},{"product_id":999,"quantity":1}]`,
		"PRICE_CHANGED":   `[{"product_id":1,"quantity":1,"expected_unit_price":{"currency_code":"USD","units":999}}]`,
	} {
		a := s.call(t, http.MethodPost, "/v1/orders", `{"customer_name":"Ada","customer_email":"ada@example.org","order_items":`+items+`}`)
		if a.code != http.StatusAccepted {
			t.Fatalf("%s: %d %s", want, a.code, a.body)
		}
		if o := s.decided(t, a.header.Get("Location")); o.State != "REJECTED" || o.Reason != want {
			t.Errorf("%s: order is %s %s", want, o.State, o.Reason)
		}
	}
	// The demo's route takes no other price than the catalogue's either.
	cheap := strings.Replace(sample, `"price": 35`, `"price": 0.5`, 1)
	if o := s.decided(t, s.call(t, http.MethodPost, "/intermediary/order", cheap).header.Get("Location")); o.Reason != "PRICE_CHANGED" {
		t.Errorf("a price of the client's own: order is %s %s", o.State, o.Reason)
	}
	for name, i := range s.stock(t) {
		if i.Reserved != 0 || i.Quantity != i.OnHand {
			t.Errorf("%s: %+v", name, i)
		}
	}
}

func TestGarbage_IsRefusedByNameAndPublishesNothing(t *testing.T) {
	t.Parallel()
	s := start(t)
	for _, path := range []string{"/v1/orders", "/intermediary/order"} {
		for body, field := range map[string]string{
			`{"garbage":true}`: "garbage",
			`{}`:               "customer_name",
			`{"customer_name":"A","customer_email":"a@example.org","order_items":[{"quantity":"many"}]}`: "order_items[0].quantity",
			// PostgreSQL's text cannot hold this character.
			`{"customer_name":"A\u0000","customer_email":"a@example.org","order_items":[]}`: "customer_name",
		} {
			a := s.call(t, http.MethodPost, path, body)
			var st struct {
				Code    int
				Details []struct {
					Type            string `json:"@type"`
					FieldViolations []struct{ Field, Description string }
				}
			}
			// google.rpc.Status names its fields in one of two spellings.
			a.body = []byte(strings.ReplaceAll(string(a.body), "field_violations", "FieldViolations"))
			a.json(t, &st)
			named := false
			for _, d := range st.Details {
				for _, v := range d.FieldViolations {
					named = named || v.Field == field && v.Description != ""
				}
			}
			if a.code != http.StatusBadRequest || st.Code != int(codes.InvalidArgument) || !named {
				t.Errorf("POST %s %s: %d %s: want 400 naming %s", path, body, a.code, a.body, field)
			}
		}
	}
	// What is published reaches the log in its order: with this order there, anything before it would be too.
	s.decided(t, s.place(t, 1, 1))
	var log struct{ Events []json.RawMessage }
	eventually(t, func() error {
		s.get(t, "/v1/events?routing_key=shop.order.placed").json(t, &log)
		if len(log.Events) == 0 {
			return errors.New("no event yet")
		}
		return nil
	})
	if len(log.Events) != 1 {
		t.Errorf("%d orders were published", len(log.Events))
	}
}

func TestOperatorCalls_NeedTheToken(t *testing.T) {
	t.Parallel()
	s := start(t)
	for _, path := range []string{"/v1/orders", "/v1/events"} {
		if a := s.call(t, http.MethodGet, path, ""); a.code != http.StatusUnauthorized {
			t.Errorf("GET %s without a token: %d %s", path, a.code, a.body)
		}
		if a := s.call(t, http.MethodGet, path, "", "Authorization", "Bearer "+operatorToken+"x"); a.code != http.StatusUnauthorized {
			t.Errorf("GET %s with a wrong token: %d %s", path, a.code, a.body)
		}
		if a := s.get(t, path); a.code != http.StatusOK {
			t.Errorf("GET %s with the token: %d %s", path, a.code, a.body)
		}
	}
	_, err := orderv1.NewOrderServiceClient(s.dial(t)).ListOrders(t.Context(), &orderv1.ListOrdersRequest{})
	if status.Code(err) != codes.Unauthenticated {
		t.Errorf("over gRPC: %v", err)
	}
}

// Everybody with the right to publish can maintain the catalogue over AMQP, using only the contract.
func TestAMQP_AClientOfItsOwnCreatesProducts(t *testing.T) {
	t.Parallel()
	s := start(t)
	body, err := proto.Marshal(&eventsv1.CreateItems{
		RequestId: uuid.NewString(),
		Items:     []*eventsv1.CreateItems_Item{{ProductName: "Desk", Quantity: 3, Price: &moneyv1.Money{CurrencyCode: "USD", Units: 250}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := amqp.Dial(s.broker.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	ch, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // sent twice, it is one request
		if err := ch.PublishWithContext(t.Context(), "shop.topic", "shop.inventory.create", true, false, amqp.Publishing{Body: body}); err != nil {
			t.Fatal(err)
		}
	}
	var desk item
	eventually(t, func() error {
		var there bool
		if desk, there = s.stock(t)["Desk"]; !there {
			return errors.New("the product is not there")
		}
		return nil
	})
	if o := s.decided(t, s.place(t, desk.ID, 3)); o.State != "CONFIRMED" || o.TotalValue.Units != "750" {
		t.Errorf("an order of the new product: %+v", o)
	}
	s.settled(t)
	if a := s.get(t, "/v1/dead-letters"); a.code == http.StatusOK && strings.Contains(string(a.body), `"id"`) {
		t.Errorf("dead letters: %s", a.body)
	}
}

// gatewayAlone runs a gateway on the broker of s, with none of the other services available.
func gatewayAlone(t *testing.T, s *shop) *shop {
	t.Helper()
	alone := open(t, s.database, s.broker)
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- alone.Gateway.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := errors.Join(<-ended, alone.Order.Close(), alone.Inventory.Close(), alone.Logging.Close()); err != nil {
			t.Errorf("the lone gateway ended with: %v", err)
		}
	})
	ready, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	eventually(t, func() error { return service.Probe(ready, alone.Gateway.AdminAddr()) })
	return alone
}

func TestGateway_TakesOrdersWhileEverybodyElseIsAway(t *testing.T) {
	t.Parallel()
	s := start(t)
	alone := gatewayAlone(t, s)
	location := alone.place(t, 1, 1)
	if a := alone.get(t, location); a.code != http.StatusServiceUnavailable {
		t.Errorf("the order service is away, and GET says %d %s", a.code, a.body)
	}
	if o := s.decided(t, location); o.State != "CONFIRMED" {
		t.Errorf("order %+v", o)
	}
}
