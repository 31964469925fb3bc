package stock

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"shop.example/domain/money"
	eventsv1 "shop.example/gen/shop/events/v1"
	"shop.example/platform/apierror"
	"shop.example/platform/crash"
	"shop.example/platform/messaging"
	"shop.example/platform/outbox"
)

// handlers are what the inventory queue carries.
func (w *warehouse) handlers(pub *messaging.Publisher) []messaging.Handler {
	return []messaging.Handler{
		messaging.Handle(w.onDecrementQuantity),
		messaging.Handle(w.onOrderCancelled),
		messaging.Handle(w.onCreateItems),
		messaging.Handle(w.onUpdateItems),
		messaging.Handle(w.onDeleteItems),
		messaging.Handle(func(ctx context.Context, batch []messaging.Message[*eventsv1.ListInventory]) error {
			return w.onListInventory(ctx, pub, batch)
		}),
	}
}

// once runs f with each message about the catalogue that was not handled before, in a transaction of its own, which marks
// it as handled: two messages in one would lock products in the order of the messages, not of the ids. Messages about
// holds need no such mark: a hold's state says what was done to it. Who did it is the broker's user who published it.
func once[T proto.Message](ctx context.Context, w *warehouse, batch []messaging.Message[T], f func(tx *sqlx.Tx, body T) (maintenance, error)) error {
	for _, m := range batch {
		var fresh []bool
		method := string(m.Body.ProtoReflect().Descriptor().FullName())
		_, err := w.maintain(ctx, publisherOf(m.Meta), method, func(tx *sqlx.Tx) (_ maintenance, err error) {
			if fresh, err = outbox.Claim(ctx, tx, []uuid.UUID{m.ID}); err != nil || !fresh[0] {
				return maintenance{}, err
			}
			return f(tx, m.Body)
		})
		if err != nil {
			return refused(err)
		}
		if !fresh[0] {
			w.repeats.Add(ctx, 1)
		}
	}
	return nil
}

func publisherOf(m messaging.Meta) string {
	if m.User == "" {
		return "unknown user of the broker"
	}
	return "user of the broker " + m.User
}

// refused makes an error Permanent that is the warehouse's own: what it refuses, it refuses for good.
func refused(err error) error {
	if own := (*apierror.Error)(nil); errors.As(err, &own) {
		return messaging.Permanent(err)
	}
	return err
}

// onDecrementQuantity settles the holds of confirmed orders.
func (w *warehouse) onDecrementQuantity(ctx context.Context, batch []messaging.Message[*eventsv1.DecrementQuantity]) error {
	if err := moveHoldsOf(ctx, w, batch, settling); err != nil {
		return err
	}
	crash.Point("inventory.settled")
	return nil
}

// onOrderCancelled gives back the stock of cancelled orders.
func (w *warehouse) onOrderCancelled(ctx context.Context, batch []messaging.Message[*eventsv1.OrderCancelled]) error {
	if err := moveHoldsOf(ctx, w, batch, releasing); err != nil {
		return err
	}
	crash.Point("inventory.released")
	return nil
}

// moveHoldsOf takes the steps with the holds of the orders in the batch. An order that comes again, in this batch or a
// later one, has no hold left to move.
func moveHoldsOf[T interface {
	proto.Message
	GetOrderId() string
}](ctx context.Context, w *warehouse, batch []messaging.Message[T], steps []step) error {
	orders := make([]uuid.UUID, len(batch))
	for i, m := range batch {
		id, err := uuid.Parse(m.Body.GetOrderId())
		if err != nil {
			return messaging.Permanent(fmt.Errorf("order id: %w", err))
		}
		orders[i] = id
	}
	var moved int
	err := w.change(ctx, func(tx *sqlx.Tx) (changes []change, err error) {
		moved, changes, err = moveHolds(ctx, tx, orders, steps)
		return changes, err
	})
	if err != nil {
		return refused(err)
	}
	w.repeats.Add(ctx, len(batch)-moved)
	return nil
}

