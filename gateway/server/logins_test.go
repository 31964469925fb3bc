package server

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"shop.example/gateway/access"
	"shop.example/gateway/access/issuertest"
	"shop.example/gateway/ingress"
	orderv1 "shop.example/gen/shop/order/v1"
	"shop.example/platform/apierror"
)

// metrics reads a gateway's metrics.
func (g *gateway) metrics(t *testing.T) string {
	t.Helper()
	res, err := http.Get("http://" + g.AdminAddr() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// Wrong tokens could be tried as often as one liked, and nobody noticed.
func TestLogins_ThatFailAreLimitedCountedAndLoggedWithoutTheToken(t *testing.T) {
	t.Parallel()
	order := backend(t, func(s grpc.ServiceRegistrar) { orderv1.RegisterOrderServiceServer(s, orderServer{}) })
	g := startGateway(t, Config{OrderAddr: order, Ingress: ingress.Config{RateLimit: ingress.RateLimit{TrustedProxies: 1}}}) // no RATE_LIMIT
	const guess = "a-token-that-was-guessed"
	orders := orderv1.NewOrderServiceClient(client(t, g.HTTPAddr()))
	overGRPC := func(from, token string) error {
		ctx := metadata.AppendToOutgoingContext(t.Context(), "x-forwarded-for", from, "authorization", "Bearer "+token)
		_, err := orders.ListOrders(ctx, &orderv1.ListOrdersRequest{})
		return err
	}
	overREST := func(from, token string) answer {
		return send(t, http.MethodGet, "http://"+g.HTTPAddr()+"/v1/orders", "", "X-Forwarded-For: "+from, "Authorization: Bearer "+token)
	}
	// The operator has been here, behind the same proxy as the stranger is.
	if got := overREST("192.0.2.1", operatorToken); got.status != http.StatusOK {
		t.Fatalf("%d %s", got.status, got.body)
	}
	// exhaust sends wrong tokens until they are not looked at any more, over gRPC and REST in turns.
	looked := 0
	exhaust := func(from string) {
		t.Helper()
		for n := 0; ; n++ {
			reason := ""
			if n%2 == 0 {
				reason = apierror.ReasonOf(overGRPC(from, guess))
			} else {
				got := overREST(from, guess)
				if reason = got.failure(t).reason(); got.status == http.StatusTooManyRequests && got.header.Get("Retry-After") == "" {
					t.Errorf("%v", got.header)
				}
			}
			switch {
			case reason == "TOO_MANY_FAILED_LOGINS" && n >= 20:
				return
			case reason != "OPERATOR_TOKEN_INVALID" || n > 1000:
				t.Fatalf("wrong token %d: %s", n, reason)
			}
			looked++
		}
	}
	exhaust("192.0.2.1")
	// Who has not been here before is not let in with the right one, either: it may have been found by trying. One more
	// is looked at each second, so on a slow machine it takes another try.
	for n := 10; ; n++ {
		from := "192.0.2." + strconv.Itoa(n)
		exhaust(from)
		if err := overGRPC(from, operatorToken); status.Code(err) == codes.ResourceExhausted {
			break
		} else if n == 20 {
			t.Errorf("the right token after many wrong ones: %v", err)
			break
		}
	}
	if err := overGRPC("192.0.2.1", operatorToken); err != nil {
		t.Errorf("the operator is locked out by a stranger at the same address: %v", err)
	}
	if got := overREST("192.0.2.3", operatorToken); got.status != http.StatusOK {
		t.Errorf("another address: %d %s", got.status, got.body)
	}
	if got := send(t, http.MethodGet, "http://"+g.HTTPAddr()+"/v1/orders/"+storedOrder, "", "X-Forwarded-For: 192.0.2.1"); got.status != http.StatusOK {
		t.Errorf("a call without a token: %d %s", got.status, got.body)
	}

	log, metrics := g.log.String(), g.metrics(t)
	if n := strings.Count(log, `"login failed"`); n != looked {
		t.Errorf("%d failed logins are logged, of %d", n, looked)
	}
	for _, part := range []string{`"reason":"OPERATOR_TOKEN_INVALID"`, `"address":"192.0.2.1"`, `"method":"/shop.order.v1.OrderService/ListOrders"`} {
		if !strings.Contains(log, part) {
			t.Errorf("the log does not say %s", part)
		}
	}
	for _, part := range []string{guess, operatorToken} {
		if strings.Contains(log, part) || strings.Contains(metrics, part) {
			t.Errorf("the token %q is written down", part)
		}
	}
	for _, reason := range []string{"OPERATOR_TOKEN_INVALID", "TOO_MANY_FAILED_LOGINS"} {
		if !strings.Contains(metrics, `gateway_logins_failed_total{`) || !strings.Contains(metrics, `reason="`+reason+`"`) {
			t.Errorf("the metrics do not count %s", reason)
		}
	}
}

// Customers behind the address of somebody who sent wrong tokens were refused: until their second call, and whenever
// their last one was a minute ago.
func TestLogins_ACustomerIsNotLockedOutByAStrangerAtTheSameAddress(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t)
	g := startOIDCGateway(t, access.OIDC{Issuer: i.URL})
	list := func(from, token string) answer {
		return send(t, http.MethodGet, "http://"+g.HTTPAddr()+"/v1/orders", "", "X-Forwarded-For: "+from, "Authorization: Bearer "+token)
	}
	token := i.Token(t, map[string]any{"roles": []string{"customer"}})
	const office, elsewhere = "192.0.2.1", "192.0.2.2"
	if got := list(office, token); got.status != http.StatusOK {
		t.Fatalf("%d %s", got.status, got.body)
	}
	for _, from := range []string{office, elsewhere} {
		for n := 0; list(from, "a.wrong.token").status != http.StatusTooManyRequests; n++ {
			if n > 1000 {
				t.Fatal("wrong tokens are not limited")
			}
		}
	}
	if got := list(office, token); got.status != http.StatusOK {
		t.Errorf("the customer: %d %s", got.status, got.body)
	}
	// The token was accepted, but not here. One more is looked at each second, so on a slow machine it takes another try.
	for n := 0; list(elsewhere, i.Token(t, map[string]any{"sub": fmt.Sprint(n)})).status != http.StatusTooManyRequests; n++ {
		if n > 100 {
			t.Fatal("tokens that were not accepted before are looked at after many wrong ones")
		}
	}
}

// Each call was let in before any of them had failed: as many tokens could be tried at once as there may be calls.
func TestLogins_TokensOfCallsThatComeInTogetherAreNotAllLookedAt(t *testing.T) {
	t.Parallel()
	g := startGateway(t, Config{})
	const calls = 100
	open := make([]net.Conn, calls)
	for i := range open {
		conn, err := net.Dial("tcp", g.HTTPAddr())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(testTimeout))
		token := fmt.Sprintf("a-token-that-was-guessed-%d", i)
		if i == calls-1 {
			token = operatorToken
		}
		fmt.Fprintf(conn, "POST /v1/customers:export HTTP/1.1\r\nHost: shop\r\nContent-Type: application/json\r\nAuthorization: Bearer %s\r\nContent-Length: 2\r\n\r\n{", token)
		open[i] = conn
	}
	<-time.After(soon) // until all have come in; one that has not makes the test easier, and no other
	looked := 0
	for i, conn := range open { // one after the other: the right one comes last
		fmt.Fprint(conn, "}")
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		if res.StatusCode != http.StatusTooManyRequests {
			looked++
			if i == calls-1 {
				t.Errorf("the right one after many wrong ones: %s", res.Status)
			}
		}
		_ = res.Body.Close()
	}
	if most := 20 + int(testTimeout.Seconds()); looked > most {
		t.Errorf("%d tokens were looked at", looked)
	}
}

func TestLogins_ATokenThatDoesNotGiveTheRoleIsOneToo(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t)
	g := startOIDCGateway(t, access.OIDC{Issuer: i.URL})
	token := i.Token(t, map[string]any{"roles": []string{"customer"}})
	if code, reason := tryOperatorCall(t, g, token); code != codes.PermissionDenied || reason != "ROLE_REQUIRED" {
		t.Fatalf("%v %s", code, reason)
	}
	if log := g.log.String(); strings.Count(log, `"reason":"ROLE_REQUIRED"`) != 2 || strings.Contains(log, token) || strings.Contains(log, `"ada"`) {
		t.Errorf("the log says %s", log)
	}
	// An issuer that is away is nobody's failure.
	other := issuertest.Start(t)
	other.SetDown(true)
	g = startOIDCGateway(t, access.OIDC{Issuer: other.URL, JWKSURL: other.URL + "/keys"})
	if code, _ := tryOperatorCall(t, g, other.Token(t, nil)); code != codes.Unavailable {
		t.Fatalf("%v", code)
	}
	if log := g.log.String(); strings.Contains(log, "login failed") {
		t.Errorf("the log says %s", log)
	}
}
