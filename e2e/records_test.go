package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	customerv1 "shop.example/gen/shop/customer/v1"
	eventsv1 "shop.example/gen/shop/events/v1"
	loggingv1 "shop.example/gen/shop/logging/v1"
)

// Once, a price could be changed, a product deleted, an order cancelled and a dead letter discarded without a record of who
// did it.
func TestOperators_WhatTheyDoIsInOneRecord(t *testing.T) {
	t.Parallel()
	s := start(t)
	order := s.decided(t, s.place(t, 5, 3))
	letters := s.makeDeadLetters(t, 2)
	as := []string{"Authorization", "Bearer " + operatorToken}
	for _, c := range []struct{ method, path, body string }{
		{http.MethodPatch, "/v1/inventory/1", `{"price": {"currency_code": "USD", "units": "1"}}`},
		{http.MethodPost, "/v1/inventory", `{"items": [{"product_name": "Desk Lamp", "quantity": 20, "price": {"currency_code": "USD", "units": "49"}}]}`},
		{http.MethodDelete, "/v1/inventory/8", ""},
		{http.MethodPost, "/v1/orders/" + order.ID + ":cancel", "{}"},
		{http.MethodPost, letters[0].path() + ":discard", "{}"},
		{http.MethodPost, letters[1].path() + ":redrive", "{}"},
		{http.MethodPost, "/v1/customers:export", `{"customer_email": "nobody@example.org"}`},
	} {
		if a := s.call(t, c.method, c.path, c.body, as...); a.code != http.StatusOK {
			t.Fatalf("%s %s: %d %s", c.method, c.path, a.code, a.body)
		}
	}
	own := s.decided(t, s.place(t, 5, 1))
	if a := s.call(t, http.MethodPost, "/v1/orders/"+own.ID+":cancel", "{}"); a.code != http.StatusOK { // its customer's
		t.Fatalf("%d %s", a.code, a.body)
	}
	ch := s.confirming(t)
	body, err := proto.Marshal(&eventsv1.DeleteItems{RequestId: uuid.NewString(), Ids: []int32{7}})
	if err != nil {
		t.Fatal(err)
	}
	s.send(t, ch, "shop.topic", "shop.inventory.delete", amqp.Publishing{Body: body, Type: "shop.events.v1.DeleteItems"})

	const nobody = "customer sha256:"
	want := []string{
		"operator token | shop.inventory.v1.InventoryService/UpdateItem | item 1 | price 1.00 USD, was 1000.00 USD | inventory",
		`operator token | shop.inventory.v1.InventoryService/CreateItems | item 9 | created: name "Desk Lamp", price 49.00 USD, on hand 20 | inventory`,
		`operator token | shop.inventory.v1.InventoryService/DeleteItem | item 8 | deleted: name "KVM Switch" | inventory`,
		"operator token | shop.order.v1.OrderService/CancelOrder | order " + order.ID + " | cancelled | order",
		"operator token | shop.logging.v1.DeadLetterService/DiscardDeadLetter | dead letter " + letters[0].ID + " | ",
		"operator token | shop.logging.v1.DeadLetterService/RedriveDeadLetter | dead letter " + letters[1].ID + " | ",
		"operator token | shop.customer.v1.CustomerService/ExportCustomer | " + nobody,
		"operator token | shop.customer.v1.CustomerService/ExportCustomer | " + nobody, // in the log, in the orders, and in what webhooks are to get
		"operator token | shop.customer.v1.CustomerService/ExportCustomer | " + nobody,
		`unknown user of the broker | shop.events.v1.DeleteItems | item 7 | deleted: name "Phone Case" | inventory`,
	}
	var list struct {
		Actions []struct{ Operator, Method, Target, Detail, Service string } `json:"operator_actions"`
	}
	eventually(t, func() error {
		s.get(t, "/v1/operator-actions?page_size=1000").json(t, &list)
		if len(list.Actions) < len(want) {
			return fmt.Errorf("%d of %d actions are recorded", len(list.Actions), len(want))
		}
		return nil
	})
	var got []string
	for _, a := range list.Actions {
		got = append(got, strings.Join([]string{a.Operator, a.Method, a.Target, a.Detail, a.Service}, " | "))
	}
	for _, w := range want {
		i := slices.IndexFunc(got, func(g string) bool { return strings.HasPrefix(g, w) })
		if i < 0 {
			t.Errorf("%q is not recorded", w)
			continue
		}
		got = slices.Delete(got, i, i+1)
	}
	if len(got) > 0 {
		t.Errorf("recorded, too: %q", got)
	}

	// Over gRPC, and for people.
	ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+operatorToken)
	reply, err := loggingv1.NewOperatorActionServiceClient(s.dial(t)).ListOperatorActions(ctx, &loggingv1.ListOperatorActionsRequest{Target: "item 1"})
	if err != nil || len(reply.GetOperatorActions()) != 1 || reply.GetOperatorActions()[0].GetDetail() != "price 1.00 USD, was 1000.00 USD" {
		t.Errorf("over gRPC: %v, %v", reply, err)
	}
	expect(t, "shop actions", s.must(t, "actions", "--target", "item 1"), `
WHEN                 OPERATOR        CALL        TO      WHAT
ttttttttttttttttttt  operator token  UpdateItem  item 1  price 1.00 USD, was 1000.00 USD
`)
	if none := s.shopCommand(t, "actions", "--operator", "eve"); none.status != 0 || none.errs != "Nothing of the kind was done.\n" {
		t.Errorf("of nobody: %+v", none)
	}
	for _, path := range []string{"/v1/operator-actions", "/v1/events?routing_key=shop.operator.acted"} {
		if a := s.call(t, http.MethodGet, path, ""); a.code != http.StatusUnauthorized {
			t.Errorf("%s for anybody: %d %s", path, a.code, a.body)
		}
	}
}

