package server

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/metric/noop"
	"google.golang.org/grpc"

	"shop.example/gateway/access"
	"shop.example/gateway/ingress"
	"shop.example/gateway/intake"
	checkoutv1 "shop.example/gen/shop/checkout/v1"
	inventoryv1 "shop.example/gen/shop/inventory/v1"
	orderv1 "shop.example/gen/shop/order/v1"
)

func TestPage_IsForBrowsersAndMayLoadItsOwnFilesOnly(t *testing.T) {
	t.Parallel()
	_, addr := serveAPI(t, nothingPublished(t), orderServer{})
	front := send(t, http.MethodGet, "http://"+addr+"/", "", "Accept: text/html,application/xhtml+xml;q=0.9,*/*;q=0.8")
	if front.status != http.StatusOK || !strings.HasPrefix(front.header.Get("Content-Type"), "text/html") || front.header.Get("Vary") != "Accept" {
		t.Errorf("the page: %d %v", front.status, front.header)
	}
	// The inventory service is away here: the page is there all the same, and says so.
	if !strings.Contains(front.body, "The catalogue is unavailable") || !strings.Contains(front.body, `name="customer_email"`) {
		t.Errorf("the page:\n%s", front.body)
	}
	if figures := send(t, http.MethodGet, "http://"+addr+"/catalogue", ""); figures.status != http.StatusServiceUnavailable || !strings.Contains(figures.body, "is unavailable") {
		t.Errorf("its figures: %d %s", figures.status, figures.body)
	}
	policy := front.header.Get("Content-Security-Policy")
	for _, directive := range []string{"default-src 'none'", "script-src 'self'", "style-src 'self'", "form-action 'self'", "frame-ancestors 'none'", "require-trusted-types-for 'script'"} {
		if !strings.Contains(policy, directive) {
			t.Errorf("the policy lacks %s: %s", directive, policy)
		}
	}
	if strings.Contains(policy, "unsafe") || front.header.Get("Cache-Control") != "no-store" || front.header.Get("Referrer-Policy") != "no-referrer" || front.header.Get("Set-Cookie") != "" {
		t.Errorf("headers: %v", front.header)
	}
}

// imported is what the page and its modules load.
var imported = regexp.MustCompile(`(?:src|href)="/page/([^"]+)"|(?:from|import\() ?'\./([^']+)'`)

func TestPage_EveryFileThatItNamesIsThereAndKeptUntilItChanges(t *testing.T) {
	t.Parallel()
	_, addr := serveAPI(t, nothingPublished(t), orderServer{})
	base := "http://" + addr
	seen := map[string]bool{}
	unread := []string{send(t, http.MethodGet, base+"/", "", "Accept: text/html").body}
	for len(unread) > 0 {
		text := unread[0]
		unread = unread[1:]
		for _, found := range imported.FindAllStringSubmatch(text, -1) {
			name := found[1] + found[2]
			if seen[name] {
				continue
			}
			seen[name] = true
			file := send(t, http.MethodGet, base+"/page/"+name, "")
			if file.status != http.StatusOK || file.header.Get("Cache-Control") != "no-cache" {
				t.Errorf("%s: %d %v", name, file.status, file.header)
			}
			again := send(t, http.MethodGet, base+"/page/"+name, "", "If-None-Match: "+file.header.Get("ETag"))
			if again.status != http.StatusNotModified || again.body != "" {
				t.Errorf("%s once more: %d %q", name, again.status, again.body)
			}
			unread = append(unread, file.body)
		}
	}
	if len(seen) < 10 {
		t.Errorf("the page loads %v", seen)
	}
	for _, path := range []string{"/page/none.js", "/page/", "/page/../page.go"} {
		if got := send(t, http.MethodGet, base+path, ""); got.status != http.StatusNotFound {
			t.Errorf("GET %s: %d", path, got.status)
		}
	}
}

// emptyInventory has no products.
type emptyInventory struct {
	inventoryv1.UnimplementedInventoryServiceServer
}

func (emptyInventory) ListItems(context.Context, *inventoryv1.ListItemsRequest) (*inventoryv1.ListItemsResponse, error) {
	return &inventoryv1.ListItemsResponse{}, nil
}

// A token that is not UTF-8 was an internal error, with a line in the log for each call.
func TestPage_ATokenOfNoPageOfTheCatalogueIsTheClientsError(t *testing.T) {
	t.Parallel()
	g := startGateway(t, Config{InventoryAddr: backend(t, func(s grpc.ServiceRegistrar) { inventoryv1.RegisterInventoryServiceServer(s, emptyInventory{}) })})
	front := send(t, http.MethodGet, "http://"+g.HTTPAddr()+"/?page_token=%ff", "", "Accept: text/html")
	if front.status != http.StatusOK || strings.Contains(front.body, `name="page_token"`) {
		t.Errorf("the page is not the first one: %d\n%s", front.status, front.body)
	}
	if got := send(t, http.MethodGet, "http://"+g.HTTPAddr()+"/catalogue?page_token=%ff", ""); got.status != http.StatusBadRequest || !strings.Contains(got.body, "no such page") {
		t.Errorf("its figures: %d %s", got.status, got.body)
	}
	for _, path := range []string{"/orders/%ff", "/shared/%ff", "/page/%ff"} {
		if got := send(t, http.MethodGet, "http://"+g.HTTPAddr()+path, ""); got.status != http.StatusNotFound {
			t.Errorf("%s: %d %s", path, got.status, got.body)
		}
	}
	if log := g.log.String(); strings.Contains(log, `"level":"ERROR"`) {
		t.Error(log)
	}
}

