package controls

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"shop.example/domain/orderstate"
	eventsv1 "shop.example/gen/shop/events/v1"
	inventoryv1 "shop.example/gen/shop/inventory/v1"
	loggingv1 "shop.example/gen/shop/logging/v1"
	"shop.example/platform/apierror"
	"shop.example/platform/contract"
	"shop.example/platform/messaging"
	"shop.example/topology"
)

type duplicateAnswer struct {
	OrderID     string `json:"order_id"`
	Deliveries  int    `json:"deliveries"` // of each event
	Effects     int    `json:"effects"`
	StockBefore int32  `json:"stock_before"`
	StockAfter  int32  `json:"stock_after"`
}

// duplicate places an order and, when it is settled, publishes the events that moved stock a second time.
func (e *experiment) duplicate(ctx context.Context, body []byte) (any, error) {
	if err := read(body); err != nil {
		return nil, err
	}
	product, err := e.newProduct(ctx, "Ordered once", 10)
	if err != nil {
		return nil, err
	}
	order, err := e.order(ctx, product.GetId())
	switch {
	case err != nil:
		return nil, err
	case !orderstate.IsDecided(order.GetState()):
		return nil, e.late("the order was accepted, but is not decided yet; it will be")
	}
	if err := e.settled(ctx, product.GetId(), product.GetOnHand()-1); err != nil {
		return nil, err
	}
	e.say("An order of one piece is confirmed and settled: of %d pieces %d are left.", product.GetOnHand(), product.GetOnHand()-1)
	events, err := e.events(ctx, order.GetId(), &eventsv1.OrderPlaced{}, &eventsv1.DecrementQuantity{})
	if err != nil {
		return nil, err
	}
	if err := e.deliverAgain(ctx, events); err != nil {
		return nil, err
	}
	after, err := e.item(ctx, product.GetId())
	if err != nil {
		return nil, err
	}
	e.say("An order that was placed behind them is done, so they have been handled: the order service and inventory found their ids in their inboxes.")
	return duplicateAnswer{
		OrderID: order.GetId(), Deliveries: 2, Effects: int(product.GetOnHand() - after.GetQuantity()), // of one piece each
		StockBefore: product.GetOnHand(), StockAfter: after.GetOnHand(),
	}, nil
}

// settled waits until the product has onHand pieces and none is reserved.
func (e *experiment) settled(ctx context.Context, product, onHand int32) error {
	return e.until(ctx, "the order was decided, but its stock has not been taken yet; it will be", func() bool {
		item, err := e.item(ctx, product)
		return err == nil && item.GetOnHand() == onHand && item.GetReserved() == 0
	})
}

func (e *experiment) item(ctx context.Context, id int32) (*inventoryv1.Item, error) {
	reply, err := inventoryv1.NewInventoryServiceClient(e.gateway).GetItem(ctx, &inventoryv1.GetItemRequest{Id: id})
	return reply.GetItem(), err
}

// events returns the messages of an order from the log, of the given types, as they were published.
func (e *experiment) events(ctx context.Context, order string, kinds ...proto.Message) ([]messaging.Outgoing, error) {
	found := make([]*loggingv1.Event, len(kinds))
	err := e.until(ctx, "the order is done, but its events are not in the log yet; they will be", func() bool {
		reply, err := loggingv1.NewEventLogServiceClient(e.gateway).ListEvents(ctx, &loggingv1.ListEventsRequest{OrderId: order})
		if err != nil {
			return false
		}
		missing := len(kinds)
		for i, kind := range kinds {
			event, _ := contract.EventOf(kind)
			for _, e := range reply.GetEvents() {
				if e.GetRoutingKey() == event.RoutingKey {
					found[i] = e
					missing--
				}
			}
		}
		return missing == 0
	})
	if err != nil {
		return nil, err
	}
	messages := make([]messaging.Outgoing, len(kinds))
	for i, kind := range kinds {
		if messages[i], err = outgoing(ctx, found[i], kind); err != nil {
			return nil, err
		}
	}
	return messages, nil
}

func outgoing(ctx context.Context, logged *loggingv1.Event, m proto.Message) (out messaging.Outgoing, err error) {
	payload, err := logged.GetPayload().MarshalJSON()
	if err == nil {
		err = protojson.Unmarshal(payload, m)
	}
	if err == nil {
		out, err = messaging.NewOutgoing(ctx, m)
	}
	if err == nil && out.MessageID != logged.GetMessageId() {
		err = fmt.Errorf("its id is %s", out.MessageID)
	}
	if err != nil {
		return out, fmt.Errorf("making event %s from the log: %w", logged.GetMessageId(), err)
	}
	return out, nil
}

