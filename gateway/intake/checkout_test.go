package intake

import (
	"fmt"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/reflect/protoreflect"

	"shop.example/gateway/access"
	checkoutv1 "shop.example/gen/shop/checkout/v1"
	eventsv1 "shop.example/gen/shop/events/v1"
	"shop.example/platform/contract"
)

// ruled are the fields of a request that cannot have any value.
var ruled = map[string]any{
	"customer_email": "ada@example.org",
	"order_items.expected_unit_price.currency_code": "USD",
	"order_items.expected_unit_price.nanos":         int32(250_000_000),
}

// fill gives each field of a message, and of those in it, a value that no other field has.
func fill(m protoreflect.Message, path string, n *int) {
	for i := range m.Descriptor().Fields().Len() {
		fd := m.Descriptor().Fields().Get(i)
		at := join(path, fd)
		switch {
		case fd.IsList() && fd.Message() != nil:
			list := m.Mutable(fd).List()
			fill(list.AppendMutable().Message(), at, n)
			fill(list.AppendMutable().Message(), at, n)
		case fd.IsList():
			m.Mutable(fd).List().Append(value(fd, at, n))
		case fd.Message() != nil:
			fill(m.Mutable(fd).Message(), at, n)
		default:
			m.Set(fd, value(fd, at, n))
		}
	}
}

func join(path string, fd protoreflect.FieldDescriptor) string {
	if path == "" {
		return string(fd.Name())
	}
	return path + "." + string(fd.Name())
}

func value(fd protoreflect.FieldDescriptor, path string, n *int) protoreflect.Value {
	if v, ok := ruled[path]; ok {
		return protoreflect.ValueOf(v)
	}
	*n++
	switch kind := fd.Kind(); {
	case kind == protoreflect.StringKind:
		return protoreflect.ValueOfString(fmt.Sprintf("text %d", *n))
	case kind == protoreflect.BytesKind:
		return protoreflect.ValueOfBytes(fmt.Appendf(nil, "bytes %d", *n))
	case kind == protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(int64(*n))
	case kind == protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true)
	case kind == protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(fd.Enum().Values().Get(1).Number())
	}
	return protoreflect.ValueOfInt32(int32(*n)) //nolint:gosec // there are few; Set panics if the field has another kind
}

// missing are the fields of what was sent that are not in what was published under the same name, with the same value. What
// is called in another way there is in renamed.
func missing(sent, published protoreflect.Message, path string, renamed map[string]protoreflect.Name) (paths []string) {
	sent.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		at, name := join(path, fd), fd.Name()
		if other, ok := renamed[at]; ok {
			name = other
		}
		there := published.Descriptor().Fields().ByName(name)
		switch {
		case there == nil || there.Kind() != fd.Kind() || there.Cardinality() != fd.Cardinality():
			paths = append(paths, at)
		case fd.IsList() && fd.Message() != nil:
			list := published.Get(there).List()
			for i := range v.List().Len() {
				if i >= list.Len() {
					paths = append(paths, fmt.Sprintf("%s[%d]", at, i))
					continue
				}
				paths = append(paths, missing(v.List().Get(i).Message(), list.Get(i).Message(), at, renamed)...)
			}
		case fd.Message() != nil:
			paths = append(paths, missing(v.Message(), published.Get(there).Message(), at, renamed)...)
		case !published.Get(there).Equal(v):
			paths = append(paths, at)
		}
		return true
	})
	return paths
}

// A field that the contract gets and the gateway forgets would be lost: of what was ordered the event alone is left.
func TestPlaceOrder_EachFieldOfTheRequestIsPublished(t *testing.T) {
	t.Parallel()
	s := newShop("a secret", "the secret before")
	request, n := &checkoutv1.PlaceOrderRequest{}, 0
	fill(request.ProtoReflect(), "", &n)
	ctx := grpc.NewContextWithServerTransportStream(metadata.NewIncomingContext(t.Context(), metadata.Pairs(idempotencyKey, "1")), &s.header)
	ctx = access.WithPrincipal(ctx, &access.Principal{Issuer: "https://login.example.org", Subject: "ada"})
	if _, err := NewCheckout(&s.Orders, nil).PlaceOrder(ctx, request); err != nil {
		t.Fatal(err)
	}
	event := s.published[0]
	if err := contract.Validate(event); err != nil {
		t.Fatal(err)
	}
	for _, path := range missing(request.ProtoReflect(), event.ProtoReflect(), "", map[string]protoreflect.Name{"order_items": "lines"}) {
		t.Errorf("PlaceOrderRequest.%s is not published in OrderPlaced: PlaceOrder has to set it there, and the order service to store it", path)
	}
	// What is in the event alone is set, too: product_name is what the demo's route has in the place of product_id.
	for _, m := range []protoreflect.Message{event.ProtoReflect(), event.GetLines()[0].ProtoReflect()} {
		for i := range m.Descriptor().Fields().Len() {
			if fd := m.Descriptor().Fields().Get(i); !m.Has(fd) && fd.FullName() != (&eventsv1.RequestedLine{}).ProtoReflect().Descriptor().FullName().Append("product_name") {
				t.Errorf("%s is not set", fd.FullName())
			}
		}
	}
}

// The test above fails if a field is forgotten.
func TestMissing_NamesWhatIsForgotten(t *testing.T) {
	t.Parallel()
	request, n := &checkoutv1.PlaceOrderRequest{}, 0
	fill(request.ProtoReflect(), "", &n)
	event := &eventsv1.OrderPlaced{CustomerName: request.GetCustomerName(), Lines: []*eventsv1.RequestedLine{
		{ProductId: request.GetOrderItems()[0].GetProductId(), Quantity: request.GetOrderItems()[1].GetQuantity()},
	}}
	got := map[string]bool{}
	for _, path := range missing(request.ProtoReflect(), event.ProtoReflect(), "", map[string]protoreflect.Name{"order_items": "lines"}) {
		got[path] = true
	}
	for _, want := range []string{"customer_email", "order_items.quantity", "order_items.expected_unit_price.units", "order_items[1]"} {
		if !got[want] {
			t.Errorf("%s is not missed: %v", want, got)
		}
	}
	if got["customer_name"] || got["order_items.product_id"] {
		t.Errorf("missed is %v", got)
	}
}
