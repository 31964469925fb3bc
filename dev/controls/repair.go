package controls

import (
	"context"
	"time"

	"github.com/google/uuid"

	eventsv1 "shop.example/gen/shop/events/v1"
	inventoryv1 "shop.example/gen/shop/inventory/v1"
	loggingv1 "shop.example/gen/shop/logging/v1"
	"shop.example/platform/contract"
	"shop.example/platform/messaging"
	"shop.example/topology"
)

type repairAnswer struct {
	Reason   string  `json:"reason"`   // why it was a dead letter
	InVain   int     `json:"in_vain"`  // redrives before the cause was mended
	Effects  int     `json:"effects"`  // of the message, in the end
	Expected int32   `json:"expected"` // pieces that the message brings
	Stock    int32   `json:"stock"`    // pieces that there are in the end
	Open     int     `json:"open"`     // dead letters of the message that still wait for a person
	Seconds  float64 `json:"seconds"`  // from the redrive until it was handled
	Audit    verdict `json:"audit"`
}

// repair sends a message that inventory cannot handle, because of something that can be mended; and redrives it before and
// after that.
func (e *experiment) repair(ctx context.Context, body []byte) (any, error) {
	if err := read(body); err != nil {
		return nil, err
	}
	begin := time.Now()
	taken, err := e.newProduct(ctx, "Listed already", 1)
	if err != nil {
		return nil, err
	}
	answer := repairAnswer{Expected: 7}
	id, err := e.askForProduct(ctx, taken, answer.Expected)
	if err != nil {
		return nil, err
	}
	first, err := e.openLetter(ctx, id)
	if err != nil {
		return nil, err
	}
	answer.Reason = first.GetReason()
	e.say("A message asks inventory to add %d pieces as a product whose name another has. No retry would help: it is dead letter %d at once.", answer.Expected, first.GetId())
	letters := loggingv1.NewDeadLetterServiceClient(e.gateway)
	if _, err := letters.RedriveDeadLetter(ctx, &loggingv1.RedriveDeadLetterRequest{Id: first.GetId()}); err != nil {
		return nil, err
	}
	second, err := e.openLetter(ctx, id)
	if err != nil {
		return nil, err
	}
	answer.InVain++
	e.say("It is redriven, sent to its queue again, though nothing has changed: it comes back as dead letter %d.", second.GetId())
	items := inventoryv1.NewInventoryServiceClient(e.gateway)
	if _, err := items.DeleteItem(ctx, &inventoryv1.DeleteItemRequest{Id: taken.GetId()}); err != nil {
		return nil, err
	}
	e.say("The cause is mended: an operator deletes the other product, and redrives the message once more.")
	redriven := time.Now()
	if _, err := letters.RedriveDeadLetter(ctx, &loggingv1.RedriveDeadLetterRequest{Id: second.GetId()}); err != nil {
		return nil, err
	}
	err = e.until(ctx, "the message was sent to its queue again, but is not handled yet; it will be", func() bool {
		added, err := e.named(ctx, taken.GetProductName())
		if err != nil || len(added) == 0 {
			return false
		}
		answer.Effects, answer.Stock = len(added), added[0].GetOnHand()
		for _, item := range added {
			e.products = append(e.products, item.GetId())
		}
		return true
	})
	if err != nil {
		return nil, err
	}
	answer.Seconds = time.Since(redriven).Seconds()
	e.say("Inventory has handled it: the product is there, with %d pieces.", answer.Stock)
	open, err := letters.ListDeadLetters(ctx, &loggingv1.ListDeadLettersRequest{MessageId: id, State: loggingv1.DeadLetter_OPEN})
	if err != nil {
		return nil, err
	}
	answer.Open = len(open.GetDeadLetters())
	answer.Audit, err = e.verdict(ctx, time.Since(begin))
	return answer, err
}

// askForProduct puts a message that asks for another product of the same name into inventory's queue, as a redrive would,
// and returns its id. No service may publish such messages by their exchange: they are for those who run the shop.
func (e *experiment) askForProduct(ctx context.Context, like *inventoryv1.Item, quantity int32) (id string, err error) {
	m, err := messaging.NewOutgoing(ctx, &eventsv1.CreateItems{
		RequestId: uuid.Must(uuid.NewV7()).String(),
		Items:     []*eventsv1.CreateItems_Item{{ProductName: like.GetProductName(), Quantity: quantity, Price: like.GetPrice()}},
	})
	if err != nil {
		return "", err
	}
	event, _ := contract.ByRoutingKey(m.RoutingKey)
	m.Exchange, m.RoutingKey = "", topology.Inventory
	m.Headers = map[string]any{messaging.HeaderExchange: event.Exchange, messaging.HeaderRoutingKey: event.RoutingKey}
	return m.MessageID, e.publishAs(ctx, topology.Logging, []messaging.Outgoing{m})
}

// openLetter waits for the open dead letter of a message.
func (e *experiment) openLetter(ctx context.Context, messageID string) (letter *loggingv1.DeadLetter, err error) {
	return letter, e.until(ctx, "the message was sent, but is not a dead letter yet; it will be", func() bool {
		reply, err := loggingv1.NewDeadLetterServiceClient(e.gateway).ListDeadLetters(ctx,
			&loggingv1.ListDeadLettersRequest{MessageId: messageID, State: loggingv1.DeadLetter_OPEN})
		if err != nil || len(reply.GetDeadLetters()) == 0 {
			return false
		}
		letter = reply.GetDeadLetters()[0]
		return true
	})
}

// named returns the products that have a name.
func (e *experiment) named(ctx context.Context, name string) (found []*inventoryv1.Item, err error) {
	for token := ""; ; {
		page, err := inventoryv1.NewInventoryServiceClient(e.gateway).ListItems(ctx, &inventoryv1.ListItemsRequest{PageSize: 1000, PageToken: token})
		if err != nil {
			return nil, err
		}
		for _, item := range page.GetItems() {
			if item.GetProductName() == name {
				found = append(found, item)
			}
		}
		if token = page.GetNextPageToken(); token == "" {
			return found, nil
		}
	}
}
