package edge

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	checkoutv1 "shop.example/gen/shop/checkout/v1"
	intermediaryv1 "shop.example/gen/shop/intermediary/v1"
	inventoryv1 "shop.example/gen/shop/inventory/v1"
	loggingv1 "shop.example/gen/shop/logging/v1"
	optionsv1 "shop.example/gen/shop/options/v1"
	orderv1 "shop.example/gen/shop/order/v1"
	statusv1 "shop.example/gen/shop/status/v1"
	"shop.example/platform/apierror"
	"shop.example/platform/service"
)

// reasonOf is the reason of a status, "" where there is none.
func reasonOf(err error) string {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			return info.GetReason()
		}
	}
	return ""
}

func TestAccess_IsTheSameOverRESTAndGRPC(t *testing.T) {
	t.Parallel()
	logging := backend(t, func(s grpc.ServiceRegistrar) { loggingv1.RegisterEventLogServiceServer(s, eventServer{}) })
	order := backend(t, func(s grpc.ServiceRegistrar) { orderv1.RegisterOrderServiceServer(s, orderServer{}) })
	g := startGateway(t, Config{OrderAddr: order, LoggingAddr: logging})
	conn := client(t, g.HTTPAddr())
	orders, events := orderv1.NewOrderServiceClient(conn), loggingv1.NewEventLogServiceClient(conn)

	listOrders := func(ctx context.Context) error {
		_, err := orders.ListOrders(ctx, &orderv1.ListOrdersRequest{})
		return err
	}
	listEvents := func(orderID string) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := events.ListEvents(ctx, &loggingv1.ListEventsRequest{OrderId: orderID})
			return err
		}
	}
	streamEvents := func(orderID string) func(context.Context) error {
		return func(ctx context.Context) error {
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			stream, err := events.StreamEvents(ctx, &loggingv1.StreamEventsRequest{OrderId: orderID})
			if err == nil {
				_, err = stream.Recv()
			}
			return err
		}
	}
	tests := []struct {
		name  string
		path  string // "" where there is no REST call
		call  func(context.Context) error
		token []string
		want  string // the reason; "" where the call is allowed
	}{
		{"operators only, no token", "/v1/orders", listOrders, nil, "OPERATOR_TOKEN_REQUIRED"},
		{"operators only, wrong token", "/v1/orders", listOrders, []string{"Bearer guess"}, "OPERATOR_TOKEN_INVALID"},
		{"operators only, empty token", "/v1/orders", listOrders, []string{"Bearer "}, "OPERATOR_TOKEN_INVALID"},
		{"operators only, token as a password", "/v1/orders", listOrders, []string{"Basic " + operatorToken}, "OPERATOR_TOKEN_INVALID"},
		{"operators only, two tokens", "/v1/orders", listOrders, []string{"Bearer guess", "Bearer " + operatorToken}, "OPERATOR_TOKEN_INVALID"},
		{"operators only, the token", "/v1/orders", listOrders, []string{"Bearer " + operatorToken}, ""},
		{"operators only, the token in small letters", "/v1/orders", listOrders, []string{"bearer " + operatorToken}, ""},
		{"all events, no token", "/v1/events", listEvents(""), nil, "OPERATOR_TOKEN_REQUIRED"},
		{"all events, the token", "/v1/events", listEvents(""), []string{"Bearer " + operatorToken}, ""},
		{"events of an order, no token", "/v1/orders/" + storedOrder + "/events", listEvents(storedOrder), nil, ""},
		{"events of an order, wrong token", "/v1/events?order_id=" + storedOrder, listEvents(storedOrder), []string{"Bearer guess"}, "OPERATOR_TOKEN_INVALID"},
		{"events of an order, the token", "/v1/events?order_id=" + storedOrder, listEvents(storedOrder), []string{"Bearer " + operatorToken}, ""},
		{"stream of all events, no token", "", streamEvents(""), nil, "OPERATOR_TOKEN_REQUIRED"},
		{"stream of all events, the token", "", streamEvents(""), []string{"Bearer " + operatorToken}, ""},
		{"stream of an order, no token", "", streamEvents(storedOrder), nil, ""},
		{"stream of an order, wrong token", "", streamEvents(storedOrder), []string{"Bearer guess"}, "OPERATOR_TOKEN_INVALID"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			ctx := metadata.NewOutgoingContext(t.Context(), metadata.MD{"authorization": test.token})
			err := test.call(ctx)
			if got := reasonOf(err); got != test.want || (test.want != "") != (status.Code(err) == codes.Unauthenticated) {
				t.Errorf("gRPC: %v, want reason %q", err, test.want)
			}
			if test.path == "" {
				return
			}
			var headers []string
			for _, token := range test.token {
				headers = append(headers, "Authorization: "+token)
			}
			got := send(t, http.MethodGet, "http://"+g.HTTPAddr()+test.path, "", headers...)
			switch {
			case test.want == "" && got.status != http.StatusOK:
				t.Errorf("REST: %d %s", got.status, got.body)
			case test.want == "":
			case got.status != http.StatusUnauthorized || got.failure(t).reason() != test.want:
				t.Errorf("REST: %d %s, want reason %q", got.status, got.body, test.want)
			case got.header.Get("WWW-Authenticate") == "":
				t.Error("REST: 401 without WWW-Authenticate")
			}
		})
	}
}

