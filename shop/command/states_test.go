package command

import (
	"strings"
	"testing"

	"shop.example/domain/orderstate"
	eventsv1 "shop.example/gen/shop/events/v1"
	orderv1 "shop.example/gen/shop/order/v1"
)

// A new state or reason of the contract has to be one that the command line shows and explains.
func TestStates_TheCommandLineKnowsEveryStateAndReasonOfTheContract(t *testing.T) {
	t.Parallel()
	const unknown = "unknown to this release"
	states := orderv1.Order_STATE_UNSPECIFIED.Descriptor().Values()
	for i := range states.Len() {
		state := orderv1.Order_State(states.Get(i).Number())
		shown := stateCell(&orderv1.Order{State: state})
		if known := !strings.Contains(shown.text, unknown); known != (state != orderv1.Order_STATE_UNSPECIFIED) {
			t.Errorf("Order.State %s is shown as %q: give it a colour in stateCell", state, shown.text)
		}
		if !orderstate.IsStored(state) {
			continue
		}
		if parsed, err := parseOrderState(strings.ToLower(state.String())); err != nil || parsed != state {
			t.Errorf("--state %s: %s, %v", strings.ToLower(state.String()), parsed, err)
		}
		if _, err := parseOrderState("nonsense"); err == nil || !strings.Contains(err.Error(), strings.ToLower(state.String())) {
			t.Errorf("the error about a wrong --state does not name %s: %v", state, err)
		}
	}
	if shown := stateCell(&orderv1.Order{State: 99}); !strings.Contains(shown.text, unknown) {
		t.Errorf("a state of a newer release is shown as %q", shown.text)
	}
	reasons := eventsv1.OrderRejected_REASON_UNSPECIFIED.Descriptor().Values()
	for i := range reasons.Len() {
		reason := eventsv1.OrderRejected_Reason(reasons.Get(i).Number())
		words := rejection(&orderv1.Order{State: orderv1.Order_REJECTED, Reason: reason.Enum()})
		if reason != eventsv1.OrderRejected_REASON_UNSPECIFIED && !strings.Contains(words, "("+reason.String()+")") {
			t.Errorf("OrderRejected.Reason %s is explained as %q: say in rejection what it means and what to do", reason, words)
		}
	}
}
