package server

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"shop.example/gateway/access"
	"shop.example/gateway/access/issuertest"
	"shop.example/gateway/ingress"
	loggingv1 "shop.example/gen/shop/logging/v1"
	orderv1 "shop.example/gen/shop/order/v1"
	statusv1 "shop.example/gen/shop/status/v1"
	"shop.example/platform/apierror"
	"shop.example/platform/service"
)

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
		path  string // "" if there is no REST call
		call  func(context.Context) error
		token []string
		want  string // the reason; "" if the call is allowed
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
			if got := apierror.ReasonOf(err); got != test.want || (test.want != "") != (status.Code(err) == codes.Unauthenticated) {
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

// A method whose contract forgot to say who may call it was anyone's.
func TestAccess_AMethodThatSaysNothingIsNotServed(t *testing.T) {
	t.Parallel()
	tel := newTelemetry(t, io.Discard)
	s, err := service.New(t.Context(), service.Config{}, tel)
	if err != nil {
		t.Fatal(err)
	}
	a := newAPI(s.GRPC(), testOperators, tel)
	orderv1.RegisterOrderServiceServer(a, orderServer{})
	if err := access.CheckRules(s.GRPC().GetServiceInfo()); err != nil {
		t.Errorf("orders, health and reflection all say who may call them: %v", err)
	}
	statusv1.RegisterReportServiceServer(a, reportServer{})
	err = access.CheckRules(s.GRPC().GetServiceInfo())
	if err == nil || !strings.Contains(err.Error(), "shop.status.v1.ReportService/GetReport") || strings.Contains(err.Error(), "OrderService") {
		t.Errorf("the report has no rule: %v", err)
	}
	// Should one be served all the same, it is for operators.
	if _, err := statusv1.NewReportServiceClient(a.local).GetReport(t.Context(), &statusv1.GetReportRequest{}); apierror.ReasonOf(err) != "OPERATOR_TOKEN_REQUIRED" {
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
func TestAccess_AWrongTokenIsNotTakenForAnAnonymousCaller(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t)
	order := backend(t, func(s grpc.ServiceRegistrar) { orderv1.RegisterOrderServiceServer(s, orderServer{}) })
	oidc := access.OIDC{Issuer: i.URL, Audience: "shop", RolesClaim: "roles"}
	for name, g := range map[string]*gateway{
		"without an issuer": startGateway(t, Config{OrderAddr: order}),
		"with an issuer":    startGateway(t, Config{OrderAddr: order, Ingress: ingress.Config{OIDC: oidc}}),
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
			"Bearer " + i.Token(t, map[string]any{"roles": nil}): map[bool]string{true: "", false: "OPERATOR_TOKEN_INVALID"}[withIssuer],
		} {
			ctx, headers := t.Context(), []string{}
			if authorization != "" {
				ctx = metadata.AppendToOutgoingContext(ctx, "authorization", authorization)
				headers = append(headers, "Authorization: "+authorization)
			}
			_, err := orders.GetOrder(ctx, &orderv1.GetOrderRequest{OrderId: storedOrder})
			if apierror.ReasonOf(err) != want || (want != "") != (status.Code(err) == codes.Unauthenticated) {
				t.Errorf("%s, %q over gRPC: %v, want %q", name, authorization, err, want)
			}
			empty := authorization == "Bearer " // its sender's variable is not set, and was told that the token is not valid
			if strings.Contains(status.Convert(err).Message(), "the token is empty") != empty {
				t.Errorf("%s, %q over gRPC: %v", name, authorization, err)
			}
			got := send(t, http.MethodGet, "http://"+g.HTTPAddr()+"/v1/orders/"+storedOrder, "", headers...)
			switch {
			case want == "" && got.status == http.StatusOK:
			case want == "" || got.status != http.StatusUnauthorized || got.failure(t).reason() != want || strings.Contains(got.failure(t).Message, "the token is empty") != empty:
				t.Errorf("%s, %q over REST: %d %s, want %q", name, authorization, got.status, got.body, want)
			}
		}
	}
}

// Such a value was dropped on its way from REST to the handlers: the order belonged to nobody, and no login had failed.
func TestAccess_ATokenThatNoGRPCClientCouldSendIsNotTakenForNone(t *testing.T) {
	t.Parallel()
	g := startGateway(t, Config{OrderAddr: backend(t, func(s grpc.ServiceRegistrar) { orderv1.RegisterOrderServiceServer(s, orderServer{}) })})
	tried := 0
	for _, values := range [][]string{{"Bearer guess\xa0"}, {"Bearer\tguess"}, {"Bearer \xff", "Bearer " + operatorToken}} {
		headers := []string{"Content-Type: application/json"}
		for _, value := range values {
			headers = append(headers, "Authorization: "+value)
		}
		path := "/v1/orders/" + storedOrder
		for _, call := range [][3]string{
			{http.MethodGet, path, ""}, {http.MethodPost, "/v1/orders", order}, {http.MethodGet, path + "/events:stream", ""},
		} {
			got := send(t, call[0], "http://"+g.HTTPAddr()+call[1], call[2], headers...)
			if got.status != http.StatusUnauthorized || got.failure(t).reason() != "OPERATOR_TOKEN_INVALID" {
				t.Errorf("%q: %s %s: %d %s", values, call[0], call[1], got.status, got.body)
			}
			tried++
		}
		// Connect is translated by another library, and has other errors.
		got := send(t, http.MethodPost, "http://"+g.HTTPAddr()+orderv1.OrderService_GetOrder_FullMethodName, `{"order_id":"`+storedOrder+`"}`,
			append(headers, "Connect-Protocol-Version: 1")...)
		if got.status != http.StatusUnauthorized || !strings.Contains(got.body, "unauthenticated") {
			t.Errorf("%q over Connect: %d %s", values, got.status, got.body)
		}
		tried++
	}
	if failed := strings.Count(g.log.String(), "login failed"); failed != tried {
		t.Errorf("%d of %d logins failed", failed, tried)
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
