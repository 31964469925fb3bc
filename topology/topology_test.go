package topology_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"

	"shop.example/platform/contract"
	"shop.example/platform/messaging/provision"
	"shop.example/topology"
)

// The contracts say who handles an event, and the documents repeat it: the queues are bound accordingly.
func TestServices_BindingsBringEachEventToThoseWhoHandleIt(t *testing.T) {
	t.Parallel()
	for _, event := range contract.Events() {
		var taken []string
		for _, s := range topology.Services() {
			if slices.ContainsFunc(s.Bindings, func(binding string) bool { return bindsTo(binding, event.RoutingKey) }) {
				taken = append(taken, s.Name)
			}
		}
		said := slices.Sorted(slices.Values(event.HandledBy))
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

// A name in the contracts that is no service's gives nobody a right, and without a word.
func TestServices_TheContractsNameNoOthers(t *testing.T) {
	t.Parallel()
	known := topology.Names()
	check := func(what string, names ...string) {
		t.Helper()
		for _, name := range names {
			if !slices.Contains(known, name) {
				t.Errorf("%s names the service %q, which is not in the table", what, name)
			}
		}
	}
	for _, e := range contract.Events() {
		check(string(e.Name), slices.Concat(e.PublishedBy, e.HandledBy)...)
		if broker := topology.Broker(); e.Exchange != broker.EventExchange {
			t.Errorf("%s is published to %s, which is not the exchange of events", e.Name, e.Exchange)
		}
	}
	for _, m := range contract.Methods() {
		check(m.RoutingKey, append(m.CalledBy, m.AnsweredBy)...)
		if broker := topology.Broker(); m.Exchange != broker.CallExchange {
			t.Errorf("%s is published to %s, which is not the exchange of calls", m.RoutingKey, m.Exchange)
		}
	}
}

func TestServices_NoTwoShareAPortOrASchema(t *testing.T) {
	t.Parallel()
	ports, schemas := map[int]string{}, map[string]string{}
	for _, s := range topology.Services() {
		for _, port := range []int{s.GRPCPort, s.AdminPort} {
			if other, taken := ports[port]; taken && port != 0 {
				t.Errorf("%s and %s have the port %d", s.Name, other, port)
			}
			ports[port] = s.Name
		}
		if other, taken := schemas[s.Schema]; taken && s.Schema != "" {
			t.Errorf("%s and %s have the schema %s", s.Name, other, s.Schema)
		}
		schemas[s.Schema] = s.Name
		if s.AdminPort == 0 {
			t.Errorf("%s has no port for its health", s.Name)
		}
	}
}

// What compose gives to a broker, and people import, is what services are checked against.
func TestDefinitions_AreWhatTheTableSays(t *testing.T) {
	t.Parallel()
	want, err := provision.JSON(topology.Broker())
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile("definitions.json")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("topology/definitions.json is not what the table of services and the contracts say: run make generate")
	}
}

// granted are the rights that a file of definitions gives, as those that use them see them.
type granted struct {
	Permissions []struct{ User, Configure, Write, Read string }
	Topics      []struct{ User, Write, Read string } `json:"topic_permissions"`
}

func rights(t *testing.T, file string) (permissions, topics map[string]map[string]*regexp.Regexp) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var g granted
	if err := json.Unmarshal(text, &g); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	permissions, topics = map[string]map[string]*regexp.Regexp{}, map[string]map[string]*regexp.Regexp{}
	for _, p := range g.Permissions {
		permissions[p.User] = map[string]*regexp.Regexp{"configure": regexp.MustCompile(p.Configure), "write": regexp.MustCompile(p.Write), "read": regexp.MustCompile(p.Read)}
	}
	for _, p := range g.Topics {
		topics[p.User] = map[string]*regexp.Regexp{"write": regexp.MustCompile(p.Write), "read": regexp.MustCompile(p.Read)}
	}
	return permissions, topics
}

// The rights were written by hand until they were derived. What they were is kept in testdata: a service that loses one
// stops at the broker, and one that gains one could do what nobody has decided. Events, queues and services that came
// later have no part in it; change the file with the decision.
func TestDefinitions_GrantWhatWasGrantedAndNoMore(t *testing.T) {
	t.Parallel()
	oldPermissions, oldTopics := rights(t, path.Join("testdata", "rights.json"))
	permissions, topics := rights(t, "definitions.json")
	things := []string{
		"shop.topic", "shop.direct", "shop.dlx", "amq.default", "amq.topic", "amq.gen-", "amq.gen-abc", "amq.genabc", "dead-letter", "dead-letters",
		"inventory-rpc-queue", "inventory-rpc-queue.2", "inventory-rpc-queue.3", "inventory-rpc-queue.4", "mine", "", "shopXtopic",
	}
	for service := range oldPermissions {
		things = append(things, service, service+".retry.1s", service+".retry.10s", service+".retry.60s", service+".retry.s", service+".copy", "x"+service)
	}
	keys := []string{
		"shop.order.placed", "shop.order.confirmed", "shop.order.rejected", "shop.order.cancelled", "shop.inventory.decrement.quantity",
		"shop.inventory.create", "shop.inventory.update", "shop.inventory.delete", "shop.inventory.list", "shop.stock.changed", "shop.stock.depleted",
		"shop.operator.acted", "shop.#", "shop.order.#", "shop.order.*", "shop.inventory.#", "shop.inventory.*", "#", "", "shop", "shop.order", "shop.orderXplaced",
	}
	compare := func(what string, before, now map[string]map[string]*regexp.Regexp, names []string) {
		for service, actions := range before {
			for action, was := range actions {
				is := now[service][action]
				if is == nil {
					t.Errorf("%s has no rights any more", service)
					continue
				}
				for _, name := range names {
					if was.MatchString(name) != is.MatchString(name) {
						t.Errorf("%s may %s the %s %q: %t, and it was %t", service, action, what, name, is.MatchString(name), was.MatchString(name))
					}
				}
			}
		}
	}
	compare("exchange or queue", oldPermissions, permissions, things)
	compare("routing key", oldTopics, topics, keys)
}
