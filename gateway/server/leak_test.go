package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"shop.example/gateway/ingress"
	"shop.example/gateway/inprocess"
	"shop.example/gateway/rest"
	inventoryv1 "shop.example/gen/shop/inventory/v1"
	orderv1 "shop.example/gen/shop/order/v1"
	"shop.example/platform/apierror"
)

// secret is what an inside may say when it fails.
const secret = `pq: relation "orders.order" does not exist: SELECT customer_email FROM orders.order; dial tcp 10.0.0.7:5432`

// failures are the ways in which a service fails, by the last digit of the order's id.
var failures = []struct {
	name string
	fail func() error
}{
	{"an error", func() error { return errors.New(secret) }},
	{"a wrapped error", func() error { return fmt.Errorf("reading order: %w", errors.New(secret)) }},
	{"INTERNAL", func() error { return status.Error(codes.Internal, secret) }},
	{"UNKNOWN", func() error { return status.Error(codes.Unknown, secret) }},
	{"DATA_LOSS", func() error { return status.Error(codes.DataLoss, secret) }},
	{"UNAVAILABLE", func() error { return status.Error(codes.Unavailable, secret) }},
	{"a panic", func() error { panic(secret) }},
	{"a nil map", func() error {
		var m map[string]int
		m[secret] = 1 //nolint:staticcheck // it is what is tried
		return nil
	}},
}

// leaky fails, and says why in metadata too.
type leaky struct {
	orderv1.UnimplementedOrderServiceServer
}

func (leaky) GetOrder(ctx context.Context, req *orderv1.GetOrderRequest) (*orderv1.GetOrderResponse, error) {
	_ = grpc.SetHeader(ctx, metadata.Pairs("x-debug", secret))
	_ = grpc.SetTrailer(ctx, metadata.Pairs("x-cause", secret, "grpc-status-details-bin", secret))
	return nil, failures[req.GetOrderId()[35]-'0'].fail()
}

// recovering makes a status of a panic, as a service does that does not use this project's interceptor.
func recovering(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (reply any, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = status.Errorf(codes.Internal, "goroutine 1 [running]: %v", p)
		}
	}()
	return handler(ctx, req)
}

// internals are parts of what must not leave.
var internals = []string{"pq:", "SELECT", "orders.order", "10.0.0.7", "127.0.0.1", ":5432", "goroutine", ".go:", "nil map", "runtime error", "amqp", "dial"}

func checkNothingInternal(t *testing.T, name string, texts ...string) {
	t.Helper()
	for _, text := range texts {
		for _, internal := range internals {
			if strings.Contains(text, internal) {
				t.Errorf("%s: %q is in the answer: %s", name, internal, text)
			}
		}
	}
}

func TestErrors_NothingInternalLeaves(t *testing.T) {
	t.Parallel()
	behind := backend(t, func(s grpc.ServiceRegistrar) { orderv1.RegisterOrderServiceServer(s, leaky{}) }, grpc.UnaryInterceptor(recovering))
	_, inGateway := serveAPI(t, nothingPublished(t), leaky{})
	for where, start := range map[string]struct {
		addr     string
		metadata bool // the gateway's own handlers would mean theirs
	}{
		"in a service behind": {startGateway(t, Config{OrderAddr: behind}).HTTPAddr(), true},
		"in the gateway":      {inGateway, false},
	} {
		orders := orderv1.NewOrderServiceClient(client(t, start.addr))
		for i, failure := range failures {
			name := failure.name + " " + where
			id := fmt.Sprintf("00000000-0000-4000-8000-00000000000%d", i)
			got := send(t, http.MethodGet, "http://"+start.addr+"/v1/orders/"+id, "")
			checkNothingInternal(t, name+", REST", got.body, fmt.Sprint(got.header))
			if reason := got.failure(t).reason(); reason != "INTERNAL" && !strings.HasSuffix(reason, "UNAVAILABLE") {
				t.Errorf("%s: %d %s", name, got.status, got.body)
			}
			var header, trailer metadata.MD
			_, err := orders.GetOrder(t.Context(), &orderv1.GetOrderRequest{OrderId: id}, grpc.Header(&header), grpc.Trailer(&trailer))
			checkNothingInternal(t, name+", gRPC", err.Error(), status.Convert(err).Proto().String(), fmt.Sprint(status.Convert(err).Details()))
			if start.metadata {
				checkNothingInternal(t, name+", metadata", fmt.Sprint(header), fmt.Sprint(trailer))
			}
			if reason := apierror.ReasonOf(err); reason != got.failure(t).reason() {
				t.Errorf("%s: over gRPC the reason is %q, over REST %s", name, reason, got.body)
			}
		}
	}
}

func TestErrors_NothingInternalLeavesWhileAllIsAway(t *testing.T) {
	t.Parallel()
	g := startGateway(t, Config{})
	for _, call := range []string{
		"POST /v1/orders", "GET /v1/orders/" + storedOrder, "GET /v1/orders", "GET /v1/inventory", "GET /intermediary/inventory",
		"GET /v1/events", "GET /v1/dead-letters", "GET /v1/orders/" + storedOrder + "/events",
	} {
		method, path, _ := strings.Cut(call, " ")
		body := ""
		if method == http.MethodPost {
			body = order
		}
		got := send(t, method, "http://"+g.HTTPAddr()+path, body, "Authorization: Bearer "+operatorToken, "Grpc-Timeout: 300m")
		checkNothingInternal(t, call, got.body, fmt.Sprint(got.header))
		if f := got.failure(t); got.status < 500 || f.reason() == "INTERNAL" {
			t.Errorf("%s: %d %s", call, got.status, got.body)
		}
	}
	_, err := inventoryv1.NewInventoryServiceClient(client(t, g.HTTPAddr())).ListItems(t.Context(), &inventoryv1.ListItemsRequest{})
	checkNothingInternal(t, "ListItems over gRPC", fmt.Sprint(err), fmt.Sprint(status.Convert(err).Details()))
	if apierror.ReasonOf(err) != "SERVICE_UNAVAILABLE" {
		t.Errorf("ListItems over gRPC: %v", err)
	}
}

func TestREST_APanicIsAnAnswerAndTheStackStaysInTheLog(t *testing.T) {
	t.Parallel()
	log := &logBuffer{}
	s, err := rest.New(inprocess.New(nil), newTelemetry(t, log))
	if err != nil {
		t.Fatal(err)
	}
	for _, started := range []bool{false, true} {
		if err := s.HandlePath(http.MethodGet, fmt.Sprintf("/broken/%t", started), func(w http.ResponseWriter, _ *http.Request, _ map[string]string) {
			if started {
				_, _ = w.Write([]byte("half an ans"))
			}
			panic(secret)
		}); err != nil {
			t.Fatal(err)
		}
	}
	server := httptest.NewServer(&ingress.Ingress{REST: s})
	t.Cleanup(server.Close)
	addr := server.Listener.Addr().String()
	got := send(t, http.MethodGet, "http://"+addr+"/broken/false", "")
	checkNothingInternal(t, "a panic", got.body, fmt.Sprint(got.header))
	if got.status != http.StatusInternalServerError || got.failure(t).reason() != "INTERNAL" || !strings.Contains(log.String(), "goroutine") {
		t.Errorf("answered with %d %s, logged %s", got.status, got.body, log)
	}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr+"/broken/true", nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(request)
	if err == nil {
		_, err = io.ReadAll(res.Body)
		_ = res.Body.Close()
	}
	if err == nil {
		t.Error("an answer that broke off looks whole")
	}
}
