package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/metric/noop"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	"shop.example/gateway/access"
	"shop.example/gateway/ingress"
	"shop.example/gateway/intake"
	"shop.example/gateway/rest"
	"shop.example/gateway/upstream"
	checkoutv1 "shop.example/gen/shop/checkout/v1"
	inventoryv1 "shop.example/gen/shop/inventory/v1"
	loggingv1 "shop.example/gen/shop/logging/v1"
	orderv1 "shop.example/gen/shop/order/v1"
	"shop.example/platform/apierror"
	"shop.example/platform/service"
	"shop.example/platform/telemetry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	operatorToken = "an operator's token"
	nowhere       = "127.0.0.1:1" // an address at which nobody listens

	ordersInFlight = 50 // of serveAPI
)

// testOperators are those who know the tests' token.
var testOperators, _ = access.ParseOperators(operatorToken, nil)

// gateway is a gateway that runs until its test ends.
type gateway struct {
	*Service
	log *logBuffer
}

// startGateway starts a gateway on free ports. If cfg names no broker and no services, there are none.
func startGateway(t *testing.T, cfg Config) *gateway {
	t.Helper()
	g := &gateway{log: &logBuffer{}}
	cfg.HTTPAddr, cfg.AdminAddr = "127.0.0.1:0", "127.0.0.1:0"
	cfg.OperatorToken, cfg.Currency = operatorToken, "USD"
	for _, addr := range []*string{&cfg.OrderAddr, &cfg.InventoryAddr, &cfg.LoggingAddr, &cfg.WebhooksAddr} {
		if *addr == "" {
			*addr = nowhere
		}
	}
	if cfg.AMQPURL == "" {
		cfg.AMQPURL = "amqp://guest:guest@" + nowhere + "/"
	}
	s, err := New(t.Context(), cfg, newTelemetry(t, g.log))
	if err != nil {
		t.Fatal(err)
	}
	g.Service = s
	run(t, s.Run)
	return g
}

// run runs a part until the test ends, and checks that it ends well.
func run(t *testing.T, part func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- part(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("ended with: %v", err)
			}
		case <-time.After(15 * time.Second):
			t.Error("did not end within 15 s")
		}
	})
}

func newTelemetry(t testing.TB, log io.Writer) *telemetry.Telemetry {
	t.Helper()
	tel, err := telemetry.New(t.Context(), telemetry.Config{Service: "gateway", LogLevel: slog.LevelDebug, LogFormat: telemetry.JSON, Output: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tel.Shutdown(context.Background()) })
	return tel
}

