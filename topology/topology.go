// Package topology is the one place that says which services the shop has, and what each of them has on the broker, in
// the database and on the network. Whatever runs over all services takes the table below: the broker's definitions,
// certificates, roles of the database, `make up`, the audit, tests. What a service publishes, handles, calls and answers is
// said by the contracts.
package topology

import (
	"google.golang.org/protobuf/proto"

	"shop.example/platform/contract"
	"shop.example/platform/messaging"

	eventsv1 "shop.example/gen/shop/events/v1"
	_ "shop.example/gen/shop/inventory/v1" // registers the call over the broker
)

// The services that other services know by name. The queue of a service has its name.
const (
	Gateway   = "gateway"
	Order     = "order"
	Inventory = "inventory"
	Logging   = "logging"
	Webhooks  = "webhooks"
)

// WithoutIDSecret is the queue that a gateway without a secret for order ids holds.
const WithoutIDSecret = "gateway.without-id-secret"

// Service is a row of the table.
type Service struct {
	// Name is also that of the service's user on the broker, of its queue and of its certificate.
	Name string
	// Bindings are the patterns of the routing keys that its queue takes; none for a service that does not consume. They may
	// match more than there is: an unknown message is a dead letter then, and seen, instead of lost.
	Bindings []string
	// Required says that nobody may publish what the service handles while its queue is missing.
	Required bool
	// Follows are events that its processes listen to without a queue that outlives them.
	Follows []proto.Message
	// Exclusive are queues without messages by which a process finds out that it is not the only one.
	Exclusive []string
	// Schema is the service's schema in the database, and the role that owns it; "" for a service without a database. Its
	// migrations are in the folder of that name in db/.
	Schema string
	// GRPCPort is the port of the service's own gRPC; 0 for a service that nobody calls there, and for the gateway, which has
	// a port for everybody.
	GRPCPort int
	// AdminPort is the port of health and metrics.
	AdminPort int
}

// Services returns the table: first the gateway, then those that an order passes, in its order.
func Services() []Service {
	return []Service{
		{Name: Gateway, Follows: []proto.Message{&eventsv1.OrderConfirmed{}, &eventsv1.OrderRejected{}}, Exclusive: []string{WithoutIDSecret}, AdminPort: 3100},
		{Name: Order, Bindings: []string{"shop.order.placed"}, Required: true, Schema: "orders", GRPCPort: 3001, AdminPort: 3101},
		{Name: Inventory, Bindings: []string{"shop.inventory.#", "shop.order.cancelled"}, Required: true, Schema: "inventory", GRPCPort: 3002, AdminPort: 3102},
		{Name: Logging, Bindings: []string{"shop.#"}, Required: true, Schema: "logging", GRPCPort: 3003, AdminPort: 3103},
		{Name: Webhooks, Schema: "webhooks", GRPCPort: 3004, AdminPort: 3104},
	}
}

// Names returns the names of all services.
func Names() []string {
	var names []string
	for _, s := range Services() {
		names = append(names, s.Name)
	}
	return names
}

// Schemas returns the schemas of the services that have one.
func Schemas() []string {
	var schemas []string
	for _, s := range Services() {
		if s.Schema != "" {
			schemas = append(schemas, s.Schema)
		}
	}
	return schemas
}

// Broker returns what the services have on the broker.
func Broker() messaging.Topology {
	placed, _ := contract.EventOf(&eventsv1.OrderPlaced{})
	t := messaging.Topology{
		EventExchange: placed.Exchange, CallExchange: contract.Methods()[0].Exchange, DeadLetterExchange: "shop.dlx", DeadLetterService: Logging,
	}
	for _, s := range Services() {
		t.Services = append(t.Services, messaging.Service{Name: s.Name, Bindings: s.Bindings, Required: s.Required, Follows: routingKeys(s.Follows), Exclusive: s.Exclusive})
	}
	return t
}

func routingKeys(events []proto.Message) (keys []string) {
	for _, m := range events {
		event, _ := contract.EventOf(m)
		keys = append(keys, event.RoutingKey)
	}
	return keys
}

// RoutingKey returns the routing key that an event is published under.
func RoutingKey(event proto.Message) string { return routingKeys([]proto.Message{event})[0] }
