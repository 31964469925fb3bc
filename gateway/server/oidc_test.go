package server

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"shop.example/domain/enduser"
	"shop.example/gateway/access"
	"shop.example/gateway/access/issuertest"
	"shop.example/gateway/ingress"
	orderv1 "shop.example/gen/shop/order/v1"
	statusv1 "shop.example/gen/shop/status/v1"
	"shop.example/platform/apierror"
)

// issuerBurst is how often tokens make the gateway ask the issuer at once.
const issuerBurst = 5

// tryOperatorCall asks for the status over REST and over gRPC, and checks that both are answered alike. It returns the code and
// the reason.
func tryOperatorCall(t *testing.T, g *gateway, token string) (codes.Code, string) {
	t.Helper()
	// Each token comes from an address of its own: only so many may be wrong from one.
	sum := crc32.ChecksumIEEE([]byte(token))
	from := fmt.Sprintf("10.%d.%d.%d", byte(sum>>16), byte(sum>>8), byte(sum))
	ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+token, "x-forwarded-for", from)
	_, err := statusv1.NewStatusServiceClient(client(t, g.HTTPAddr())).GetStatus(ctx, &statusv1.GetStatusRequest{})
	got := send(t, http.MethodGet, "http://"+g.HTTPAddr()+"/v1/status", "", "Authorization: Bearer "+token, "X-Forwarded-For: "+from)
	if err == nil {
		if got.status != http.StatusOK {
			t.Errorf("allowed over gRPC, over REST: %d %s", got.status, got.body)
		}
		return codes.OK, ""
	}
	f := got.failure(t)
	want := map[codes.Code]int{codes.Unauthenticated: 401, codes.PermissionDenied: 403, codes.Unavailable: 503}[status.Code(err)]
	if got.status != want || f.reason() != apierror.ReasonOf(err) || f.Message != status.Convert(err).Message() {
		t.Errorf("over gRPC: %v %s; over REST: %d %s", err, apierror.ReasonOf(err), got.status, got.body)
	}
	for _, secret := range []string{token, "10.0.0.9", "127.0.0.1", "oidc", "http:"} {
		if strings.Contains(got.body+err.Error(), secret) {
			t.Errorf("an answer tells %q: %s", secret, got.body)
		}
	}
	return status.Code(err), apierror.ReasonOf(err)
}

func startOIDCGateway(t *testing.T, cfg access.OIDC) *gateway {
	t.Helper()
	order := backend(t, func(s grpc.ServiceRegistrar) { orderv1.RegisterOrderServiceServer(s, orderServer{}) })
	cfg.Audience = "shop"
	if cfg.RolesClaim == "" {
		cfg.RolesClaim = "roles"
	}
	return startGateway(t, Config{OrderAddr: order, Ingress: ingress.Config{OIDC: cfg, RateLimit: ingress.RateLimit{TrustedProxies: 1}}})
}

