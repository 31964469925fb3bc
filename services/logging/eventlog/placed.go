package eventlog

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"

	eventsv1 "shop.example/gen/shop/events/v1"
	orderv1 "shop.example/gen/shop/order/v1"
	"shop.example/platform/apierror"
	"shop.example/platform/contract"
	"shop.example/platform/postgres"
	"shop.example/topology"
)

// withoutPlaced returns those of the orders whose OrderPlaced is not in the log. It looks at two days first, and then
// at two weeks: nearly every order was placed within them, and the log has hundreds of partitions. A subquery with a value
// cannot become a join, and an expression keeps the index on routing keys out: NOT EXISTS read all OrderPlaced of two days.
func (r *reconciler) withoutPlaced(ctx context.Context, orders [][]byte) (missing [][]byte, err error) {
	key, _ := contract.EventOf(&eventsv1.OrderPlaced{})
	for _, since := range []string{"2 days", "2 weeks", "1000 years"} {
		if len(orders) == 0 {
			return nil, nil
		}
		missing = nil
		err := r.db.SelectContext(ctx, &missing, postgres.Prepared+`
			SELECT uuid_send(asked.id) FROM unnest($1::uuid[]) AS asked (id) WHERE (
			    SELECT id FROM event_log WHERE order_id = asked.id AND routing_key || '' = $2 AND published_at >= now() - $3::interval LIMIT 1) IS NULL`,
			postgres.ArrayOf(parseIDs(orders)), key.RoutingKey, since)
		if err != nil {
			return nil, fmt.Errorf("looking for the beginning of %d orders: %w", len(orders), postgres.Classify(err))
		}
		orders = missing
	}
	return missing, nil
}

// logged reads the events of entries, as far as they are still in the log.
func (r *reconciler) logged(ctx context.Context, entries []entry) (map[uuid.UUID]loggedEvent, error) {
	events, err := loggedEvents(ctx, r.db, entries)
	byID := make(map[uuid.UUID]loggedEvent, len(events))
	for _, e := range events {
		byID[e.MessageID] = e
	}
	return byID, err
}

// placedAgain asks the order service for the OrderPlaced of orders, and returns them by the message ids of their decisions. What
// the log has deleted because it is older than its retention is not made again, nor of whom the personal data were erased.
func (r *reconciler) placedAgain(ctx context.Context, orders orderv1.IntakeServiceClient, decisions []entry) (map[uuid.UUID]loggedEvent, error) {
	req, decided := &orderv1.FindPlacedRequest{}, map[string]entry{}
	for _, d := range decisions {
		req.OrderIds = append(req.OrderIds, d.OrderID[:])
		decided[d.OrderID.String()] = d
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	resp, err := orders.FindPlaced(ctx, req)
	if err != nil {
		return nil, apierror.Unavailable("SERVICE_UNAVAILABLE", time.Second, "the order service does not say how %d orders began; try again", len(decisions)).WithCause(err)
	}
	again := map[uuid.UUID]loggedEvent{}
	for _, m := range resp.GetPlaced() {
		if r.retention > 0 && time.Since(m.GetPlacedAt().AsTime()) > r.retention {
			continue
		}
		payload, err := toJSON(m, nil)
		if err != nil {
			return nil, err
		}
		d := decided[m.GetOrderId()]
		again[d.MessageID] = loggedEvent{
			MessageID: contract.MessageID(m), OrderID: d.OrderID, Payload: payload, Source: topology.Gateway, PublishedAt: m.GetPlacedAt().AsTime(),
		}
	}
	return again, nil
}
