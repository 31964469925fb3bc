package server

import (
	"encoding/json"
	"net/http"
	"testing"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	orderv1 "shop.example/gen/shop/order/v1"
	"shop.example/platform/testkit/brokertest"
)

// The Location of a 202 was 404 until the order was decided: a client could not tell an order that waits from none.
func TestOrder_IsPendingFromTheMomentItIsAccepted(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	book, addr := serveOrderBook(t)
	g := startGateway(t, Config{AMQPURL: broker.URL, OrderAddr: addr, IDSecret: "a secret of the tests"})
	joinBroker(t, broker.URL).take(t, "order")
	base := "http://" + g.HTTPAddr()
	for _, key := range []string{"", "mine"} {
		headers := []string{}
		if key != "" {
			headers = append(headers, "Idempotency-Key: "+key)
		}
		var accepted, read struct{ ID, State string }
		taken := send(t, http.MethodPost, base+"/v1/orders", order, append(headers, "Prefer: respond-async, return=minimal")...)
		if err := json.Unmarshal([]byte(taken.body), &accepted); err != nil || taken.status != http.StatusAccepted {
			t.Fatalf("placing it: %d %s", taken.status, taken.body)
		}
		if taken.header.Get("Retry-After") != "1" || taken.header.Get("Preference-Applied") != "respond-async" || taken.header.Get("ETag") != "" {
			t.Errorf("headers: %v", taken.header)
		}
		location := taken.header.Get("Location")
		got := send(t, http.MethodGet, base+location, "")
		if err := json.Unmarshal([]byte(got.body), &read); err != nil || got.status != http.StatusOK || read.ID != accepted.ID || read.State != "PENDING" || got.header.Get("Retry-After") != "1" {
			t.Errorf("GET %s: %d %s", location, got.status, got.body)
		}
		refused := send(t, http.MethodPost, base+location+":cancel", "{}")
		if refused.status != http.StatusConflict || refused.failure(t).reason() != "ORDER_PENDING" || refused.header.Get("Retry-After") != "1" {
			t.Errorf("cancelling it: %d %s", refused.status, refused.body)
		}
		overGRPC := orderv1.NewOrderServiceClient(client(t, g.HTTPAddr()))
		if resp, err := overGRPC.GetOrder(t.Context(), &orderv1.GetOrderRequest{OrderId: accepted.ID}); err != nil || resp.GetOrder().GetState() != orderv1.Order_PENDING {
			t.Errorf("over gRPC: %v, %v", resp, err)
		}
		if _, err := overGRPC.CancelOrder(t.Context(), &orderv1.CancelOrderRequest{OrderId: accepted.ID}); status.Code(err) != codes.Aborted {
			t.Errorf("cancelling it over gRPC: %v", err)
		}
		book.store(accepted.ID)
		if got := send(t, http.MethodGet, base+location, ""); got.status != http.StatusOK || json.Unmarshal([]byte(got.body), &read) != nil || read.State != "CONFIRMED" || got.header.Get("Retry-After") != "" {
			t.Errorf("decided: %d %s", got.status, got.body)
		}
	}
	if got := send(t, http.MethodGet, base+"/v1/orders/"+uuid.NewString(), ""); got.status != http.StatusNotFound || got.failure(t).reason() != "ORDER_NOT_FOUND" {
		t.Errorf("an invented id: %d %s", got.status, got.body)
	}
	// Another replica, which has taken no order: the secret is enough. A secret of its own is not.
	waiting := send(t, http.MethodPost, base+"/v1/orders", order).header.Get("Location")
	for secret, want := range map[string]int{"a secret of the tests": http.StatusOK, "another secret of the tests": http.StatusNotFound} {
		replica := startGateway(t, Config{OrderAddr: addr, IDSecret: secret})
		if got := send(t, http.MethodGet, "http://"+replica.HTTPAddr()+waiting, ""); got.status != want {
			t.Errorf("with %s: %d %s", secret, got.status, got.body)
		}
	}
	// Without the order service nobody knows.
	alone := startGateway(t, Config{IDSecret: "a secret of the tests"})
	if got := send(t, http.MethodGet, "http://"+alone.HTTPAddr()+waiting, ""); got.status != http.StatusServiceUnavailable {
		t.Errorf("while the order service is away: %d %s", got.status, got.body)
	}
}
