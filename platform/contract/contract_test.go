package contract

import (
	"reflect"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	eventsv1 "shop.example/gen/shop/events/v1"
	inventoryv1 "shop.example/gen/shop/inventory/v1"
	moneyv1 "shop.example/gen/shop/money/v1"
)

// notPublished are the messages of the events package that are parts of events or answers, not events.
var notPublished = map[protoreflect.FullName]bool{
	"shop.events.v1.RequestedLine":   true,
	"shop.events.v1.PricedLine":      true,
	"shop.events.v1.InventoryListed": true,
	"shop.events.v1.ItemsChanged":    true,
}

func TestEvents_EachHasARouteOfItsOwn(t *testing.T) {
	t.Parallel()
	byKey := map[string]protoreflect.FullName{}
	found := 0
	protoregistry.GlobalTypes.RangeMessages(func(mt protoreflect.MessageType) bool {
		md := mt.Descriptor()
		if _, nested := md.Parent().(protoreflect.MessageDescriptor); nested || md.ParentFile().Package() != "shop.events.v1" || notPublished[md.FullName()] {
			return true
		}
		e, ok := eventOf(mt)
		if !ok {
			t.Errorf("%s says no route: give it the option shop.options.v1.event, or list it in notPublished", md.FullName())
			return true
		}
		found++
		if e.Exchange == "" || e.RoutingKey == "" {
			t.Errorf("%s: exchange %q and routing key %q must not be empty", e.Name, e.Exchange, e.RoutingKey)
		}
		if other, taken := byKey[e.RoutingKey]; taken {
			t.Errorf("%s and %s share the routing key %s", e.Name, other, e.RoutingKey)
		}
		byKey[e.RoutingKey] = e.Name
		if len(e.identity) == 0 && e.Name != "shop.events.v1.ListInventory" {
			t.Errorf("%s has no identity: a message delivered twice could not be told", e.Name)
		}
		for i, fd := range e.identity {
			if fd == nil {
				t.Errorf("%s: identity %d is not a field", e.Name, i)
			}
		}
		return true
	})
	if found != len(Events()) || found == 0 {
		t.Errorf("found %d events, Events() lists %d", found, len(Events()))
	}
}

// The routing keys are the interface to everyone who listens: changing one is a new version, never an edit.
func TestEvents_RoutesStayAsTheyWerePublished(t *testing.T) {
	t.Parallel()
	want := map[protoreflect.FullName]string{
		"shop.events.v1.OrderPlaced":       "shop.order.placed",
		"shop.events.v1.OrderConfirmed":    "shop.order.confirmed",
		"shop.events.v1.OrderRejected":     "shop.order.rejected",
		"shop.events.v1.OrderCancelled":    "shop.order.cancelled",
		"shop.events.v1.DecrementQuantity": "shop.inventory.decrement.quantity",
		"shop.events.v1.CreateItems":       "shop.inventory.create",
		"shop.events.v1.UpdateItems":       "shop.inventory.update",
		"shop.events.v1.DeleteItems":       "shop.inventory.delete",
		"shop.events.v1.ListInventory":     "shop.inventory.list",
		"shop.events.v1.StockChanged":      "shop.stock.changed",
		"shop.events.v1.StockDepleted":     "shop.stock.depleted",
		"shop.events.v1.OperatorActed":     "shop.operator.acted",
		"shop.events.v1.WebhookDisabled":   "shop.webhook.disabled",
	}
	for _, e := range Events() {
		if want[e.Name] != e.RoutingKey || e.Exchange != "shop.topic" {
			t.Errorf("%s travels as %s on %s, published as %q on shop.topic", e.Name, e.RoutingKey, e.Exchange, want[e.Name])
		}
		delete(want, e.Name)
	}
	for name := range want {
		t.Errorf("%s is gone", name)
	}
	m, err := MethodOf(inventoryv1.StockService_CheckStock_FullMethodName)
	stock := Method{"shop.direct", "shop.inventory.check", "inventory-rpc-queue", []string{"order"}, "inventory"}
	if err != nil || !reflect.DeepEqual(m, stock) {
		t.Errorf("CheckStock travels as %+v, %v", m, err)
	}
}

func TestMessageID_SameEventSameID(t *testing.T) {
	t.Parallel()
	const order = "01890a5d-ac96-774b-bcce-b302099a8057"
	placed := MessageID(&eventsv1.OrderPlaced{OrderId: order, CustomerName: "A"})
	if again := MessageID(&eventsv1.OrderPlaced{OrderId: order, CustomerName: "B"}); again != placed {
		t.Errorf("the event has the ids %s and %s", placed, again)
	}
	others := []proto.Message{
		&eventsv1.OrderConfirmed{OrderId: order},
		&eventsv1.OrderPlaced{OrderId: "01890a5d-ac96-774b-bcce-b302099a8058"},
		&eventsv1.StockChanged{ProductId: 1, Version: 11},
		&eventsv1.StockChanged{ProductId: 11, Version: 1},
		&eventsv1.StockDepleted{ProductId: 1, Version: 11},
		&eventsv1.ListInventory{},
		&eventsv1.ListInventory{},
	}
	seen := map[string]bool{placed.String(): true}
	for _, m := range others {
		id := MessageID(m).String()
		if seen[id] {
			t.Errorf("%T shares the id %s", m, id)
		}
		seen[id] = true
	}
	if placed.String()[:13] != order[:13] {
		t.Errorf("id %s does not begin with the order's time", placed)
	}
}

func TestValidate_NamesTheField(t *testing.T) {
	t.Parallel()
	if err := Validate(&eventsv1.DecrementQuantity{OrderId: "7"}); err == nil {
		t.Fatal("an order id that is no uuid passed")
	}
}

func TestValidate_MoneyHasAtMostFourDecimals(t *testing.T) {
	t.Parallel()
	for nanos, allowed := range map[int32]bool{
		0: true, 100_000: true, 500_000_000: true, 999_900_000: true,
		1: false, 50_000: false, 990_000_001: false, 1_000_000_000: false, -10_000_000: false, -1: false,
	} {
		if err := Validate(&moneyv1.Money{CurrencyCode: "USD", Units: 35, Nanos: nanos}); (err == nil) != allowed {
			t.Errorf("nanos %d: %v", nanos, err)
		}
	}
}