func TestOIDC_WhoseTokensAreLetIn(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t)
	g := startOIDCGateway(t, access.OIDC{Issuer: i.URL})
	stranger := issuertest.Start(t)
	ours := i.PublicKey()
	public, err := ours.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	good := i.Token(t, nil)
	header, rest, _ := strings.Cut(good, ".")
	_, signature, _ := strings.Cut(rest, ".")
	forged, _ := json.Marshal(i.Claims(map[string]any{"sub": "eve"}))
	none := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`))
	payload := base64.RawURLEncoding.EncodeToString(forged)
	stranger.Rotate(t, "first") // the same name, another key
	tests := []struct {
		name, token string
		code        codes.Code
		reason      string
	}{
		{"an operator", good, codes.OK, ""},
		{"an operator, again", good, codes.OK, ""},
		{"several audiences", i.Token(t, map[string]any{"aud": []string{"other", "shop"}}), codes.OK, ""},
		{"one role that is no list", i.Token(t, map[string]any{"roles": "operator"}), codes.OK, ""},
		{"the operator token", operatorToken, codes.OK, ""},
		{"a customer", i.Token(t, map[string]any{"roles": []string{"customer"}}), codes.PermissionDenied, "ROLE_REQUIRED"},
		{"no role", i.Token(t, map[string]any{"roles": nil}), codes.PermissionDenied, "ROLE_REQUIRED"},
		{"roles that are no text", i.Token(t, map[string]any{"roles": 7}), codes.PermissionDenied, "ROLE_REQUIRED"},
		{"expired", i.Token(t, map[string]any{"exp": time.Now().Add(-time.Minute).Unix()}), codes.Unauthenticated, "TOKEN_EXPIRED"},
		{"without an end", i.Token(t, map[string]any{"exp": nil}), codes.Unauthenticated, "TOKEN_INVALID"},
		{"not good yet", i.Token(t, map[string]any{"nbf": time.Now().Add(time.Hour).Unix()}), codes.Unauthenticated, "TOKEN_INVALID"},
		{"wrong issuer", i.Token(t, map[string]any{"iss": "https://elsewhere.example"}), codes.Unauthenticated, "TOKEN_INVALID"},
		{"wrong audience", i.Token(t, map[string]any{"aud": "other"}), codes.Unauthenticated, "TOKEN_INVALID"},
		{"no audience", i.Token(t, map[string]any{"aud": nil}), codes.Unauthenticated, "TOKEN_INVALID"},
		{"key of another", stranger.Token(t, map[string]any{"iss": i.URL}), codes.Unauthenticated, "TOKEN_INVALID"},
		{"without a subject", i.Token(t, map[string]any{"sub": nil}), codes.Unauthenticated, "TOKEN_INVALID"},
		{"an empty subject", i.Token(t, map[string]any{"sub": ""}), codes.Unauthenticated, "TOKEN_INVALID"},
		{"a subject that no order could keep", i.Token(t, map[string]any{"sub": strings.Repeat("a", 1000)}), codes.Unauthenticated, "TOKEN_INVALID"},
		{"a subject that nobody could tell", i.Token(t, map[string]any{"sub": "ada\u200b"}), codes.Unauthenticated, "TOKEN_INVALID"},
		{"claims that were changed", header + "." + payload + "." + signature, codes.Unauthenticated, "TOKEN_INVALID"},
		{"no signature", header + "." + payload + ".", codes.Unauthenticated, "TOKEN_INVALID"},
		{"alg none", none + "." + payload + ".", codes.Unauthenticated, "TOKEN_INVALID"},
		{"the public key as a secret", issuertest.Sign(t, jose.HS256, public, i.Claims(nil)), codes.Unauthenticated, "TOKEN_INVALID"},
		{"garbage that looks like a token", "a.b.c", codes.Unauthenticated, "TOKEN_INVALID"},
		{"garbage", "guess", codes.Unauthenticated, "OPERATOR_TOKEN_INVALID"},
	}
	for _, test := range tests {
		if code, reason := tryOperatorCall(t, g, test.token); code != test.code || reason != test.reason {
			t.Errorf("%s: %v %s, want %v %s", test.name, code, reason, test.code, test.reason)
		}
	}
	if asked := i.Questions(); asked > issuerBurst+3 {
		t.Errorf("wrong tokens made the gateway ask the issuer %d times", asked)
	}
}

func TestOIDC_ANewKeyOfTheIssuerIsFound(t *testing.T) {
	t.Parallel()
	for name, cfg := range map[string]func(*issuertest.Issuer) access.OIDC{
		"found by the issuer's word": func(i *issuertest.Issuer) access.OIDC { return access.OIDC{Issuer: i.URL} },
		"found where configured":     func(i *issuertest.Issuer) access.OIDC { return access.OIDC{Issuer: i.URL, JWKSURL: i.URL + "/keys"} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			i := issuertest.Start(t)
			g := startOIDCGateway(t, cfg(i))
			before := i.Token(t, nil)
			if code, reason := tryOperatorCall(t, g, before); code != codes.OK {
				t.Fatalf("the first key: %v %s", code, reason)
			}
			withdrawn := i.Token(t, map[string]any{"sub": "grace"})
			i.Rotate(t, "second")
			if code, reason := tryOperatorCall(t, g, i.Token(t, nil)); code != codes.OK {
				t.Errorf("the second key: %v %s", code, reason)
			}
			if code, reason := tryOperatorCall(t, g, withdrawn); code != codes.Unauthenticated || reason != "TOKEN_INVALID" {
				t.Errorf("a token of the key that was withdrawn: %v %s", code, reason)
			}
		})
	}
}

func TestOIDC_NobodyIsLetInWhileTheIssuerIsAway(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t)
	i.SetDown(true)
	g := startOIDCGateway(t, access.OIDC{Issuer: i.URL})
	token := i.Token(t, nil)
	for range 2 * issuerBurst { // also when it is no longer asked each time
		if code, reason := tryOperatorCall(t, g, token); code != codes.Unavailable || reason != "ISSUER_UNAVAILABLE" {
			t.Fatalf("while the issuer is away: %v %s", code, reason)
		}
	}
	if code, _ := tryOperatorCall(t, g, operatorToken); code != codes.OK {
		t.Errorf("the operator token does not need the issuer: %v", code)
	}
	if got := send(t, http.MethodGet, "http://"+g.HTTPAddr()+"/v1/orders/"+storedOrder, ""); got.status != http.StatusOK {
		t.Errorf("a call that is anyone's: %d %s", got.status, got.body)
	}
	if got := send(t, http.MethodGet, "http://"+g.HTTPAddr()+"/v1/orders/"+storedOrder, "", "Authorization: Bearer "+token); got.status != http.StatusServiceUnavailable {
		t.Errorf("a call that is anyone's, by somebody of whom it cannot be known: %d %s", got.status, got.body)
	}
	if !strings.Contains(g.log.String(), "the issuer of tokens does not answer") {
		t.Error("the log does not say that the issuer is away")
	}
	i.SetDown(false)
	for deadline := time.Now().Add(testTimeout); ; {
		got := send(t, http.MethodGet, "http://"+g.HTTPAddr()+"/v1/orders", "", "Authorization: Bearer "+token)
		if got.status == http.StatusOK {
			break
		}
		if got.failure(t).reason() != "ISSUER_UNAVAILABLE" || time.Now().After(deadline) {
			t.Fatalf("after the issuer came back: %d %s", got.status, got.body)
		}
	}
	i.SetDown(true)
	if code, reason := tryOperatorCall(t, g, i.Token(t, map[string]any{"sub": "grace"})); code != codes.OK {
		t.Errorf("a token of a key that is known, while the issuer is away: %v %s", code, reason)
	}
}

func TestOIDC_CallsCanBeForCustomersAlone(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t)
	g := startOIDCGateway(t, access.OIDC{Issuer: i.URL, RequireCustomer: true, RolesClaim: "realm_access.roles"})
	orders := orderv1.NewOrderServiceClient(client(t, g.HTTPAddr()))
	roles := func(roles ...string) string {
		return "Bearer " + i.Token(t, map[string]any{"realm_access": map[string]any{"roles": roles}})
	}
	for name, test := range map[string]struct {
		authorization string
		status        int
		reason        string
	}{
		"nobody":             {"", 401, "CUSTOMER_TOKEN_REQUIRED"},
		"a customer":         {roles("customer"), 200, ""},
		"an operator":        {roles("operator"), 200, ""},
		"the operator token": {"Bearer " + operatorToken, 200, ""},
		"someone else":       {roles("reader"), 403, "ROLE_REQUIRED"},
	} {
		ctx, headers := t.Context(), []string{}
		if test.authorization != "" {
			ctx = metadata.AppendToOutgoingContext(ctx, "authorization", test.authorization)
			headers = append(headers, "Authorization: "+test.authorization)
		}
		_, err := orders.GetOrder(ctx, &orderv1.GetOrderRequest{OrderId: storedOrder})
		got := send(t, http.MethodGet, "http://"+g.HTTPAddr()+"/v1/orders/"+storedOrder, "", headers...)
		if got.status != test.status || apierror.ReasonOf(err) != test.reason || (err == nil) != (test.reason == "") {
			t.Errorf("%s: %d %s; over gRPC %v", name, got.status, got.body, err)
		}
	}
	if code, reason := tryOperatorCall(t, g, strings.TrimPrefix(roles("customer"), "Bearer ")); code != codes.PermissionDenied || reason != "ROLE_REQUIRED" {
		t.Errorf("a customer asks for the status: %v %s", code, reason)
	}
}

func TestOIDC_AVerifiedTokenHasARateOfItsOwn(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t)
	order := backend(t, func(s grpc.ServiceRegistrar) { orderv1.RegisterOrderServiceServer(s, orderServer{}) })
	g := startGateway(t, Config{OrderAddr: order, Ingress: ingress.Config{
		OIDC: access.OIDC{Issuer: i.URL, Audience: "shop", RolesClaim: "roles"}, RateLimit: ingress.RateLimit{PerSecond: 0.001, Burst: 2},
	}})
	call := func(token string) int {
		return send(t, http.MethodGet, "http://"+g.HTTPAddr()+"/v1/orders", "", "Authorization: Bearer "+token).status
	}
	ada := i.Token(t, nil)
	for n, want := range []int{200, 200, 200, 429} { // the first counts for the address: whose token it is is not known yet
		if got := call(ada); got != want {
			t.Errorf("call %d: %d, want %d", n+1, got, want)
		}
	}
	if got := call(i.Token(t, map[string]any{"exp": time.Now().Add(2 * time.Hour).Unix()})); got != 200 {
		t.Errorf("the address has one call left: %d", got)
	}
	if got := call("a.b.c"); got != 429 {
		t.Errorf("a wrong token counts for the address: %d", got)
	}
}

// saysWhoCalls is an order service that answers with whom it is called for.
type saysWhoCalls struct {
	orderv1.UnimplementedOrderServiceServer
}

func (saysWhoCalls) GetOrder(ctx context.Context, _ *orderv1.GetOrderRequest) (*orderv1.GetOrderResponse, error) {
	u, external := enduser.Of(ctx)
	return &orderv1.GetOrderResponse{Order: &orderv1.Order{CustomerName: fmt.Sprintf("%s operator=%v external=%v", u.GetSubject(), u.GetOperator(), external)}}, nil
}

func (s saysWhoCalls) ListOrders(ctx context.Context, _ *orderv1.ListOrdersRequest) (*orderv1.ListOrdersResponse, error) {
	got, err := s.GetOrder(ctx, nil)
	return &orderv1.ListOrdersResponse{Orders: []*orderv1.Order{got.GetOrder()}}, err
}

func TestOIDC_ServicesKnowWhoCalls(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t)
	g := startGateway(t, Config{
		OrderAddr: backend(t, func(s grpc.ServiceRegistrar) { orderv1.RegisterOrderServiceServer(s, saysWhoCalls{}) }),
		Ingress:   ingress.Config{OIDC: access.OIDC{Issuer: i.URL, Audience: "shop", RolesClaim: "roles"}},
	})
	get := func(path string, headers ...string) answer {
		return send(t, http.MethodGet, "http://"+g.HTTPAddr()+path, "", headers...)
	}
	customer := "Authorization: Bearer " + i.Token(t, map[string]any{"sub": "4711", "roles": []string{}})
	op := "Authorization: Bearer " + i.Token(t, map[string]any{"sub": "4712"})
	for what, c := range map[string]struct {
		headers []string
		said    string
		list    int // the status of a list of orders
	}{
		"nobody":                       {nil, " operator=false external=true", http.StatusUnauthorized},
		"a token without a role":       {[]string{customer}, "4711 operator=false external=true", http.StatusOK},
		"an operator of the issuer":    {[]string{op}, "4712 operator=true external=true", http.StatusOK},
		"the operator token":           {[]string{"Authorization: Bearer " + operatorToken}, " operator=true external=true", http.StatusOK},
		"a client that says it itself": {[]string{"Shop-End-User-Bin: EAE=", "Grpc-Metadata-Shop-End-User-Bin: GAE="}, " operator=false external=true", http.StatusUnauthorized},
	} {
		if got := get("/v1/orders/"+storedOrder, c.headers...); !strings.Contains(got.body, `"`+c.said+`"`) {
			t.Errorf("%s: the order service was told %s, want %s", what, got.body, c.said)
		}
		got := get("/v1/orders", c.headers...)
		if got.status != c.list || c.list == http.StatusOK && !strings.Contains(got.body, `"`+c.said+`"`) {
			t.Errorf("%s: the list is answered with %d %s", what, got.status, got.body)
		}
	}
	// Over gRPC what a client sends as metadata does not get through either.
	ctx := metadata.AppendToOutgoingContext(t.Context(), "shop-end-user-bin", "\x18\x01")
	got, err := orderv1.NewOrderServiceClient(client(t, g.HTTPAddr())).GetOrder(ctx, &orderv1.GetOrderRequest{OrderId: storedOrder})
	if err != nil || got.GetOrder().GetCustomerName() != " operator=false external=true" {
		t.Errorf("over gRPC: %v, %v", got, err)
	}
}
