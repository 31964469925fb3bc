package orderstate_test

import (
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	"shop.example/domain/orderstate"
	eventsv1 "shop.example/gen/shop/events/v1"
	orderv1 "shop.example/gen/shop/order/v1"
)

// A new state in the contract has to be decided about here first. The tests of the others that have to know it fail too:
// the order service's database, the command line and the pages. Transitions, the audit and the live view take the table.
func TestStates_EachOfTheContractIsInTheTable(t *testing.T) {
	t.Parallel()
	values := orderv1.Order_STATE_UNSPECIFIED.Descriptor().Values()
	for i := range values.Len() {
		s := orderv1.Order_State(values.Get(i).Number())
		known := orderstate.StockOf(s) != orderstate.Unknown
		if want := s != orderv1.Order_STATE_UNSPECIFIED; known != want {
			t.Errorf("Order.State %s: known to package orderstate: %t, want %t; say in its table which state it follows and which event says so, whether such an order is stored and decided, and what becomes of its stock", s, known, want)
		}
		if orderstate.IsFinal(s) && !orderstate.IsDecided(s) || orderstate.IsDecided(s) && !orderstate.IsStored(s) {
			t.Errorf("Order.State %s: what is final is decided, and what is decided is stored", s)
		}
		if orderstate.IsDecided(s) && orderstate.StockOf(s) == orderstate.Open {
			t.Errorf("Order.State %s: it is decided, so its stock cannot be open", s)
		}
		if known && orderstate.EventOf(s) == nil {
			t.Errorf("Order.State %s: say in the table which event says that an order has come into it", s)
		}
		if events := orderstate.EventsOf(s); known && proto.MessageName(events[0]) != proto.MessageName(&eventsv1.OrderPlaced{}) {
			t.Errorf("Order.State %s: such an order has had the events %v, and was never placed", s, events)
		}
		if orderstate.Parse(s.String()) != s {
			t.Errorf("Order.State %s is not found by its name", s)
		}
	}
}

func TestStates_OnlyListedTransitionsAreValid(t *testing.T) {
	t.Parallel()
	valid := map[orderv1.Order_State][]orderv1.Order_State{
		orderv1.Order_PENDING:   {orderv1.Order_CONFIRMED, orderv1.Order_REJECTED},
		orderv1.Order_CONFIRMED: {orderv1.Order_CANCELLED},
	}
	for _, from := range append(orderstate.All(), orderv1.Order_STATE_UNSPECIFIED) {
		for _, to := range append(orderstate.All(), orderv1.Order_STATE_UNSPECIFIED) {
			if got, want := orderstate.CanFollow(from, to), slices.Contains(valid[from], to); got != want {
				t.Errorf("from %s to %s: %t, want %t", from, to, got, want)
			}
		}
		if got, want := orderstate.IsFinal(from), from != orderv1.Order_STATE_UNSPECIFIED && len(valid[from]) == 0; got != want {
			t.Errorf("%s is final: %t, want %t", from, got, want)
		}
	}
}

func TestStates_OneOfANewerReleaseIsUnknown(t *testing.T) {
	t.Parallel()
	newer := orderv1.Order_State(99)
	if orderstate.EventOf(newer) != nil || len(orderstate.EventsOf(newer)) > 0 {
		t.Error("a state that nobody knows has events")
	}
	for _, s := range append(orderstate.All(), newer) {
		if orderstate.CanFollow(newer, s) || orderstate.CanFollow(s, newer) {
			t.Errorf("a state that nobody knows is before or after %s", s)
		}
	}
	if orderstate.IsStored(newer) || orderstate.IsDecided(newer) || orderstate.IsFinal(newer) || orderstate.StockOf(newer) != orderstate.Unknown {
		t.Error("a state that nobody knows is taken for one that is known")
	}
	if s := orderstate.Parse("SHIPPED_BY_A_NEWER_RELEASE"); s != orderv1.Order_STATE_UNSPECIFIED {
		t.Errorf("an unknown name is %s", s)
	}
}
