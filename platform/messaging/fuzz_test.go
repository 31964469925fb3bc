package messaging

import (
	"bytes"
	"context"
	"testing"
	"unicode/utf8"

	amqp "github.com/rabbitmq/amqp091-go"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	eventsv1 "shop.example/gen/shop/events/v1"
	"shop.example/platform/contract"
)

// anyOf is a handler of the events of a type that must not see one which breaks its contract.
func anyOf[T proto.Message](t *testing.T) Handler {
	return Handle(func(_ context.Context, batch []Message[T]) error {
		for _, m := range batch {
			if err := contract.Validate(m.Body); err != nil {
				t.Errorf("a handler got what breaks its contract: %v", err)
			}
			if m.ID != contract.MessageID(m.Body) && m.ID.Version() != 7 {
				t.Errorf("the same event has two ids: %s", m.ID)
			}
		}
		return nil
	})
}

func FuzzDelivery_IsHandledOrRefusedWithAReason(f *testing.F) {
	placed, err := proto.Marshal(&eventsv1.OrderPlaced{
		OrderId: "01a1b9a4-0000-7000-8000-000000000001", CustomerName: "Ada", CustomerEmail: "ada@example.org",
		Lines: []*eventsv1.RequestedLine{{ProductId: 1, Quantity: 1}}, PlacedAt: timestamppb.Now(),
	})
	if err != nil {
		f.Fatal(err)
	}
	for _, event := range contract.Events() {
		f.Add(event.RoutingKey, string(event.Name), "shop.order.placed", "", int64(1), placed)
	}
	f.Add("shop.order.placed", "", "", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", int64(-1), []byte("\xff\xff"))
	f.Add("", "\xff", "\xff", "00-00", int64(1)<<62, []byte{})
	f.Fuzz(func(t *testing.T, key, kind, origin, parent string, number int64, body []byte) {
		d := amqp.Delivery{
			Exchange: "shop.topic", RoutingKey: key, Type: kind, Body: body, MessageId: kind, CorrelationId: parent,
			Headers: amqp.Table{
				headerTraceParent: parent, headerAttempt: number, headerTimestamp: number, HeaderRoutingKey: origin,
				"x-death": []any{amqp.Table{"queue": origin, "routing-keys": []any{key}}},
			},
		}
		handlers := newDispatcher([]Handler{
			anyOf[*eventsv1.OrderPlaced](t), anyOf[*eventsv1.OrderCancelled](t), anyOf[*eventsv1.DecrementQuantity](t),
			anyOf[*eventsv1.CreateItems](t), anyOf[*eventsv1.UpdateItems](t), anyOf[*eventsv1.DeleteItems](t), anyOf[*eventsv1.ListInventory](t),
		})
		for _, g := range handlers.groups([]amqp.Delivery{d, d}) {
			if g.err != nil {
				if reason := truncate(g.err.Error()); reason == "" || len(reason) > maxReason+len("…") || utf8.ValidString(g.err.Error()) && !utf8.ValidString(reason) {
					t.Errorf("the reason is %q", reason)
				}
				continue
			}
			if err := g.run(t.Context()); err != nil {
				t.Error(err)
			}
		}
		rawDelivery(&d)
		if out := republish(&d); out.MessageID == "" {
			t.Error("a message that is sent again has no id")
		}
	})
}

func FuzzHeaders_AreLeftOutOrAsTheyWere(f *testing.F) {
	begin := append(make([]byte, 12), 0xe0, 0, 1, 'a', 1, 'b') // content type, content encoding and headers
	f.Add(append(begin, "\x00\x00\x00\x03\x01kV\x01"...))
	f.Add(append(begin, "\x00\x00\x00\x08\x01kF\x00\x00\x00\x01\xff\x01"...))
	f.Add(append(begin, "\xff\xff\xff\xff"...))
	f.Fuzz(func(t *testing.T, payload []byte) {
		before := bytes.Clone(payload)
		out := withoutUnreadable(payload)
		if !bytes.Equal(payload, before) || !bytes.Equal(withoutUnreadable(out), out) || len(out) == len(payload) && !bytes.Equal(out, payload) {
			t.Errorf("%x became %x", before, out)
		}
	})
}
