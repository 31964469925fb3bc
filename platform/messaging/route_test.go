package messaging

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	optionsv1 "shop.example/gen/shop/options/v1"
	"shop.example/platform/contract"
)

// The contracts say who handles an event, and the documents repeat it: the queues are bound accordingly.
func TestTopology_BringsEachEventToThoseWhoHandleIt(t *testing.T) {
	t.Parallel()
	for _, event := range contract.Events() {
		option := proto.GetExtension(event.New().ProtoReflect().Descriptor().Options(), optionsv1.E_Event).(*optionsv1.Event)
		var taken []string
		for _, q := range workQueues {
			if slices.ContainsFunc(q.bindings, func(binding string) bool { return bindsTo(binding, event.RoutingKey) }) {
				taken = append(taken, q.name)
			}
		}
		said := slices.Sorted(slices.Values(option.GetHandledBy()))
		slices.Sort(taken)
		if !slices.Equal(said, taken) {
			t.Errorf("%s is handled by %q in the contracts, and goes to the queues %q", event.Name, said, taken)
		}
	}
}

// bindsTo is a topic exchange's rule, as far as the bindings need it: # at the end stands for any number of words.
func bindsTo(binding, key string) bool {
	prefix, open := strings.CutSuffix(binding, ".#")
	return binding == key || open && (key == prefix || strings.HasPrefix(key, prefix+"."))
}
