package server

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"shop.example/gateway/ingress"
	"shop.example/gateway/intake"
	checkoutv1 "shop.example/gen/shop/checkout/v1"
	eventsv1 "shop.example/gen/shop/events/v1"
	"shop.example/platform/apierror"
	"shop.example/platform/contract"
)

// What waits is held in memory, so the largest orders are fewer.
func TestPlaceOrder_ALargeOrderTakesTheRoomOfSeveral(t *testing.T) {
	t.Parallel()
	waiting, confirm := make(chan struct{}, ordersInFlight), make(chan struct{})
	_, addr := serveAPI(t, func(ctx context.Context, _ proto.Message) error {
		waiting <- struct{}{}
		select {
		case <-confirm:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}, orderServer{})
	line := `{"product_name":"` + strings.Repeat("\U0001F6D2", 200) + `","quantity":1,"price":5}`
	large := `{"customer_name":"Ada","customer_email":"ada@example.org","order_items":[` + line + strings.Repeat(","+line, 99) + `]}`
	place := func(body string) answer { return send(t, http.MethodPost, "http://"+addr+"/intermediary/order", body) }
	calls := errgroup.Group{}
	for range ordersInFlight / intake.MaxWeight {
		calls.Go(func() error {
			if got := place(large); got.status != http.StatusOK {
				return fmt.Errorf("an order that waited: %d %s", got.status, got.body)
			}
			return nil
		})
		select {
		case <-waiting:
		case <-time.After(testTimeout):
			t.Fatal("an order does not reach the broker")
		}
	}
	if got := place(large); got.status != http.StatusServiceUnavailable {
		t.Errorf("one large order more: %d %s", got.status, got.body)
	}
	calls.Go(func() error {
		if got := place(sampleOrder); got.status != http.StatusOK {
			return fmt.Errorf("a small order, for which there is room: %d %s", got.status, got.body)
		}
		return nil
	})
	select {
	case <-waiting:
	case <-time.After(testTimeout):
		t.Error("the small order does not reach the broker")
	}
	close(confirm)
	if err := calls.Wait(); err != nil {
		t.Error(err)
	}
}

func TestNew_RoomForLessThanTheLargestOrderIsRefused(t *testing.T) {
	t.Parallel()
	for _, n := range []int64{-1, 1, intake.MaxWeight - 1} {
		_, err := New(t.Context(), Config{Ingress: ingress.Config{OrdersInFlight: n}}, newTelemetry(t, io.Discard))
		if err == nil || !strings.Contains(err.Error(), "ORDERS_IN_FLIGHT must be 11 or more") {
			t.Errorf("%d: %v", n, err)
		}
	}
}

func TestPlaceOrder_MoreThanCanWaitForTheBrokerAreRefusedAtOnce(t *testing.T) {
	t.Parallel()
	waiting, confirm := make(chan struct{}, ordersInFlight), make(chan struct{})
	_, addr := serveAPI(t, func(ctx context.Context, _ proto.Message) error {
		waiting <- struct{}{}
		select {
		case <-confirm:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}, orderServer{})
	base, calls := "http://"+addr, errgroup.Group{}
	place := func() int { return send(t, http.MethodPost, base+"/v1/orders", order).status }
	for range ordersInFlight {
		calls.Go(func() error {
			if got := place(); got != http.StatusAccepted {
				return fmt.Errorf("an order that waited was answered with %d", got)
			}
			return nil
		})
	}
	for range ordersInFlight {
		select {
		case <-waiting:
		case <-time.After(testTimeout):
			t.Fatal("the orders do not reach the broker")
		}
	}
	for path, body := range map[string]string{"/v1/orders": order, "/intermediary/order": sampleOrder} {
		got := send(t, http.MethodPost, base+path, body)
		f := got.failure(t)
		if got.status != http.StatusServiceUnavailable || f.reason() != "OVERLOADED" || got.header.Get("Retry-After") != "2" || f.Details[1].RetryDelay != "2s" {
			t.Errorf("POST %s: %d %s", path, got.status, got.body)
		}
	}
	_, err := checkoutv1.NewCheckoutServiceClient(client(t, addr)).PlaceOrder(t.Context(), &checkoutv1.PlaceOrderRequest{
		CustomerName: "A", CustomerEmail: "a@example.com", OrderItems: []*checkoutv1.PlaceOrderRequest_Item{{ProductId: 1, Quantity: 1}},
	})
	if status.Code(err) != codes.Unavailable || apierror.ReasonOf(err) != "OVERLOADED" {
		t.Errorf("gRPC: %v", err)
	}
	if got := send(t, http.MethodGet, base+"/v1/orders/"+storedOrder, ""); got.status != http.StatusOK {
		t.Errorf("a call that needs no broker: %d %s", got.status, got.body)
	}
	close(confirm)
	if err := calls.Wait(); err != nil {
		t.Error(err)
	}
	if got := place(); got != http.StatusAccepted {
		t.Errorf("when the broker is back: %d", got)
	}
}

func TestPlaceOrder_TextsThatDeceiveAreRefusedAndOthersNormalised(t *testing.T) {
	t.Parallel()
	published := make(chan *eventsv1.OrderPlaced, 1)
	_, addr := serveAPI(t, func(_ context.Context, m proto.Message) error {
		published <- m.(*eventsv1.OrderPlaced)
		return nil
	}, orderServer{})
	v1 := func(name, email string) answer {
		body, _ := json.Marshal(map[string]any{"customer_name": name, "customer_email": email, "order_items": []map[string]any{{"product_id": 5, "quantity": 1}}})
		return send(t, http.MethodPost, "http://"+addr+"/v1/orders", string(body))
	}
	demo := func(name, email, product string) answer {
		body, _ := json.Marshal(map[string]any{"customer_name": name, "customer_email": email, "order_items": []map[string]any{{"product_name": product, "quantity": 1, "price": 1}}})
		return send(t, http.MethodPost, "http://"+addr+"/intermediary/order", string(body))
	}
	long := strings.Repeat("\u0958", 101) // 101 characters, 202 in the normal form
	for name, c := range map[string]struct {
		got   answer
		field string
	}{
		"a name with a line feed":             {v1("Ada\nTotal: 0", "ada@example.org"), "customer_name"},
		"a name that turns the text around":   {v1("Ada\u202e", "ada@example.org"), "customer_name"},
		"a name with what nobody sees":        {v1("A\u200bda", "ada@example.org"), "customer_name"},
		"a name that is too long as it is":    {v1(long, "ada@example.org"), "customer_name"},
		"an address with what nobody sees":    {v1("Ada", "ada@exam\u200bple.org"), "customer_email"},
		"an address without a domain":         {v1("Ada", "ada@"), "customer_email"},
		"an address with an empty label":      {v1("Ada", "ada@exämple..org"), "customer_email"},
		"no address":                          {v1("Ada", "ada"), "customer_email"},
		"the demo's name":                     {demo("Ada\u202e", "any text", "Phone"), "customer_name"},
		"the demo's address":                  {demo("Ada", "any\ttext", "Phone"), "customer_email"},
		"the demo's product":                  {demo("Ada", "any text", "Pho\u200bne"), "order_items[0].product_name"},
		"the demo's product, that grows long": {demo("Ada", "any text", long), "order_items[0].product_name"},
	} {
		if f := c.got.failure(t); c.got.status != http.StatusBadRequest || !strings.Contains(c.got.body, `"field":"`+c.field+`"`) {
			t.Errorf("%s: %d %v", name, c.got.status, f)
		}
	}
	if len(published) != 0 {
		t.Fatal("what was refused is published")
	}
	for _, email := range []string{"ada@exämple.org", "josé@example.org", "用户@例子.广告", "Ada@Example.org"} {
		if got := v1("René Žižek 田中", email); got.status != http.StatusAccepted {
			t.Errorf("%s: %d %s", email, got.status, got.body)
			continue
		}
		if m := <-published; m.GetCustomerEmail() != email || contract.Validate(m) != nil {
			t.Errorf("%s: published %v", email, m)
		}
	}
	if got := demo("Rene\u0301", "any text", "Cafe\u0301"); got.status != http.StatusOK {
		t.Fatalf("%d %s", got.status, got.body)
	}
	if m := <-published; m.GetCustomerName() != "Ren\u00e9" || m.GetLines()[0].GetProductName() != "Caf\u00e9" {
		t.Errorf("published %v", m)
	}
}
