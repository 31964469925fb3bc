package server

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"shop.example/domain/orderstate"
	"shop.example/domain/text"
	"shop.example/gateway/ingress"
	checkoutv1 "shop.example/gen/shop/checkout/v1"
	intermediaryv1 "shop.example/gen/shop/intermediary/v1"
	orderv1 "shop.example/gen/shop/order/v1"
)

// nothingPublished is a broker that must not be reached.
func nothingPublished(t *testing.T) func(context.Context, proto.Message) error {
	return func(context.Context, proto.Message) error {
		t.Error("a request that is wrong was published")
		return errors.New("refused")
	}
}

// unknownIn is what is said of a field that a message does not have.
func unknownIn(m proto.Message) string {
	var names []string
	for i := range m.ProtoReflect().Descriptor().Fields().Len() {
		names = append(names, string(m.ProtoReflect().Descriptor().Fields().Get(i).Name()))
	}
	return "unknown field: this object has " + strings.Join(names, ", ")
}

func TestREST_WrongBodyNamesTheFieldInTheClientsSpelling(t *testing.T) {
	t.Parallel()
	_, addr := serveAPI(t, nothingPublished(t), orderServer{})
	const operator = "Authorization: Bearer " + operatorToken
	order := func(items string) string {
		return `{"customer_name":"A","customer_email":"a@example.com","order_items":` + items + `}`
	}
	tests := []struct {
		name string
		path string // POST /v1/orders if it is empty
		body string
		want []violation
	}{
		{"unknown field", "", `{"garbage":true}`, []violation{{"garbage", unknownIn(&checkoutv1.PlaceOrderRequest{})}}},
		{"unknown field on the demo's route", "/intermediary/order", `{"garbage":true}`, []violation{{"garbage", unknownIn(&intermediaryv1.CreateOrderRequest{})}}},
		{"unknown field further in", "", order(`[{"product_id":1,"quantity":1},{"product_id":1,"quantity":1,"colour":"red"}]`),
			[]violation{{"order_items[1].colour", unknownIn(&checkoutv1.PlaceOrderRequest_Item{})}}},
		{"all that is wrong", "", `{"customer_name":7,"customer_email":true,"order_items":[{"product_id":{},"quantity":1.5}]}`,
			[]violation{
				{"customer_name", "must be a string"}, {"customer_email", "must be a string"},
				{"order_items[0].product_id", "must be a whole number"}, {"order_items[0].quantity", "must be a whole number"},
			}},
		{"text for a number", "", order(`[{"product_id":1,"quantity":1},{"product_id":1,"quantity":"many"}]`),
			[]violation{{"order_items[1].quantity", "must be a whole number"}}},
		{"number out of range", "", order(`[{"product_id":1,"quantity":3000000000}]`),
			[]violation{{"order_items[0].quantity", "must be between -2147483648 and 2147483647"}}},
		{"price that is no number", "/intermediary/order", order(`[{"id":1,"quantity":1,"price":"cheap"}]`),
			[]violation{{"order_items[0].price", "must be a number"}}},
		{"price that is NaN", "/intermediary/order", order(`[{"id":1,"quantity":1,"price":"NaN"}]`),
			[]violation{{"order_items[0].price", "must be greater than or equal to 0 and less than or equal to 999999999999999"}}},
		{"price with three decimals", "/intermediary/order", order(`[{"id":1,"quantity":1,"price":35},{"id":1,"quantity":1,"price":35.005}]`),
			[]violation{{"order_items[1].price", "must have at most 2 decimals"}}},
		{"object for a list", "", order(`{"product_id":1}`), []violation{{"order_items", "must be an array"}}},
		{"null in a list", "", order(`[null]`), []violation{{"order_items[0]", "must be an object"}}},
		{"more items than an order may have", "", order("[{}" + strings.Repeat(",{}", 340_000) + "]"), []violation{{"order_items", "must contain no more than 100 item(s)"}}},
		{"more items than an order of the demo may have", "/intermediary/order", order("[{}" + strings.Repeat(",{}", 340_000) + "]"),
			[]violation{{"order_items", "must contain no more than 100 item(s)"}}},
		{"list for an object", "", order(`[{"product_id":1,"quantity":1,"expected_unit_price":[]}]`),
			[]violation{{"order_items[0].expected_unit_price", "must be an object"}}},
		{"the other spelling is the client's", "", `{"customerName":1}`, []violation{{"customerName", "must be a string"}}},
		{"a field given twice", "", `{"customer_name":"A","customerName":"B"}`, []violation{{"customerName", "given twice"}}},
		{"a name that is no word", "", `{"a.b[0]":1}`, []violation{{`"a.b[0]"`, unknownIn(&checkoutv1.PlaceOrderRequest{})}}},
		{"a very long name", "", `{"` + strings.Repeat("x", 1000) + `":1}`, []violation{{strings.Repeat("x", 64) + "…", unknownIn(&checkoutv1.PlaceOrderRequest{})}}},
		{"text that is not UTF-8", "", "{\"customer_name\":\"\xff\"}", []violation{{"customer_name", "must be valid UTF-8"}}},
		{"what is missing", "", `{"order_items":[{"product_id":1,"quantity":0}]}`, []violation{
			{"customer_name", "must be at least 1 characters"}, {"customer_email", "must be a valid email address"},
			{"order_items[0].quantity", "must be greater than 0 and less than or equal to 100000"},
		}},
		{"an address that only code can tell is none, and an item", "", `{"customer_name":"Ada","customer_email":"ada@","order_items":[{"product_id":1,"quantity":0}]}`,
			[]violation{
				{"order_items[0].quantity", "must be greater than 0 and less than or equal to 100000"},
				{"customer_email", "must be a valid email address"},
			}},
		{"an address alone", "", `{"customer_name":"Ada","customer_email":"ada@","order_items":[{"product_id":1,"quantity":1}]}`,
			[]violation{{"customer_email", "must be a valid email address"}}},
		// It was accepted, and no order service could decide it.
		{"an address of spaces alone on the demo's route", "/intermediary/order", `{"customer_name":"Ada","customer_email":" \u00a0\n","order_items":[{"id":1,"quantity":1,"price":35}]}`,
			[]violation{{"customer_email", text.Rule}}},
		{"a body that is a field of the request", "PATCH /v1/inventory/3", `{"price":{"units":"x"}}`, []violation{{"price.units", "must be a whole number"}}},
		{"rules for a body that is a field of the request", "PATCH /v1/inventory/3", `{"price":{"currency_code":"USD","units":-4}}`,
			[]violation{{"price.units", "must be greater than or equal to 0 and less than or equal to 999999999999999"}}},
		{"a time", "PATCH /v1/inventory/3", `{"created_at":"yesterday"}`, []violation{{"created_at", "must be a time such as 2030-12-31T23:59:59Z"}}},
		{"null, which set a stock to zero", "PATCH /v1/inventory/3", `{"product_name":"Lamp","on_hand":null}`,
			[]violation{{"on_hand", "is null: leave it out if it stays as it is, or give its new value"}}},
		{"null in a price, which made it nothing", "PATCH /v1/inventory/3", `{"price":{"currency_code":"USD","units":null,"nanos":0}}`,
			[]violation{{"price.units", "is null: leave it out if it stays as it is, or give its new value"}}},
		{"a number in the path", "PATCH /v1/inventory/three", `{}`, []violation{{"item.id", "must be a whole number"}}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			method, path, given := strings.Cut(test.path, " ")
			if !given {
				method, path = http.MethodPost, test.path
			}
			if path == "" {
				path = "/v1/orders"
			}
			got := send(t, method, "http://"+addr+path, test.body, operator)
			f := got.failure(t)
			if got.status != http.StatusBadRequest || f.Code != int(codes.InvalidArgument) {
				t.Errorf("answered with HTTP %d and code %d, want 400 and INVALID_ARGUMENT", got.status, f.Code)
			}
			if !slices.Equal(f.violations(), test.want) {
				t.Errorf("violations:\n got %q\nwant %q", f.violations(), test.want)
			}
			if first := test.want[0]; !strings.HasPrefix(f.Message, first.Field+": "+first.Description) {
				t.Errorf("message %q does not say it", f.Message)
			}
		})
	}
}

