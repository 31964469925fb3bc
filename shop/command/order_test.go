package command

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	loggingv1 "shop.example/gen/shop/logging/v1"
	orderv1 "shop.example/gen/shop/order/v1"
	"shop.example/platform/apierror"
)

const (
	anOrder = "0192f6a0-0000-7000-8000-000000000001"
	aKey    = "one-of-adas"
)

// placing returns the command line of an order of Ada's.
func placing(args ...string) []string {
	return append([]string{"order", "place", "--name", "Ada", "--email", "ada@example.org", "--item", "5", "--idempotency-key", aKey}, args...)
}

// Without its key an order that may have been taken would be a second one when it is sent again.
func TestOrderPlace_NamesTheKeyOfAnOrderThatMayHaveBeenTaken(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		code   codes.Code
		reason string
		named  bool
	}{
		{codes.Unavailable, "BROKER_UNAVAILABLE", true},
		{codes.DeadlineExceeded, "DEADLINE_EXCEEDED", true},
		{codes.Internal, "INTERNAL", true},
		{codes.Canceled, "CANCELLED", true},
		{codes.Unavailable, "OVERLOADED", false},
		{codes.InvalidArgument, "INVALID_ARGUMENT", false},
		{codes.AlreadyExists, "IDEMPOTENCY_KEY_REUSED", false},
		{codes.FailedPrecondition, "MESSAGE_TOO_LARGE", false},
		{codes.Unauthenticated, "TOKEN_EXPIRED", false},
		{codes.PermissionDenied, "ROLE_REQUIRED", false},
		{codes.ResourceExhausted, "RATE_LIMITED", false},
	} {
		f := &fakeShop{place: func(context.Context) (*orderv1.Order, error) {
			return nil, apierror.New(c.code, c.reason, "refused").GRPCStatus().Err()
		}}
		got := f.run(t.Context(), t, placing()...)
		if got.err == nil || got.status == 0 || strings.Contains(got.err.Error(), "--idempotency-key "+aKey) != c.named {
			t.Errorf("%s: %v, exit status %d; the key named: want %t", c.reason, got.err, got.status, c.named)
		}
	}
}

func TestOrderPlace_NamesTheKeyAfterAnInterrupt(t *testing.T) {
	t.Parallel()
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	f := &fakeShop{place: func(ctx context.Context) (*orderv1.Order, error) {
		interrupt() // the order is sent, and waits for its decision
		<-ctx.Done()
		return nil, ctx.Err()
	}}
	got := f.run(ctx, t, placing()...)
	if !errors.Is(got.err, context.Canceled) || got.status != 130 || !strings.Contains(got.errs, "--idempotency-key "+aKey) {
		t.Errorf("interrupted: %+v", got)
	}
}

// The log may be away while orders are taken.
func TestOrderPlace_NamesTheOrderBeforeItIsWatched(t *testing.T) {
	t.Parallel()
	taken := func() (*orderv1.Order, error) {
		return &orderv1.Order{Id: anOrder, State: orderv1.Order_PENDING}, nil
	}
	f := &fakeShop{
		place: func(context.Context) (*orderv1.Order, error) { return taken() },
		get:   taken,
		stream: func(grpc.ServerStreamingServer[loggingv1.StreamEventsResponse]) error {
			return apierror.Unavailable("SERVICE_UNAVAILABLE", time.Second, "logging service is not available").GRPCStatus().Err()
		},
	}
	got := f.run(t.Context(), t, placing("--watch")...)
	if got.status != 1 || !strings.Contains(got.errs, "Order "+anOrder+" has been taken.") {
		t.Errorf("placed while the log is away: %+v", got)
	}
}
