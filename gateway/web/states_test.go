package web

import (
	"regexp"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	eventsv1 "shop.example/gen/shop/events/v1"
	orderv1 "shop.example/gen/shop/order/v1"
)

// A new state or reason of the contract has to be one that the pages show in words, and a state has its stamp.
func TestStates_ThePagesKnowEveryStateAndReasonOfTheContract(t *testing.T) {
	t.Parallel()
	script, style := asset(t, "way.js"), asset(t, "style.css")
	words, _, found := strings.Cut(script[strings.Index(script, "const messages = {"):], "};")
	if !found {
		t.Fatal("way.js has no messages")
	}
	inWords := func(kind string, value protoreflect.Name) {
		if messages[string(value)] == "" {
			t.Errorf("%s %s: say in messages in form.go what it means to a customer", kind, value)
		}
		if !regexp.MustCompile(`\b` + string(value) + `: '`).MatchString(words) {
			t.Errorf("%s %s: say in messages in assets/way.js what it means to a customer", kind, value)
		}
	}
	states := orderv1.Order_STATE_UNSPECIFIED.Descriptor().Values()
	for i := range states.Len() {
		value := states.Get(i)
		if value.Number() == 0 {
			continue
		}
		if orderv1.Order_State(value.Number()) != orderv1.Order_REJECTED { // its reason is shown instead
			inWords("Order.State", value.Name())
		}
		if !strings.Contains(style, ".stamp[data-state="+string(value.Name())+"]") {
			t.Errorf("Order.State %s: give it a stamp in assets/style.css", value.Name())
		}
	}
	reasons := eventsv1.OrderRejected_REASON_UNSPECIFIED.Descriptor().Values()
	for i := range reasons.Len() {
		if value := reasons.Get(i); value.Number() != 0 {
			inWords("OrderRejected.Reason", value.Name())
		}
	}
}

func TestStates_OneOfANewerReleaseIsShownByItsName(t *testing.T) {
	t.Parallel()
	var view orderView
	view.show(&orderv1.Order{State: orderv1.Order_State(99)})
	if view.State != "99" || !strings.Contains(view.Message, "99") {
		t.Errorf("state %q, message %q", view.State, view.Message)
	}
}

func asset(t *testing.T, name string) string {
	t.Helper()
	content, err := assets.ReadFile("assets/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}