func TestREST_BodyThatIsNotOneJSONObjectIsSaidSo(t *testing.T) {
	t.Parallel()
	_, addr := serveAPI(t, nothingPublished(t), orderServer{})
	tests := []struct {
		name, body, reason, message string
		status                      int
	}{
		{"none", "", "BODY_REQUIRED", "the call needs a JSON object as its body", 400},
		{"blank", " \n", "BODY_REQUIRED", "the call needs a JSON object as its body", 400},
		{"text", "hello", "INVALID_JSON", "the body is not valid JSON: line 1, column 1: invalid character 'h' looking for beginning of value", 400},
		{"cut off", `{"customer_name":"A"`, "INVALID_JSON", "the body is not valid JSON: line 1, column 20: unexpected end of JSON input", 400},
		{"comma too many", "{\n  \"customer_name\": \"A\",\n}", "INVALID_JSON", "the body is not valid JSON: line 3, column 1: invalid character '}' looking for beginning of object key string", 400},
		{"two values", `{} {}`, "INVALID_JSON", "the body is not valid JSON: line 1, column 4: invalid character '{' after top-level value", 400},
		{"null", `null`, "INVALID_JSON", "the body must be a JSON object", 400},
		{"list", `[]`, "INVALID_JSON", "the body must be a JSON object", 400},
		{"too large", `{"customer_name":"` + strings.Repeat("x", ingress.MaxBody) + `"}`, "BODY_TOO_LARGE", "the body is larger than 1048576 bytes", 413},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got := send(t, http.MethodPost, "http://"+addr+"/v1/orders", test.body)
			f := got.failure(t)
			if got.status != test.status || f.Code != int(codes.InvalidArgument) || f.reason() != test.reason || f.Message != test.message {
				t.Errorf("answered with %d %s", got.status, got.body)
			}
		})
	}
}

