package apierror_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime"
	"runtime/pprof"
	"strings"
	"testing"
	"time"

	"buf.build/go/protovalidate"
	"go.uber.org/goleak"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	checkoutv1 "shop.example/gen/shop/checkout/v1"
	eventsv1 "shop.example/gen/shop/events/v1"
	inventoryv1 "shop.example/gen/shop/inventory/v1"
	loggingv1 "shop.example/gen/shop/logging/v1"
	"shop.example/platform/apierror"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// server answers every call with what its test wants.
type server struct {
	checkoutv1.UnimplementedCheckoutServiceServer
	loggingv1.UnimplementedEventLogServiceServer
	answer func(context.Context) error
}

func (s *server) PlaceOrder(ctx context.Context, _ *checkoutv1.PlaceOrderRequest) (*checkoutv1.PlaceOrderResponse, error) {
	return &checkoutv1.PlaceOrderResponse{}, s.answer(ctx)
}

func (s *server) StreamEvents(_ *loggingv1.StreamEventsRequest, stream grpc.ServerStreamingServer[loggingv1.StreamEventsResponse]) error {
	if err := stream.Send(&loggingv1.StreamEventsResponse{}); err != nil {
		return err
	}
	return s.answer(stream.Context())
}

// dial returns a connection to a server behind the interceptor. logs may be called once: it stops the server, so that all has been logged.
func dial(t *testing.T, answer func(context.Context) error) (conn *grpc.ClientConn, logs func() string) {
	t.Helper()
	lis, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	errs := apierror.NewInterceptor(slog.New(slog.NewTextHandler(&out, nil)), errDatabaseDown)
	s := grpc.NewServer(grpc.UnaryInterceptor(errs.Unary), grpc.StreamInterceptor(errs.Stream), grpc.WaitForHandlers(true))
	checkoutv1.RegisterCheckoutServiceServer(s, &server{answer: answer})
	loggingv1.RegisterEventLogServiceServer(s, &server{answer: answer})
	served := make(chan error, 1)
	go func() { served <- s.Serve(lis) }()
	conn, err = grpc.NewClient(lis.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		s.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return conn, func() string { s.Stop(); return out.String() }
}

// calls are a unary call and a stream, both valid, returning how they ended.
var calls = map[string]func(context.Context, *grpc.ClientConn) error{
	"unary": func(ctx context.Context, conn *grpc.ClientConn) error {
		_, err := checkoutv1.NewCheckoutServiceClient(conn).PlaceOrder(ctx, &checkoutv1.PlaceOrderRequest{
			CustomerName: "Ada Lovelace", CustomerEmail: "ada@example.com",
			OrderItems: []*checkoutv1.PlaceOrderRequest_Item{{ProductId: 5, Quantity: 3}},
		})
		return err
	},
	"stream": func(ctx context.Context, conn *grpc.ClientConn) error {
		stream, err := loggingv1.NewEventLogServiceClient(conn).StreamEvents(ctx, &loggingv1.StreamEventsRequest{})
		for err == nil {
			_, err = stream.Recv()
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		return err
	},
}

func TestInterceptor_TurnsWhatHandlersReturnIntoStatuses(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		answer func(context.Context) error
		code   codes.Code
		reason string
		logged string // "" for nothing
	}{
		"no error":  {func(context.Context) error { return nil }, codes.OK, "", ""},
		"ours":      {func(context.Context) error { return apierror.New(codes.NotFound, "ORDER_NOT_FOUND", "no such order") }, codes.NotFound, "ORDER_NOT_FOUND", ""},
		"plain":     {func(context.Context) error { return errors.New("pq: secret") }, codes.Internal, "INTERNAL", `level=ERROR msg="a call failed"`},
		"transient": {func(context.Context) error { return fmt.Errorf("reading: %w", errDatabaseDown) }, codes.Unavailable, "UNAVAILABLE", `level=WARN msg="a call was refused"`},
		"panic":     {panics, codes.Internal, "INTERNAL", `level=ERROR msg="a handler panicked"`},
	} {
		for kind, call := range calls {
			t.Run(name+"/"+kind, func(t *testing.T) {
				t.Parallel()
				conn, logs := dial(t, test.answer)
				got := status.Convert(call(t.Context(), conn))
				if got.Code() != test.code {
					t.Errorf("got %s", got)
				}
				if test.reason != "" && apierror.ReasonOf(got.Err()) != test.reason {
					t.Errorf("got reason %q, want %q", apierror.ReasonOf(got.Err()), test.reason)
				}
				if strings.Contains(got.String(), "secret") || strings.Contains(got.String(), "10.0.0.7") {
					t.Errorf("the client is told of our inside: %s", got)
				}
				logged := logs()
				if test.logged == "" {
					if logged != "" {
						t.Errorf("logged %s", logged)
					}
					return
				}
				if !strings.Contains(logged, test.logged) || !strings.Contains(logged, "method=/shop.") {
					t.Errorf("logged %q, want %s and the method", logged, test.logged)
				}
				if name != "transient" && !strings.Contains(logged, "pq: secret") {
					t.Errorf("the log does not say the cause: %q", logged)
				}
				if name == "panic" && !strings.Contains(logged, "interceptor_test.go") {
					t.Errorf("the log does not say where: %q", logged)
				}
			})
		}
	}
}

func panics(context.Context) error {
	panic("pq: secret")
}

func TestInterceptor_AnInvalidRequestDoesNotReachTheHandler(t *testing.T) {
	t.Parallel()
	conn, _ := dial(t, func(context.Context) error {
		t.Error("the handler was called")
		return nil
	})
	_, err := checkoutv1.NewCheckoutServiceClient(conn).PlaceOrder(t.Context(), &checkoutv1.PlaceOrderRequest{})
	got := status.Convert(err)
	if got.Code() != codes.InvalidArgument || apierror.ReasonOf(got.Err()) != "INVALID_ARGUMENT" {
		t.Errorf("got %s", got)
	}
	var fields []string
	for _, detail := range got.Details() {
		if bad, ok := detail.(*errdetails.BadRequest); ok {
			for _, violation := range bad.GetFieldViolations() {
				fields = append(fields, violation.GetField())
			}
		}
	}
	if want := "customer_name customer_email order_items"; strings.Join(fields, " ") != want {
		t.Errorf("got fields %v, want %s", fields, want)
	}

	stream, err := loggingv1.NewEventLogServiceClient(conn).StreamEvents(t.Context(), &loggingv1.StreamEventsRequest{AfterId: -1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.InvalidArgument {
		t.Errorf("the stream got %v", err)
	}
}

// checking has a rule that no contract can express.
type checking struct{}

func (checking) Violations(proto.Message) []apierror.Violation {
	return []apierror.Violation{{Field: "customer_email", Description: "must not be somebody else's"}}
}

// A request with more violations than an error names, and one of RequestChecker's, was said to have 20 more.
func TestInterceptor_EachViolationIsCounted(t *testing.T) {
	t.Parallel()
	errs := apierror.NewInterceptor(slog.New(slog.DiscardHandler))
	request := &checkoutv1.PlaceOrderRequest{CustomerName: "Ada", CustomerEmail: "ada@example.org"}
	refusal := func() string {
		_, err := errs.Unary(t.Context(), request, &grpc.UnaryServerInfo{Server: checking{}, FullMethod: "/x/Y"}, func(context.Context, any) (any, error) {
			t.Error("the handler was called")
			return nil, nil
		})
		return status.Convert(err).Message()
	}
	for range 30 {
		request.OrderItems = append(request.OrderItems, &checkoutv1.PlaceOrderRequest_Item{}) // two violations
	}
	if got, want := refusal(), "order_items[0].product_id: must be greater than 0 (and 60 more)"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	request.OrderItems = []*checkoutv1.PlaceOrderRequest_Item{{ProductId: 1, Quantity: 1}}
	if got, want := refusal(), "customer_email: must not be somebody else's"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestInterceptor_WhatFailsBecauseTheCallEndedIsNotAnInternalError(t *testing.T) {
	t.Parallel()
	errs := apierror.NewInterceptor(slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	_, err := errs.Unary(ctx, &checkoutv1.PlaceOrderResponse{}, &grpc.UnaryServerInfo{FullMethod: "/x/Y"}, func(ctx context.Context, _ any) (any, error) {
		<-ctx.Done()
		return nil, errors.New("pq: canceling statement due to user request")
	})
	checkStatus(t, status.Convert(err), codes.DeadlineExceeded, "the call took longer than it may", info("DEADLINE_EXCEEDED"))
}

func TestInterceptor_ADependencyThatIsDownIsNotLoggedForEveryCall(t *testing.T) {
	t.Parallel()
	conn, logs := dial(t, func(context.Context) error { return errDatabaseDown })
	begin := time.Now()
	for range 200 {
		if err := calls["unary"](t.Context(), conn); status.Code(err) != codes.Unavailable {
			t.Fatalf("got %v", err)
		}
	}
	most := 2 + int(time.Since(begin)/time.Second)
	if lines := strings.Count(logs(), "\n"); lines < 1 || lines > most {
		t.Errorf("%d lines, want 1 to %d", lines, most)
	}
}

// A profile of the gateway was one block: REST, gRPC and calls over the broker all end in the same functions.
func TestInterceptor_ProfilesTellCallsApart(t *testing.T) {
	t.Parallel()
	errs := apierror.NewInterceptor(slog.New(slog.DiscardHandler))
	const method = "/shop.checkout.v1.CheckoutService/PlaceOrder"
	_, err := errs.Unary(t.Context(), nil, &grpc.UnaryServerInfo{FullMethod: method}, func(ctx context.Context, _ any) (any, error) {
		if label, _ := pprof.Label(ctx, "call"); label != method {
			t.Errorf("the label is %q", label)
		}
		return nil, nil
	})
	if err != nil {
		t.Error(err)
	}
}

// One request of 1 MiB with half a million items without a product took half a gigabyte: each of them was said to be wrong,
// although 100 are allowed.
func TestInterceptor_AListThatIsTooLongIsNotLookedThrough(t *testing.T) {
	t.Parallel()
	errs := apierror.NewInterceptor(slog.New(slog.DiscardHandler))
	refusal := func(request proto.Message, server any) *status.Status {
		_, err := errs.Unary(t.Context(), request, &grpc.UnaryServerInfo{Server: server, FullMethod: "/x/Y"}, func(context.Context, any) (any, error) {
			t.Error("the handler was called")
			return nil, nil
		})
		return status.Convert(err)
	}
	items := make([]*checkoutv1.PlaceOrderRequest_Item, 1<<19)
	for i := range items {
		items[i] = &checkoutv1.PlaceOrderRequest_Item{}
	}
	lines := make([]*eventsv1.RequestedLine, 1<<19)
	for i := range lines {
		lines[i] = &eventsv1.RequestedLine{}
	}
	for field, request := range map[string]proto.Message{
		"order_items":     &checkoutv1.PlaceOrderRequest{OrderItems: items},
		"orders[1].lines": &inventoryv1.CheckStockRequest{Orders: []*inventoryv1.CheckStockRequest_Order{{}, {Lines: lines}}},
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		got := refusal(request, checking{})
		runtime.ReadMemStats(&after)
		checkStatus(t, got, codes.InvalidArgument, field+": must contain no more than 100 item(s)", info("INVALID_ARGUMENT"),
			&errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{
				{Field: field, Description: "must contain no more than 100 item(s)"},
			}})
		if took := after.TotalAlloc - before.TotalAlloc; took > 64<<20 { // the other tests take some of it
			t.Errorf("%s: refusing it took %d MiB", field, took>>20)
		}
	}

	valid := &checkoutv1.PlaceOrderRequest{CustomerName: "Ada", CustomerEmail: "ada@example.org"}
	for range 101 {
		valid.OrderItems = append(valid.OrderItems, &checkoutv1.PlaceOrderRequest_Item{ProductId: 1, Quantity: 1})
	}
	want := apierror.Status(apierror.FromViolations(protovalidate.Validate(valid)))
	if got := refusal(valid, nil); got.Message() != want.Message() {
		t.Errorf("got %q, and protovalidate says %q", got.Message(), want.Message())
	}
}
