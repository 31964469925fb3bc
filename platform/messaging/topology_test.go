package messaging_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"shop.example/platform/messaging"
	"shop.example/platform/testkit/brokertest"
)

func TestRun_ATopologyThatIsNotTheShopsIsOneErrorThatSaysWhatToDo(t *testing.T) {
	t.Parallel()
	for want, spoil := range map[string]func(*amqp.Channel) error{
		"queue order is another one: inequivalent arg 'x-queue-type' for queue 'order'": func(ch *amqp.Channel) error {
			_, err := ch.QueueDeclare("order", true, false, false, false, nil)
			return err
		},
		"queue inventory.retry.10s is another one: inequivalent arg 'x-message-ttl'": func(ch *amqp.Channel) error {
			_, err := ch.QueueDeclare("inventory.retry.10s", true, false, false, false, amqp.Table{
				"x-queue-type": "quorum", "x-message-ttl": 5000, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": "inventory",
				"x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish",
			})
			return err
		},
		"exchange shop.topic is another one: inequivalent arg 'type' for exchange 'shop.topic'": func(ch *amqp.Channel) error {
			return ch.ExchangeDeclare("shop.topic", amqp.ExchangeDirect, true, false, false, false, nil)
		},
	} {
		broker := brokertest.New(t)
		admin, err := amqp.Dial(broker.URL)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = admin.Close() }()
		ch, err := admin.Channel()
		if err != nil {
			t.Fatal(err)
		}
		if err := spoil(ch); err != nil {
			t.Fatal(err)
		}
		conn, err := messaging.Dial(broker.URL, messaging.Options{Topology: brokertest.Topology(), Service: "order", Role: "publish"})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
		defer cancel()
		err = conn.Run(ctx)
		if !errors.Is(err, messaging.ErrTopology) || !strings.Contains(err.Error(), want) || !strings.HasSuffix(err.Error(), "delete it in the broker, a queue once it is empty, and start again") {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}
