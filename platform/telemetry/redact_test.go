package telemetry_test

import (
	"log/slog"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
	"google.golang.org/protobuf/types/known/anypb"

	checkoutv1 "shop.example/gen/shop/checkout/v1"
	orderv1 "shop.example/gen/shop/order/v1"
	"shop.example/platform/telemetry"
)

const (
	name  = "Ada Lovelace"
	email = "ada@example.com"
)

func order() *orderv1.Order {
	return &orderv1.Order{
		Id: "7d1c", CustomerName: name, CustomerEmail: email,
		OrderItems: []*orderv1.OrderItem{{Line: 1, ProductId: 5, ProductName: "Laptop Stand", Quantity: 3}},
	}
}

func TestRedacted_NamesAndEmailsNeverShow(t *testing.T) {
	t.Parallel()
	packed, err := anypb.New(order())
	if err != nil {
		t.Fatal(err)
	}
	for title, test := range map[string]struct {
		message proto.Message
		shown   string
	}{
		"field":                        {order(), `"id":"7d1c"`},
		"nested message":               {&orderv1.GetOrderResponse{Order: order()}, `"id":"7d1c"`},
		"list of messages":             {&orderv1.ListOrdersResponse{Orders: []*orderv1.Order{order(), order()}}, `"product_name":"Laptop Stand"`},
		"request":                      {&checkoutv1.PlaceOrderRequest{CustomerName: name, CustomerEmail: email, OrderItems: []*checkoutv1.PlaceOrderRequest_Item{{ProductId: 5}}}, `"product_id":5`},
		"any":                          {packed, `"id":"7d1c"`},
		"any of a type not known here": {&anypb.Any{TypeUrl: "type.googleapis.com/shop.Unknown", Value: []byte(name)}, `{}`},
		"map, repeated and oneof":      {addressBook(t), `"note":"leave at the door"`},
	} {
		t.Run(title, func(t *testing.T) {
			t.Parallel()
			for _, format := range []telemetry.Format{telemetry.Text, telemetry.JSON} {
				before := proto.Clone(test.message)
				tel, out := newTelemetry(t, telemetry.Config{LogFormat: format, LogLevel: slog.LevelDebug})
				tel.Logger.Info("redacted", "message", telemetry.Redacted(test.message))
				tel.Logger.Debug("as it is", "message", test.message)
				tel.Logger.With("message", test.message).Info("with")

				shown := strings.ReplaceAll(out.String(), `\"`, `"`)
				if strings.Contains(shown, name) || strings.Contains(shown, email) {
					t.Errorf("%s shows personal data: %s", format, shown)
				}
				if got := strings.Count(shown, test.shown); got < 3 {
					t.Errorf("%s shows %s in %d of 3 lines: %s", format, test.shown, got, shown)
				}
				if !proto.Equal(before, test.message) {
					t.Errorf("the message was changed")
				}
			}
		})
	}
}

// addressBook is a message with personal data in all places that our own contracts do not use.
func addressBook(t *testing.T) proto.Message {
	t.Helper()
	schema := &descriptorpb.FileDescriptorProto{}
	if err := prototext.Unmarshal([]byte(`
		name: "book.proto" syntax: "proto3" package: "book"
		message_type {
			name: "Person"
			field { name: "name" number: 1 type: TYPE_STRING label: LABEL_OPTIONAL options { debug_redact: true } oneof_index: 0 }
			field { name: "note" number: 2 type: TYPE_STRING label: LABEL_OPTIONAL }
			oneof_decl { name: "who" }
		}
		message_type {
			name: "Book"
			field { name: "by_id" number: 1 type: TYPE_MESSAGE type_name: ".book.Book.ByIdEntry" label: LABEL_REPEATED }
			field { name: "emails" number: 2 type: TYPE_STRING label: LABEL_REPEATED options { debug_redact: true } }
			field { name: "owner" number: 3 type: TYPE_MESSAGE type_name: ".book.Person" label: LABEL_OPTIONAL options { debug_redact: true } }
			field { name: "tags" number: 4 type: TYPE_MESSAGE type_name: ".book.Book.TagsEntry" label: LABEL_REPEATED }
			nested_type {
				name: "ByIdEntry" options { map_entry: true }
				field { name: "key" number: 1 type: TYPE_STRING label: LABEL_OPTIONAL }
				field { name: "value" number: 2 type: TYPE_MESSAGE type_name: ".book.Person" label: LABEL_OPTIONAL }
			}
			nested_type {
				name: "TagsEntry" options { map_entry: true }
				field { name: "key" number: 1 type: TYPE_STRING label: LABEL_OPTIONAL }
				field { name: "value" number: 2 type: TYPE_STRING label: LABEL_OPTIONAL }
			}
		}`), schema); err != nil {
		t.Fatal(err)
	}
	file, err := protodesc.NewFile(schema, protoregistry.GlobalFiles)
	if err != nil {
		t.Fatal(err)
	}
	book := dynamicpb.NewMessage(file.Messages().ByName("Book"))
	if err := prototext.Unmarshal([]byte(`
		by_id { key: "1" value { name: "`+name+`" note: "leave at the door" } }
		emails: "`+email+`"
		owner { name: "`+name+`" }
		tags { key: "colour" value: "blue" }`), book); err != nil {
		t.Fatal(err)
	}
	return book
}

func TestRedacted_ComputesNothingIfTheLineIsNotLogged(t *testing.T) {
	t.Parallel()
	tel, _ := newTelemetry(t, telemetry.Config{})
	message := &observed{Message: order()}
	tel.Logger.Debug("not shown", "message", telemetry.Redacted(message))
	if message.read {
		t.Error("the message was read")
	}
}

// observed notices that it is read.
type observed struct {
	proto.Message
	read bool
}

func (o *observed) ProtoReflect() protoreflect.Message {
	o.read = true
	return o.Message.ProtoReflect()
}
