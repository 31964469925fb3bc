// Package e2e tests the whole shop from outside: REST, gRPC and AMQP, on a real broker and database.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"shop.example/db"
	"shop.example/db/dbtest"
	"shop.example/dev/local"
	"shop.example/platform/telemetry"
	"shop.example/platform/testkit/brokertest"
	"shop.example/topology"
)

// testTimeout bounds every wait of these tests; none waits that long unless something is broken.
const testTimeout = 30 * time.Second

const operatorToken = "operator-token-of-the-tests"

// shop is a running shop with a database and a virtual host of its own.
type shop struct {
	*local.Shop
	url      string // of the gateway
	database string
	apart    map[string]string // databases of single schemas, if they have their own
	broker   *brokertest.Broker
}

func start(t *testing.T) *shop {
	t.Helper()
	broker := brokertest.New(t)
	database := dbtest.New(t)
	s := open(t, database, broker)
	run(t, s.Shop)
	return s
}

func config(t *testing.T, database string, amqp map[string]string) local.Config {
	urls := map[string]string{}
	for _, schema := range db.Schemas() {
		urls[schema] = database
	}
	cfg := local.Config{
		AMQPURLs: amqp, DatabaseURLs: urls, OperatorToken: operatorToken, IDSecret: "id-secret-of-the-tests", Currency: "USD",
		Telemetry: telemetry.Config{LogLevel: slog.LevelInfo, LogFormat: telemetry.Text, Output: t.Output()},
	}
	cfg.AnyPort()
	return cfg
}

func open(t *testing.T, database string, broker *brokertest.Broker) *shop {
	t.Helper()
	s, err := local.New(t.Context(), config(t, database, broker.Services(t, topology.Broker())))
	if err != nil {
		t.Fatal(err)
	}
	return &shop{Shop: s, url: "http://" + s.Gateway.HTTPAddr(), database: database, broker: broker}
}

// run runs the shop until the test ends, and returns once it is ready.
func run(t *testing.T, s *local.Shop) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("the shop ended with: %v", err)
		}
	})
	ready, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	if err := s.WaitReady(ready); err != nil {
		t.Fatalf("the shop does not get ready: %v", err)
	}
}

// dial returns a gRPC connection to the gateway.
func (s *shop) dial(t *testing.T) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(s.Gateway.HTTPAddr(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// answer is the response to a REST call.
type answer struct {
	code   int
	header http.Header
	body   []byte
}

func (a answer) json(t *testing.T, v any) {
	t.Helper()
	if err := json.Unmarshal(a.body, v); err != nil {
		t.Fatalf("%v in %s", err, a.body)
	}
}

func (s *shop) call(t *testing.T, method, path, body string, header ...string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.url+path, bytes.NewBufferString(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	got := answer{res.StatusCode, res.Header, text}
	checkDescribed(t, method, path, got)
	return got
}

func (s *shop) get(t *testing.T, path string) answer {
	t.Helper()
	return s.call(t, http.MethodGet, path, "", "Authorization", "Bearer "+operatorToken)
}

// eventually calls f until it returns nil.
func eventually(t *testing.T, f func() error) {
	t.Helper()
	eventuallyWithin(t, testTimeout, f)
}

func eventuallyWithin(t *testing.T, testTimeout time.Duration, f func() error) {
	t.Helper()
	deadline := time.Now().Add(testTimeout)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %s: %v", testTimeout, err)
		}
		<-tick.C
	}
}

type order struct {
	ID         string `json:"id"`
	State      string `json:"state"`
	Reason     string `json:"reason"`
	Name       string `json:"customer_name"`
	Email      string `json:"customer_email"`
	TotalItems int    `json:"total_items"`
	TotalValue money  `json:"total_value"`
	Items      []struct {
		Line      int    `json:"line"`
		ProductID int    `json:"product_id"`
		Name      string `json:"product_name"`
		Quantity  int    `json:"quantity"`
		Price     money  `json:"unit_price"`
	} `json:"order_items"`
}

type money struct {
	Currency string `json:"currency_code"`
	Units    string `json:"units"`
	Nanos    int    `json:"nanos"`
}

type item struct {
	ID       int    `json:"id"`
	Name     string `json:"product_name"`
	Quantity int    `json:"quantity"`
	OnHand   int    `json:"on_hand"`
	Reserved int    `json:"reserved"`
}

// decided waits until the order at location has been decided.
func (s *shop) decided(t *testing.T, location string) order {
	t.Helper()
	var o order
	eventually(t, func() error {
		a := s.call(t, http.MethodGet, location, "")
		if a.code != http.StatusOK {
			return fmt.Errorf("GET %s: %d %s", location, a.code, a.body)
		}
		if a.json(t, &o); o.State == "PENDING" {
			return fmt.Errorf("order %s is still PENDING", location)
		}
		return nil
	})
	return o
}

// place places an order of one line and returns its path.
func (s *shop) place(t *testing.T, productID, quantity int) (location string) {
	t.Helper()
	a := s.call(t, http.MethodPost, "/v1/orders", fmt.Sprintf(
		`{"customer_name":"Ada","customer_email":"ada@example.org","order_items":[{"product_id":%d,"quantity":%d}]}`, productID, quantity))
	if a.code != http.StatusAccepted {
		t.Fatalf("placing an order: %d %s", a.code, a.body)
	}
	return a.header.Get("Location")
}

func (s *shop) stock(t *testing.T) map[string]item {
	t.Helper()
	a := s.call(t, http.MethodGet, "/v1/inventory?page_size=1000", "")
	if a.code != http.StatusOK {
		t.Fatalf("GET /v1/inventory: %d %s", a.code, a.body)
	}
	var list struct{ Items []item }
	a.json(t, &list)
	items := map[string]item{}
	for _, i := range list.Items {
		items[i.Name] = i
	}
	return items
}

// settled waits until nothing is reserved and the outboxes and queues are empty.
func (s *shop) settled(t *testing.T) map[string]item {
	t.Helper()
	var items map[string]item
	eventually(t, func() error {
		items = s.stock(t)
		for name, i := range items {
			if i.Reserved != 0 {
				return fmt.Errorf("%s: %d still reserved", name, i.Reserved)
			}
		}
		return nil
	})
	return items
}
