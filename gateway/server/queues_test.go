package server

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"shop.example/platform/messaging/provision"
	"shop.example/platform/testkit/brokertest"
	"shop.example/topology"
)

// Somebody deleted the queue that orders wait in, and the gateway went on to answer 202: the log's queue took them, so the
// broker confirmed.
func TestPlaceOrder_IsRefusedWhileAQueueIsMissingWithoutWhichItWouldBeLost(t *testing.T) {
	t.Parallel()
	for _, queue := range []string{"order", "logging"} {
		t.Run(queue, func(t *testing.T) {
			t.Parallel()
			broker := brokertest.New(t)
			g := startGateway(t, Config{AMQPURL: broker.Services(t, topology.Broker())["gateway"]})
			place := func() answer {
				return send(t, http.MethodPost, "http://"+g.HTTPAddr()+"/v1/orders", order, "Content-Type: application/json")
			}
			isReady := func() bool {
				return send(t, http.MethodGet, "http://"+g.AdminAddr()+"/readyz", "").status == http.StatusOK
			}
			if got := place(); got.status != http.StatusAccepted {
				t.Fatalf("before: %d %s", got.status, got.body)
			}
			res, err := broker.Manage.DeleteQueue(broker.Vhost, queue)
			if err != nil {
				t.Fatal(err)
			}
			_ = res.Body.Close()
			begin := time.Now()
			eventually(t, func() error {
				got := place()
				if got.status != http.StatusServiceUnavailable || !strings.Contains(got.body, `"ORDER_QUEUE_UNAVAILABLE"`) || got.header.Get("Retry-After") == "" {
					return fmt.Errorf("without the queue: %d %s", got.status, got.body)
				}
				return nil
			})
			if took := time.Since(begin); took > testTimeout/2 {
				t.Errorf("refused after %s", took)
			}
			if isReady() {
				t.Error("it says that it is ready")
			}
			if err := provision.Topology(t.Context(), topology.Broker(), os.Getenv("AMQP_MANAGEMENT_URL"), broker.Vhost); err != nil {
				t.Fatal(err)
			}
			eventually(t, func() error {
				if got := place(); got.status != http.StatusAccepted {
					return fmt.Errorf("afterwards: %d %s", got.status, got.body)
				}
				if !isReady() {
					return errors.New("it is not ready")
				}
				return nil
			})
		})
	}
}

// eventually calls f until it returns nil.
func eventually(t *testing.T, f func() error) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(testTimeout); ; <-tick.C {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %s: %v", testTimeout, err)
		}
	}
}