func (w *warehouse) onCreateItems(ctx context.Context, batch []messaging.Message[*eventsv1.CreateItems]) error {
	return once(ctx, w, batch, func(tx *sqlx.Tx, m *eventsv1.CreateItems) (maintenance, error) {
		items, err := newItems(w, m.GetItems())
		if err != nil {
			return maintenance{}, err
		}
		return createItems(ctx, tx, items)
	})
}

func (w *warehouse) onUpdateItems(ctx context.Context, batch []messaging.Message[*eventsv1.UpdateItems]) error {
	return once(ctx, w, batch, func(tx *sqlx.Tx, m *eventsv1.UpdateItems) (maintenance, error) {
		updates := make([]itemUpdate, len(m.GetItems()))
		for i, item := range m.GetItems() {
			updates[i] = itemUpdate{id: item.GetId(), onHand: item.Quantity}
			if item.ProductName != nil {
				name, problem := productName(item.GetProductName())
				if problem != "" {
					return maintenance{}, apierror.InvalidArgument(apierror.Violation{Field: fmt.Sprintf("items[%d].product_name", i), Description: problem})
				}
				updates[i].name = &name
			}
			if item.GetPrice() == nil {
				continue
			}
			p, err := w.price(item.GetPrice(), fmt.Sprintf("items[%d].price", i))
			if err != nil {
				return maintenance{}, err
			}
			updates[i].price = &p
		}
		return updateItems(ctx, tx, updates)
	})
}

func (w *warehouse) onDeleteItems(ctx context.Context, batch []messaging.Message[*eventsv1.DeleteItems]) error {
	return once(ctx, w, batch, func(tx *sqlx.Tx, m *eventsv1.DeleteItems) (maintenance, error) {
		return deleteItems(ctx, tx, m.GetIds())
	})
}

// onListInventory answers whoever asked. An asker that is not there any more is no reason to try again.
func (w *warehouse) onListInventory(ctx context.Context, pub *messaging.Publisher, batch []messaging.Message[*eventsv1.ListInventory]) error {
	answer, failure := w.listInventory(ctx)
	if own := (*apierror.Error)(nil); failure != nil && !errors.As(failure, &own) {
		return failure
	}
	for _, m := range batch {
		if err := pub.Reply(m.Context(ctx), m.Meta, answer, failure); err != nil {
			w.log.WarnContext(ctx, "a list of the inventory was not answered", "message_id", m.ID, "error", err)
		}
	}
	return nil
}

const (
	// maxListed bounds the answer to ListInventory, in bytes: some 15,000 products with names of 20 characters. It has no
	// pages, because the demo's interface has none, and whoever asks holds it in memory several times over.
	maxListed = 1 << 20
	listPage  = 1000 // products read at once
)

// listInventory reads the catalogue; CATALOGUE_TOO_LARGE if that is more than one answer can have.
func (w *warehouse) listInventory(ctx context.Context) (*eventsv1.InventoryListed, error) {
	answer, size := &eventsv1.InventoryListed{}, 0
	for after := int32(0); ; {
		products, err := listItems(ctx, w.db, after, listPage)
		if err != nil {
			return nil, err
		}
		for _, p := range products {
			item := &eventsv1.InventoryListed_Item{
				Id: p.ID, ProductName: p.Name, Quantity: p.available(), Price: money.FromMinor(p.UnitPrice, p.Currency),
				CreatedAt: timestamppb.New(p.CreatedAt), UpdatedAt: timestamppb.New(p.UpdatedAt),
			}
			if size += proto.Size(item); size > maxListed {
				return nil, apierror.New(codes.FailedPrecondition, "CATALOGUE_TOO_LARGE",
					"the catalogue has too many products to be listed at once: GET /v1/inventory has pages")
			}
			answer.Items = append(answer.Items, item)
		}
		if len(products) < listPage {
			return answer, nil
		}
		after = products[listPage-1].ID
	}
}
