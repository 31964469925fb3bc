// Package topology is the table of the shop's services, with what each of them has on the broker, in the database and on the
// network. Everything that concerns all services is made from it: the broker's definitions, certificates, the roles of the
// database, `make up`, the audit, tests. What a service publishes, handles, calls and answers stands in the contracts.
package topology

import (
	"google.golang.org/protobuf/proto"

	"shop.example/platform/contract"
	"shop.example/platform/messaging"

	eventsv1 "shop.example/gen/shop/events/v1"
	_ "shop.example/gen/shop/inventory/v1" // registers the call over the broker
)

// The names of the services. The queue of a service has the same name.
const (
	Gateway   = "gateway"
	Order     = "order"
	Inventory = "inventory"
	Logging   = "logging"
	Webhooks  = "webhooks"
)

// WithoutIDSecret is the exclusive queue of a gateway that runs without SHOP_ID_SECRET. A second such gateway cannot have it,
// and so notices that there are two, which would derive different order ids from one idempotency key.
const WithoutIDSecret = "gateway.without-id-secret"

// Service is a row of the table.
type Service struct {
	// Name is also that of the service's user on the broker, of its queue and of its certificate.
	Name string
	// Bindings are the patterns of the routing keys that its queue takes; none for a service that does not consume. They may
	// match keys that no contract has: such a message becomes a dead letter, which operators see, instead of being lost.
	Bindings []string
	// Required says that an event which the service handles must not be published while the service's queue is missing.
	Required bool
	// Follows are the events that each of its processes receives in a temporary queue of its own.
	Follows []proto.Message
	// Exclusive are the names of queues that get no messages: of two processes that declare one, the second notices that it is
	// not alone, see messaging.Alone.
	Exclusive []string
	// Schema is the service's schema in the database, and the role that owns it; "" for a service without a database. Its
	// migrations are in the folder of that name in db/.
	Schema string
	// GRPCPort is the port on which the other services call its gRPC methods; 0 if it has none. The gateway has none: it serves
	// REST and gRPC together, on HTTP_ADDR.
	GRPCPort int
	// AdminPort is the port that serves health and metrics.
	AdminPort int
}

// Services returns the table, in the order in which an order passes through the services.
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

// Broker returns the exchanges of the shop and what each service has on the broker.
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
