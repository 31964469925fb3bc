package apierror_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"buf.build/go/protovalidate"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	checkoutv1 "shop.example/gen/shop/checkout/v1"
	moneyv1 "shop.example/gen/shop/money/v1"
	"shop.example/platform/apierror"
)

var errDatabaseDown = errors.New("connection refused by 10.0.0.7")

// checkStatus compares code, message and details, and that the details hold one ErrorInfo of our domain.
func checkStatus(t *testing.T, got *status.Status, code codes.Code, message string, details ...proto.Message) {
	t.Helper()
	if got.Code() != code || got.Message() != message {
		t.Errorf("got %s %q, want %s %q", got.Code(), got.Message(), code, message)
	}
	matches := slices.EqualFunc(got.Details(), details, func(a any, b proto.Message) bool {
		message, ok := a.(proto.Message)
		return ok && proto.Equal(message, b)
	})
	if !matches {
		t.Errorf("got details %v, want %v", got.Details(), details)
	}
}

func info(reason string) *errdetails.ErrorInfo {
	return &errdetails.ErrorInfo{Reason: reason, Domain: "shop.example"}
}

func oneSecond() *errdetails.RetryInfo {
	return &errdetails.RetryInfo{RetryDelay: durationpb.New(time.Second)}
}

func TestStatus_ShowsClientsWhatTheyMaySee(t *testing.T) {
	t.Parallel()
	notFound := apierror.New(codes.NotFound, "ORDER_NOT_FOUND", "order %s does not exist", "7d1c")
	const down = "something that is needed is not available; try again"
	for name, test := range map[string]struct {
		err     error
		code    codes.Code
		message string
		details []proto.Message
	}{
		"ours":         {notFound, codes.NotFound, "order 7d1c does not exist", []proto.Message{info("ORDER_NOT_FOUND")}},
		"ours wrapped": {fmt.Errorf("reading row 17: %w", notFound), codes.NotFound, "order 7d1c does not exist", []proto.Message{info("ORDER_NOT_FOUND")}},
		"ours with metadata": {
			notFound.WithMetadata("order_id", "7d1c").WithMetadata("shard", "2"), codes.NotFound, "order 7d1c does not exist",
			[]proto.Message{&errdetails.ErrorInfo{
				Reason: "ORDER_NOT_FOUND", Domain: "shop.example", Metadata: map[string]string{"order_id": "7d1c", "shard": "2"},
			}},
		},
		"ours with a cause": {notFound.WithCause(errDatabaseDown), codes.NotFound, "order 7d1c does not exist", []proto.Message{info("ORDER_NOT_FOUND")}},
		"ours from another service": {
			apierror.Unavailable("BROKER_UNAVAILABLE", time.Second, "no orders right now").GRPCStatus().Err(),
			codes.Unavailable, "no orders right now", []proto.Message{info("BROKER_UNAVAILABLE"), oneSecond()},
		},
		"cancelled":            {fmt.Errorf("asking: %w", context.Canceled), codes.Canceled, "the call was cancelled", []proto.Message{info("CANCELLED")}},
		"too late":             {context.DeadlineExceeded, codes.DeadlineExceeded, "the call took longer than it may", []proto.Message{info("DEADLINE_EXCEEDED")}},
		"transient":            {fmt.Errorf("reading: %w", errDatabaseDown), codes.Unavailable, down, []proto.Message{info("UNAVAILABLE"), oneSecond()}},
		"plain":                {io.ErrUnexpectedEOF, codes.Internal, "internal error", []proto.Message{info("INTERNAL")}},
		"library, unavailable": {status.Error(codes.Unavailable, "dial tcp 10.0.0.7"), codes.Unavailable, down, []proto.Message{info("UNAVAILABLE"), oneSecond()}},
		"library, unknown":     {status.Error(codes.Unknown, "pq: secret"), codes.Internal, "internal error", []proto.Message{info("INTERNAL")}},
		"library, internal":    {status.Error(codes.Internal, "secret"), codes.Internal, "internal error", []proto.Message{info("INTERNAL")}},
		"library, other": {
			status.Error(codes.ResourceExhausted, "message too large"), codes.ResourceExhausted, "message too large",
			[]proto.Message{info("RESOURCE_EXHAUSTED")},
		},
		"not UTF-8": {
			apierror.New(codes.NotFound, "NOT_FOUND", "no %q", "\xff").WithMetadata("name", "\xff"), codes.NotFound, `no "\xff"`,
			[]proto.Message{info("NOT_FOUND")},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			checkStatus(t, apierror.Status(test.err, errDatabaseDown), test.code, test.message, test.details...)
		})
	}
}

