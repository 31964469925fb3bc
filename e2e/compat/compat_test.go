package compat

import (
	"slices"
	"strings"
	"testing"

	"buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	_ "shop.example/gen/shop/checkout/v1"
	_ "shop.example/gen/shop/events/v1"
	_ "shop.example/gen/shop/inventory/v1"
	_ "shop.example/gen/shop/logging/v1"
	optionsv1 "shop.example/gen/shop/options/v1"
	_ "shop.example/gen/shop/order/v1"
)

// contracts are the shop's own after edit, which changes the files by name.
func contracts(t *testing.T, edit func(find finder)) Facts {
	t.Helper()
	set := &descriptorpb.FileDescriptorSet{}
	protoregistry.GlobalFiles.RangeFiles(func(file protoreflect.FileDescriptor) bool {
		set.File = append(set.File, proto.CloneOf(protodesc.ToFileDescriptorProto(file)))
		return true
	})
	edit(finder{t, set})
	files, err := protodesc.NewFiles(set)
	if err != nil {
		t.Fatal(err)
	}
	var own []protoreflect.FileDescriptor
	files.RangeFiles(func(file protoreflect.FileDescriptor) bool {
		if strings.HasPrefix(string(file.Package()), "shop.") {
			own = append(own, file)
		}
		return true
	})
	return Of(own)
}

type finder struct {
	t   *testing.T
	set *descriptorpb.FileDescriptorSet
}

func (f finder) message(pkg, name string) *descriptorpb.DescriptorProto {
	for _, file := range f.set.GetFile() {
		for _, m := range file.GetMessageType() {
			if file.GetPackage() == pkg && m.GetName() == name {
				return m
			}
		}
	}
	f.t.Fatalf("there is no message %s.%s", pkg, name)
	return nil
}

func (f finder) event(name string) *optionsv1.Event {
	return proto.GetExtension(f.message("shop.events.v1", name).GetOptions(), optionsv1.E_Event).(*optionsv1.Event)
}

func (f finder) field(pkg, message, name string) *descriptorpb.FieldOptions {
	for _, fd := range f.message(pkg, message).GetField() {
		if fd.GetName() == name {
			if fd.Options == nil {
				fd.Options = &descriptorpb.FieldOptions{}
			}
			return fd.GetOptions()
		}
	}
	f.t.Fatalf("there is no field %s.%s.%s", pkg, message, name)
	return nil
}

// newField adds a field note with these rules.
func (f finder) newField(pkg, message, rules string) {
	var r validate.FieldRules
	if err := prototext.Unmarshal([]byte(rules), &r); err != nil {
		f.t.Fatal(err)
	}
	options := &descriptorpb.FieldOptions{}
	proto.SetExtension(options, validate.E_Field, &r)
	m := f.message(pkg, message)
	m.Field = append(m.Field, &descriptorpb.FieldDescriptorProto{
		Name: proto.String("note"), Number: proto.Int32(999), Options: options,
		Label: descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL.Enum(), Type: descriptorpb.FieldDescriptorProto_TYPE_STRING.Enum(),
	})
}

func (f finder) rules(pkg, message, field string) *validate.FieldRules {
	return proto.GetExtension(f.field(pkg, message, field), validate.E_Field).(*validate.FieldRules)
}

func (f finder) method(pkg, service, name string) *descriptorpb.MethodOptions {
	for _, file := range f.set.GetFile() {
		for _, s := range file.GetService() {
			for _, m := range s.GetMethod() {
				if file.GetPackage() == pkg && s.GetName() == service && m.GetName() == name {
					return m.GetOptions()
				}
			}
		}
	}
	f.t.Fatalf("there is no method %s.%s/%s", pkg, service, name)
	return nil
}

func (f finder) getOrder() *descriptorpb.MethodOptions {
	return f.method("shop.order.v1", "OrderService", "GetOrder")
}

func (f finder) customerName() *validate.FieldRules {
	return f.rules("shop.checkout.v1", "PlaceOrderRequest", "customer_name")
}

