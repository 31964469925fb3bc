package server

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"google.golang.org/grpc"

	"shop.example/gateway/ingress"
	orderv1 "shop.example/gen/shop/order/v1"
)

func TestCORS_PagesOfListedOriginsMayCall(t *testing.T) {
	t.Parallel()
	addr := backend(t, func(s grpc.ServiceRegistrar) { orderv1.RegisterOrderServiceServer(s, orderServer{}) })
	const listed, other = "https://app.example.org", "https://elsewhere.example"
	g := startGateway(t, Config{OrderAddr: addr, Ingress: ingress.Config{
		Origins: []string{listed, "http://localhost:5173"}, RateLimit: ingress.RateLimit{PerSecond: 0.01, Burst: 4},
	}})
	path := "http://" + g.HTTPAddr() + "/v1/orders/" + storedOrder
	ask := func(origin, method, headers string) answer {
		return send(t, http.MethodOptions, path+":cancel", "", "Origin: "+origin, "Access-Control-Request-Method: "+method, "Access-Control-Request-Headers: "+headers)
	}
	const allowed = "Access-Control-Allow-Origin"
	for _, method := range []string{"POST", "PATCH", "DELETE"} {
		got := ask(listed, method, "authorization,content-type,idempotency-key,if-match,prefer")
		if got.status != http.StatusNoContent || got.header.Get(allowed) != listed || got.header.Get("Access-Control-Allow-Methods") != method || got.header.Get("Access-Control-Max-Age") != "600" {
			t.Errorf("%s may not be sent: %d %v", method, got.status, got.header)
		}
		if got.header.Get("Access-Control-Allow-Credentials") != "" {
			t.Errorf("credentials of the browser are wanted: %v", got.header)
		}
	}
	for what, got := range map[string]answer{
		"another origin": ask(other, "POST", "content-type"), "no origin": ask("null", "POST", "content-type"),
		"a longer name": ask(listed+".evil.example", "POST", "content-type"), "another scheme": ask("http://app.example.org", "POST", "content-type"),
		"another method": ask(listed, "PUT", "content-type"), "another header": ask(listed, "POST", "x-forwarded-for"),
	} {
		if got.header.Get(allowed) != "" {
			t.Errorf("%s is allowed: %v", what, got.header)
		}
	}
	connect := ask(listed, "POST", "connect-protocol-version,connect-timeout-ms,content-type")
	grpcWeb := ask(listed, "POST", "content-type,grpc-timeout,x-grpc-web,x-user-agent")
	for protocol, got := range map[string]answer{"Connect": connect, "gRPC-Web": grpcWeb} {
		if got.header.Get(allowed) != listed {
			t.Errorf("%s may not be sent: %d %v", protocol, got.status, got.header)
		}
	}
	cancel := func(origin string) answer {
		return send(t, http.MethodPost, path+":cancel", "{}", "Origin: "+origin, "Sec-Fetch-Site: cross-site", "Content-Type: application/json")
	}
	if got := cancel(listed); got.status == http.StatusForbidden || got.header.Get(allowed) != listed {
		t.Errorf("a listed origin: %d %s %v", got.status, got.body, got.header)
	}
	if got := cancel(other); got.status != http.StatusForbidden || got.failure(t).reason() != "CROSS_ORIGIN" || got.header.Get(allowed) != "" {
		t.Errorf("another origin: %d %s %v", got.status, got.body, got.header)
	}
	read := send(t, http.MethodGet, path, "", "Origin: "+listed)
	if exposed := read.header.Get("Access-Control-Expose-Headers"); read.status != http.StatusOK || !strings.Contains(exposed, "Etag") || !strings.Contains(exposed, "Retry-After") || !strings.Contains(exposed, "Grpc-Status-Details-Bin") || read.header.Get("Vary") == "" {
		t.Errorf("reading: %d %v", read.status, read.header)
	}
	// What is refused can be read by the page, too: it has to know when to come again.
	send(t, http.MethodGet, path, "")
	if got := send(t, http.MethodGet, path, "", "Origin: "+listed); got.status != http.StatusTooManyRequests || got.header.Get(allowed) != listed {
		t.Errorf("beyond the limit: %d %v", got.status, got.header)
	}
}

func TestCORS_WithoutAListNoPageOfAnotherSiteMayCall(t *testing.T) {
	t.Parallel()
	_, addr := serveAPI(t, published, orderServer{})
	got := send(t, http.MethodOptions, "http://"+addr+"/v1/orders", "", "Origin: https://app.example.org", "Access-Control-Request-Method: POST")
	if got.status != http.StatusMethodNotAllowed || got.header.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("%d %v", got.status, got.header)
	}
}

func TestCORS_OriginsThatAreNoneAreRefusedAtStart(t *testing.T) {
	t.Parallel()
	for _, origin := range []string{"*", "https://*.example.org", "app.example.org", "https://app.example.org/path", ""} {
		cfg := Config{AMQPURL: "amqp://guest:guest@" + nowhere + "/", HTTPAddr: "127.0.0.1:0", AdminAddr: "127.0.0.1:0", Currency: "USD", Ingress: ingress.Config{Origins: []string{origin}}}
		if _, err := New(t.Context(), cfg, newTelemetry(t, io.Discard)); err == nil || !strings.Contains(err.Error(), "CORS_ALLOWED_ORIGINS") {
			t.Errorf("%q: %v", origin, err)
		}
	}
}
