package server

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"

	"shop.example/gateway/ingress"
	checkoutv1 "shop.example/gen/shop/checkout/v1"
	inventoryv1 "shop.example/gen/shop/inventory/v1"
	loggingv1 "shop.example/gen/shop/logging/v1"
	orderv1 "shop.example/gen/shop/order/v1"
)

// webProtocols are what a browser can speak, by what makes Connect's client speak it.
var webProtocols = map[string][]connect.ClientOption{
	"Connect":      nil,
	"Connect JSON": {connect.WithProtoJSON()},
	"gRPC-Web":     {connect.WithGRPCWeb()},
	"gRPC-Web JSON": {
		connect.WithGRPCWeb(), connect.WithProtoJSON(),
	},
}

// overWeb makes a unary call.
func overWeb[Res, Req any](t *testing.T, addr, method string, req *Req, options []connect.ClientOption, headers ...string) (*Res, error) {
	t.Helper()
	r := connect.NewRequest(req)
	for _, header := range headers {
		name, value, _ := strings.Cut(header, ": ")
		r.Header().Set(name, value)
	}
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	res, err := connect.NewClient[Req, Res](&http.Client{Transport: transport}, "http://"+addr+method, options...).CallUnary(t.Context(), r)
	if err != nil {
		return nil, err
	}
	return res.Msg, nil
}

// webReason is the reason of an error, and the fields that it names.
func webReason(err error) (code connect.Code, reason string, fields []string) {
	var failure *connect.Error
	if !errors.As(err, &failure) {
		return 0, "", nil
	}
	for _, detail := range failure.Details() {
		value, _ := detail.Value()
		switch v := value.(type) {
		case *errdetails.ErrorInfo:
			reason = v.GetReason()
		case *errdetails.BadRequest:
			for _, violation := range v.GetFieldViolations() {
				fields = append(fields, violation.GetField())
			}
		}
	}
	return failure.Code(), reason, fields
}

func TestWeb_CallsAnswerAndFailAsOverGRPC(t *testing.T) {
	t.Parallel()
	order := backend(t, func(s grpc.ServiceRegistrar) { orderv1.RegisterOrderServiceServer(s, orderServer{}) })
	g := startGateway(t, Config{OrderAddr: order, Ingress: ingress.Config{RateLimit: ingress.RateLimit{}}})
	const operator = "Authorization: Bearer " + operatorToken
	type call func(options []connect.ClientOption) error
	get := func(id string, headers ...string) call {
		return func(options []connect.ClientOption) error {
			res, err := overWeb[orderv1.GetOrderResponse](t, g.HTTPAddr(), orderv1.OrderService_GetOrder_FullMethodName, &orderv1.GetOrderRequest{OrderId: id}, options, headers...)
			if err == nil && res.GetOrder().GetId() != id {
				t.Errorf("answered with %v", res)
			}
			return err
		}
	}
	list := func(headers ...string) call {
		return func(options []connect.ClientOption) error {
			_, err := overWeb[orderv1.ListOrdersResponse](t, g.HTTPAddr(), orderv1.OrderService_ListOrders_FullMethodName, &orderv1.ListOrdersRequest{}, options, headers...)
			return err
		}
	}
	place := func(name string) call {
		return func(options []connect.ClientOption) error {
			_, err := overWeb[checkoutv1.PlaceOrderResponse](t, g.HTTPAddr(), checkoutv1.CheckoutService_PlaceOrder_FullMethodName,
				&checkoutv1.PlaceOrderRequest{CustomerName: name}, options)
			return err
		}
	}
	for name, test := range map[string]struct {
		call   call
		code   connect.Code
		reason string // "" if it succeeds
		field  string
	}{
		"an order":                           {call: get(storedOrder)},
		"orders, by an operator":             {call: list(operator)},
		"orders, without a token":            {list(), connect.CodeUnauthenticated, "OPERATOR_TOKEN_REQUIRED", ""},
		"orders, with a wrong token":         {list("Authorization: Bearer wrong"), connect.CodeUnauthenticated, "OPERATOR_TOKEN_INVALID", ""},
		"a wrong token where none is needed": {get(storedOrder, "Authorization: Bearer wrong"), connect.CodeUnauthenticated, "OPERATOR_TOKEN_INVALID", ""},
		"no UUID":                            {get("nonsense"), connect.CodeInvalidArgument, "INVALID_ARGUMENT", "order_id"},
		"an order that lacks much":           {place("Ada"), connect.CodeInvalidArgument, "INVALID_ARGUMENT", "customer_email"},
		"a service that is away": {func(options []connect.ClientOption) error {
			_, err := overWeb[inventoryv1.GetItemResponse](t, g.HTTPAddr(), inventoryv1.InventoryService_GetItem_FullMethodName, &inventoryv1.GetItemRequest{Id: 1}, options)
			return err
		}, connect.CodeUnavailable, "SERVICE_UNAVAILABLE", ""},
		"more than a request may have": {place(strings.Repeat("a", ingress.MaxBody+1)), connect.CodeResourceExhausted, "RESOURCE_EXHAUSTED", ""},
		"compressed": {func(options []connect.ClientOption) error {
			return place(strings.Repeat("a", 1000))(append(options, connect.WithSendGzip()))
		}, connect.CodeInvalidArgument, "UNSUPPORTED_MEDIA_TYPE", ""},
		"another site's page": {get(storedOrder, "Sec-Fetch-Site: cross-site", "Origin: https://evil.example"), connect.CodePermissionDenied, "CROSS_ORIGIN", ""},
		"what services ask each other": {func(options []connect.ClientOption) error {
			_, err := overWeb[inventoryv1.CheckStockResponse](t, g.HTTPAddr(), "/shop.inventory.v1.StockService/CheckStock", &inventoryv1.CheckStockRequest{}, options)
			return err
		}, connect.CodeUnimplemented, "", ""},
	} {
		for protocol, options := range webProtocols {
			err := test.call(options)
			code, reason, fields := webReason(err)
			if (err == nil) != (test.code == 0) || code != test.code || reason != test.reason || test.field != "" && !strings.Contains(strings.Join(fields, " "), test.field) {
				t.Errorf("%s over %s: %v: reason %q, fields %q", name, protocol, err, reason, fields)
			}
		}
	}
}

