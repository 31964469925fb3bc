// Command events prints the events of orders as the broker delivers them, the first ones (events 3) or all, until Ctrl-C.
package main

import (
	"errors"
	"log"
	"os"
	"strconv"

	amqp "github.com/rabbitmq/amqp091-go"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	eventsv1 "shop.example/gen/shop/events/v1"
)

func main() {
	left := -1
	if len(os.Args) > 1 {
		var err error
		left, err = strconv.Atoi(os.Args[1])
		check(err)
	}
	if os.Getenv("AMQP_URL") == "" {
		log.Fatal("set AMQP_URL, for example to amqp://warehouse:password@localhost:5672/")
	}
	uri, err := amqp.ParseURI(os.Getenv("AMQP_URL"))
	check(err)
	conn, err := amqp.Dial(uri.String())
	check(err)
	ch, err := conn.Channel()
	check(err)
	check(ch.Qos(100, 0, false))
	// A queue of this connection alone: a program that must miss nothing while it is away declares a durable quorum queue.
	queue, err := ch.QueueDeclare(uri.Username+".example-go", false, false, true, false, nil)
	check(err)
	check(ch.QueueBind(queue.Name, "shop.order.*", "shop.topic", false, nil))
	deliveries, err := ch.Consume(queue.Name, "", false, true, false, false, nil)
	check(err)
	log.Println("listening")

	seen := map[string]bool{} // of a program that does something: a table, written in the same transaction
	for d := range deliveries {
		if event := newEvent(d.Type); event != nil && !seen[d.MessageId] { // an event can come twice
			check(proto.Unmarshal(d.Body, event))
			log.Println(d.RoutingKey, d.CorrelationId, protojson.Format(event))
			seen[d.MessageId] = true
			left--
		}
		check(d.Ack(false))
		if left == 0 {
			check(conn.Close())
			return
		}
	}
	check(errors.New("the connection was lost"))
}

// newEvent returns nil for a type that this program does not know: new ones can come.
func newEvent(messageType string) proto.Message {
	for _, event := range []proto.Message{&eventsv1.OrderPlaced{}, &eventsv1.OrderConfirmed{}, &eventsv1.OrderRejected{}, &eventsv1.OrderCancelled{}} {
		if string(event.ProtoReflect().Descriptor().FullName()) == messageType {
			return event
		}
	}
	return nil
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
