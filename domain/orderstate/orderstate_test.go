package orderstate_test

import (
	"testing"

	"shop.example/domain/orderstate"
	orderv1 "shop.example/gen/shop/order/v1"
)

// A new state in the contract has to be decided about here first. The tests of the others that have to know it fail too:
// the order service (its transitions, its table), the audit, the command line and the page.
func TestStates_EachOfTheContractIsInTheTable(t *testing.T) {
	t.Parallel()
	values := orderv1.Order_STATE_UNSPECIFIED.Descriptor().Values()
	for i := range values.Len() {
		s := orderv1.Order_State(values.Get(i).Number())
		known := orderstate.StockOf(s) != orderstate.Unknown
		if want := s != orderv1.Order_STATE_UNSPECIFIED; known != want {
			t.Errorf("Order.State %s: known to package orderstate: %t, want %t; say in its table whether such an order is stored, decided and final, and what becomes of its stock", s, known, want)
		}
		if orderstate.IsFinal(s) && !orderstate.IsDecided(s) || orderstate.IsDecided(s) && !orderstate.IsStored(s) {
			t.Errorf("Order.State %s: what is final is decided, and what is decided is stored", s)
		}
		if orderstate.IsDecided(s) && orderstate.StockOf(s) == orderstate.Open {
			t.Errorf("Order.State %s: it is decided, so its stock cannot be open", s)
		}
		if orderstate.Parse(s.String()) != s {
			t.Errorf("Order.State %s is not found by its name", s)
		}
	}
}

func TestStates_OneOfANewerReleaseIsUnknown(t *testing.T) {
	t.Parallel()
	newer := orderv1.Order_State(99)
	if orderstate.IsStored(newer) || orderstate.IsDecided(newer) || orderstate.IsFinal(newer) || orderstate.StockOf(newer) != orderstate.Unknown {
		t.Error("a state that nobody knows is taken for one that is known")
	}
	if s := orderstate.Parse("SHIPPED_BY_A_NEWER_RELEASE"); s != orderv1.Order_STATE_UNSPECIFIED {
		t.Errorf("an unknown name is %s", s)
	}
}
