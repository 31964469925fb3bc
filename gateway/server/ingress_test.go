package server

import (
	"context"
	"net/http"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"shop.example/gateway/ingress"
	checkoutv1 "shop.example/gen/shop/checkout/v1"
	inventoryv1 "shop.example/gen/shop/inventory/v1"
	loggingv1 "shop.example/gen/shop/logging/v1"
	"shop.example/platform/apierror"
)

// published is a broker that takes everything.
func published(context.Context, proto.Message) error { return nil }

func TestREST_BodyMustBeJSON(t *testing.T) {
	t.Parallel()
	_, addr := serveAPI(t, published, orderServer{})
	tests := []struct {
		name    string
		headers []string
		status  int
	}{
		{"not said", nil, 202},
		{"JSON", []string{"Content-Type: application/json"}, 202},
		{"JSON in UTF-8", []string{"Content-Type: application/json; charset=utf-8"}, 202},
		{"JSON in capitals", []string{`Content-Type: Application/JSON;charset="UTF-8"`}, 202},
		{"not compressed, said so", []string{"Content-Type: application/json", "Content-Encoding: identity"}, 202},
		{"JSON in another charset", []string{"Content-Type: application/json; charset=utf-16"}, 415},
		{"a form", []string{"Content-Type: application/x-www-form-urlencoded"}, 415},
		{"text", []string{"Content-Type: text/plain"}, 415},
		{"something like JSON", []string{"Content-Type: application/jsonp"}, 415},
		{"protobuf", []string{"Content-Type: application/protobuf"}, 415},
		{"gRPC without HTTP/2", []string{"Content-Type: application/grpc"}, 415},
		{"gRPC-Web", []string{"Content-Type: application/grpc-web+proto"}, 415},
		{"no media type", []string{"Content-Type: ;;"}, 415},
		{"compressed", []string{"Content-Type: application/json", "Content-Encoding: gzip"}, 415},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got := send(t, http.MethodPost, "http://"+addr+"/v1/orders", order, test.headers...)
			if got.status != test.status {
				t.Fatalf("answered with %d %s, want %d", got.status, got.body, test.status)
			}
			if test.status != http.StatusUnsupportedMediaType {
				return
			}
			f := got.failure(t)
			if f.Code != int(codes.InvalidArgument) || f.reason() != "UNSUPPORTED_MEDIA_TYPE" ||
				!strings.Contains(f.Message, "send Content-Type: application/json") || got.header.Get("Accept") != "application/json" {
				t.Errorf("answered with Accept %q and %s", got.header.Get("Accept"), got.body)
			}
		})
	}
	for _, call := range []string{"GET /v1/inventory", "POST /v1/orders/" + storedOrder + ":cancel"} { // no body: nothing to be read
		method, path, _ := strings.Cut(call, " ")
		if got := send(t, method, "http://"+addr+path, "", "Content-Type: text/plain"); got.status == http.StatusUnsupportedMediaType {
			t.Errorf("%s without a body: %d %s", call, got.status, got.body)
		}
	}
}

func TestREST_EveryAnswerHasSecurityHeaders(t *testing.T) {
	t.Parallel()
	_, addr := serveAPI(t, published, orderServer{})
	for _, call := range []string{
		"POST /v1/orders", "GET /v1/orders/" + storedOrder, "GET /v1/orders/" + missingOrder, "GET /v1/orders/" + brokenOrder,
		"GET /v1/orders", "GET /nothing", "DELETE /v1/orders", "OPTIONS /v1/orders", "GET /", "GET /openapi.json", "GET /v1/inventory",
	} {
		method, path, _ := strings.Cut(call, " ")
		body := ""
		if method == http.MethodPost {
			body = order
		}
		got := send(t, method, "http://"+addr+path, body, "Origin: https://elsewhere.example", "Access-Control-Request-Method: POST")
		for name, want := range map[string]string{
			"X-Content-Type-Options":       "nosniff",
			"Referrer-Policy":              "no-referrer",
			"X-Frame-Options":              "DENY",
			"Cross-Origin-Opener-Policy":   "same-origin",
			"Cross-Origin-Resource-Policy": "same-origin",
			"Strict-Transport-Security":    "", // without TLS it would be ignored
			"Access-Control-Allow-Origin":  "",
		} {
			if value := got.header.Get(name); value != want {
				t.Errorf("%s: %s is %q, want %q", call, name, value, want)
			}
		}
		policy := got.header.Get("Content-Security-Policy")
		if !strings.Contains(policy, "default-src 'none'") || !strings.Contains(policy, "frame-ancestors 'none'") {
			t.Errorf("%s: Content-Security-Policy is %q", call, policy)
		}
		if strings.HasPrefix(path, "/v1/") && got.header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: Cache-Control is %q", call, got.header.Get("Cache-Control"))
		}
	}
}

// rawCodec sends bytes as they are.
type rawCodec struct{}

func (rawCodec) Name() string                       { return "proto" }
func (rawCodec) Marshal(v any) ([]byte, error)      { return v.([]byte), nil }
func (rawCodec) Unmarshal(data []byte, v any) error { *v.(*[]byte) = data; return nil }

var _ encoding.Codec = rawCodec{}

func TestGRPC_WhatTheLibraryRefusesHasAReasonToo(t *testing.T) {
	t.Parallel()
	_, addr := serveAPI(t, nothingPublished(t), orderServer{})
	conn := client(t, addr)
	large, err := proto.Marshal(&checkoutv1.PlaceOrderRequest{CustomerName: strings.Repeat("x", ingress.MaxBody)})
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, method string
		request      []byte
		code         codes.Code
		reason       string
	}{
		{"larger than 1 MiB", checkoutv1.CheckoutService_PlaceOrder_FullMethodName, large, codes.ResourceExhausted, "RESOURCE_EXHAUSTED"},
		{"no protobuf", checkoutv1.CheckoutService_PlaceOrder_FullMethodName, []byte("hello"), codes.InvalidArgument, "INVALID_PROTOBUF"},
		{"no protobuf to a call that is forwarded", inventoryv1.InventoryService_ListItems_FullMethodName, []byte("hello"), codes.InvalidArgument, "INVALID_PROTOBUF"},
		{"unknown method", "/shop.order.v1.OrderService/NoSuchCall", nil, codes.Unimplemented, "UNIMPLEMENTED"},
		{"unknown service", "/shop.parcel.v1.ParcelService/Send", nil, codes.Unimplemented, "UNIMPLEMENTED"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var reply []byte
			err := conn.Invoke(t.Context(), test.method, test.request, &reply, grpc.ForceCodec(rawCodec{}))
			if status.Code(err) != test.code || apierror.ReasonOf(err) != test.reason {
				t.Errorf("%v, reason %q; want %v, %q", err, apierror.ReasonOf(err), test.code, test.reason)
			}
		})
	}
	stream, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true}, loggingv1.EventLogService_StreamEvents_FullMethodName)
	if err == nil {
		err = stream.RecvMsg(&loggingv1.StreamEventsResponse{})
	}
	if status.Code(err) != codes.Unimplemented || apierror.ReasonOf(err) != "UNIMPLEMENTED" {
		t.Errorf("a stream of a service that is not there: %v, reason %q", err, apierror.ReasonOf(err))
	}
}
