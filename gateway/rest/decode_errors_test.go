package rest

import (
	"encoding/json"
	"net/url"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	checkoutv1 "shop.example/gen/shop/checkout/v1"
	intermediaryv1 "shop.example/gen/shop/intermediary/v1"
	inventoryv1 "shop.example/gen/shop/inventory/v1"
	loggingv1 "shop.example/gen/shop/logging/v1"
	"shop.example/platform/apierror"
)

// Whatever protojson refuses, the answer says what is wrong in which field, never just "cannot be read".
func FuzzUnreadableBody_EveryRefusalIsExplained(f *testing.F) {
	for _, seed := range []string{
		fuzzSample, fuzzOrder, `{"garbage":true}`, ` {"customer_name": null, "order_items": [null]} `, `{"items":[{"price":{"units":1e3,"nanos":1.5}}]}`,
		`{"customer_name":"\ud800"}`, "{\"\xff\":1}", `{"order_items":[{"id":1e400,"price":-0,"quantity":"1"}]}`, `null`, `[[`, `{"created_at":1,"createdAt":2}`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, body string) {
		for _, m := range []proto.Message{
			&checkoutv1.PlaceOrderRequest{}, &intermediaryv1.CreateOrderRequest{}, &inventoryv1.CreateItemsRequest{}, &inventoryv1.Item{},
		} {
			if strings.TrimSpace(body) == "" || protojson.Unmarshal([]byte(body), m) == nil {
				continue
			}
			err := bodyError(m.ProtoReflect().Descriptor(), []byte(body))
			s := err.GRPCStatus()
			if s.Code() != codes.InvalidArgument || s.Message() == "" || strings.Contains(s.Message(), "cannot be read") {
				t.Errorf("%q as %T: %v", body, m, err)
			}
			if named := len(violationsOf(s)) > 0; named && !json.Valid([]byte(body)) {
				t.Errorf("%q is no JSON, and yet fields are named: %v", body, err)
			}
		}
	})
}

// Each of the 200,000 fields that a body of 1 MiB has room for was described, with all fields that there are instead.
func TestDecodeErrors_OfABodyWithManyWrongFieldsAreBounded(t *testing.T) {
	t.Parallel()
	many := func(one string) string { return one + strings.Repeat(","+one, (1<<20-100)/(len(one)+1)) }
	order := (&checkoutv1.PlaceOrderRequest{}).ProtoReflect().Descriptor()
	fieldsOf := func(m protoreflect.MessageDescriptor) string {
		var names []string
		for i := range m.Fields().Len() {
			names = append(names, string(m.Fields().Get(i).Name()))
		}
		return strings.Join(names, ", ")
	}
	ofOrder, ofItem := fieldsOf(order), fieldsOf(order.Fields().ByName("order_items").Message())
	for name, test := range map[string]struct{ body, first string }{
		"unknown fields":            {"{" + many(`"":0`) + "}", `"": unknown field: this object has ` + ofOrder + " (and 99 more)"},
		"fields given twice":        {"{" + many(`"customer_name":""`) + "}", "customer_name: given twice (and 99 more)"},
		"elements":                  {`{"order_items":[` + many("1") + "]}", "order_items[0]: must be an object (and 99 more)"},
		"fields of elements":        {`{"order_items":[` + many(`{"a":1,"b":2}`) + "]}", "order_items[0].a: unknown field: this object has " + ofItem + " (and 99 more)"},
		"fields of another element": {`{"order_items":[{},{` + many(`"a":1`) + "}]}", "order_items[1].a: unknown field: this object has " + ofItem + " (and 99 more)"},
	} {
		var err *apierror.Error
		took := allocated(func() { err = bodyError(order, []byte(test.body)) })
		if got := err.GRPCStatus().Message(); got != test.first {
			t.Errorf("%s: %s", name, got)
		}
		if named := violationsOf(err.GRPCStatus()); len(named) != 20 {
			t.Errorf("%s: %d fields are named", name, len(named))
		}
		if took > 32<<20 {
			t.Errorf("%s: explaining it took %d MiB", name, took>>20)
		}
	}
}

// A client could have the gateway look at 350,000 elements, one by one and with a copy of each, for the last one that was wrong: 0.3 GB.
func TestDecodeErrors_OfALongListNameTheList(t *testing.T) {
	t.Parallel()
	order := (&checkoutv1.PlaceOrderRequest{}).ProtoReflect().Descriptor()
	body := `{"customer_name":7,"order_items":[` + strings.Repeat(`{},`, (1<<20-100)/3) + `{"x":1}]}`
	var err *apierror.Error
	if took := allocated(func() { err = bodyError(order, []byte(body)) }); took > 32<<20 {
		t.Errorf("explaining it took %d MiB", took>>20)
	}
	want := []apierror.Violation{
		{Field: "customer_name", Description: "must be a string"}, {Field: "order_items", Description: "must contain no more than 100 item(s)"},
	}
	if got := violationsOf(err.GRPCStatus()); !slices.Equal(got, want) {
		t.Errorf("got %v", got)
	}
	if got := violationsOf(bodyError(order, []byte(`{"order_items":[`+strings.Repeat(`{},`, 99)+`{"x":1}]}`)).GRPCStatus()); len(got) != 1 || got[0].Field != "order_items[99].x" {
		t.Errorf("of a list as long as it may be: %v", got)
	}
}

// allocated returns how many bytes were allocated while f ran; other tests that run take some of them.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

func TestDecodeErrors_OfManyWrongParametersAreBounded(t *testing.T) {
	t.Parallel()
	parameters := url.Values{"page_size": slices.Repeat([]string{"x"}, 5000)}
	for i := range 5000 {
		parameters[strconv.Itoa(i)] = []string{""}
	}
	kind := (&loggingv1.ListEventsRequest{}).ProtoReflect().Type()
	if found := parameterErrors(kind, parameters, func(string) bool { return false }); len(found) != maxFound {
		t.Errorf("%d parameters are described", len(found))
	}
}
