package server

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"shop.example/gateway/inprocess"
	checkoutv1 "shop.example/gen/shop/checkout/v1"
	eventsv1 "shop.example/gen/shop/events/v1"
	inventoryv1 "shop.example/gen/shop/inventory/v1"
	orderv1 "shop.example/gen/shop/order/v1"
	"shop.example/platform/apierror"
	"shop.example/platform/messaging"
)

func listServices(t *testing.T, conn grpc.ClientConnInterface) map[string]bool {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream, err := reflectionv1.NewServerReflectionClient(conn).ServerReflectionInfo(ctx)
	if err != nil {
		t.Fatal(err)
	}
	request := &reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{}}
	if err := stream.Send(request); err != nil {
		t.Fatal(err)
	}
	reply, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, s := range reply.GetListServicesResponse().GetService() {
		names[s.GetName()] = true
	}
	return names
}

// echoServer answers with metadata of its own, and in its page token with those that came.
type echoServer struct{ orderServer }

func (echoServer) ListOrders(ctx context.Context, _ *orderv1.ListOrdersRequest) (*orderv1.ListOrdersResponse, error) {
	_ = grpc.SetHeader(ctx, metadata.Pairs("x-header", "1", "x-header", "2"))
	_ = grpc.SetTrailer(ctx, metadata.Pairs("x-trailer", "3"))
	method, _ := grpc.Method(ctx)
	onwards, _ := metadata.FromOutgoingContext(ctx)
	came := metadata.ValueFromIncomingContext(ctx, "x-asked")
	return &orderv1.ListOrdersResponse{NextPageToken: strings.Join(append(came, method, strings.Join(onwards["x-asked"], "")), " ")}, nil
}

// outcomeOfCall is all that a caller gets.
type outcomeOfCall struct {
	reply           string
	status          string
	header, trailer string
}

func TestLocalConn_CallsAreAsOverTheNetwork(t *testing.T) {
	t.Parallel()
	published := func(_ context.Context, m proto.Message) error {
		switch m.(*eventsv1.OrderPlaced).GetCustomerName() {
		case "unconfirmed":
			return messaging.ErrUnconfirmed
		case "panic":
			panic("boom")
		}
		return nil
	}
	a, addr := serveAPI(t, published, echoServer{})
	network := client(t, addr)

	place := func(name string) func(context.Context, grpc.ClientConnInterface, ...grpc.CallOption) (proto.Message, error) {
		return func(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) (proto.Message, error) {
			reply, err := checkoutv1.NewCheckoutServiceClient(conn).PlaceOrder(ctx, &checkoutv1.PlaceOrderRequest{
				CustomerName: name, CustomerEmail: "a@example.com",
				OrderItems: []*checkoutv1.PlaceOrderRequest_Item{{ProductId: 3, Quantity: 2}, {ProductId: 4, Quantity: 5}},
			}, opts...)
			// These differ from call to call.
			if err == nil {
				reply.Order.CreatedAt, reply.Order.UpdatedAt = nil, nil
			}
			return reply, err
		}
	}
	get := func(id string) func(context.Context, grpc.ClientConnInterface, ...grpc.CallOption) (proto.Message, error) {
		return func(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) (proto.Message, error) {
			return orderv1.NewOrderServiceClient(conn).GetOrder(ctx, &orderv1.GetOrderRequest{OrderId: id}, opts...)
		}
	}
	list := func(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) (proto.Message, error) {
		return orderv1.NewOrderServiceClient(conn).ListOrders(ctx, &orderv1.ListOrdersRequest{}, opts...)
	}
	tests := []struct {
		name string
		call func(context.Context, grpc.ClientConnInterface, ...grpc.CallOption) (proto.Message, error)
		md   metadata.MD
		code codes.Code
	}{
		{"order taken", place("A"), metadata.Pairs("idempotency-key", "k"), codes.OK},
		{"metadata there and back", list, metadata.Pairs("authorization", "Bearer "+operatorToken, "x-asked", "a", "x-asked", "b"), codes.OK},
		{"no operator", list, nil, codes.Unauthenticated},
		{"not valid", place(""), nil, codes.InvalidArgument},
		{"bad idempotency key", place("A"), metadata.Pairs("idempotency-key", ""), codes.InvalidArgument},
		{"broker away", place("unconfirmed"), nil, codes.Unavailable},
		{"panic", place("panic"), nil, codes.Internal},
		{"found", get(storedOrder), nil, codes.OK},
		{"not found", get(missingOrder), nil, codes.NotFound},
		{"plain error", get(brokenOrder), nil, codes.Internal},
		{"try again", get(lockedOrder), nil, codes.Unavailable},
		{"not implemented", func(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) (proto.Message, error) {
			return orderv1.NewOrderServiceClient(conn).CancelOrder(ctx, &orderv1.CancelOrderRequest{OrderId: storedOrder}, opts...)
		}, nil, codes.Unimplemented},
		{"backend away", func(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) (proto.Message, error) {
			return inventoryv1.NewInventoryServiceClient(conn).GetItem(ctx, &inventoryv1.GetItemRequest{Id: 1}, opts...)
		}, nil, codes.Unavailable},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			ask := func(conn grpc.ClientConnInterface) (outcomeOfCall, error) {
				var header, trailer metadata.MD
				ctx := metadata.NewOutgoingContext(t.Context(), test.md)
				reply, err := test.call(ctx, conn, grpc.Header(&header), grpc.Trailer(&trailer))
				got := outcomeOfCall{
					status: protoText(t, status.Convert(err).Proto()),
					header: strings.Join(header["x-header"], ","), trailer: strings.Join(trailer["x-trailer"], ","),
				}
				if err == nil {
					got.reply = protoText(t, reply)
				}
				return got, err
			}
			over, err := ask(network)
			within, _ := ask(a.local)
			if status.Code(err) != test.code {
				t.Errorf("over the network: %v, want code %v", err, test.code)
			}
			if over != within {
				t.Errorf("over the network: %+v\nwithin the process: %+v", over, within)
			}
		})
	}
}

