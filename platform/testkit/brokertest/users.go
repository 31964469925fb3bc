package brokertest

import (
	"os"
	"slices"
	"testing"

	"shop.example/platform/contract"
	"shop.example/platform/messaging"
	"shop.example/platform/messaging/provision"
)

// Topology returns a topology for tests of packages that do not know the product: four services of the contracts, whose
// queues take exactly what they handle.
func Topology() messaging.Topology {
	t := messaging.Topology{
		EventExchange: "shop.topic", CallExchange: "shop.direct", DeadLetterExchange: "shop.dlx", DeadLetterService: "logging",
		Services: []messaging.Service{{Name: "gateway"}, {Name: "order"}, {Name: "inventory"}, {Name: "logging"}},
	}
	for i := range t.Services {
		s := &t.Services[i]
		s.Required = true
		for _, event := range contract.Events() {
			if slices.Contains(event.HandledBy, s.Name) {
				s.Bindings = append(s.Bindings, event.RoutingKey)
			}
			if s.Name == "gateway" && slices.Contains(event.PublishedBy, "order") {
				s.Follows = append(s.Follows, event.RoutingKey)
			}
		}
	}
	return t
}

// Services prepares the virtual host as in production, and returns a URL for each service of the topology, with a user that
// has the rights of that service only. The users are deleted when the test ends.
func (b *Broker) Services(t testing.TB, topology messaging.Topology) map[string]string {
	t.Helper()
	if b.services != nil {
		return b.services
	}
	logins, urls := map[string]provision.Login{}, map[string]string{}
	for _, service := range topology.Services {
		login := provision.Login{User: b.Vhost + "-" + service.Name, Password: "secret-of-" + service.Name}
		t.Cleanup(func() {
			res, err := b.Manage.DeleteUser(login.User)
			if err != nil {
				t.Errorf("deleting user %s: %v", login.User, err)
				return
			}
			_ = res.Body.Close()
		})
		logins[service.Name] = login
		var err error
		if urls[service.Name], err = login.URL(b.URL); err != nil {
			t.Fatal(err)
		}
	}
	if err := provision.Users(t.Context(), topology, os.Getenv("AMQP_MANAGEMENT_URL"), b.Vhost, logins); err != nil {
		t.Fatal(err)
	}
	b.services = urls
	return urls
}