func TestAccess_WithoutATokenNobodyIsAnOperator(t *testing.T) {
	t.Parallel()
	for _, token := range []string{"Bearer ", "Bearer", "Bearer \x00"} {
		ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs("authorization", token))
		_, err := newAccess(nil, nil).requireRole(ctx, operator, authorizationIn(ctx))
		if reasonOf(err) != "OPERATOR_TOKEN_INVALID" {
			t.Errorf("%q: %v", token, err)
		}
	}
}

func TestAccess_APanicInTheCheckIsAnAnswer(t *testing.T) {
	t.Parallel()
	log := &logBuffer{}
	tel := newTelemetry(t, log)
	s, err := service.New(service.Config{}, tel)
	if err != nil {
		t.Fatal(err)
	}
	a := newAPI(s.GRPC(), testOperators, tel)
	a.access.tokens = &tokenVerifier{} // it has nothing to verify a token with
	orderv1.RegisterOrderServiceServer(a, orderServer{})
	lis, err := s.Listen("HTTP_ADDR", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.ServeHTTP("http", lis, newHTTPServer(&door{grpc: s.GRPC(), callers: callers{access: newAccess(nil, nil)}}, tel.Logger))
	run(t, s.Run)
	orders := orderv1.NewOrderServiceClient(client(t, lis.Addr().String()))
	ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer a.b.c")
	if _, err := orders.ListOrders(ctx, &orderv1.ListOrdersRequest{}); status.Code(err) != codes.Internal || reasonOf(err) != "INTERNAL" {
		t.Errorf("answered with %v", err)
	}
	if !strings.Contains(log.String(), "goroutine") {
		t.Errorf("the stack is not in the log: %s", log)
	}
	if _, err := orders.GetOrder(t.Context(), &orderv1.GetOrderRequest{OrderId: storedOrder}); err != nil {
		t.Errorf("the next call: %v", err)
	}
}

func TestAccess_RulesOfTheContracts(t *testing.T) {
	t.Parallel()
	anyone := map[string]bool{
		"PlaceOrder": true, "CreateOrder": true, "ListInventory": true, "GetOrder": true, "CancelOrder": true, "ListItems": true, "GetItem": true,
	}
	for _, sd := range services(
		checkoutv1.File_shop_checkout_v1_checkout_proto, intermediaryv1.File_shop_intermediary_v1_intermediary_proto,
		orderv1.File_shop_order_v1_order_proto, inventoryv1.File_shop_inventory_v1_inventory_proto,
		loggingv1.File_shop_logging_v1_event_log_proto, loggingv1.File_shop_logging_v1_dead_letter_proto,
	) {
		for i := range sd.Methods().Len() {
			name := sd.Methods().Get(i).Name()
			rule := ruleOf(string(sd.FullName()), string(name))
			if anyone[string(name)] != (rule == optionsv1.Access_ACCESS_PUBLIC) || rule == optionsv1.Access_ACCESS_UNSPECIFIED {
				t.Errorf("%s.%s has the rule %v", sd.FullName(), name, rule)
			}
		}
	}
}

// A method whose contract forgot to say who may call it was anyone's.
func TestAccess_AMethodThatSaysNothingIsNotServed(t *testing.T) {
	t.Parallel()
	tel := newTelemetry(t, io.Discard)
	s, err := service.New(service.Config{}, tel)
	if err != nil {
		t.Fatal(err)
	}
	a := newAPI(s.GRPC(), testOperators, tel)
	orderv1.RegisterOrderServiceServer(a, orderServer{})
	if err := checkRules(s.GRPC().GetServiceInfo()); err != nil {
		t.Errorf("orders, health and reflection all say who may call them: %v", err)
	}
	statusv1.RegisterReportServiceServer(a, reportServer{})
	err = checkRules(s.GRPC().GetServiceInfo())
	if err == nil || !strings.Contains(err.Error(), "shop.status.v1.ReportService/GetReport") || strings.Contains(err.Error(), "OrderService") {
		t.Errorf("the report has no rule: %v", err)
	}
	// Should one be served all the same, it is for operators.
	if _, err := statusv1.NewReportServiceClient(a.local).GetReport(t.Context(), &statusv1.GetReportRequest{}); reasonOf(err) != "OPERATOR_TOKEN_REQUIRED" {
		t.Errorf("called by nobody: %v", err)
	}
}

type reportServer struct {
	statusv1.UnimplementedReportServiceServer
}

func (reportServer) GetReport(context.Context, *statusv1.GetReportRequest) (*statusv1.GetReportResponse, error) {
	return &statusv1.GetReportResponse{}, nil
}

// Who sent a token that was not valid was taken for nobody, and could place orders that were then not theirs.
func TestAccess_AWrongTokenIsNeverNobody(t *testing.T) {
	t.Parallel()
	i := startIssuer(t)
	order := backend(t, func(s grpc.ServiceRegistrar) { orderv1.RegisterOrderServiceServer(s, orderServer{}) })
	oidc := OIDC{Issuer: i.url, Audience: "shop", RolesClaim: "roles"}
	for name, g := range map[string]*gateway{
		"without an issuer": startGateway(t, Config{OrderAddr: order}),
		"with an issuer":    startGateway(t, Config{OrderAddr: order, Door: DoorConfig{OIDC: oidc}}),
	} {
		withIssuer := name == "with an issuer"
		orders := orderv1.NewOrderServiceClient(client(t, g.HTTPAddr()))
		for authorization, want := range map[string]string{
			"":                        "",
			"Bearer " + operatorToken: "",
			"Bearer guess":            "OPERATOR_TOKEN_INVALID",
			"Bearer ":                 "OPERATOR_TOKEN_INVALID",
			"Basic YWRhOnNlY3JldA==":  "OPERATOR_TOKEN_INVALID",
			"Bearer a.b.c":            map[bool]string{true: "TOKEN_INVALID", false: "OPERATOR_TOKEN_INVALID"}[withIssuer],
			"Bearer " + i.token(t, map[string]any{"roles": nil}): map[bool]string{true: "", false: "OPERATOR_TOKEN_INVALID"}[withIssuer],
		} {
			ctx, headers := t.Context(), []string{}
			if authorization != "" {
				ctx = metadata.AppendToOutgoingContext(ctx, "authorization", authorization)
				headers = append(headers, "Authorization: "+authorization)
			}
			_, err := orders.GetOrder(ctx, &orderv1.GetOrderRequest{OrderId: storedOrder})
			if reasonOf(err) != want || (want != "") != (status.Code(err) == codes.Unauthenticated) {
				t.Errorf("%s, %q over gRPC: %v, want %q", name, authorization, err, want)
			}
			got := send(t, http.MethodGet, "http://"+g.HTTPAddr()+"/v1/orders/"+storedOrder, "", headers...)
			switch {
			case want == "" && got.status == http.StatusOK:
			case want == "" || got.status != http.StatusUnauthorized || got.failure(t).reason() != want:
				t.Errorf("%s, %q over REST: %d %s, want %q", name, authorization, got.status, got.body, want)
			}
		}
	}
}

// callersServer keeps who has called.
type callersServer struct {
	orderv1.UnimplementedOrderServiceServer
	loggingv1.UnimplementedEventLogServiceServer
	last *principal
}

func (s *callersServer) GetOrder(ctx context.Context, _ *orderv1.GetOrderRequest) (*orderv1.GetOrderResponse, error) {
	s.last = principalIn(ctx)
	return &orderv1.GetOrderResponse{}, nil
}

func (s *callersServer) StreamEvents(_ *loggingv1.StreamEventsRequest, stream grpc.ServerStreamingServer[loggingv1.StreamEventsResponse]) error {
	s.last = principalIn(stream.Context())
	return nil
}

func TestAccess_HandlersKnowWhoCalls(t *testing.T) {
	t.Parallel()
	i := startIssuer(t)
	log := slog.New(slog.DiscardHandler)
	interceptor := apierror.NewInterceptor(log)
	a := newAccess(testOperators, interceptor)
	if err := a.configureOIDC(OIDC{Issuer: i.url, Audience: "shop", RolesClaim: "roles"}, log); err != nil {
		t.Fatal(err)
	}
	server, local := &callersServer{}, newLocalConn(interceptor)
	local.RegisterService(a.guard(&orderv1.OrderService_ServiceDesc), server)
	local.RegisterService(a.guard(&loggingv1.EventLogService_ServiceDesc), server)
	expires := time.Now().Add(time.Hour).Truncate(time.Second)
	ada := i.token(t, map[string]any{"roles": []string{"customer", "reader"}, "exp": expires.Unix()})
	for authorization, want := range map[string]*principal{
		"":                        nil,
		"Bearer " + operatorToken: {name: unnamedOperator, roles: []string{"operator"}},
		"Bearer " + ada:           {issuer: i.url, subject: "ada", roles: []string{"customer", "reader"}, expires: expires},
	} {
		md := metadata.MD{}
		if authorization != "" {
			md.Set("authorization", authorization)
		}
		server.last = &principal{subject: "nobody has called"}
		_, err := orderv1.NewOrderServiceClient(local).GetOrder(metadata.NewOutgoingContext(t.Context(), md), &orderv1.GetOrderRequest{OrderId: storedOrder})
		if err != nil || !reflect.DeepEqual(server.last, want) {
			t.Errorf("%q: called by %+v, %v; want %+v", authorization, server.last, err, want)
		}
		server.last = &principal{subject: "nobody has called"}
		request := &loggingv1.StreamEventsRequest{OrderId: storedOrder}
		stream := openStream{ctx: metadata.NewIncomingContext(t.Context(), md), request: request}
		if err := local.serveStream(streamEvents, stream); err != nil || !reflect.DeepEqual(server.last, want) {
			t.Errorf("%q: streamed for %+v, %v; want %+v", authorization, server.last, err, want)
		}
	}
}

func TestAccess_HealthAndReflectionAreOpen(t *testing.T) {
	t.Parallel()
	g := startGateway(t, Config{})
	conn := client(t, g.HTTPAddr())
	reply, err := healthv1.NewHealthClient(conn).Check(t.Context(), &healthv1.HealthCheckRequest{})
	if err != nil || reply.GetStatus() != healthv1.HealthCheckResponse_NOT_SERVING {
		t.Errorf("health without a broker: %v, %v", reply.GetStatus(), err)
	}
	got := listServices(t, conn)
	for _, name := range []string{
		"shop.checkout.v1.CheckoutService", "shop.intermediary.v1.IntermediaryService", "shop.order.v1.OrderService",
		"shop.inventory.v1.InventoryService", "shop.logging.v1.EventLogService", "shop.logging.v1.DeadLetterService",
		"grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection",
	} {
		if !got[name] {
			t.Errorf("%s is not listed; listed are %v", name, got)
		}
	}
}
