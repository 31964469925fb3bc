package messaging

import "testing"

func TestRoutes_IsTheRuleOfATopicExchange(t *testing.T) {
	t.Parallel()
	topology := Topology{EventExchange: "events", DeadLetterExchange: "dead", DeadLetterService: "b", Services: []Service{
		{Name: "a", Bindings: []string{"shop.#.end", "one.*"}}, {Name: "b", Bindings: []string{"log.#"}},
	}}
	for key, want := range map[string]bool{
		"shop.end": true, "shop.a.end": true, "shop.a.b.end": true, "shop.a": false, "shopend": false,
		"one.a": true, "one": false, "one.a.b": false, "log": true, "log.a.b": true, "logs": false, "": false,
	} {
		if got := topology.routes("events", key); got != want {
			t.Errorf("%q is routed: %t", key, got)
		}
	}
	if topology.routes("others", "log") {
		t.Error("another exchange routes")
	}
}