func TestREST_WrongParametersAreNamed(t *testing.T) {
	t.Parallel()
	_, addr := serveAPI(t, nothingPublished(t), orderServer{})
	var states []string
	for _, s := range orderstate.All() {
		states = append(states, s.String())
	}
	tests := []struct {
		call   string
		reason string
		want   []violation
	}{
		{"GET /v1/orders?page_size=many&limit=3", "INVALID_ARGUMENT", []violation{{"limit", "unknown parameter: this call has page_size, page_token, state, placed_after, placed_before, id_suffix, customer_email, product_id"}, {"page_size", "must be a whole number"}}},
		{"GET /v1/orders?page_size=1&pageSize=2", "INVALID_ARGUMENT", []violation{{"page_size", "given twice"}}},
		{"GET /v1/orders?page_size=1&page_size=2", "INVALID_ARGUMENT", []violation{{"page_size", "given twice"}}},
		{"GET /v1/orders?page_size=-1", "INVALID_ARGUMENT", []violation{{"page_size", "must be greater than or equal to 0"}}},
		{"GET /v1/orders?state=OPEN", "INVALID_ARGUMENT", []violation{{"state", "must be one of " + strings.Join(states, ", ")}}},
		{"GET /v1/orders?page_token=%ff", "INVALID_ARGUMENT", []violation{{"page_token", "must be valid UTF-8"}}},
		{"GET /v1/orders?page_token=%zz", "INVALID_QUERY", nil},
		{"GET /v1/events?published_after=noon", "INVALID_ARGUMENT", []violation{{"published_after", "must be a time such as 2030-12-31T23:59:59Z"}}},
		{"GET /v1/orders/" + storedOrder + "?order_id=" + missingOrder, "INVALID_ARGUMENT", []violation{{"order_id", "unknown parameter: this call has none"}}},
		{"GET /v1/orders/42", "INVALID_ARGUMENT", []violation{{"order_id", "must be a valid UUID"}}},
		{"POST /v1/orders/42:cancel", "INVALID_ARGUMENT", []violation{{"order_id", "must be a valid UUID"}}},
		{"GET /v1/inventory/3.5", "INVALID_ARGUMENT", []violation{{"id", "must be a whole number"}}},
		{"GET /v1/inventory/99999999999", "INVALID_ARGUMENT", []violation{{"id", "must be between -2147483648 and 2147483647"}}},
		{"POST /v1/orders?customer_name=A", "INVALID_ARGUMENT", []violation{{"customer_name", "unknown parameter: this call has none"}}},
		{"PATCH /v1/inventory/3?item.on_hand=4", "INVALID_ARGUMENT", []violation{{"item.on_hand", "unknown parameter: this call has update_mask"}}},
	}
	for _, test := range tests {
		t.Run(test.call, func(t *testing.T) {
			t.Parallel()
			method, target, _ := strings.Cut(test.call, " ")
			got := send(t, method, "http://"+addr+target, "", "Authorization: Bearer "+operatorToken)
			f := got.failure(t)
			if got.status != http.StatusBadRequest || f.reason() != test.reason || !slices.Equal(f.violations(), test.want) {
				t.Errorf("answered with %d %s\nwant %q", got.status, got.body, test.want)
			}
		})
	}
}