func TestLocalConn_AnEndedContextIsAStatus(t *testing.T) {
	t.Parallel()
	a, _ := serveAPI(t, nothingPublished(t), orderServer{})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := orderv1.NewOrderServiceClient(a.local).GetOrder(ctx, &orderv1.GetOrderRequest{OrderId: slowOrder})
	if status.Code(err) != codes.DeadlineExceeded || apierror.ReasonOf(err) != "DEADLINE_EXCEEDED" {
		t.Errorf("after the deadline: %v", err)
	}
	gone, leave := context.WithCancel(t.Context())
	leave()
	_, err = orderv1.NewOrderServiceClient(a.local).GetOrder(gone, &orderv1.GetOrderRequest{OrderId: slowOrder})
	if status.Code(err) != codes.Canceled {
		t.Errorf("after the caller has left: %v", err)
	}
}

func TestLocalConn_UnknownMethodsAndStreamsAreRefused(t *testing.T) {
	t.Parallel()
	conn := inprocess.New(nil)
	if err := conn.Invoke(t.Context(), "/shop.order.v1.OrderService/GetOrder", nil, nil); status.Code(err) != codes.Unimplemented {
		t.Errorf("unknown method: %v", err)
	}
	if _, err := conn.NewStream(t.Context(), nil, "/x/Y"); status.Code(err) != codes.Unimplemented {
		t.Errorf("stream: %v", err)
	}
}

func TestREST_GRPCTimeoutBoundsACall(t *testing.T) {
	t.Parallel()
	_, addr := serveAPI(t, nothingPublished(t), orderServer{})
	got := send(t, http.MethodGet, "http://"+addr+"/v1/orders/"+slowOrder, "", "Grpc-Timeout: 50m")
	if got.status != http.StatusGatewayTimeout || got.failure(t).reason() != "DEADLINE_EXCEEDED" {
		t.Errorf("%d %s", got.status, got.body)
	}
}

func protoText(t *testing.T, m proto.Message) string {
	t.Helper()
	text, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
