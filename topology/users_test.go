package topology_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"shop.example/platform/messaging"
	"shop.example/platform/messaging/provision"
	"shop.example/platform/testkit/brokertest"
	"shop.example/topology"
)

func management() string { return os.Getenv("AMQP_MANAGEMENT_URL") }

// connect runs a service's connection until it is ready or has failed, and returns why.
func connect(t *testing.T, url, service string) error {
	t.Helper()
	return connectIn(t, topology.Broker(), url, service)
}

func connectIn(t *testing.T, in messaging.Topology, url, service string) error {
	t.Helper()
	conn, err := messaging.Dial(url, messaging.Options{Topology: in, Service: service, Role: "test", Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- conn.Run(ctx) }()
	defer stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(30 * time.Second); ; {
		select {
		case err := <-ended:
			return err
		case <-deadline:
			t.Fatalf("%s: %v", service, conn.Ready(ctx))
		case <-tick.C:
		}
		if err := conn.Ready(ctx); err == nil || !strings.Contains(err.Error(), "not connected yet") {
			stop()
			return errors.Join(err, <-ended)
		}
	}
}

// channel opens one as a service's user does.
func channel(t *testing.T, url string) *amqp.Channel {
	t.Helper()
	conn, err := amqp.Dial(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	ch, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	return ch
}

func TestTopology_IsTheOneThatServicesDeclare(t *testing.T) {
	t.Parallel()
	declared := brokertest.New(t)
	if err := connect(t, declared.URL, "order"); err != nil {
		t.Fatal(err)
	}
	if err := provision.Compare(t.Context(), topology.Broker(), management(), declared.Vhost); err != nil {
		t.Errorf("what services declare: %v", err)
	}

	imported := brokertest.New(t)
	if err := provision.Topology(t.Context(), topology.Broker(), management(), imported.Vhost); err != nil {
		t.Fatal(err)
	}
	if err := provision.Compare(t.Context(), topology.Broker(), management(), imported.Vhost); err != nil {
		t.Errorf("what was imported: %v", err)
	}
	for _, service := range topology.Names() {
		if err := connect(t, imported.URL, service); err != nil {
			t.Errorf("%s does not find its own in what was imported: %v", service, err)
		}
	}
}

// What users may do together with the rest of the shop is tested end to end.
func TestUsers_EachServiceConnectsAloneWithItsOwnUser(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	for service, url := range broker.Services(t, topology.Broker()) {
		if err := connect(t, url, service); err != nil {
			t.Errorf("%s: %v", service, err)
		}
	}
}

func TestUsers_WithoutTheTopologyAServiceSaysWhatIsMissing(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	urls := broker.Services(t, topology.Broker())
	for queue, service := range map[string]string{"order": "gateway", "logging": "inventory", "dead-letter": "order"} {
		if _, err := channel(t, broker.URL).QueueDelete(queue, false, false, false); err != nil {
			t.Fatal(err)
		}
		err := connect(t, urls[service], service)
		if err == nil || !strings.Contains(err.Error(), "queue "+queue+" is missing in the broker, and this service's user may not declare it: import the shop's definitions") {
			t.Errorf("without queue %s: %v", queue, err)
		}
		if err := connect(t, broker.URL, "test"); err != nil { // declares it again
			t.Fatal(err)
		}
	}
}

// A gateway takes orders while the other services are down, also if what is missing takes none of its orders.
func TestUsers_AMissingQueueThatAServiceDoesNotNeedKeepsItFromNothing(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	urls := broker.Services(t, topology.Broker())
	for _, queue := range []string{"inventory", "inventory.retry.10s", "dead-letter"} {
		if _, err := channel(t, broker.URL).QueueDelete(queue, false, false, false); err != nil {
			t.Fatal(err)
		}
	}
	for _, exchange := range []string{"shop.direct", "shop.dlx"} {
		if err := channel(t, broker.URL).ExchangeDelete(exchange, false, false); err != nil {
			t.Fatal(err)
		}
	}
	if err := connect(t, urls["gateway"], "gateway"); err != nil {
		t.Error(err)
	}
}

// Who only consumes asks for nothing but its own.
func TestUsers_AServiceThatOnlyConsumesWaitsForNobody(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	urls := broker.Services(t, topology.Broker())
	for _, queue := range []string{"order", "inventory", "inventory.retry.10s"} {
		if _, err := channel(t, broker.URL).QueueDelete(queue, false, false, false); err != nil {
			t.Fatal(err)
		}
	}
	if err := connect(t, urls["logging"], "logging"); err != nil {
		t.Error(err)
	}
}

// Two services whose queues went while neither was connected must not wait for each other.
func TestUsers_AServiceDeclaresItsOwnQueuesWhateverElseIsMissing(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	urls := broker.Services(t, topology.Broker())
	for _, queue := range []string{"order", "order.retry.1s", "inventory", "inventory.retry.60s"} {
		if _, err := channel(t, broker.URL).QueueDelete(queue, false, false, false); err != nil {
			t.Fatal(err)
		}
	}
	_ = connect(t, urls["order"], "order") // which misses inventory's queue
	if err := connect(t, urls["inventory"], "inventory"); err != nil {
		t.Error(err)
	}
	if err := connect(t, urls["order"], "order"); err != nil {
		t.Error(err)
	}
	if err := provision.Compare(t.Context(), topology.Broker(), management(), broker.Vhost); err != nil {
		t.Error(err)
	}
}

func TestUsers_WhatIsNotTheirsIsRefused(t *testing.T) {
	t.Parallel()
	urls := brokertest.New(t).Services(t, topology.Broker())
	declare := func(queue string) func(*amqp.Channel) error {
		return func(ch *amqp.Channel) error {
			_, err := ch.QueueDeclare(queue, true, false, false, false, amqp.Table{amqp.QueueTypeArg: amqp.QueueTypeQuorum})
			return err
		}
	}
	read := func(queue string) func(*amqp.Channel) error {
		return func(ch *amqp.Channel) error {
			_, _, err := ch.Get(queue, false)
			return err
		}
	}
	bind := func(queue, key, exchange string) func(*amqp.Channel) error {
		return func(ch *amqp.Channel) error { return ch.QueueBind(queue, key, exchange, false, nil) }
	}
	// listen binds a queue that only the connection has.
	listen := func(key string) func(*amqp.Channel) error {
		return func(ch *amqp.Channel) error {
			q, err := ch.QueueDeclare("", false, true, true, false, nil)
			if err != nil {
				return err
			}
			return ch.QueueBind(q.Name, key, "shop.topic", false, nil)
		}
	}
	publish := func(exchange, key string) func(*amqp.Channel) error {
		return func(ch *amqp.Channel) error {
			if err := ch.Confirm(false); err != nil {
				return err
			}
			closed := ch.NotifyClose(make(chan *amqp.Error, 1))
			confirm, err := ch.PublishWithDeferredConfirm(exchange, key, false, false, amqp.Publishing{})
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			if acked, err := confirm.WaitContext(ctx); err != nil || acked {
				return err
			}
			select { // a channel that is closed ends what waits for confirms, too
			case err := <-closed:
				return err
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	remove := func(queue string) func(*amqp.Channel) error {
		return func(ch *amqp.Channel) error { _, err := ch.QueueDelete(queue, false, false, false); return err }
	}
	purge := func(queue string) func(*amqp.Channel) error {
		return func(ch *amqp.Channel) error { _, err := ch.QueuePurge(queue, false); return err }
	}
	exchange := func(ch *amqp.Channel) error {
		return ch.ExchangeDeclare("shop.topic", amqp.ExchangeTopic, true, false, false, false, nil)
	}
	deleteExchange := func(ch *amqp.Channel) error { return ch.ExchangeDelete("shop.topic", false, false) }

	type attempt struct {
		what string
		try  func(*amqp.Channel) error
	}
	refused := map[string][]attempt{
		"gateway": {
			{"declare a queue", declare("mine")}, {"declare the order queue", declare("order")}, {"delete the order queue", remove("order")},
			{"read the order queue", read("order")}, {"empty the order queue", purge("order")}, {"read the dead letters", read("dead-letter")},
			{"say that an order is confirmed", publish("shop.topic", "shop.order.confirmed")},
			{"take stock", publish("shop.topic", "shop.inventory.decrement.quantity")},
			{"change the catalogue", publish("shop.topic", "shop.inventory.create")},
			{"call the stock check", publish("shop.direct", "shop.inventory.check")},
			{"put into the order queue past the exchange", publish("", "order")}, {"make a dead letter", publish("shop.dlx", "")},
			{"take a copy of all events", bind("order", "shop.#", "shop.topic")},
			{"say what an operator did", publish("shop.topic", "shop.operator.acted")},
			{"listen to all events", listen("shop.#")}, {"listen to placed orders, with the customers' names", listen("shop.order.placed")},
			{"change an exchange", exchange}, {"delete an exchange", deleteExchange},
		},
		"order": {
			{"read inventory's queue", read("inventory")}, {"read the log's queue", read("logging")}, {"read the dead letters", read("dead-letter")},
			{"answer stock checks", read("inventory-rpc-queue")},
			{"place an order", publish("shop.topic", "shop.order.placed")}, {"change the catalogue", publish("shop.topic", "shop.inventory.update")},
			{"take a copy of all events", bind("order", "shop.#", "shop.topic")}, {"feed inventory's queue", bind("inventory", "shop.order.placed", "shop.topic")},
			{"declare inventory's queue", declare("inventory")}, {"declare another one", declare("order.copy")}, {"delete an exchange", deleteExchange},
		},
		"inventory": {
			{"read the order queue", read("order")}, {"confirm an order", publish("shop.topic", "shop.order.confirmed")},
			{"change the catalogue in another's name", publish("shop.topic", "shop.inventory.create")},
			{"take a copy of all events", bind("inventory", "shop.#", "shop.topic")}, {"take placed orders", bind("inventory", "shop.order.placed", "shop.topic")},
			{"delete the order queue", remove("order")}, {"delete an exchange", deleteExchange},
		},
		"logging": {
			{"read the order queue", read("order")}, {"publish an event", publish("shop.topic", "shop.order.placed")},
			{"call the stock check", publish("shop.direct", "shop.inventory.check")}, {"empty inventory's queue", purge("inventory")},
			{"declare the order queue", declare("order")}, {"delete an exchange", deleteExchange},
		},
	}
	for service, attempts := range refused {
		for _, a := range attempts {
			var e *amqp.Error
			if err := a.try(channel(t, urls[service])); !errors.As(err, &e) || e.Code != amqp.AccessRefused {
				t.Errorf("%s may %s: %v", service, a.what, err)
			}
		}
	}
	granted := map[string][]attempt{
		"gateway":   {{"place an order", publish("shop.topic", "shop.order.placed")}, {"ask for the catalogue", publish("shop.topic", "shop.inventory.list")}, {"listen to decisions", listen("shop.order.confirmed")}},
		"order":     {{"confirm an order", publish("shop.topic", "shop.order.confirmed")}, {"say what an operator did", publish("shop.topic", "shop.operator.acted")}, {"call the stock check", publish("shop.direct", "shop.inventory.check")}, {"retry", publish("", "order.retry.1s")}},
		"inventory": {{"say that stock changed", publish("shop.topic", "shop.stock.changed")}, {"say what an operator did", publish("shop.topic", "shop.operator.acted")}, {"read its queue", read("inventory")}},
		"logging":   {{"redrive", publish("", "order")}, {"read the dead letters", read("dead-letter")}},
	}
	for service, attempts := range granted {
		for _, a := range attempts {
			if err := a.try(channel(t, urls[service])); err != nil {
				t.Errorf("%s may not %s: %v", service, a.what, err)
			}
		}
	}
}

// A service that only consumes is a row: its queues and rights follow, and nobody waits for it.
func TestUsers_AnAddedServiceHasRightsToItsOwnAndHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	with := topology.Broker()
	with.Services = append(with.Services, messaging.Service{Name: "newcomer", Bindings: topology.Broker().Services[0].Follows})
	broker := brokertest.New(t)
	urls := broker.Services(t, with)
	if err := connectIn(t, with, urls["newcomer"], "newcomer"); err != nil {
		t.Fatal(err)
	}
	for _, queue := range []string{"order", "newcomer.copy", "dead-letter"} {
		_, err := channel(t, urls["newcomer"]).QueueDeclare(queue, true, false, false, false, amqp.Table{amqp.QueueTypeArg: amqp.QueueTypeQuorum})
		if e, ok := errors.AsType[*amqp.Error](err); !ok || e.Code != amqp.AccessRefused {
			t.Errorf("it may declare %s: %v", queue, err)
		}
	}
	if _, err := channel(t, broker.URL).QueueDelete("newcomer", false, false, false); err != nil {
		t.Fatal(err)
	}
	for _, other := range topology.Names() {
		if err := connectIn(t, with, urls[other], other); err != nil {
			t.Errorf("%s waits for it: %v", other, err)
		}
	}
	if err := connectIn(t, with, urls["newcomer"], "newcomer"); err != nil { // declares it again
		t.Error(err)
	}
	if err := provision.Compare(t.Context(), with, management(), broker.Vhost); err != nil {
		t.Error(err)
	}
}