// A body was said to be unreadable because of a header.
func TestREST_ATimeoutThatCannotBeReadIsNamed(t *testing.T) {
	t.Parallel()
	_, addr := serveAPI(t, nothingPublished(t), orderServer{})
	for _, timeout := range []string{"soon", "5", "S", "-1S", "1.5S", "99999999999999999999S", "5s"} {
		for call, body := range map[string]string{"POST /v1/orders": "{}", "GET /v1/orders/" + storedOrder: "", "GET /v1/events:stream": ""} {
			method, path, _ := strings.Cut(call, " ")
			got := send(t, method, "http://"+addr+path, body, "Grpc-Timeout: "+timeout, "Authorization: Bearer "+operatorToken)
			f := got.failure(t)
			if v := f.violations(); got.status != http.StatusBadRequest || f.reason() != "INVALID_ARGUMENT" || len(v) != 1 || v[0].Field != "Grpc-Timeout" {
				t.Errorf("%s with %q: %d %s", call, timeout, got.status, got.body)
			}
		}
	}
	for _, timeout := range []string{"1H", "5S", "30000m", "99999999S"} {
		if got := send(t, http.MethodGet, "http://"+addr+"/v1/orders/"+storedOrder, "", "Grpc-Timeout: "+timeout); got.status != http.StatusOK {
			t.Errorf("with %q: %d %s", timeout, got.status, got.body)
		}
	}
}

func TestREST_NoSuchPathOrMethod(t *testing.T) {
	t.Parallel()
	_, addr := serveAPI(t, nothingPublished(t), orderServer{})
	tests := []struct {
		call   string
		status int
		code   codes.Code
		reason string
		allow  string
	}{
		{"GET /nothing", 404, codes.NotFound, "UNKNOWN_PATH", ""},
		{"GET /v1/orders/", 400, codes.InvalidArgument, "INVALID_ARGUMENT", ""}, // an order with an empty id
		{"POST /v1/orders/" + storedOrder + ":no-such-verb", 405, codes.Unimplemented, "METHOD_NOT_ALLOWED", "GET, HEAD"},
		{"GET /v1/orders/" + storedOrder + ":cancel", 405, codes.Unimplemented, "METHOD_NOT_ALLOWED", "POST"},
		{"GET /v1/dead-letters/7:discard", 405, codes.Unimplemented, "METHOD_NOT_ALLOWED", "POST"},
		{"PUT /v1/dead-letters/7:redrive", 405, codes.Unimplemented, "METHOD_NOT_ALLOWED", "POST"},
		{"DELETE /v1/orders", 405, codes.Unimplemented, "METHOD_NOT_ALLOWED", "GET, HEAD, POST"},
		{"PUT /v1/inventory/3", 405, codes.Unimplemented, "METHOD_NOT_ALLOWED", "DELETE, GET, HEAD, PATCH"},
		{"GET /intermediary/order", 405, codes.Unimplemented, "METHOD_NOT_ALLOWED", "POST"},
		{"POST /", 405, codes.Unimplemented, "METHOD_NOT_ALLOWED", "GET, HEAD"},
		{"BREW /", 405, codes.Unimplemented, "METHOD_NOT_ALLOWED", "GET, HEAD"},
	}
	for _, test := range tests {
		t.Run(test.call, func(t *testing.T) {
			t.Parallel()
			method, target, _ := strings.Cut(test.call, " ")
			got := send(t, method, "http://"+addr+target, "")
			f := got.failure(t)
			if got.status != test.status || f.Code != int(test.code) || f.reason() != test.reason || got.header.Get("Allow") != test.allow {
				t.Errorf("answered with %d, Allow %q, %s", got.status, got.header.Get("Allow"), got.body)
			}
		})
	}
}

