package edge

import (
	"context"
	"errors"
	"log/slog"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	eventsv1 "shop.example/gen/shop/events/v1"
	"shop.example/platform/apierror"
	"shop.example/platform/messaging"
)

// orders takes orders, whichever API they come through. It is safe for concurrent use.
type orders struct {
	ids     orderIDs
	publish func(context.Context, proto.Message) error // returns once the broker has the event
	log     *slog.Logger
}

// place gives the order its id and publishes it. Nothing but the broker is needed. After UNAVAILABLE the order may have
// been taken all the same; sent again with its idempotency key it is taken once.
func (o *orders) place(ctx context.Context, customerName, customerEmail string, lines []*eventsv1.RequestedLine) (*eventsv1.OrderPlaced, error) {
	id, err := o.ids.next(ctx)
	if err != nil {
		return nil, err
	}
	placed := &eventsv1.OrderPlaced{
		OrderId:       id.String(),
		CustomerName:  customerName,
		CustomerEmail: customerEmail,
		Lines:         lines,
		PlacedAt:      timestamppb.Now(),
	}
	if err := o.publish(ctx, placed); err != nil {
		return nil, publishError(err)
	}
	o.log.InfoContext(ctx, "order published", "order_id", placed.GetOrderId(), "lines", len(lines))
	return placed, nil
}

// publishError is what the client is told about an order that was not published.
func publishError(err error) error {
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
