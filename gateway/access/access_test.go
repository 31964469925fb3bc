package access

import (
	"context"
	"log/slog"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/metric/noop"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"shop.example/gateway/access/issuertest"
	"shop.example/gateway/inprocess"
	checkoutv1 "shop.example/gen/shop/checkout/v1"
	intermediaryv1 "shop.example/gen/shop/intermediary/v1"
	inventoryv1 "shop.example/gen/shop/inventory/v1"
	loggingv1 "shop.example/gen/shop/logging/v1"
	optionsv1 "shop.example/gen/shop/options/v1"
	orderv1 "shop.example/gen/shop/order/v1"
	"shop.example/platform/apierror"
)

const someOrder = "00000000-0000-4000-8000-000000000001"

// testOperators are those who know the tests' token.
var testOperators = Operators{}.with(unnamedOperator, operatorToken)

func TestAccess_WithoutATokenNobodyIsAnOperator(t *testing.T) {
	t.Parallel()
	for _, token := range []string{"Bearer ", "Bearer", "Bearer \x00"} {
		ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs("authorization", token))
		_, err := New(nil, nil, nil).requireRole(ctx, operator, authorizationIn(ctx))
		if apierror.ReasonOf(err) != "OPERATOR_TOKEN_INVALID" {
			t.Errorf("%q: %v", token, err)
		}
	}
}

func TestAccess_RulesOfTheContracts(t *testing.T) {
	t.Parallel()
	anyone := map[string]bool{
		"PlaceOrder": true, "CreateOrder": true, "ListInventory": true, "GetOrder": true, "CancelOrder": true, "ListItems": true, "GetItem": true,
		"ShareOrder": true, "GetSharedOrder": true,
	}
	for _, desc := range []grpc.ServiceDesc{
		checkoutv1.CheckoutService_ServiceDesc, checkoutv1.ShareService_ServiceDesc, intermediaryv1.IntermediaryService_ServiceDesc, orderv1.OrderService_ServiceDesc,
		inventoryv1.InventoryService_ServiceDesc, loggingv1.EventLogService_ServiceDesc, loggingv1.DeadLetterService_ServiceDesc,
	} {
		for _, m := range desc.Methods {
			rule := ruleOf(desc.ServiceName, m.MethodName)
			if anyone[m.MethodName] != (rule == optionsv1.Access_ACCESS_PUBLIC) || rule == optionsv1.Access_ACCESS_UNSPECIFIED {
				t.Errorf("%s.%s has the rule %v", desc.ServiceName, m.MethodName, rule)
			}
		}
		for _, s := range desc.Streams {
			if rule := ruleOf(desc.ServiceName, s.StreamName); rule == optionsv1.Access_ACCESS_PUBLIC || rule == optionsv1.Access_ACCESS_UNSPECIFIED {
				t.Errorf("%s.%s has the rule %v", desc.ServiceName, s.StreamName, rule)
			}
		}
	}
}

func TestCheckRules_RefusesWhatIsInternal(t *testing.T) {
	t.Parallel()
	err := CheckRules(map[string]grpc.ServiceInfo{"shop.inventory.v1.StockService": {Methods: []grpc.MethodInfo{{Name: "CheckStock"}}}})
	if err == nil || !strings.Contains(err.Error(), "StockService/CheckStock") {
		t.Errorf("%v", err)
	}
}

// callersServer keeps who has called.
type callersServer struct {
	orderv1.UnimplementedOrderServiceServer
	loggingv1.UnimplementedEventLogServiceServer
	last *Principal
}

func (s *callersServer) GetOrder(ctx context.Context, _ *orderv1.GetOrderRequest) (*orderv1.GetOrderResponse, error) {
	s.last = PrincipalOf(ctx)
	return &orderv1.GetOrderResponse{}, nil
}

func (s *callersServer) StreamEvents(_ *loggingv1.StreamEventsRequest, stream grpc.ServerStreamingServer[loggingv1.StreamEventsResponse]) error {
	s.last = PrincipalOf(stream.Context())
	return nil
}