type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// serveAPI serves checkout, the demo's interface and an order service, with publish in place of the broker and an
// inventory service that is away. It returns the address, too. changes are made before it serves.
func serveAPI(t *testing.T, publish func(context.Context, proto.Message) error, server orderv1.OrderServiceServer, changes ...func(*ingress.Ingress, *http.Server)) (*api, string) {
	t.Helper()
	tel := newTelemetry(t, io.Discard)
	s, err := service.New(t.Context(), service.Config{MaxRequest: ingress.MaxBody}, tel)
	if err != nil {
		t.Fatal(err)
	}
	a := newAPI(s.GRPC(), testOperators, tel)
	secrets, err := intake.ParseSecrets(t.Context(), "a secret of the tests", "", tel.Logger)
	if err != nil {
		t.Fatal(err)
	}
	orders, err := intake.NewOrders(intake.Config{
		Secrets: secrets, Publish: publish, OrderService: client(t, nowhere), MaxInFlight: ordersInFlight, Log: tel.Logger,
	})
	if err != nil {
		t.Fatal(err)
	}
	checkoutv1.RegisterCheckoutServiceServer(a, intake.NewCheckout(orders, nil))
	orderv1.RegisterOrderServiceServer(a, server)
	inventory := &upstream.Service{Name: "inventory", Conn: client(t, nowhere)}
	if err := inventory.Forward(a, nil, inventoryv1.File_shop_inventory_v1_inventory_proto); err != nil {
		t.Fatal(err)
	}
	rest := serveREST(t, a, orders, tel)
	lis, err := s.Listen("HTTP_ADDR", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := &ingress.Ingress{GRPC: s.GRPC(), REST: rest, Clients: ingress.ClientIdentifier{Authorizer: a.access}, WriteTimeout: ingress.SlowReaderTimeout}
	httpServer := ingress.NewServer(d, tel.Logger)
	for _, change := range changes {
		change(d, httpServer)
	}
	s.ServeHTTP("http", lis, httpServer)
	run(t, s.Run)
	return a, lis.Addr().String()
}

// serveREST serves over REST what a serves, with all features.
func serveREST(t testing.TB, a *api, orders *intake.Orders, tel *telemetry.Telemetry) *rest.Server {
	t.Helper()
	rest, err := rest.New(a.local, tel)
	if err != nil {
		t.Fatal(err)
	}
	p := parts{services: a, conn: a.local, rest: rest, paths: ingress.NewPathLimits(noop.Meter{}), orders: orders, currency: "USD"}
	if err := errors.Join(addServices(rest), addFeatures(p), addCheckout(rest)); err != nil {
		t.Fatal(err)
	}
	return rest
}

// client returns a gRPC connection to addr.
func client(t *testing.T, addr string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// backend serves gRPC, as the services behind the gateway do, and returns its address.
func backend(t *testing.T, register func(grpc.ServiceRegistrar), options ...grpc.ServerOption) string {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(options...)
	register(server)
	run(t, func(ctx context.Context) error {
		defer context.AfterFunc(ctx, server.Stop)()
		return server.Serve(lis)
	})
	return lis.Addr().String()
}

// orderServer answers by the order that it is asked for.
type orderServer struct {
	orderv1.UnimplementedOrderServiceServer
}

const (
	storedOrder  = "00000000-0000-4000-8000-000000000001"
	missingOrder = "00000000-0000-4000-8000-000000000002"
	brokenOrder  = "00000000-0000-4000-8000-000000000003"
	slowOrder    = "00000000-0000-4000-8000-000000000004"
	lockedOrder  = "00000000-0000-4000-8000-000000000005"
	pendingOrder = "00000000-0000-4000-8000-000000000006"
)

func (orderServer) GetOrder(ctx context.Context, req *orderv1.GetOrderRequest) (*orderv1.GetOrderResponse, error) {
	switch req.GetOrderId() {
	case storedOrder:
		return &orderv1.GetOrderResponse{Order: &orderv1.Order{Id: storedOrder, State: orderv1.Order_CONFIRMED, TotalItems: 7}}, nil
	case pendingOrder: // as the gateway answers in place of the order service
		return &orderv1.GetOrderResponse{Order: &orderv1.Order{Id: pendingOrder, State: orderv1.Order_PENDING}}, nil
	case missingOrder:
		return nil, apierror.New(codes.NotFound, "UNKNOWN_ORDER", "there is no order %s", missingOrder)
	case slowOrder:
		<-ctx.Done()
		return nil, ctx.Err()
	case lockedOrder:
		return nil, apierror.Unavailable("DATABASE_UNAVAILABLE", 3*time.Second, "the database is away")
	}
	return nil, errors.New("dial tcp 10.0.0.7:5432: no route to host")
}

func (orderServer) ListOrders(context.Context, *orderv1.ListOrdersRequest) (*orderv1.ListOrdersResponse, error) {
	return &orderv1.ListOrdersResponse{}, nil
}

// eventServer streams events until the client leaves, or three if after_id is set.
type eventServer struct {
	loggingv1.UnimplementedEventLogServiceServer
}

func (eventServer) ListEvents(_ context.Context, req *loggingv1.ListEventsRequest) (*loggingv1.ListEventsResponse, error) {
	return &loggingv1.ListEventsResponse{Events: []*loggingv1.Event{{Id: 9007199254740993, OrderId: req.GetOrderId(), Status: loggingv1.Event_success}}}, nil
}

func (eventServer) StreamEvents(req *loggingv1.StreamEventsRequest, stream grpc.ServerStreamingServer[loggingv1.StreamEventsResponse]) error {
	for id := req.GetAfterId() + 1; id <= req.GetAfterId()+3; id++ {
		if err := stream.Send(&loggingv1.StreamEventsResponse{Event: &loggingv1.Event{Id: id}}); err != nil {
			return err
		}
	}
	if req.GetAfterId() > 0 {
		return apierror.New(codes.OutOfRange, "LOG_ENDED", "the log ends here")
	}
	<-stream.Context().Done()
	return stream.Context().Err()
}

// answer is a REST answer that has been read.
type answer struct {
	status int
	header http.Header
	body   string
}

// send makes a REST call. Headers are "Name: value".
func send(t *testing.T, method, url, body string, headers ...string) answer {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for _, header := range headers {
		name, value, _ := strings.Cut(header, ": ")
		req.Header.Add(name, value)
	}
	transport := &http.Transport{DisableKeepAlives: true}
	res, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatalf("reading the answer of %s %s: %v", method, url, err)
	}
	return answer{res.StatusCode, res.Header, string(data)}
}

// failure is the error that an answer carries.
type failure struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
	Details []struct {
		Type       string            `json:"@type"`
		Reason     string            `json:"reason"`
		Domain     string            `json:"domain"`
		Metadata   map[string]string `json:"metadata"`
		RetryDelay string            `json:"retry_delay"`
		Violations []violation       `json:"field_violations"`
	} `json:"details"`
}

type violation struct {
	Field       string `json:"field"`
	Description string `json:"description"`
}

func (a answer) failure(t *testing.T) failure {
	t.Helper()
	var f failure
	if err := json.Unmarshal([]byte(a.body), &f); err != nil || f.Code == 0 {
		t.Fatalf("the answer is no google.rpc.Status (%v): %d %s", err, a.status, a.body)
	}
	if got := a.header.Get("Content-Type"); got != "application/json" {
		t.Errorf("Content-Type of an error is %q", got)
	}
	if len(f.Details) == 0 || f.Details[0].Domain != apierror.Domain {
		t.Errorf("an error without an ErrorInfo of ours: %s", a.body)
	}
	return f
}

func (f failure) reason() string {
	if len(f.Details) == 0 {
		return ""
	}
	return f.Details[0].Reason
}

func (f failure) violations() []violation {
	for _, d := range f.Details {
		if len(d.Violations) > 0 {
			return d.Violations
		}
	}
	return nil
}