func TestPage_OfAnOrderSaysHowItStands(t *testing.T) {
	t.Parallel()
	_, addr := serveAPI(t, nothingPublished(t), orderServer{})
	for order, want := range map[string]struct {
		status int
		text   string
		again  bool // whether the browser is to look again
	}{
		storedOrder:  {http.StatusOK, "Your order is confirmed", false},
		pendingOrder: {http.StatusOK, "Checking stock…", true},
		missingOrder: {http.StatusNotFound, "There is no order with this id", false},
		lockedOrder:  {http.StatusServiceUnavailable, "cannot say at the moment", true},
		brokenOrder:  {http.StatusServiceUnavailable, "cannot say at the moment", true},
		"1":          {http.StatusNotFound, "no order with this address", false},
	} {
		got := send(t, http.MethodGet, "http://"+addr+"/orders/"+order, "")
		text := strings.ReplaceAll(got.body, "'", "&#39;")
		if got.status != want.status || !strings.Contains(text, want.text) || strings.Contains(text, `http-equiv="refresh"`) != want.again {
			t.Errorf("%s: %d\n%s", order, got.status, got.body)
		}
	}
}

// A confirmed order, or one that somebody made up, was said to be accepted and queued while the order service was away.
func TestPage_OfAnOrderThatCannotBeReadPromisesNothing(t *testing.T) {
	t.Parallel()
	order := backend(t, func(s grpc.ServiceRegistrar) { orderv1.RegisterOrderServiceServer(s, orderServer{}) })
	const secret = "a secret of the tests"
	g := startGateway(t, Config{OrderAddr: order, IDSecret: secret})
	away := startGateway(t, Config{IDSecret: secret})
	var shared struct {
		Token string `json:"share_token"`
	}
	share := send(t, http.MethodPost, "http://"+g.HTTPAddr()+"/v1/orders/"+storedOrder+":share", "{}")
	if err := json.Unmarshal([]byte(share.body), &shared); err != nil || shared.Token == "" {
		t.Fatalf("%v: %d %s", err, share.status, share.body)
	}
	for _, path := range []string{"/orders/" + storedOrder, "/shared/" + shared.Token} {
		got := send(t, http.MethodGet, "http://"+away.HTTPAddr()+path, "")
		if got.status != http.StatusServiceUnavailable || strings.Contains(got.body, "PENDING") || !strings.Contains(got.body, "cannot say at the moment") {
			t.Errorf("%s: %d\n%s", path, got.status, got.body)
		}
	}
}

func TestPage_OfAShopForCustomersSaysThatItIs(t *testing.T) {
	t.Parallel()
	tel := newTelemetry(t, io.Discard)
	a := newAPI(grpc.NewServer(), testOperators, tel)
	if _, err := a.access.ConfigureOIDC(access.OIDC{Issuer: "https://login.example.org", Audience: "shop", RequireCustomer: true}, tel.Logger, noop.Meter{}); err != nil {
		t.Fatal(err)
	}
	checkoutv1.RegisterCheckoutServiceServer(a, intake.NewCheckout(nil, nil))
	orderv1.RegisterOrderServiceServer(a, orderServer{})
	inventoryv1.RegisterInventoryServiceServer(a, emptyInventory{})
	rest := serveREST(t, a, nil, tel)
	server := httptest.NewServer(&ingress.Ingress{REST: rest})
	t.Cleanup(server.Close)
	for call, form := range map[string]string{"GET /orders/" + storedOrder: "", "POST /orders": "customer_name=Ada&customer_email=ada@example.org&quantity.5=3"} {
		method, path, _ := strings.Cut(call, " ")
		got := send(t, method, server.URL+path, form, "Content-Type: application/x-www-form-urlencoded")
		if got.status != http.StatusUnauthorized || !strings.Contains(got.body, "this call is for customers") {
			t.Errorf("%s: %d\n%s", call, got.status, got.body)
		}
	}
	// The page said that the catalogue was down.
	const notice = "takes calls of customers with a token only"
	if got := send(t, http.MethodGet, server.URL+"/", "", "Accept: text/html"); got.status != http.StatusOK || !strings.Contains(got.body, notice) || strings.Contains(got.body, "unavailable") {
		t.Errorf("the page: %d\n%s", got.status, got.body)
	}
	got := send(t, http.MethodGet, server.URL+"/catalogue", "")
	if got.status != http.StatusUnauthorized || !strings.Contains(got.body, notice) || got.header.Get("WWW-Authenticate") == "" {
		t.Errorf("the catalogue: %d %s", got.status, got.body)
	}
}

