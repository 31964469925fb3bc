package provision_test

import (
	"os"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	_ "shop.example/gen/shop/events/v1" // the contracts that the topology is made for
	"shop.example/platform/messaging/provision"
	"shop.example/platform/testkit/brokertest"
)

func management() string { return os.Getenv("AMQP_MANAGEMENT_URL") }

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

func TestCompare_NamesEachDifferenceAndWhatToDo(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	ch := channel(t, broker.URL)
	if err := ch.ExchangeDeclare("shop.topic", amqp.ExchangeDirect, true, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := ch.QueueDeclare("order", true, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
	if err := provision.Topology(t.Context(), brokertest.Topology(), management(), broker.Vhost); err != nil {
		t.Fatal(err)
	}
	if err := ch.QueueBind("order", "shop.order.cancelled", "shop.topic", false, nil); err != nil {
		t.Fatal(err)
	}
	if err := ch.QueueUnbind("logging", "shop.order.placed", "shop.topic", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := ch.QueueDelete("dead-letter", false, false, false); err != nil {
		t.Fatal(err)
	}
	err := provision.Compare(t.Context(), brokertest.Topology(), management(), broker.Vhost)
	if err == nil || strings.Contains(err.Error(), "\n") {
		t.Fatalf("got %v", err)
	}
	for _, want := range []string{
		"exchange shop.topic is direct, and has to be topic: delete it",
		"queue order is x-queue-type=classic, and has to be x-queue-type=quorum: once it is empty delete it",
		"queue dead-letter is missing",
		`the binding of queue logging to "shop.order.placed" on shop.topic is missing`,
		`the binding of queue order to "shop.order.cancelled" on shop.topic is too much`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("does not say %q: %v", want, err)
		}
	}
	if n := strings.Count(err.Error(), ";"); n != 5 { // dead-letter's binding went with it
		t.Errorf("%d differences: %v", n+1, err)
	}
}

// What works on the broker of the tests has to work on RabbitMQ 4, whose limits are tighter than those before.
func TestBroker_HasTheLimitsOfRabbitMQ4(t *testing.T) {
	t.Parallel()
	ch := channel(t, brokertest.New(t).URL)
	consume := func(queue string, args amqp.Table) <-chan amqp.Delivery {
		args[amqp.QueueTypeArg] = amqp.QueueTypeQuorum
		if _, err := ch.QueueDeclare(queue, true, false, false, false, args); err != nil {
			t.Fatal(err)
		}
		deliveries, err := ch.ConsumeWithContext(t.Context(), queue, "", false, false, false, false, nil)
		if err != nil {
			t.Fatal(err)
		}
		return deliveries
	}
	givenUp := consume("given-up", amqp.Table{})
	deliveries := consume("any", amqp.Table{"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "given-up"})
	if err := ch.PublishWithContext(t.Context(), "", "any", true, false, amqp.Publishing{Body: []byte("again and again")}); err != nil {
		t.Fatal(err)
	}
	count := func() (n int) {
		for {
			select {
			case d := <-deliveries:
				n++
				if err := d.Reject(true); err != nil {
					t.Fatal(err)
				}
			case <-givenUp:
				return n
			case <-time.After(30 * time.Second):
				t.Fatalf("after %d deliveries it neither comes again nor is given up", n)
			}
		}
	}
	if n := count(); n != 1+20 {
		t.Errorf("a message was delivered %d times before it was given up, want once and 20 times again", n)
	}

	closed := ch.NotifyClose(make(chan *amqp.Error, 1))
	if err := ch.PublishWithContext(t.Context(), "", "any", true, false, amqp.Publishing{Body: make([]byte, 16<<20+1)}); err != nil {
		t.Fatal(err)
	}
	if cause := <-closed; cause == nil || cause.Code != amqp.PreconditionFailed {
		t.Errorf("a message of more than 16 MiB: %v", cause)
	}
}
