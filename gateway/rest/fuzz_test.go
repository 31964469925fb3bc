package rest

import (
	"bytes"
	"net/url"
	"testing"

	"google.golang.org/protobuf/proto"

	checkoutv1 "shop.example/gen/shop/checkout/v1"
	intermediaryv1 "shop.example/gen/shop/intermediary/v1"
	inventoryv1 "shop.example/gen/shop/inventory/v1"
	loggingv1 "shop.example/gen/shop/logging/v1"
	"shop.example/platform/apierror"
	"shop.example/platform/contract"
)

// Orders as clients send them: over v1, and over the demo's interface.
const (
	fuzzOrder = `{"customer_name":"Ada Lovelace","customer_email":"ada@example.com","order_items":[` +
		`{"product_id":5,"quantity":3,"expected_unit_price":{"currency_code":"USD","units":"35"}},{"product_id":6,"quantity":4}]}`
	fuzzSample = `{"customer_name": "Adrian", "customer_email": "[email protected]", "order_items": [` +
		`{"id": 1, "product_name": "Laptop Stand", "quantity": 3, "price": 35}, {"id": 2, "product_name": "Mouse Pad", "quantity": 4, "price": 25}]}`
)

// refusedWell fails if a refusal lacks what clients rely on: text that is not UTF-8 in a detail would cost them all.
func refusedWell(t *testing.T, err error) {
	t.Helper()
	if apierror.ReasonOf(apierror.Status(err).Err()) == "" {
		t.Errorf("the refusal %v has no reason", err)
	}
}

func FuzzBody_IsReadOrRefusedWithAReason(f *testing.F) {
	kinds := []proto.Message{
		&checkoutv1.PlaceOrderRequest{}, &intermediaryv1.CreateOrderRequest{}, &inventoryv1.CreateItemsRequest{}, &inventoryv1.Item{},
	}
	for kind, body := range []string{fuzzOrder, fuzzSample, `{"items":[{"product_name":"Lamp","quantity":1,"price":{"currency_code":"USD","units":"4","nanos":10000000}}]}`,
		`{"on_hand":3,"created_at":"2030-12-31T23:59:59Z","etag":"7"}`} {
		f.Add(uint8(kind), []byte(body))
	}
	for _, body := range []string{``, `null`, `[]`, `{"order_items":[null]}`, `{"customer_name":"\ud800"}`, "{\"customer_name\":\"\xff\"}", `{"a":1,"a":2}`,
		`{"\xff":{}}`, `{"order_items":[{"quantity":1e400}]}`, `{"price":{"units":9223372036854775808}}`, `{} {}`, `{"items":[[[[[[]]]]]]}`} {
		f.Add(uint8(0), []byte(body))
	}
	codec := newCodec()
	f.Fuzz(func(t *testing.T, kind uint8, body []byte) {
		m := kinds[int(kind)%len(kinds)].ProtoReflect().New().Interface()
		if err := codec.NewDecoder(bytes.NewReader(body)).Decode(m); err != nil {
			if len(bytes.TrimSpace(body)) > 0 {
				refusedWell(t, bodyError(m.ProtoReflect().Descriptor(), body))
			}
			return
		}
		if err := apierror.FromViolations(contract.Validate(m)); err != nil {
			refusedWell(t, err)
		}
		// What was read can be passed on.
		if _, err := proto.Marshal(m); err != nil {
			t.Errorf("the message that was read cannot be written: %v", err)
		}
	})
}

func FuzzQuery_IsReadOrRefusedWithAReason(f *testing.F) {
	for _, query := range []string{"page_size=10&page_token=x", "page_size=1e3", "status=error&published_after=2030-01-01T00:00:00Z", "order_id=%ff",
		"a.b.c=1", "published_after.seconds=1", "status=9", "page_size=1&pageSize=2", "%zz=1", "=", "routing_key=%00", "%ff=1"} {
		f.Add(query)
	}
	kind := (&loggingv1.ListEventsRequest{}).ProtoReflect().Type()
	f.Fuzz(func(t *testing.T, query string) {
		values, err := url.ParseQuery(query)
		if err != nil {
			return // refused before
		}
		if found := parameterErrors(kind, values, func(string) bool { return false }); len(found) > 0 {
			refusedWell(t, apierror.InvalidArgument(found...))
		}
	})
}

// The refusal named the parameter as it was, and lost its details with it.
func TestQuery_NameThatIsNotUTF8IsRefusedWithAReason(t *testing.T) {
	t.Parallel()
	kind := (&loggingv1.ListEventsRequest{}).ProtoReflect().Type()
	found := parameterErrors(kind, url.Values{"\xff": {"1"}}, func(string) bool { return false })
	if len(found) != 1 {
		t.Fatalf("%d violations", len(found))
	}
	refusedWell(t, apierror.InvalidArgument(found...))
}
