package service_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	checkoutv1 "shop.example/gen/shop/checkout/v1"
	loggingv1 "shop.example/gen/shop/logging/v1"
	orderv1 "shop.example/gen/shop/order/v1"
	"shop.example/platform/apierror"
	"shop.example/platform/mtls"
	"shop.example/platform/service"
)

type letters struct {
	loggingv1.UnimplementedDeadLetterServiceServer
	loggingv1.UnimplementedEventLogServiceServer
}

func (letters) DiscardDeadLetter(context.Context, *loggingv1.DiscardDeadLetterRequest) (*loggingv1.DiscardDeadLetterResponse, error) {
	return &loggingv1.DiscardDeadLetterResponse{}, nil
}

func (letters) StreamEvents(_ *loggingv1.StreamEventsRequest, stream grpc.ServerStreamingServer[loggingv1.StreamEventsResponse]) error {
	return stream.Send(&loggingv1.StreamEventsResponse{})
}

// Any certificate of the CA was good for any call: inventory's could discard dead letters.
func TestCallers_InventoryMayNotDiscardDeadLetters(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := mtls.GenerateDevCerts(dir, time.Hour, "gateway", "order", "inventory", "logging"); err != nil {
		t.Fatal(err)
	}
	s := run(t, service.Config{TLS: mtls.CertPaths(dir, "logging")}, func(s *service.Service) {
		loggingv1.RegisterDeadLetterServiceServer(s.GRPC(), letters{})
		loggingv1.RegisterEventLogServiceServer(s.GRPC(), letters{})
		orderv1.RegisterOrderServiceServer(s.GRPC(), &orders{})
	})
	calls := map[string]func(context.Context, *grpc.ClientConn) error{
		"DiscardDeadLetter": func(ctx context.Context, conn *grpc.ClientConn) error {
			_, err := loggingv1.NewDeadLetterServiceClient(conn).DiscardDeadLetter(ctx, &loggingv1.DiscardDeadLetterRequest{Id: 1})
			return err
		},
		"StreamEvents": func(ctx context.Context, conn *grpc.ClientConn) error {
			stream, err := loggingv1.NewEventLogServiceClient(conn).StreamEvents(ctx, &loggingv1.StreamEventsRequest{})
			if err == nil {
				_, err = stream.Recv()
			}
			return err
		},
		"GetOrder": func(ctx context.Context, conn *grpc.ClientConn) error {
			_, err := orderv1.NewOrderServiceClient(conn).GetOrder(ctx, &orderv1.GetOrderRequest{OrderId: id})
			return err
		},
		"Check": func(ctx context.Context, conn *grpc.ClientConn) error {
			_, err := healthv1.NewHealthClient(conn).Check(ctx, &healthv1.HealthCheckRequest{})
			return err
		},
	}
	may := map[string]string{
		"gateway":   "DiscardDeadLetter StreamEvents GetOrder Check",
		"inventory": "GetOrder Check",
		"order":     "Check",
		"logging":   "Check",
	}
	for caller, allowed := range may {
		conn, err := grpc.NewClient(s.GRPCAddr(), grpc.WithTransportCredentials(client(t, mtls.CertPaths(dir, caller))))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		for name, call := range calls {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			err := call(ctx, conn)
			cancel()
			if strings.Contains(allowed, name) {
				if err != nil {
					t.Errorf("%s by %s: %v", name, caller, err)
				}
				continue
			}
			reason := apierror.ReasonOf(err)
			if status.Code(err) != codes.PermissionDenied || reason != "CALLER_NOT_ALLOWED" {
				t.Errorf("%s by %s: %v %s", name, caller, err, reason)
			}
		}
	}
	if want := "a service was refused a call that it may not make"; !strings.Contains(s.logs.String(), want) {
		t.Errorf("the log does not say so: %s", s.logs)
	}
}

func TestCallers_AMethodThatNamesNoCallerIsNotServed(t *testing.T) {
	t.Parallel()
	s := run(t, service.Config{}, func(s *service.Service) {
		checkoutv1.RegisterCheckoutServiceServer(s.GRPC(), checkoutv1.UnimplementedCheckoutServiceServer{})
		serveOrders(s)
	})
	err := s.ended()
	if err == nil || !strings.Contains(err.Error(), "/shop.checkout.v1.CheckoutService/PlaceOrder") || strings.Contains(err.Error(), "OrderService") {
		t.Errorf("it ran: %v", err)
	}
}