// Each of these passes `buf breaking`, because no type changes, and breaks somebody.
func TestBreaks_WhatBufDoesNotSeeIsFound(t *testing.T) {
	t.Parallel()
	before := contracts(t, func(finder) {})
	for name, change := range map[string]struct {
		edit func(f finder)
		want []string // what begins the facts that break
	}{
		"another route": {func(f finder) {
			proto.GetExtension(f.getOrder(), annotations.E_Http).(*annotations.HttpRule).Pattern = &annotations.HttpRule_Get{Get: "/v1/order/{order_id}"}
		}, []string{"route GET /v1/orders/{order_id}"}},
		"another response body": {func(f finder) {
			proto.GetExtension(f.getOrder(), annotations.E_Http).(*annotations.HttpRule).ResponseBody = ""
		}, []string{"route GET /v1/orders/{order_id}"}},
		"access for operators alone": {func(f finder) {
			proto.SetExtension(f.getOrder(), optionsv1.E_Access, optionsv1.Access_ACCESS_OPERATOR)
		}, []string{"access /shop.order.v1.OrderService/GetOrder"}},
		"a caller fewer": {func(f finder) {
			proto.SetExtension(f.getOrder(), optionsv1.E_Callers, []string{"gateway"})
		}, []string{"callers /shop.order.v1.OrderService/GetOrder"}},
		"another routing key":               {func(f finder) { f.event("OrderPlaced").RoutingKey = "shop.order.accepted" }, []string{"event shop.events.v1.OrderPlaced"}},
		"another exchange":                  {func(f finder) { f.event("OrderPlaced").Exchange = "shop.orders" }, []string{"event shop.events.v1.OrderPlaced"}},
		"another identity":                  {func(f finder) { f.event("StockChanged").Identity = []string{"product_id"} }, []string{"identity shop.events.v1.StockChanged"}},
		"a publisher less":                  {func(f finder) { f.event("OrderConfirmed").PublishedBy = []string{"inventory"} }, []string{"published_by shop.events.v1.OrderConfirmed"}},
		"one publisher where anybody could": {func(f finder) { f.event("CreateItems").PublishedBy = []string{"gateway"} }, []string{"published_by shop.events.v1.CreateItems"}},
		"a service less handles it":         {func(f finder) { f.event("OrderCancelled").HandledBy = []string{"logging"} }, []string{"handled_by shop.events.v1.OrderCancelled"}},
		"no answer":                         {func(f finder) { f.event("ListInventory").Answer = "" }, []string{"answer shop.events.v1.ListInventory"}},
		"an event that travels no more": {func(f finder) {
			proto.ClearExtension(f.message("shop.events.v1", "StockDepleted").GetOptions(), optionsv1.E_Event)
		}, []string{"event shop.events.v1.StockDepleted", "handled_by shop.events.v1.StockDepleted", "published_by shop.events.v1.StockDepleted"}},
		"a shorter maximum":        {func(f finder) { f.customerName().GetString().MaxLen = proto.Uint64(100) }, []string{"rule shop.checkout.v1.PlaceOrderRequest.customer_name string.max_len"}},
		"a longer minimum":         {func(f finder) { f.customerName().GetString().MinLen = proto.Uint64(2) }, []string{"rule shop.checkout.v1.PlaceOrderRequest.customer_name string.min_len"}},
		"a new rule for a field":   {func(f finder) { f.customerName().GetString().Pattern = proto.String("^[a-z]+$") }, []string{"rule shop.checkout.v1.PlaceOrderRequest.customer_name string.pattern"}},
		"a field that is required": {func(f finder) { f.customerName().Required = proto.Bool(true) }, []string{"rule shop.checkout.v1.PlaceOrderRequest.customer_name required"}},
		"another rule in CEL": {func(f finder) {
			f.rules("shop.checkout.v1", "PlaceOrderRequest", "customer_email").Cel[0].Expression = proto.String("this.endsWith('.org')")
		}, []string{"rule shop.checkout.v1.PlaceOrderRequest.customer_email cel.place_order.customer_email"}},
		"a new rule for the elements of a list": {func(f finder) {
			f.rules("shop.events.v1", "DeleteItems", "ids").GetRepeated().GetItems().GetInt32().LessThan = &validate.Int32Rules_Lte{Lte: 1000}
		}, []string{"rule shop.events.v1.DeleteItems.ids repeated.items.int32.lte"}},
		"a field that is new and required": {func(f finder) {
			f.newField("shop.checkout.v1", "PlaceOrderRequest", `required: true`)
		}, []string{"rule shop.checkout.v1.PlaceOrderRequest.note required"}},
		"a field that is new and may not be empty": {func(f finder) {
			f.newField("shop.checkout.v1", "PlaceOrderRequest", `string: {min_len: 1}`)
		}, []string{"rule shop.checkout.v1.PlaceOrderRequest.note string.min_len"}},
		"a field that is new and must be a number": {func(f finder) {
			f.newField("shop.checkout.v1", "PlaceOrderRequest", `string: {pattern: "^[0-9]+$"}`)
		}, []string{"rule shop.checkout.v1.PlaceOrderRequest.note string.pattern"}},
		"the call over the broker goes elsewhere": {func(f finder) {
			proto.GetExtension(f.method("shop.inventory.v1", "StockService", "CheckStock"), optionsv1.E_Rpc).(*optionsv1.Rpc).RoutingKey = "shop.stock.check"
		}, []string{"call /shop.inventory.v1.StockService/CheckStock"}},
	} {
		var got []string
		for _, b := range before.Breaks(contracts(t, change.edit)) {
			got = append(got, b.Fact)
			if b.Consequence == "" || !strings.Contains(b.String(), b.Consequence) {
				t.Errorf("%s: %q does not say whom it breaks", name, b)
			}
		}
		if !slices.Equal(got, change.want) {
			t.Errorf("%s breaks %q, want %q", name, got, change.want)
		}
	}
}