// What a page without a library sends, byte by byte.
func TestWeb_NonsenseIsRefused(t *testing.T) {
	t.Parallel()
	order := backend(t, func(s grpc.ServiceRegistrar) { orderv1.RegisterOrderServiceServer(s, orderServer{}) })
	g := startGateway(t, Config{OrderAddr: order})
	url := "http://" + g.HTTPAddr() + orderv1.OrderService_GetOrder_FullMethodName
	good := `{"order_id": "` + storedOrder + `"}`
	const version, isJSON, grpcWeb = "Connect-Protocol-Version: 1", "Content-Type: application/json", "Content-Type: application/grpc-web+proto"
	for name, test := range map[string]struct {
		body    string
		headers []string
		status  int
		reason  string
	}{
		"a call":               {good, []string{version, isJSON}, http.StatusOK, ""},
		"camel case":           {strings.Replace(good, "order_id", "orderId", 1), []string{version, isJSON}, http.StatusOK, ""},
		"an unknown field":     {`{"order_ident": "x"}`, []string{version, isJSON}, http.StatusBadRequest, "INVALID_PROTOBUF"},
		"half an object":       {good[:10], []string{version, isJSON}, http.StatusBadRequest, "INVALID_PROTOBUF"},
		"no protobuf":          {"\xff\xff", []string{version, "Content-Type: application/proto"}, http.StatusBadRequest, "INVALID_PROTOBUF"},
		"compressed, it says":  {good, []string{version, isJSON, "Content-Encoding: gzip"}, http.StatusBadRequest, "UNSUPPORTED_MEDIA_TYPE"},
		"another type":         {good, []string{version, "Content-Type: text/plain"}, http.StatusUnsupportedMediaType, "UNSUPPORTED_MEDIA_TYPE"},
		"no type":              {good, []string{version}, http.StatusUnsupportedMediaType, "UNSUPPORTED_MEDIA_TYPE"},
		"another encoding":     {good, []string{"Content-Type: application/connect+xml"}, http.StatusUnsupportedMediaType, "UNSUPPORTED_MEDIA_TYPE"},
		"without the version":  {good, []string{isJSON}, http.StatusNotFound, "UNKNOWN_PATH"},
		"half a frame":         {"\x00\x00\x00\x00\x05abc", []string{grpcWeb}, http.StatusOK, ""},
		"a frame of 4 GiB":     {"\x00\xff\xff\xff\xff", []string{grpcWeb}, http.StatusOK, ""},
		"a compressed frame":   {"\x01\x00\x00\x00\x01a", []string{grpcWeb}, http.StatusOK, ""},
		"a trailer as request": {"\x80\x00\x00\x00\x01a", []string{grpcWeb}, http.StatusOK, ""},
	} {
		got := send(t, http.MethodPost, url, test.body, test.headers...)
		if got.status != test.status {
			t.Errorf("%s: %d %s", name, got.status, got.body)
			continue
		}
		if strings.Contains(strings.Join(test.headers, ""), "grpc-web") {
			if status := got.header.Get("Grpc-Status"); status == "0" || status == "" && !strings.Contains(string(got.body), "grpc-status: ") || strings.Contains(string(got.body), "grpc-status: 0") {
				t.Errorf("%s succeeds: %v %q", name, got.header, got.body)
			}
			continue
		}
		if test.reason != "" && !strings.Contains(string(got.body), base64.RawStdEncoding.EncodeToString([]byte(test.reason))[:8]) && !strings.Contains(string(got.body), test.reason) {
			t.Errorf("%s: %s has no reason %s", name, got.body, test.reason)
		}
		if name == "a call" {
			var res struct{ Order map[string]any }
			if err := json.Unmarshal([]byte(got.body), &res); err != nil || res.Order["id"] != storedOrder || got.header.Get("Cache-Control") != "no-store" {
				t.Errorf("%v: %s %v", err, got.body, got.header)
			}
		}
	}
	if still := send(t, http.MethodPost, url, good, version, isJSON); still.status != http.StatusOK {
		t.Errorf("afterwards: %d %s", still.status, still.body)
	}
}