// placeFor places an order and returns it once it is decided.
func (s *shop) placeFor(t *testing.T, email string, header ...string) order {
	t.Helper()
	body, _ := json.Marshal(map[string]any{"customer_name": "Ada Lovelace", "customer_email": email, "order_items": []map[string]any{{"product_id": 5, "quantity": 1}}})
	a := s.call(t, http.MethodPost, "/v1/orders", string(body), header...)
	if a.code != http.StatusAccepted {
		t.Fatalf("placing an order: %d %s", a.code, a.body)
	}
	return s.decided(t, a.header.Get("Location"))
}

func TestCustomer_IsExportedAndErasedEverywhere(t *testing.T) {
	t.Parallel()
	s := start(t)
	mine := []order{s.placeFor(t, "ada@example.org"), s.placeFor(t, "ADA@Example.org", "Idempotency-Key", "a key of Ada's"), s.placeFor(t, "ada@example.org")}
	bobs := s.placeFor(t, "bob@example.org")
	jose := s.placeFor(t, "josé@exämple.org")
	if a := s.call(t, http.MethodPost, "/v1/orders/"+mine[2].ID+":cancel", "{}"); a.code != http.StatusOK {
		t.Fatalf("%d %s", a.code, a.body)
	}
	// One that could not be handled, and one that nobody can read.
	ch := s.confirming(t)
	dead := &eventsv1.OrderPlaced{
		OrderId: uuid.NewString(), CustomerName: "Ada Lovelace", CustomerEmail: "ada@example.org", PlacedAt: timestamppb.Now(),
		Lines: []*eventsv1.RequestedLine{{ProductId: 1, Quantity: -1}},
	}
	body, err := proto.Marshal(dead)
	if err != nil {
		t.Fatal(err)
	}
	s.send(t, ch, "shop.topic", "shop.order.placed", amqp.Publishing{Body: body, MessageId: uuid.NewString(), CorrelationId: dead.GetOrderId()})
	s.send(t, ch, "shop.topic", "shop.order.placed", amqp.Publishing{Body: append([]byte{0xff}, body...), MessageId: uuid.NewString()})
	s.open(t, 2)
	s.settled(t)
	s.logged(t, "shop.order.placed", 7)
	stock := s.stock(t)

	var export struct {
		Records []struct {
			Order      *order
			Event      *struct{ ID string }
			DeadLetter *deadLetter `json:"dead_letter"`
		}
	}
	text := s.must(t, "customer", "export", "--email", "Ada@EXAMPLE.org")
	if err := json.Unmarshal([]byte(text), &export); err != nil {
		t.Fatal(err)
	}
	orders, events, letters := 0, 0, 0
	for _, r := range export.Records {
		switch {
		case r.Order != nil:
			orders++
		case r.Event != nil:
			events++
		case r.DeadLetter != nil:
			letters++
		}
	}
	if orders != 3 || events != 5 || letters != 2 || strings.Contains(text, "bob@") || strings.Contains(text, "jos") {
		t.Errorf("exported are %d orders, %d events and %d dead letters:\n%s", orders, events, letters, text)
	}
	for _, part := range []string{mine[0].ID, mine[1].ID, "ADA@Example.org", dead.GetOrderId()} {
		if !strings.Contains(text, part) {
			t.Errorf("%q is not exported", part)
		}
	}

	if out := s.must(t, "customer", "erase", "--email", "ada@example.org", "--yes"); out != "Erased in 4 orders, 5 events and 2 dead letters.\n" { // that of the dead letter too: it is rejected as it is discarded
		t.Errorf("erased: %s", out)
	}
	db := s.openDatabase(t)
	for _, table := range []string{"orders.orders", "orders.order_item", "orders.outbox", "orders.idempotency_key", "logging.event_log", "logging.dead_letter", "logging.operator_action", "inventory.decision", "inventory.outbox"} {
		for _, row := range texts(t, db, "SELECT t::text FROM "+table+" t") {
			for _, part := range []string{"ada@example.org", "lovelace"} {
				// Bytes are shown in hexadecimal.
				if low := strings.ToLower(row); !strings.Contains(low, "bob@") && !strings.Contains(low, "jos") && (strings.Contains(low, part) || strings.Contains(low, fmt.Sprintf("%x", part))) {
					t.Errorf("%s has %q still: %s", table, part, row)
				}
			}
		}
	}
	for _, o := range mine {
		if got := s.decided(t, "/v1/orders/"+o.ID); got.Name != "(erased)" || got.Email != "(erased)" || got.TotalValue != o.TotalValue || len(got.Items) != 1 {
			t.Errorf("after it: %+v", got)
		}
		if a := s.call(t, http.MethodGet, "/v1/orders/"+o.ID+"/events", ""); a.code != http.StatusOK || strings.Contains(strings.ToLower(string(a.body)), "ada@") || strings.Contains(string(a.body), "Ada") {
			t.Errorf("its events: %d %s", a.code, a.body)
		}
	}
	if got := s.decided(t, "/v1/orders/"+bobs.ID); got.Email != "bob@example.org" {
		t.Errorf("another's: %+v", got)
	}
	// Nothing is sent again, nothing else has changed, and everything adds up.
	if open := s.deadLetters(t, "OPEN"); len(open) != 0 {
		t.Errorf("open are %v", open)
	}
	if r, err := auditor(t, s).RunWhenQuiet(t.Context(), testTimeout); err != nil || r.Count() != 0 {
		t.Errorf("after it: %+v, %v", r, err)
	}
	if now := s.stock(t); fmt.Sprint(now) != fmt.Sprint(stock) {
		t.Errorf("the stock is %v, was %v", now, stock)
	}
	if out := s.must(t, "customer", "erase", "--email", "ada@example.org", "--yes"); out != "Erased in 0 orders, 0 events and 0 dead letters.\n" {
		t.Errorf("erased again: %s", out)
	}
	// The same over gRPC, of somebody else, whose address is written in another way.
	ctx := metadata.AppendToOutgoingContext(context.Background(), "authorization", "Bearer "+operatorToken)
	reply, err := customerv1.NewCustomerServiceClient(s.dial(t)).EraseCustomer(ctx, &customerv1.EraseCustomerRequest{CustomerEmail: "JOSÉ@xn--exmple-cua.org"})
	if err != nil || reply.GetOrders() != 1 || reply.GetEvents() != 1 || reply.GetDeadLetters() != 0 {
		t.Errorf("over gRPC: %v, %v", reply, err)
	}
	if got := s.decided(t, "/v1/orders/"+jose.ID); got.Email != "(erased)" {
		t.Errorf("after it: %+v", got)
	}
}