func TestBreaks_WhatOnlyOpensIsNone(t *testing.T) {
	t.Parallel()
	before := contracts(t, func(finder) {})
	for name, edit := range map[string]func(f finder){
		"nothing": func(finder) {},
		"a field that is new and may be a number": func(f finder) {
			f.newField("shop.checkout.v1", "PlaceOrderRequest", `string: {pattern: "^[0-9]*$"}`)
		},
		"a longer maximum": func(f finder) { f.customerName().GetString().MaxLen = proto.Uint64(300) },
		"a rule less":      func(f finder) { f.customerName().GetString().MinLen = nil },
		"a caller more": func(f finder) {
			proto.SetExtension(f.getOrder(), optionsv1.E_Callers, []string{"inventory", "webhooks", "gateway"})
		},
		"a service more handles it": func(f finder) {
			f.event("OrderConfirmed").HandledBy = append(f.event("OrderConfirmed").HandledBy, "webhooks")
		},
		"a route more": func(f finder) {
			rule := proto.GetExtension(f.getOrder(), annotations.E_Http).(*annotations.HttpRule)
			rule.AdditionalBindings = append(rule.AdditionalBindings, &annotations.HttpRule{Pattern: &annotations.HttpRule_Get{Get: "/v2/orders/{order_id}"}, ResponseBody: "order"})
		},
		"a field that is new, and has a maximum": func(f finder) {
			f.newField("shop.checkout.v1", "PlaceOrderRequest", `string: {max_len: 100}`)
		},
		"a message that is new, with rules": func(f finder) {
			for _, file := range f.set.GetFile() {
				if file.GetName() == "shop/checkout/v1/checkout.proto" {
					file.MessageType = append(file.MessageType, &descriptorpb.DescriptorProto{Name: proto.String("Voucher")})
				}
			}
			f.newField("shop.checkout.v1", "Voucher", `required: true`)
		},
		"an event that is new": func(f finder) {
			m := f.message("shop.events.v1", "RequestedLine")
			if m.Options == nil {
				m.Options = &descriptorpb.MessageOptions{}
			}
			proto.SetExtension(m.Options, optionsv1.E_Event, &optionsv1.Event{Exchange: "shop.topic", RoutingKey: "shop.line", Identity: []string{"product_id"}, PublishedBy: []string{"order"}})
		},
	} {
		if breaks := before.Breaks(contracts(t, edit)); len(breaks) != 0 {
			t.Errorf("%s breaks %v", name, breaks)
		}
	}
}

// Names in the documents are those of generated clients' types and functions.
func TestBreaks_ANameInADocumentIsKept(t *testing.T) {
	t.Parallel()
	read := func(openAPI, asyncAPI string) Facts {
		f := Facts{}
		if err := f.AddDocuments([]byte(openAPI), []byte(asyncAPI)); err != nil {
			t.Fatal(err)
		}
		return f
	}
	before := read(`{"paths": {"/v1/orders": {"get": {"operationId": "ListOrders"}}}, "components": {"schemas": {"Order": {}, "Item": {}}}}`,
		"components: {messages: {OrderPlaced: {}}, schemas: {OrderPlaced: {}}}\nchannels: {OrderPlaced: {}}")
	now := read(`{"paths": {"/v1/orders": {"get": {"operationId": "OrderService_ListOrders"}}}, "components": {"schemas": {"shop.Order": {}, "Item": {}, "New": {}}}}`,
		"components: {messages: {OrderPlacedMessage: {}}, schemas: {OrderPlaced: {}}}\nchannels: {OrderPlaced: {}}")
	var got []string
	for _, b := range before.Breaks(now) {
		got = append(got, b.Fact)
	}
	if want := []string{"message AsyncAPI OrderPlaced", "operation GET /v1/orders", "schema OpenAPI Order"}; !slices.Equal(got, want) {
		t.Errorf("breaks %q, want %q", got, want)
	}
}