func TestREST_FieldsWithoutAValueAreThereAndAbsentMessagesAreNot(t *testing.T) {
	t.Parallel()
	_, addr := serveAPI(t, nothingPublished(t), orderServer{})
	for call, want := range map[string]string{
		"/v1/orders/" + storedOrder: `{"id":"` + storedOrder + `","state":"CONFIRMED","customer_name":"","customer_email":"","order_items":[],"total_items":7}`,
		"/v1/orders":                `{"orders":[],"next_page_token":""}`,
	} {
		got := send(t, http.MethodGet, "http://"+addr+call, "", "Authorization: Bearer "+operatorToken)
		if got.status != http.StatusOK || !sameJSON(t, got.body, want) {
			t.Errorf("GET %s: %d %s\nwant %s", call, got.status, got.body, want)
		}
	}
}

func TestREST_PagesAndHEAD(t *testing.T) {
	t.Parallel()
	_, addr := serveAPI(t, nothingPublished(t), orderServer{})
	page := send(t, http.MethodGet, "http://"+addr+"/", "")
	for _, part := range []string{"/v1/orders/{order_id}:cancel", "/openapi.json", "grpcurl -plaintext"} {
		if !strings.Contains(page.body, part) {
			t.Errorf("the page does not mention %s:\n%s", part, page.body)
		}
	}
	if head := send(t, http.MethodHead, "http://"+addr+"/", ""); head.status != http.StatusOK || head.body != "" {
		t.Errorf("HEAD /: %d %q", head.status, head.body)
	}
	var description struct {
		Paths map[string]any `json:"paths"`
	}
	if err := json.Unmarshal([]byte(send(t, http.MethodGet, "http://"+addr+"/openapi.json", "").body), &description); err != nil {
		t.Fatal(err)
	}
	if _, ok := description.Paths["/v1/orders"]; !ok {
		t.Error("the OpenAPI description does not describe /v1/orders")
	}
}

func sameJSON(t *testing.T, a, b string) bool {
	t.Helper()
	compact := func(s string) string {
		var v any
		if err := json.Unmarshal([]byte(s), &v); err != nil {
			t.Fatalf("%v: %s", err, s)
		}
		out, _ := json.Marshal(v)
		return string(out)
	}
	return compact(a) == compact(b)
}

func TestREST_CallsAreMeasuredByRouteAndLoggedWithoutPersonalData(t *testing.T) {
	t.Parallel()
	addr := backend(t, func(s grpc.ServiceRegistrar) { orderv1.RegisterOrderServiceServer(s, orderServer{}) })
	g := startGateway(t, Config{OrderAddr: addr})
	base := "http://" + g.HTTPAddr()
	send(t, http.MethodGet, base+"/v1/orders/"+storedOrder, "")
	send(t, http.MethodGet, base+"/v1/orders?page_token=ada@example.com", "")
	send(t, "BREW", base+"/ada@example.com", "")
	send(t, http.MethodGet, base+"/v1/orders/"+slowOrder, "", "Grpc-Timeout: 20m")
	metrics := send(t, http.MethodGet, "http://"+g.AdminAddr()+"/metrics", "").body
	for _, labels := range []string{
		`http_request_method="GET",http_response_status_code="200",http_route="/v1/orders/{order_id}"`,
		`http_request_method="GET",http_response_status_code="401",http_route="/v1/orders"`,
		`http_request_method="_OTHER",http_response_status_code="404",http_route=""`,
	} {
		if !strings.Contains(metrics, "http_server_request_duration_seconds_count{"+labels+"} 1\n") {
			t.Errorf("no metric with %s", labels)
		}
	}
	log := g.log.String()
	if strings.Contains(log, "ada@example.com") {
		t.Errorf("the log has what was in a path or query:\n%s", log)
	}
	if !strings.Contains(log, `"level":"WARN","msg":"REST call","service":"gateway","method":"GET","route":"/v1/orders/{order_id}","status":504`) {
		t.Errorf("the log does not warn of the call that took too long:\n%s", log)
	}
}