func TestError_LogsItsCauseAndIsFoundByIt(t *testing.T) {
	t.Parallel()
	plain := apierror.New(codes.Unavailable, "BROKER_UNAVAILABLE", "no orders right now")
	err := plain.WithCause(errDatabaseDown)
	if want := "BROKER_UNAVAILABLE: no orders right now: connection refused by 10.0.0.7"; err.Error() != want {
		t.Errorf("got %q, want %q", err.Error(), want)
	}
	if !errors.Is(err, errDatabaseDown) || errors.Is(plain, errDatabaseDown) {
		t.Error("the cause is not on the new error alone")
	}
}

func TestFromViolations_NamesEveryFieldAsTheClientSpellsIt(t *testing.T) {
	t.Parallel()
	err := protovalidate.Validate(&checkoutv1.PlaceOrderRequest{
		CustomerName: "Ada Lovelace", CustomerEmail: "ada(at)example.com",
		OrderItems: []*checkoutv1.PlaceOrderRequest_Item{
			{ProductId: 5, Quantity: -3},
			{ProductId: 6, Quantity: 4, ExpectedUnitPrice: &moneyv1.Money{CurrencyCode: "USD", Nanos: 5}},
		},
	})
	got := apierror.Status(apierror.FromViolations(err))

	checkStatus(t, got, codes.InvalidArgument, "customer_email: must be a valid email address (and 2 more)",
		info("INVALID_ARGUMENT"),
		&errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{
			{Field: "customer_email", Description: "must be a valid email address"},
			{Field: "order_items[0].quantity", Description: "must be greater than 0 and less than or equal to 100000"},
			{Field: "order_items[1].expected_unit_price.nanos", Description: "must be a multiple of 100000: no currency has more than four decimals"},
		}})
	if text := got.String(); strings.Contains(text, "ada(at)") {
		t.Errorf("the status repeats personal data: %s", text)
	}
}

func TestFromViolations_LeavesOtherErrorsAlone(t *testing.T) {
	t.Parallel()
	if err := apierror.FromViolations(nil); err != nil {
		t.Errorf("nil became %v", err)
	}
	if err := apierror.FromViolations(io.EOF); !errors.Is(err, io.EOF) {
		t.Errorf("EOF became %v", err)
	}
}

func TestInvalidArgument_OfManyFieldsFitsIntoAHeader(t *testing.T) {
	t.Parallel()
	items := make([]*checkoutv1.PlaceOrderRequest_Item, 100)
	for i := range items {
		items[i] = &checkoutv1.PlaceOrderRequest_Item{}
	}
	err := protovalidate.Validate(&checkoutv1.PlaceOrderRequest{CustomerName: "Ada", CustomerEmail: "ada@example.com", OrderItems: items})
	got := apierror.Status(apierror.FromViolations(err))
	if want := "order_items[0].product_id: must be greater than 0 (and 199 more)"; got.Message() != want {
		t.Errorf("got %q, want %q", got.Message(), want)
	}
	if size := proto.Size(got.Proto()); size > 4096 {
		t.Errorf("the status has %d bytes", size)
	}
}

// Measured: 1 µs for two lines, 2 µs with prices (Money's rule is CEL, its currency a regular
// expression), 8 µs for a request that is refused.
func BenchmarkValidate(b *testing.B) {
	request := &checkoutv1.PlaceOrderRequest{
		CustomerName: "Ada Lovelace", CustomerEmail: "ada@example.com",
		OrderItems: []*checkoutv1.PlaceOrderRequest_Item{{ProductId: 5, Quantity: 3}, {ProductId: 6, Quantity: 4}},
	}
	priced := proto.CloneOf(request)
	for _, item := range priced.OrderItems {
		item.ExpectedUnitPrice = &moneyv1.Money{CurrencyCode: "USD", Units: 35}
	}
	for name, request := range map[string]*checkoutv1.PlaceOrderRequest{
		"two lines": request, "two lines with prices": priced, "refused": {},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := apierror.FromViolations(protovalidate.Validate(request)); err != nil {
					_ = apierror.Status(err)
				}
			}
		})
	}
}
