package topology_test

import (
	"slices"
	"strings"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"shop.example/platform/messaging/provision"
	"shop.example/platform/testkit/brokertest"
	"shop.example/topology"
)

// target is the virtual host with users for all services.
func target(t *testing.T, broker *brokertest.Broker) provision.Target {
	t.Helper()
	at := provision.Target{ManagementURL: management(), Vhost: broker.Vhost, Logins: map[string]provision.Login{}}
	for _, name := range topology.Names() {
		login := provision.Login{User: broker.Vhost + "-" + name, Password: "secret"}
		at.Logins[name] = login
		t.Cleanup(func() {
			if res, err := broker.Manage.DeleteUser(login.User); err == nil {
				_ = res.Body.Close()
			}
		})
	}
	return at
}

func plan(t *testing.T, at provision.Target) (texts []string) {
	t.Helper()
	changes, err := provision.Plan(t.Context(), topology.Broker(), at)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range changes {
		texts = append(texts, c.Text)
	}
	return texts
}

func TestProvision_MakesWhatIsMissingAndThenHasNothingToDo(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	at := target(t, broker)
	planned := plan(t, at)
	for _, want := range []string{
		"exchange shop.topic is missing", "queue inventory.retry.10s is missing", `the binding of queue logging to "shop.#" on shop.topic is missing`,
		"user " + at.Logins["gateway"].User + ": create",
	} {
		if !slices.Contains(planned, want) {
			t.Errorf("%q is not planned: %q", want, planned)
		}
	}
	if err := provision.Compare(t.Context(), topology.Broker(), management(), broker.Vhost); err == nil {
		t.Error("planning has changed the broker")
	}
	done, err := provision.Apply(t.Context(), topology.Broker(), at)
	if err != nil || len(done) != len(planned) {
		t.Fatalf("did %v, %v; planned %q", done, err, planned)
	}
	for service, login := range at.Logins {
		url, err := login.URL(broker.URL)
		if err != nil {
			t.Fatal(err)
		}
		if err := connect(t, url, service); err != nil {
			t.Errorf("%s: %v", service, err)
		}
		login.Password = "" // the user has one
		at.Logins[service] = login
	}
	if left := plan(t, at); len(left) > 0 {
		t.Errorf("after it was done there is left to do: %q", left)
	}
}

// An upgrade: bindings that this release does not have are gone, and rights are those of this release.
func TestProvision_RemovesSurplusBindingsOfItsQueuesAndSurplusRights(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	at := target(t, broker)
	if _, err := provision.Apply(t.Context(), topology.Broker(), at); err != nil {
		t.Fatal(err)
	}
	ch := channel(t, broker.URL)
	for queue, keys := range map[string][]string{"order": {"shop.order.cancelled", "#", "shop/odd key.*", ""}, "dead-letter": {"shop.#"}} {
		for _, key := range keys {
			if err := ch.QueueBind(queue, key, "shop.topic", false, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := ch.QueueDeclare("of-somebody-else", true, false, false, false, amqp.Table{amqp.QueueTypeArg: amqp.QueueTypeQuorum}); err != nil {
		t.Fatal(err)
	}
	if err := ch.QueueBind("of-somebody-else", "shop.#", "shop.topic", false, nil); err != nil {
		t.Fatal(err)
	}
	everything := `{"configure": ".*", "write": ".*", "read": ".*"}`
	gateway := at.Logins["gateway"].User
	if _, err := provision.Call(t.Context(), "PUT", management()+"/api/permissions/"+broker.Vhost+"/"+gateway, []byte(everything)); err != nil {
		t.Fatal(err)
	}
	done, err := provision.Apply(t.Context(), topology.Broker(), at)
	if err != nil {
		t.Fatal(err)
	}
	removed := 0
	for _, c := range done {
		if strings.HasSuffix(c.Text, "is too much") {
			removed++
		}
	}
	if removed != 5 {
		t.Errorf("%d bindings are removed, want 5: %v", removed, done)
	}
	if err := provision.Compare(t.Context(), topology.Broker(), management(), broker.Vhost); err != nil {
		t.Error(err)
	}
	bindings, err := broker.Manage.ListQueueBindings(broker.Vhost, "of-somebody-else")
	if err != nil || len(bindings) != 2 { // and that of the default exchange
		t.Errorf("the bindings of somebody else's queue: %v, %v", bindings, err)
	}
	url, err := at.Logins["gateway"].URL(broker.URL)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := channel(t, url).QueueDelete("order", false, false, false); err == nil {
		t.Error("the gateway may still delete a queue")
	}
}

func TestProvision_LeavesWhatCouldCostMessagesToAPerson(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	at := target(t, broker)
	login := at.Logins["logging"]
	login.Password = ""
	at.Logins["logging"] = login
	if _, err := channel(t, broker.URL).QueueDeclare("order", true, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
	done, err := provision.Apply(t.Context(), topology.Broker(), at)
	if err != nil {
		t.Fatal(err)
	}
	var byHand []string
	for _, c := range done {
		if c.ByHand {
			byHand = append(byHand, c.Text)
		}
	}
	if len(byHand) != 2 || !strings.HasPrefix(byHand[0], "queue order is x-queue-type=classic") || byHand[1] != "user "+login.User+" is missing: create it, and run this again" {
		t.Errorf("by hand: %q", byHand)
	}
}
