package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"shop.example/domain/orderid"
	eventsv1 "shop.example/gen/shop/events/v1"
	inventoryv1 "shop.example/gen/shop/inventory/v1"
	"shop.example/platform/contract"
	"shop.example/platform/messaging"
	"shop.example/topology"
)

// recorded are the bytes of an event as they once lay in a queue, and what they say. A queue or a dead letter may hold
// them for a long time, so every later version has to understand them. A file is never changed; where an event gets a
// new form that one is recorded too, under the next number:
//
//	buf convert --type shop.events.v1.OrderPlaced --from …/shop.events.v1.OrderPlaced.2.json --to ….2.binpb --validate
type recorded struct {
	event contract.Event
	body  []byte
	said  proto.Message // what the JSON beside the bytes says
}

func recordings(t *testing.T) []recorded {
	t.Helper()
	files, err := filepath.Glob("testdata/events/*.binpb")
	if err != nil {
		t.Fatal(err)
	}
	var all []recorded
	for _, file := range files {
		name, number, _ := strings.Cut(strings.TrimSuffix(strings.TrimPrefix(filepath.Base(file), "shop.events.v1."), ".binpb"), ".")
		event, ok := contract.ByName(protoreflect.FullName("shop.events.v1." + name))
		if _, err := strconv.Atoi(number); err != nil || !ok {
			t.Fatalf("%s: no event has this name, or it has no number", file)
		}
		r := recorded{event: event, said: event.New()}
		if r.body, err = os.ReadFile(file); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(strings.TrimSuffix(file, "binpb") + "json")
		if err != nil {
			t.Fatal(err)
		}
		if err := protojson.Unmarshal(text, r.said); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		all = append(all, r)
	}
	return all
}

func TestRecorded_EveryEventSaysWhatItSaidWhenItWasRecorded(t *testing.T) {
	t.Parallel()
	missing := map[protoreflect.FullName]bool{}
	for _, e := range contract.Events() {
		missing[e.Name] = true
	}
	for _, r := range recordings(t) {
		delete(missing, r.event.Name)
		body := r.event.New()
		if err := proto.Unmarshal(r.body, body); err != nil {
			t.Errorf("%s cannot be read any more: %v", r.event.Name, err)
			continue
		}
		if !proto.Equal(body, r.said) {
			t.Errorf("%s says %v, and said %v", r.event.Name, protojson.Format(body), protojson.Format(r.said))
		}
		if len(body.ProtoReflect().GetUnknown()) > 0 {
			t.Errorf("%s has fields that are gone from the contract", r.event.Name)
		}
		if err := contract.Validate(body); err != nil {
			t.Errorf("%s is refused by the rules of now: %v", r.event.Name, err)
		}
	}
	for name := range missing {
		t.Errorf("no bytes of %s are recorded: record them under testdata/events", name)
	}
}

