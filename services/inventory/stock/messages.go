package stock

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"shop.example/domain/money"
	eventsv1 "shop.example/gen/shop/events/v1"
	"shop.example/platform/apierror"
	"shop.example/platform/failpoint"
	"shop.example/platform/messaging"
	"shop.example/platform/outbox"
)

// handlers returns the handlers of the messages in the inventory queue. Answers to requests are sent through pub.
func (st *store) handlers(pub *messaging.Publisher) []messaging.Handler {
	return []messaging.Handler{
		messaging.Handle(st.onDecrementQuantity),
		messaging.Handle(st.onOrderCancelled),
		handleOnce(st, pub, st.onCreateItems),
		handleOnce(st, pub, st.onUpdateItems),
		handleOnce(st, pub, st.onDeleteItems),
		messaging.Handle(func(ctx context.Context, batch []messaging.Message[*eventsv1.ListInventory]) error {
			return st.onListInventory(ctx, pub, batch)
		}),
	}
}

// changeOnMessage applies a message of type T to the catalogue.
type changeOnMessage[T proto.Message] func(context.Context, *sqlx.Tx, T) (catalogueChange, error)

// handleOnce makes a handler that calls change once for each message, see changeOnce, and answers those that are requests.
func handleOnce[T proto.Message](st *store, pub *messaging.Publisher, change changeOnMessage[T]) messaging.Handler {
	return messaging.Handle(func(ctx context.Context, batch []messaging.Message[T]) error {
		for _, m := range batch {
			answer, err := changeOnce(ctx, st, m, change)
			if err != nil {
				return permanent(err)
			}
			if m.ReplyTo == "" {
				continue
			}
			if err := pub.Reply(m.Context(ctx), m.Meta, answer, nil); err != nil {
				st.log.WarnContext(ctx, "a change of the catalogue was not answered", "message_id", m.ID, "error", err)
			}
		}
		return nil
	})
}

// changeOnce runs change unless the message was handled before, in a transaction that also records it as handled. Each
// message has a transaction of its own: two in one would lock products in the order of the messages instead of their ids.
// Messages about holds need no such record, because a hold's state shows what was done to it. The operator is the broker's
// user who published m.
func changeOnce[T proto.Message](ctx context.Context, st *store, m messaging.Message[T], change changeOnMessage[T]) (*eventsv1.ItemsChanged, error) {
	var fresh []bool
	method := string(m.Body.ProtoReflect().Descriptor().FullName())
	done, err := st.changeCatalogue(ctx, publisherOf(m.Meta), method, func(tx *sqlx.Tx) (_ catalogueChange, err error) {
		if fresh, err = outbox.Claim(ctx, tx, []uuid.UUID{m.ID}); err != nil || !fresh[0] {
			return catalogueChange{}, err
		}
		return change(ctx, tx, m.Body)
	})
	if err != nil {
		return nil, err
	}
	answer := &eventsv1.ItemsChanged{DoneBefore: !fresh[0]}
	if answer.GetDoneBefore() {
		st.repeats.Add(ctx, 1)
	}
	for _, p := range done.products {
		answer.Items = append(answer.Items, p.listed())
	}
	return answer, nil
}

func publisherOf(m messaging.Meta) string {
	if m.User == "" {
		return "unknown user of the broker"
	}
	return "user of the broker " + m.User
}

// permanent marks this service's own errors as Permanent: what it refuses once it always refuses.
func permanent(err error) error {
	if own := (*apierror.Error)(nil); errors.As(err, &own) {
		return messaging.Permanent(err)
	}
	return err
}

// onDecrementQuantity settles the holds of confirmed orders.
func (st *store) onDecrementQuantity(ctx context.Context, batch []messaging.Message[*eventsv1.DecrementQuantity]) error {
	if err := handleHoldTransitions(ctx, st, batch, settleTransitions); err != nil {
		return err
	}
	failpoint.Hit("inventory.settled")
	return nil
}

// onOrderCancelled puts the stock of cancelled orders back.
func (st *store) onOrderCancelled(ctx context.Context, batch []messaging.Message[*eventsv1.OrderCancelled]) error {
	if err := handleHoldTransitions(ctx, st, batch, releaseTransitions); err != nil {
		return err
	}
	failpoint.Hit("inventory.released")
	return nil
}

// handleHoldTransitions applies the transitions to the holds of the orders in the batch. A redelivered order, in this batch
// or a later one, has no holds left that they apply to.
func handleHoldTransitions[T interface {
	proto.Message
	GetOrderId() string
}](ctx context.Context, st *store, batch []messaging.Message[T], transitions []holdTransition) error {
	orders := make([]uuid.UUID, len(batch))
	for i, m := range batch {
		id, err := uuid.Parse(m.Body.GetOrderId())
		if err != nil {
			return messaging.Permanent(fmt.Errorf("order id: %w", err))
		}
		orders[i] = id
	}
	var moved int
	err := st.changeStock(ctx, func(tx *sqlx.Tx) (changes []stockChange, err error) {
		moved, changes, err = transitionHolds(ctx, tx, orders, transitions)
		return changes, err
	})
	if err != nil {
		return permanent(err)
	}
	st.repeats.Add(ctx, len(batch)-moved)
	return nil
}