// Clients that protoc-gen-grpc-web made for its text mode, which is its default, got a 404 without a word.
func TestWeb_TheTextOfGRPCWebIsRefusedWithWhatWorks(t *testing.T) {
	t.Parallel()
	g := startGateway(t, Config{})
	for _, contentType := range []string{"application/grpc-web-text", "application/grpc-web-text+proto"} {
		got := send(t, http.MethodPost, "http://"+g.HTTPAddr()+orderv1.OrderService_GetOrder_FullMethodName, "AAAAAAA=", "Content-Type: "+contentType)
		f := got.failure(t)
		if got.status != http.StatusUnsupportedMediaType || f.reason() != "UNSUPPORTED_MEDIA_TYPE" || !strings.Contains(f.Message, "application/grpc-web+proto") || !strings.Contains(got.header.Get("Accept"), "application/grpc-web+proto") {
			t.Errorf("%s: %d %s %v", contentType, got.status, got.body, got.header)
		}
	}
}

// A call over REST that has a header of Connect or gRPC-Web, but not as these have it, was served by the library's own REST:
// without If-Match, and with other errors.
func TestWeb_RESTIsOursWhateverItsHeadersSay(t *testing.T) {
	t.Parallel()
	g := startGateway(t, Config{})
	const isJSON = "Content-Type: application/json"
	for name, test := range map[string]struct {
		headers []string
		reason  string
	}{
		"REST":                         {[]string{isJSON}, "INVALID_ARGUMENT"},
		"Connect":                      {[]string{isJSON, "Connect-Protocol-Version: 1"}, "INVALID_ARGUMENT"},
		"another version of Connect":   {[]string{isJSON, "Connect-Protocol-Version: 2"}, "INVALID_ARGUMENT"},
		"no type":                      {[]string{"Connect-Protocol-Version: 2"}, "INVALID_ARGUMENT"},
		"something like gRPC-Web":      {[]string{"Content-Type: application/grpc-webs"}, "UNSUPPORTED_MEDIA_TYPE"},
		"Connect with text":            {[]string{"Content-Type: text/plain", "Connect-Protocol-Version: 1"}, "UNSUPPORTED_MEDIA_TYPE"},
		"a stream of Connect":          {[]string{"Content-Type: application/connect+json"}, "UNSUPPORTED_MEDIA_TYPE"},
		"a stream of Connect, version": {[]string{"Content-Type: application/connect+json", "Connect-Protocol-Version: 2"}, "UNSUPPORTED_MEDIA_TYPE"},
	} {
		got := send(t, http.MethodPost, "http://"+g.HTTPAddr()+"/v1/orders", `{"garbage":true}`, test.headers...)
		if f := got.failure(t); f.reason() != test.reason || test.reason == "INVALID_ARGUMENT" && !strings.HasPrefix(f.Message, "garbage: unknown field") {
			t.Errorf("%s: %d %s", name, got.status, got.body)
		}
		got = send(t, http.MethodPost, "http://"+g.HTTPAddr()+"/v1/orders/"+storedOrder+":cancel", "{}", append(test.headers, "If-Match: nonsense")...)
		if reason := got.failure(t).reason(); reason != test.reason {
			t.Errorf("%s, with a wrong If-Match: %d %s", name, got.status, got.body)
		}
	}
}