// deliverAgain publishes events again and returns when they have been handled: it places another order after them and waits
// for that, because the queues, which have one consumer each in this process, keep their order.
func (e *experiment) deliverAgain(ctx context.Context, events []messaging.Outgoing) error {
	if err := e.publish(ctx, events); err != nil {
		return err
	}
	e.say("The same messages, OrderPlaced and DecrementQuantity, are published again, under the same ids.")
	behind, err := e.newProduct(ctx, "Ordered behind", 1)
	if err != nil {
		return err
	}
	if _, err := e.order(ctx, behind.GetId()); err != nil {
		return err
	}
	return e.settled(ctx, behind.GetId(), 0)
}

type poisonAnswer struct {
	MessageID    string  `json:"message_id"`
	DeadLetterID string  `json:"dead_letter_id"` // as in /v1/dead-letters/{id}
	OrderID      string  `json:"order_id"`       // of the order behind it
	State        string  `json:"state"`
	Seconds      float64 `json:"seconds"` // until that was decided
	StockBefore  int32   `json:"stock_before"`
	StockAfter   int32   `json:"stock_after"`
}

// poison publishes an order that cannot be decoded, places another behind it, and waits until the first is a dead letter and the
// second is settled.
func (e *experiment) poison(ctx context.Context, body []byte) (any, error) {
	if err := read(body); err != nil {
		return nil, err
	}
	product, err := e.newProduct(ctx, "Ordered behind poison", 10)
	if err != nil {
		return nil, err
	}
	event, _ := contract.EventOf(&eventsv1.OrderPlaced{})
	answer := poisonAnswer{MessageID: uuid.Must(uuid.NewV7()).String(), StockBefore: product.GetOnHand()}
	err = e.publish(ctx, []messaging.Outgoing{{
		Exchange: event.Exchange, RoutingKey: event.RoutingKey, Type: string(event.Name), MessageID: answer.MessageID,
		Timestamp: time.Now(), Body: []byte("this is no order"),
	}})
	if err != nil {
		return nil, err
	}
	e.sent = append(e.sent, answer.MessageID)
	e.say("Bytes that are no order are published as shop.order.placed. The exchange does not look into messages: it copies them to the queues.")
	begin := time.Now()
	order, err := e.order(ctx, product.GetId())
	switch {
	case err != nil:
		return nil, err
	case !orderstate.IsDecided(order.GetState()):
		return nil, e.late("the order behind the message was accepted, but is not decided yet; it will be")
	}
	answer.OrderID, answer.State, answer.Seconds = order.GetId(), order.GetState().String(), time.Since(begin).Seconds()
	e.say("An order stands behind them in the queue: %s after %.0f ms.", answer.State, 1000*answer.Seconds)
	if err := e.settled(ctx, product.GetId(), product.GetOnHand()-1); err != nil {
		return nil, err
	}
	after, err := e.item(ctx, product.GetId())
	if err != nil {
		return nil, err
	}
	answer.StockAfter = after.GetOnHand()
	err = e.until(ctx, "the message was published, but is not a dead letter yet; it will be", func() bool {
		reply, err := loggingv1.NewDeadLetterServiceClient(e.gateway).ListDeadLetters(ctx, &loggingv1.ListDeadLettersRequest{})
		if err != nil {
			return false
		}
		for _, letter := range reply.GetDeadLetters() {
			if letter.GetMessageId() == answer.MessageID {
				answer.DeadLetterID = strconv.FormatInt(letter.GetId(), 10)
			}
		}
		return answer.DeadLetterID != ""
	})
	return answer, err
}

// publish publishes each event as the service that publishes it, and returns when the broker has confirmed them.
func (e *experiment) publish(ctx context.Context, events []messaging.Outgoing) error {
	by := map[string][]messaging.Outgoing{}
	for _, e := range events {
		event, ok := contract.ByRoutingKey(e.RoutingKey)
		if !ok || len(event.PublishedBy) == 0 {
			return fmt.Errorf("no service publishes %s", e.RoutingKey)
		}
		by[event.PublishedBy[0]] = append(by[event.PublishedBy[0]], e)
	}
	for service, events := range by {
		if err := e.publishAs(ctx, service, events); err != nil {
			return err
		}
	}
	return nil
}

// publishAs publishes over a connection of its own.
func (e *experiment) publishAs(ctx context.Context, service string, messages []messaging.Outgoing) error {
	conn, err := messaging.Dial(e.AMQPURLs[service], messaging.Options{Topology: topology.Broker(), Service: service, Role: "publish"})
	if err != nil {
		return err
	}
	publisher := messaging.NewPublisher(conn)
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	var parts sync.WaitGroup
	parts.Go(func() { _ = conn.Run(running) })
	parts.Go(func() { _ = publisher.Run(running) })
	defer parts.Wait()
	defer stop()
	if err := publisher.Send(ctx, messages); err != nil {
		return apierror.Unavailable("BROKER_UNAVAILABLE", time.Second, "the broker did not take the message: %v", err).WithCause(err)
	}
	return nil
}