func TestPage_AFormOfMadeUpFieldsIsRefusedAndNotShownAgain(t *testing.T) {
	t.Parallel()
	_, addr := serveAPI(t, published, orderServer{})
	post := func(lines int, more string) answer {
		t.Helper()
		form := strings.Builder{}
		form.WriteString("customer_name=Ada&customer_email=ada@example.org" + more)
		for i := range lines {
			fmt.Fprintf(&form, "&quantity.%d=1", 1000+i)
		}
		return send(t, http.MethodPost, "http://"+addr+"/orders", form.String(), "Content-Type: application/x-www-form-urlencoded")
	}
	for name, test := range map[string]struct {
		lines int
		more  string
		want  int
	}{
		"an order":                  {100, "", http.StatusSeeOther},
		"more than an order has":    {101, "", http.StatusUnprocessableEntity},
		"thousands of lines":        {9_990, "", http.StatusRequestEntityTooLarge},
		"something that is refused": {100, "&quantity.5=%26%26", http.StatusUnprocessableEntity},
		"a long name":               {1, "&customer_name=" + strings.Repeat("%26", 5_000), http.StatusSeeOther}, // the first one counts
		"a very long name":          {1, strings.Repeat("&customer_name=%26", 1_000), http.StatusRequestEntityTooLarge},
	} {
		got := post(test.lines, test.more)
		if got.status != test.want || len(got.body) > 100_000 {
			t.Errorf("%s: %d with %d bytes\n%.200s", name, got.status, len(got.body), got.body)
		}
	}
}

// It was answered with 500: the API's own ways of reading a request refuse such text, and the form has another.
func TestPage_AFormThatIsNotUTF8IsRefused(t *testing.T) {
	t.Parallel()
	_, addr := serveAPI(t, published, orderServer{})
	for _, form := range []string{
		"customer_name=%ff%fe&customer_email=ada@example.org&quantity.5=1",
		"customer_name=Ada&customer_email=ada%ff@example.org&quantity.5=1",
		"customer_name=Ada&customer_email=ada@example.org&quantity.5=1&idempotency_key=%ff",
		"customer_name=Ada&customer_email=ada@example.org&quantity.5=1&price.5=1+%ff",
		"customer_name=Ada&customer_email=ada@example.org&quantity.5=%ff",
	} {
		got := send(t, http.MethodPost, "http://"+addr+"/orders", form, "Content-Type: application/x-www-form-urlencoded")
		if got.status != http.StatusBadRequest && got.status != http.StatusUnprocessableEntity {
			t.Errorf("%s: %d\n%.200s", form, got.status, got.body)
		}
	}
}

func TestPage_AFormOfAnotherSiteIsRefused(t *testing.T) {
	t.Parallel()
	_, addr := serveAPI(t, published, orderServer{})
	const form = "customer_name=Ada&customer_email=ada@example.org&quantity.5=3"
	for _, test := range []struct {
		headers []string
		comesIn bool
	}{
		{nil, true}, // no browser
		{[]string{"Sec-Fetch-Site: same-origin", "Origin: https://shop.example"}, true}, // whatever a proxy has made of Host
		{[]string{"Sec-Fetch-Site: none"}, true},
		{[]string{"Origin: http://" + addr}, true},
		{[]string{"Sec-Fetch-Site: cross-site", "Origin: https://elsewhere.example"}, false},
		{[]string{"Sec-Fetch-Site: same-site", "Origin: https://blog.shop.example"}, false},
		{[]string{"Origin: https://elsewhere.example"}, false}, // an older browser
		{[]string{"Origin: null"}, false},
	} {
		for _, call := range []struct{ path, body, kind string }{
			{"/orders", form, "application/x-www-form-urlencoded"},
			{"/v1/orders", order, "application/json"},
			{"/v1/orders", order, ""}, // which a browser sends without asking first
			{"/intermediary/order", sampleOrder, ""},
		} {
			headers := test.headers
			if call.kind != "" {
				headers = append([]string{"Content-Type: " + call.kind}, headers...)
			}
			got := send(t, http.MethodPost, "http://"+addr+call.path, call.body, headers...)
			if test.comesIn != (got.status < 400) || !test.comesIn && (got.status != http.StatusForbidden || got.failure(t).reason() != "CROSS_ORIGIN") {
				t.Errorf("POST %s with %q: %d %s", call.path, headers, got.status, got.body)
			}
		}
		if got := send(t, http.MethodGet, "http://"+addr+"/orders/"+storedOrder, "", test.headers...); got.status != http.StatusOK {
			t.Errorf("following a link with %q: %d", test.headers, got.status)
		}
	}
}
