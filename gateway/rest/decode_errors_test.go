package rest

import (
	"encoding/json"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	checkoutv1 "shop.example/gen/shop/checkout/v1"
	intermediaryv1 "shop.example/gen/shop/intermediary/v1"
	inventoryv1 "shop.example/gen/shop/inventory/v1"
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