func TestAccess_HandlersKnowWhoCalls(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t)
	log := slog.New(slog.DiscardHandler)
	interceptor := apierror.NewInterceptor(log)
	a := New(testOperators, interceptor, nil)
	if _, err := a.ConfigureOIDC(OIDC{Issuer: i.URL, Audience: "shop", RolesClaim: "roles"}, log, noop.Meter{}); err != nil {
		t.Fatal(err)
	}
	server, local := &callersServer{}, inprocess.New(interceptor)
	local.RegisterService(a.Guard(&orderv1.OrderService_ServiceDesc), server)
	local.RegisterService(a.Guard(&loggingv1.EventLogService_ServiceDesc), server)
	expires := time.Now().Add(time.Hour).Truncate(time.Second)
	ada := i.Token(t, map[string]any{"roles": []string{"customer", "reader"}, "exp": expires.Unix()})
	for authorization, want := range map[string]*Principal{
		"":                        nil,
		"Bearer " + operatorToken: {Name: unnamedOperator, Roles: []string{"operator"}},
		"Bearer " + ada:           {Issuer: i.URL, Subject: "ada", Roles: []string{"customer", "reader"}, expires: expires},
	} {
		md := metadata.MD{}
		if authorization != "" {
			md.Set("authorization", authorization)
		}
		server.last = &Principal{Subject: "nobody has called"}
		_, err := orderv1.NewOrderServiceClient(local).GetOrder(metadata.NewOutgoingContext(t.Context(), md), &orderv1.GetOrderRequest{OrderId: someOrder})
		if err != nil || !reflect.DeepEqual(server.last, want) {
			t.Errorf("%q: called by %+v, %v; want %+v", authorization, server.last, err, want)
		}
		server.last = &Principal{Subject: "nobody has called"}
		request := &loggingv1.StreamEventsRequest{OrderId: someOrder}
		stream := openStream{ctx: metadata.NewIncomingContext(t.Context(), md), request: request}
		if err := local.ServeStream(loggingv1.EventLogService_StreamEvents_FullMethodName, stream); err != nil || !reflect.DeepEqual(server.last, want) {
			t.Errorf("%q: streamed for %+v, %v; want %+v", authorization, server.last, err, want)
		}
	}
}

func TestAccess_APanicInTheCheckIsAnAnswer(t *testing.T) {
	t.Parallel()
	log := &strings.Builder{}
	interceptor := apierror.NewInterceptor(slog.New(slog.NewTextHandler(log, nil)))
	a := New(nil, interceptor, nil)
	a.tokens = &tokenVerifier{} // it has nothing to verify a token with
	server, conn := &callersServer{}, inprocess.New(interceptor)
	conn.RegisterService(a.Guard(&orderv1.OrderService_ServiceDesc), server)
	orders := orderv1.NewOrderServiceClient(conn)
	ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer a.b.c")
	if _, err := orders.ListOrders(ctx, &orderv1.ListOrdersRequest{}); status.Code(err) != codes.Internal || apierror.ReasonOf(err) != "INTERNAL" {
		t.Errorf("answered with %v", err)
	}
	if !strings.Contains(log.String(), "goroutine") {
		t.Errorf("the stack is not in the log: %s", log)
	}
	if _, err := orders.GetOrder(t.Context(), &orderv1.GetOrderRequest{OrderId: someOrder}); err != nil {
		t.Errorf("the next call: %v", err)
	}
}

// One address, written in two ways, was two callers with one key.
func TestKeyScope_IsTheSameForAllSpellingsOfAnAddress(t *testing.T) {
	t.Parallel()
	var nobody *Principal
	want := nobody.KeyScope("a@exämple.org")
	for _, address := range []string{"A@EXÄMPLE.org", "a@xn--exmple-cua.org"} {
		if got := nobody.KeyScope(address); got != want {
			t.Errorf("%s: %q, want %q", address, got, want)
		}
	}
}