func TestRecorded_EveryEventIsHandledByTheShopOfNow(t *testing.T) {
	t.Parallel()
	s := start(t)
	ch := s.openChannel(t)
	byName := map[protoreflect.Name]recorded{}
	send := func(r recorded, replyTo string) {
		t.Helper()
		message := proto.Clone(r.said)
		err := ch.PublishWithContext(t.Context(), r.event.Exchange, r.event.RoutingKey, true, false, amqp.Publishing{
			Body: r.body, Type: string(r.event.Name), ContentType: "application/protobuf", DeliveryMode: amqp.Persistent,
			MessageId: contract.MessageID(message).String(), CorrelationId: orderid.Of(message), ReplyTo: replyTo,
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range recordings(t) {
		byName[r.event.Name.Name()] = r
	}

	placed := byName["OrderPlaced"].said.(*eventsv1.OrderPlaced)
	send(byName["OrderPlaced"], "")
	if o := s.decided(t, "/v1/orders/"+placed.GetOrderId()); o.State != "CONFIRMED" || o.TotalItems != 3 || o.TotalValue.Units != "2500" || o.Name != placed.GetCustomerName() {
		t.Errorf("the placed order: %+v", o)
	}

	// What is settled and then given back was held before, for an order that only inventory knows of.
	decrement := byName["DecrementQuantity"].said.(*eventsv1.DecrementQuantity)
	line := decrement.GetLines()[0]
	s.hold(t, decrement.GetOrderId(), &eventsv1.RequestedLine{ProductId: line.GetProductId(), Quantity: line.GetQuantity()})
	send(byName["DecrementQuantity"], "")
	s.becomes(t, line.GetProductName(), func(i item) bool { return i.OnHand == 96 && i.Reserved == 0 })
	send(byName["OrderCancelled"], "")
	s.becomes(t, line.GetProductName(), func(i item) bool { return i.OnHand == 100 })

	send(byName["CreateItems"], "")
	s.becomes(t, "Desk", func(i item) bool { return i.OnHand == 3 })
	send(byName["UpdateItems"], "")
	s.becomes(t, "Phone Case, clear", func(i item) bool { return i.OnHand == 0 })
	send(byName["DeleteItems"], "")
	eventually(t, func() error {
		if i, there := s.stock(t)["KVM Switch"]; there {
			return fmt.Errorf("it is still there: %+v", i)
		}
		return nil
	})

	q, err := ch.QueueDeclare("", false, true, true, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	replies, err := ch.ConsumeWithContext(t.Context(), q.Name, "", true, true, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	send(byName["ListInventory"], q.Name)
	var listed eventsv1.InventoryListed
	if err := proto.Unmarshal((<-replies).Body, &listed); err != nil || len(listed.GetItems()) != 8 {
		t.Errorf("the inventory is %v, %v", listed.GetItems(), err)
	}

	for _, r := range byName {
		if slices.Equal(r.event.HandledBy, []string{topology.Logging}) {
			send(r, "")
		}
	}
	db := s.openDatabase(t)
	for name, r := range byName {
		if name == "ListInventory" {
			continue // a request has no identity to find it by
		}
		id := contract.MessageID(r.said).String()
		eventually(t, func() error {
			if rows := texts(t, db, `SELECT status || ' ' || routing_key FROM logging.event_log WHERE message_id = '`+id+`'`); len(rows) != 1 || rows[0] != "success "+r.event.RoutingKey {
				return fmt.Errorf("%s is in the log as %q", name, rows)
			}
			return nil
		})
	}
	if n := texts(t, db, `SELECT count(*)::text FROM logging.dead_letter`)[0]; n != "0" {
		t.Errorf("%s became dead letters", n)
	}
}

// hold has inventory hold stock for an order.
func (s *shop) hold(t *testing.T, orderID string, lines ...*eventsv1.RequestedLine) {
	t.Helper()
	conn, err := messaging.Dial(s.broker.URL, messaging.Options{Topology: topology.Broker(), Service: "test", Role: "test"})
	if err != nil {
		t.Fatal(err)
	}
	publisher := messaging.NewPublisher(conn)
	calls := messaging.NewRPCClient(conn, publisher)
	keepRunning(t, conn.Run)
	keepRunning(t, publisher.Run)
	keepRunning(t, calls.Run)
	reply, err := inventoryv1.NewStockServiceClient(calls).CheckStock(t.Context(), &inventoryv1.CheckStockRequest{
		Orders: []*inventoryv1.CheckStockRequest_Order{{OrderId: orderID, Lines: lines}},
	})
	if err != nil || len(reply.GetDecisions()) != 1 || reply.GetDecisions()[0].GetRejection() != nil {
		t.Fatalf("holding stock: %v, %v", reply, err)
	}
}

// becomes waits until a product is as it should be.
func (s *shop) becomes(t *testing.T, product string, as func(item) bool) {
	t.Helper()
	eventually(t, func() error {
		if i, there := s.stock(t)[product]; !there || !as(i) {
			return fmt.Errorf("%s is %+v", product, i)
		}
		return nil
	})
}