func (st *store) onCreateItems(ctx context.Context, tx *sqlx.Tx, m *eventsv1.CreateItems) (catalogueChange, error) {
	items, err := readNewItems(st, m.GetItems())
	if err != nil {
		return catalogueChange{}, err
	}
	return createItems(ctx, tx, items)
}

func (st *store) onUpdateItems(ctx context.Context, tx *sqlx.Tx, m *eventsv1.UpdateItems) (catalogueChange, error) {
	updates := make([]itemUpdate, len(m.GetItems()))
	for i, item := range m.GetItems() {
		updates[i] = itemUpdate{id: item.GetId(), onHand: item.Quantity}
		if item.ProductName != nil {
			name, violation := readProductName(item.GetProductName())
			if violation != "" {
				return catalogueChange{}, apierror.InvalidArgument(apierror.Violation{Field: fmt.Sprintf("items[%d].product_name", i), Description: violation})
			}
			updates[i].name = &name
		}
		if item.GetPrice() == nil {
			continue
		}
		p, err := st.price(item.GetPrice(), fmt.Sprintf("items[%d].price", i))
		if err != nil {
			return catalogueChange{}, err
		}
		updates[i].price = &p
	}
	return updateItems(ctx, tx, updates)
}

func (st *store) onDeleteItems(ctx context.Context, tx *sqlx.Tx, m *eventsv1.DeleteItems) (catalogueChange, error) {
	return deleteItems(ctx, tx, m.GetIds(), "")
}

// onListInventory answers the requests in the batch. A requester who is gone is no reason to retry.
func (st *store) onListInventory(ctx context.Context, pub *messaging.Publisher, batch []messaging.Message[*eventsv1.ListInventory]) error {
	answer, failure := st.listInventory(ctx)
	if own := (*apierror.Error)(nil); failure != nil && !errors.As(failure, &own) {
		return failure
	}
	for _, m := range withoutRepeats(batch) {
		if err := pub.Reply(m.Context(ctx), m.Meta, answer, failure); err != nil {
			st.log.WarnContext(ctx, "a list of the inventory was not answered", "message_id", m.ID, "error", err)
		}
	}
	return nil
}

// withoutRepeats drops requests that were sent again because no answer came. Who gives no correlation id cannot be told apart.
func withoutRepeats(batch []messaging.Message[*eventsv1.ListInventory]) []messaging.Message[*eventsv1.ListInventory] {
	seen := map[[2]string]bool{}
	return slices.DeleteFunc(slices.Clone(batch), func(m messaging.Message[*eventsv1.ListInventory]) bool {
		call := [2]string{m.ReplyTo, m.CorrelationID}
		repeats := m.CorrelationID != "" && seen[call]
		seen[call] = true
		return repeats
	})
}

const (
	// maxListBytes bounds the answer to ListInventory, in bytes: some 15,000 products with names of 20 characters. It has no
	// pages, because the demo's interface has none, and whoever asks holds it in memory several times over.
	maxListBytes = 1 << 20
	listPage     = 1000 // products read at once
)

// listInventory reads the catalogue; it fails with CATALOGUE_TOO_LARGE if one answer cannot carry it.
func (st *store) listInventory(ctx context.Context) (*eventsv1.InventoryListed, error) {
	answer, size := &eventsv1.InventoryListed{}, 0
	for after := int64(0); ; {
		products, err := listItems(ctx, st.db, after, listPage)
		if err != nil {
			return nil, err
		}
		for _, p := range products {
			item := p.listed()
			if size += proto.Size(item); size > maxListBytes {
				return nil, apierror.New(codes.FailedPrecondition, "CATALOGUE_TOO_LARGE",
					"the catalogue has too many products to be listed at once: GET /v1/inventory has pages")
			}
			answer.Items = append(answer.Items, item)
		}
		if len(products) < listPage {
			return answer, nil
		}
		after = int64(products[listPage-1].ID)
	}
}

// listed returns the product in the form of answers over the broker.
func (p product) listed() *eventsv1.InventoryListed_Item {
	return &eventsv1.InventoryListed_Item{
		Id: p.ID, ProductName: p.Name, Quantity: p.available(), Price: money.FromMinor(p.UnitPrice, p.Currency),
		CreatedAt: timestamppb.New(p.CreatedAt), UpdatedAt: timestamppb.New(p.UpdatedAt),
	}
}
