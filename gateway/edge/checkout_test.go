package edge

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	checkoutv1 "shop.example/gen/shop/checkout/v1"
)

func TestPreferredWait_IsThePreferenceOfRFC7240(t *testing.T) {
	t.Parallel()
	for header, want := range map[string]time.Duration{
		"":                          0,
		"wait=5":                    5 * time.Second,
		"respond-async, wait=5":     5 * time.Second,
		` WAIT = "2" , return=full`: 2 * time.Second,
		"wait=0":                    0,
		"wait=100000":               maxWait,
		"wait=-1":                   0,
		"wait=soon":                 0,
		"wait":                      0,
		"waiting=5":                 0,
	} {
		ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs("prefer", header))
		if got := preferredWait(ctx); got != want {
			t.Errorf("%q: %s, want %s", header, got, want)
		}
	}
}

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
	for range ordersInFlight / maxWeight {
		calls.Go(func() error {
			if got := place(large); got.status != http.StatusOK {
				return fmt.Errorf("an order that waited: %d %s", got.status, got.body)
			}
			return nil
		})
		select {
		case <-waiting:
		case <-time.After(patience):
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
	case <-time.After(patience):
		t.Error("the small order does not reach the broker")
	}
	close(confirm)
	if err := calls.Wait(); err != nil {
		t.Error(err)
	}
}

func TestNew_RoomForLessThanTheLargestOrderIsRefused(t *testing.T) {
	t.Parallel()
	for _, n := range []int64{-1, 1, maxWeight - 1} {
		_, err := New(t.Context(), Config{Door: DoorConfig{OrdersInFlight: n}}, newTelemetry(t, io.Discard))
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
		case <-time.After(patience):
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
	if status.Code(err) != codes.Unavailable || reasonOf(err) != "OVERLOADED" {
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