func TestWeb_CountsWithAllOtherCalls(t *testing.T) {
	t.Parallel()
	order := backend(t, func(s grpc.ServiceRegistrar) { orderv1.RegisterOrderServiceServer(s, orderServer{}) })
	g := startGateway(t, Config{OrderAddr: order, Ingress: ingress.Config{RateLimit: ingress.RateLimit{PerSecond: 0.01, Burst: 4}}})
	var reasons []string
	for _, options := range webProtocols {
		for range 2 {
			_, err := overWeb[orderv1.GetOrderResponse](t, g.HTTPAddr(), orderv1.OrderService_GetOrder_FullMethodName, &orderv1.GetOrderRequest{OrderId: storedOrder}, options)
			_, reason, _ := webReason(err)
			reasons = append(reasons, reason)
		}
	}
	if got := strings.Join(reasons, " "); got != "    RATE_LIMITED RATE_LIMITED RATE_LIMITED RATE_LIMITED" {
		t.Errorf("%q", got)
	}
}

func TestWeb_StreamsAreForThoseWhoMayAndCounted(t *testing.T) {
	t.Parallel()
	logging := backend(t, func(s grpc.ServiceRegistrar) { loggingv1.RegisterEventLogServiceServer(s, eventServer{}) })
	g := startGateway(t, Config{LoggingAddr: logging, MaxStreams: 4}) // one for each client
	for protocol, options := range webProtocols {
		transport := &http.Transport{}
		c := connect.NewClient[loggingv1.StreamEventsRequest, loggingv1.StreamEventsResponse](&http.Client{Transport: transport},
			"http://"+g.HTTPAddr()+loggingv1.EventLogService_StreamEvents_FullMethodName, options...)
		open := func(headers ...string) (*connect.ServerStreamForClient[loggingv1.StreamEventsResponse], context.CancelFunc) {
			ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
			req := connect.NewRequest(&loggingv1.StreamEventsRequest{OrderId: storedOrder})
			if len(headers) == 0 {
				req.Msg.OrderId = ""
			}
			stream, err := c.CallServerStream(ctx, req)
			if err != nil {
				t.Fatal(err)
			}
			return stream, cancel
		}
		refused, cancel := open()
		if refused.Receive() {
			t.Errorf("%s: events of all orders without a token", protocol)
		}
		if code, reason, _ := webReason(refused.Err()); code != connect.CodeUnauthenticated || reason != "OPERATOR_TOKEN_REQUIRED" {
			t.Errorf("%s: %v", protocol, refused.Err())
		}
		cancel()
		stream, cancel := open("an order's")
		for deadline := time.Now().Add(testTimeout); !stream.Receive(); stream, cancel = open("an order's") {
			cancel() // the stream before it takes a moment to end
			if time.Now().After(deadline) {
				t.Fatalf("%s: %v", protocol, stream.Err())
			}
		}
		second, cancelSecond := open("an order's")
		if second.Receive() {
			t.Errorf("%s: a second stream", protocol)
		}
		if code, reason, _ := webReason(second.Err()); code != connect.CodeResourceExhausted || reason != "TOO_MANY_STREAMS" {
			t.Errorf("%s: %v", protocol, second.Err())
		}
		cancelSecond()
		cancel()
		_ = stream.Close()
		transport.CloseIdleConnections()
	}
}
