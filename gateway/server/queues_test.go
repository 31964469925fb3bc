package server

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"shop.example/platform/messaging"
	"shop.example/platform/messaging/provision"
	"shop.example/platform/testkit/brokertest"
	"shop.example/platform/testkit/netproxy"
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
			if got := place(); got.status != http.StatusAccepted {
				t.Fatalf("before: %d %s", got.status, got.body)
			}
			deleteQueue(t, broker, queue)
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
			if isReady(t, g) == nil {
				t.Error("it says that it is ready")
			}
			provisionAgain(t, broker)
			eventually(t, func() error {
				if got := place(); got.status != http.StatusAccepted {
					return fmt.Errorf("afterwards: %d %s", got.status, got.body)
				}
				return isReady(t, g)
			})
		})
	}
}

// A frozen broker was told of as one whose queues are missing: whoever was on duty provisioned it, which nothing came of.
func TestPlaceOrder_SaysThatTheBrokerDoesNotAnswerIfItIsFrozen(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	url := broker.Services(t, topology.Broker())["gateway"]
	proxy := netproxy.New(t, url)
	g := startGateway(t, Config{AMQPURL: proxy.URL})
	place := func() answer {
		return send(t, http.MethodPost, "http://"+g.HTTPAddr()+"/v1/orders", order, "Content-Type: application/json")
	}
	isAccepted := func() error {
		if got := place(); got.status != http.StatusAccepted {
			return fmt.Errorf("answered %d %s", got.status, got.body)
		}
		return nil
	}
	eventually(t, isAccepted)
	awaitLook(t, broker, g)
	proxy.DropResponses()
	eventually(t, func() error {
		if ready := send(t, http.MethodGet, "http://"+g.AdminAddr()+"/readyz", ""); !strings.Contains(ready.body, messaging.ErrNoAnswer.Error()) {
			return fmt.Errorf("readiness does not say so: %d %s", ready.status, ready.body)
		}
		return nil
	})
	got := place()
	if got.status != http.StatusServiceUnavailable || !strings.Contains(got.body, `"BROKER_UNAVAILABLE"`) || got.header.Get("Retry-After") == "" {
		t.Errorf("frozen: %d %s", got.status, got.body)
	}
	proxy.Down()
	proxy.Up(t)
	eventually(t, isAccepted)
}

// awaitLook waits until the gateway looks after the queues of orders, which begins after the first order may have been accepted.
func awaitLook(t *testing.T, broker *brokertest.Broker, g *gateway) {
	t.Helper()
	deleteQueue(t, broker, "order")
	eventually(t, func() error {
		if isReady(t, g) == nil {
			return errors.New("it does not miss the queue")
		}
		return nil
	})
	provisionAgain(t, broker)
	eventually(t, func() error { return isReady(t, g) })
}

func isReady(t *testing.T, g *gateway) error {
	t.Helper()
	if ready := send(t, http.MethodGet, "http://"+g.AdminAddr()+"/readyz", ""); ready.status != http.StatusOK {
		return fmt.Errorf("it is not ready: %s", ready.body)
	}
	return nil
}

func deleteQueue(t *testing.T, broker *brokertest.Broker, queue string) {
	t.Helper()
	res, err := broker.Manage.DeleteQueue(broker.Vhost, queue)
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
}

func provisionAgain(t *testing.T, broker *brokertest.Broker) {
	t.Helper()
	if err := provision.Topology(t.Context(), topology.Broker(), os.Getenv("AMQP_MANAGEMENT_URL"), broker.Vhost); err != nil {
		t.Fatal(err)
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
