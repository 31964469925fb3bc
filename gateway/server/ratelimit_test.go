package server

import (
	"context"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"shop.example/gateway/ingress"
	loggingv1 "shop.example/gen/shop/logging/v1"
	orderv1 "shop.example/gen/shop/order/v1"
	"shop.example/platform/apierror"
)

func TestRateLimit_OneForRESTAndGRPCTogether(t *testing.T) {
	t.Parallel()
	order := backend(t, func(s grpc.ServiceRegistrar) { orderv1.RegisterOrderServiceServer(s, orderServer{}) })
	logging := backend(t, func(s grpc.ServiceRegistrar) { loggingv1.RegisterEventLogServiceServer(s, eventServer{}) })
	g := startGateway(t, Config{OrderAddr: order, LoggingAddr: logging, Ingress: ingress.Config{RateLimit: ingress.RateLimit{PerSecond: 0.01, Burst: 4}}})
	base, conn := "http://"+g.HTTPAddr(), client(t, g.HTTPAddr())
	overGRPC := func(ctx context.Context) error {
		_, err := orderv1.NewOrderServiceClient(conn).GetOrder(ctx, &orderv1.GetOrderRequest{OrderId: storedOrder})
		return err
	}
	overStream := func() error {
		stream, err := loggingv1.NewEventLogServiceClient(conn).StreamEvents(t.Context(), &loggingv1.StreamEventsRequest{OrderId: storedOrder, AfterId: 1})
		if err == nil {
			_, err = stream.Recv()
		}
		return err
	}
	for i, call := range []func() error{
		func() error { return overGRPC(t.Context()) }, overStream,
	} {
		if err := call(); err != nil {
			t.Fatalf("gRPC call %d: %v", i+1, err)
		}
	}
	const policy = `"default";q=4;w=400`
	for _, want := range []string{`"default";r=1;t=300`, `"default";r=0;t=400`} {
		got := send(t, http.MethodGet, base+"/v1/orders/"+storedOrder, "")
		if got.status != http.StatusOK || got.header.Get("RateLimit-Policy") != policy || got.header.Get("RateLimit") != want {
			t.Fatalf("within the limit: %d %s %v, want RateLimit %s", got.status, got.body, got.header, want)
		}
	}
	for _, path := range []string{"/v1/orders/" + storedOrder, "/nothing", "/"} {
		got := send(t, http.MethodGet, base+path, "", "X-Forwarded-For: 192.0.2.7")
		f := got.failure(t)
		seconds, _ := strconv.Atoi(got.header.Get("Retry-After"))
		if got.header.Get("RateLimit-Policy") != policy || got.header.Get("RateLimit") != `"default";r=0;t=`+got.header.Get("Retry-After") {
			t.Errorf("%s beyond the limit: %v", path, got.header)
		}
		if got.status != http.StatusTooManyRequests || f.Code != int(codes.ResourceExhausted) || f.reason() != "RATE_LIMITED" || seconds < 90 || seconds > 100 {
			t.Errorf("%s beyond the limit: %d, Retry-After %q, %s", path, got.status, got.header.Get("Retry-After"), got.body)
		}
		if len(f.Details) != 2 || !strings.HasSuffix(f.Details[1].RetryDelay, "s") || got.header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s beyond the limit: no RetryInfo, or no security headers: %v %s", path, got.header, got.body)
		}
	}
	for i, err := range []error{overGRPC(t.Context()), overStream()} {
		var delay time.Duration
		for _, detail := range status.Convert(err).Details() {
			if retry, ok := detail.(*errdetails.RetryInfo); ok {
				delay = retry.GetRetryDelay().AsDuration()
			}
		}
		if status.Code(err) != codes.ResourceExhausted || apierror.ReasonOf(err) != "RATE_LIMITED" || delay < 90*time.Second || delay > 100*time.Second {
			t.Errorf("gRPC call %d beyond the limit: %v, %q, again after %v", i+1, err, apierror.ReasonOf(err), delay)
		}
	}
	if err := overGRPC(metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer guess")); apierror.ReasonOf(err) != "RATE_LIMITED" {
		t.Errorf("a guessed token: %v", err)
	}
	var header metadata.MD
	_, err := orderv1.NewOrderServiceClient(conn).GetOrder(metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+operatorToken),
		&orderv1.GetOrderRequest{OrderId: storedOrder}, grpc.Header(&header))
	if err != nil || !slices.Equal(header.Get("ratelimit"), []string{`"default";r=3;t=100`}) {
		t.Errorf("the operator from the same address: %v %v", header, err)
	}
	metrics := send(t, http.MethodGet, "http://"+g.AdminAddr()+"/metrics", "").body
	if !strings.Contains(metrics, `gateway_rate_limited_total{api="rest"} 3`) || !strings.Contains(metrics, `gateway_rate_limited_total{api="grpc"} 3`) {
		t.Error("the refused calls are not counted")
	}
}
