package edge

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	eventsv1 "shop.example/gen/shop/events/v1"
	orderv1 "shop.example/gen/shop/order/v1"
	"shop.example/platform/apierror"
	"shop.example/platform/messaging"
)

// lookupTimeout bounds the look whether an order that comes with an idempotency key is there already. Taking an order
// does not depend on it.
const lookupTimeout = 500 * time.Millisecond

// orders takes orders, whichever API they come through. It is safe for concurrent use.
type orders struct {
	ids     orderIDs
	publish func(context.Context, proto.Message) error // returns once the broker has the event
	stored  orderv1.OrderServiceClient                 // reads orders that have been decided
	// inFlight has room for the orders that wait for the broker, a large one counting as several: while the broker is away,
	// what comes could not be held.
	inFlight *semaphore.Weighted
	log      *slog.Logger
}

// defaultOrdersInFlight is some 80 MB of calls, and twice what waits for the broker's confirms at a time.
const defaultOrdersInFlight = 2000

// weightOf is how many orders of the usual size an order counts as, maxWeight at most, with all that the gateway has of it
// while it waits: one of 100 lines with names of 200 characters takes 350 kB.
func weightOf(lines []*eventsv1.RequestedLine) int64 {
	const line, usual = 100, 8 << 10
	size := line * len(lines)
	for _, l := range lines {
		size += len(l.GetProductName())
	}
	return int64(1 + size/usual)
}

const maxWeight = 11

// place gives the order its id and publishes it; it is PENDING then. Nothing but the broker is needed. An order whose
// idempotency key has brought an order before is that order: as it stands, where it has been decided. After UNAVAILABLE
// the order may have been taken all the same, but not where the reason is OVERLOADED; sent again with its idempotency key
// it is taken once.
func (o *orders) place(ctx context.Context, customerName, customerEmail string, lines []*eventsv1.RequestedLine) (*orderv1.Order, error) {
	weight := weightOf(lines)
	if !o.inFlight.TryAcquire(weight) {
		return nil, apierror.Unavailable("OVERLOADED", retryAfter, "too many orders wait for the message broker; this one was not taken, send it again")
	}
	defer o.inFlight.Release(weight)
	id, keyed, err := o.ids.next(ctx)
	if err != nil {
		return nil, err
	}
	order := &eventsv1.OrderPlaced{
		OrderId:       id.String(),
		CustomerName:  customerName,
		CustomerEmail: customerEmail,
		Lines:         lines,
		PlacedAt:      timestamppb.Now(),
	}
	if keyed {
		if known := o.lookup(ctx, order.GetOrderId()); known != nil {
			return repeated(known, order)
		}
	}
	if err := o.publish(ctx, order); err != nil {
		return nil, publishError(err)
	}
	o.log.InfoContext(ctx, "order published", "order_id", order.GetOrderId(), "lines", len(lines))
	return pending(order), nil
}

// lookup reads an order; nil where it has not been decided, or the order service does not say. Then the order is
// published again, and the order service knows that it has it.
func (o *orders) lookup(ctx context.Context, id string) *orderv1.Order {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	got, err := o.stored.GetOrder(ctx, &orderv1.GetOrderRequest{OrderId: id})
	if err != nil {
		return nil
	}
	return got.GetOrder()
}

// repeated is the answer to an order whose key belongs to a known order: that order, if it is the same.
func repeated(known *orderv1.Order, order *eventsv1.OrderPlaced) (*orderv1.Order, error) {
	if known.GetCustomerName() == order.GetCustomerName() && known.GetCustomerEmail() == order.GetCustomerEmail() &&
		slices.EqualFunc(known.GetOrderItems(), order.GetLines(), sameLine) {
		return known, nil
	}
	// Whose order it is, a client that found a used key must not learn.
	return nil, apierror.New(codes.AlreadyExists, "IDEMPOTENCY_KEY_REUSED",
		"this Idempotency-Key has placed another order: use a new key for a new order")
}

func sameLine(item *orderv1.OrderItem, line *eventsv1.RequestedLine) bool {
	if item.GetQuantity() != line.GetQuantity() {
		return false
	}
	if name := line.GetProductName(); name != "" {
		return item.GetProductName() == name
	}
	return item.GetProductId() == line.GetProductId()
}

// pending is the order as far as it is known before it has been decided.
func pending(placed *eventsv1.OrderPlaced) *orderv1.Order {
	order := &orderv1.Order{
		Id:            placed.GetOrderId(),
		State:         orderv1.Order_PENDING,
		CustomerName:  placed.GetCustomerName(),
		CustomerEmail: placed.GetCustomerEmail(),
		OrderItems:    make([]*orderv1.OrderItem, len(placed.GetLines())),
		CreatedAt:     placed.GetPlacedAt(),
		UpdatedAt:     placed.GetPlacedAt(),
	}
	for i, line := range placed.GetLines() {
		order.OrderItems[i] = &orderv1.OrderItem{
			Line: int32(i + 1), ProductId: line.GetProductId(), ProductName: line.GetProductName(), Quantity: line.GetQuantity(),
		}
		order.TotalItems += line.GetQuantity()
	}
	return order
}

// publishError is what the client is told about an order that was not published.
func publishError(err error) error {
	if errors.Is(err, messaging.ErrTooLarge) {
		return apierror.New(codes.FailedPrecondition, "MESSAGE_TOO_LARGE",
			"the order is larger than the message broker takes: order fewer lines at once").WithCause(err)
	}
	for _, sentinel := range []error{messaging.ErrNotConnected, messaging.ErrBlocked, messaging.ErrUnconfirmed, messaging.ErrUnroutable} {
		if errors.Is(err, sentinel) {
			return apierror.Unavailable("BROKER_UNAVAILABLE", retryAfter,
				"the order was not confirmed by the message broker; send it again, with an Idempotency-Key to have it taken once only").
				WithCause(err)
		}
	}
	return err
}

// location is where the order can be read over REST.
func location(orderID string) string { return "/v1/orders/" + orderID }
