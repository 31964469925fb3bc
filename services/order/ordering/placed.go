package ordering

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"shop.example/domain/money"
	"shop.example/domain/orderid"
	eventsv1 "shop.example/gen/shop/events/v1"
	inventoryv1 "shop.example/gen/shop/inventory/v1"
	"shop.example/platform/failpoint"
	"shop.example/platform/messaging"
	"shop.example/platform/outbox"
	"shop.example/platform/postgres"
)

const (
	// checkStockTimeout bounds the wait for inventory's decision about a batch. After that inventory counts as down.
	checkStockTimeout = 5 * time.Second
	// decisionTTL is how long after the question a transaction may begin that relies on the answer, by the contract of
	// CheckStock. Later, inventory may have given the stock to another order. Package postgres' timeouts bound the
	// transaction itself.
	decisionTTL = time.Minute
)

// The most that inventory's decision about an order can have, in bytes: it has the catalogue's name for each line, 200
// characters of up to four bytes, however short the order was that asked for it; or else why it is refused.
const (
	maxLineDecisionSize = 900
	maxRejectionSize    = 2500
	orderDecisionSize   = 100 // beside its lines
)

// decisionSize returns the maximum size of inventory's decision about an order, in bytes. A batch is one call to inventory,
// whose reply must not be too large.
func decisionSize(m *eventsv1.OrderPlaced) int {
	return orderDecisionSize + max(maxRejectionSize, maxLineDecisionSize*len(m.GetLines()))
}

// pendingOrder is a placed order that is being decided and stored.
type pendingOrder struct {
	trace     trace.SpanContext
	lines     []*eventsv1.RequestedLine
	keyHashes [][]byte // of the caller's idempotency key, by each secret; none without a key
	order     *Order
}

// handleOrderPlaced decides and stores a batch of placed orders, with one call to inventory and one transaction. A
// redelivered order changes nothing: its key is its own, inventory repeats its decision, and the order is stored already.
func (s *Service) handleOrderPlaced(ctx context.Context, batch []messaging.Message[*eventsv1.OrderPlaced]) error {
	pending, err := newPendingOrders(batch)
	if err != nil {
		return err
	}
	if err := s.rejectReusedKeys(ctx, pending); err != nil {
		return err
	}
	failpoint.Hit("order.claimed")
	asked := time.Now() // before asking: how long the answer took counts too
	if err := s.decide(ctx, stillPending(pending)); err != nil {
		return err
	}
	failpoint.Hit("order.checked")
	stored, err := s.store(ctx, pending, asked)
	if err != nil {
		return err
	}
	failpoint.Hit("order.stored")
	s.duplicates.Add(ctx, len(batch)-len(stored))
	s.metrics.count(ctx, stored)
	s.wake()
	s.logDecided(ctx, stored)
	return nil
}

// errContentDiffers means that an order id came with another order than before. No gateway gives one id to two orders, so
// the message is not trusted, and the first order stays.
var errContentDiffers = errors.New("this order id belongs to an order with other content")

// newPendingOrders returns the pending orders of a batch, each once. If two different orders have one id the batch fails:
// when they are then tried one by one the first is stored, and the second compared with it.
func newPendingOrders(batch []messaging.Message[*eventsv1.OrderPlaced]) ([]pendingOrder, error) {
	pending := make([]pendingOrder, 0, len(batch))
	seen := make(map[uuid.UUID]*Order, len(batch))
	for _, m := range batch {
		o, err := newOrder(m.Body)
		if err != nil {
			return nil, messaging.Permanent(err)
		}
		if first, again := seen[o.ID]; again {
			if !bytes.Equal(first.Fingerprint, o.Fingerprint) {
				return nil, fmt.Errorf("order %s: %w", o.ID, errContentDiffers)
			}
			continue
		}
		seen[o.ID] = o
		pending = append(pending, pendingOrder{m.Trace, m.Body.GetLines(), keyHashes(m.Body), o})
	}
	return pending, nil
}

func keyHashes(m *eventsv1.OrderPlaced) (hashes [][]byte) {
	for _, hash := range [][]byte{m.GetKeyHash(), m.GetPreviousKeyHash()} {
		if len(hash) > 0 {
			hashes = append(hashes, hash)
		}
	}
	return hashes
}

// stillPending returns the orders that inventory has to be asked about.
func stillPending(pending []pendingOrder) []pendingOrder {
	return slices.DeleteFunc(slices.Clone(pending), func(p pendingOrder) bool { return p.order.State != Pending })
}

// rejectReusedKeys claims the idempotency keys of orders that have one, and rejects the orders whose key belongs to another
// order, stored or not, on this replica or another one. Of the orders in this batch the first one in the queue gets the
// key. A redelivered order finds its own claim.
func (s *Service) rejectReusedKeys(ctx context.Context, pending []pendingOrder) error {
	var claims []claim
	claimed := map[string]bool{}
	for _, p := range pending {
		for _, hash := range p.keyHashes {
			if !claimed[string(hash)] {
				claimed[string(hash)] = true
				claims = append(claims, claim{hash, p.order.ID})
			}
		}
	}
	if len(claims) == 0 {
		return nil
	}
	owners, err := claimKeys(ctx, s.db, claims)
	if err != nil {
		return err
	}
	now := time.Now().Truncate(time.Microsecond)
	for _, p := range pending {
		for _, hash := range p.keyHashes {
			if owners[string(hash)] == p.order.ID || p.order.State != Pending {
				continue
			}
			if err := p.order.reject(eventsv1.OrderRejected_IDEMPOTENCY_KEY_REUSED.String(),
				"the idempotency key has placed another order", now); err != nil {
				return messaging.Permanent(err)
			}
		}
	}
	return nil
}

func newOrder(m *eventsv1.OrderPlaced) (*Order, error) {
	id, err := uuid.Parse(m.GetOrderId())
	if err != nil {
		return nil, fmt.Errorf("order id %q: %w", m.GetOrderId(), err)
	}
	o := &Order{
		ID: id, State: Pending,
		CustomerName: m.GetCustomerName(), CustomerEmail: m.GetCustomerEmail(), Owner: m.GetOwner(),
		Fingerprint: m.GetFingerprint(), CreatedAt: m.GetPlacedAt().AsTime(),
	}
	for i, l := range m.GetLines() {
		o.Lines = append(o.Lines, Line{
			Number: int32(i + 1), ProductID: l.GetProductId(), ProductName: l.GetProductName(), Quantity: l.GetQuantity(),
		})
	}
	return o, nil
}

// decide asks inventory about all orders in one call and applies the decisions.
func (s *Service) decide(ctx context.Context, pending []pendingOrder) error {
	if len(pending) == 0 {
		return nil
	}
	req := &inventoryv1.CheckStockRequest{Orders: make([]*inventoryv1.CheckStockRequest_Order, len(pending))}
	for i, p := range pending {
		req.Orders[i] = &inventoryv1.CheckStockRequest_Order{OrderId: p.order.ID.String(), Lines: p.lines}
	}
	ctx, cancel := context.WithTimeout(ctx, checkStockTimeout)
	defer cancel()
	resp, err := s.stock.CheckStock(ctx, req)
	if err != nil {
		return classifyStockError(fmt.Errorf("asking inventory about %d orders: %w", len(pending), err))
	}
	if len(resp.GetDecisions()) != len(pending) {
		return fmt.Errorf("inventory answered %d decisions about %d orders", len(resp.GetDecisions()), len(pending))
	}
	// Whole microseconds, as the database keeps them: event and row say the same.
	now := time.Now().Truncate(time.Microsecond)
	for i, d := range resp.GetDecisions() {
		if err := applyDecision(d, pending[i].order, now); err != nil {
			return messaging.Permanent(err)
		}
	}
	return nil
}

// classifyStockError says what a failed call to inventory means for the batch: either inventory is down, or it refuses
// something in the batch permanently, which may be its size.
func classifyStockError(err error) error {
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.PermissionDenied: // the last is for people to put right
		return messaging.Unavailable(err)
	case codes.InvalidArgument, codes.FailedPrecondition, codes.ResourceExhausted:
		return messaging.Permanent(err)
	}
	return err
}

// applyDecision applies inventory's decision to a pending order.
func applyDecision(d *inventoryv1.StockDecision, o *Order, now time.Time) error {
	if d.GetOrderId() != o.ID.String() {
		return fmt.Errorf("inventory decided order %s where order %s was asked for", d.GetOrderId(), o.ID)
	}
	if r := d.GetRejection(); r != nil {
		return o.reject(r.GetReason().String(), r.GetDetail(), now)
	}
	lines, currency, err := catalogueLines(d)
	if err != nil {
		return err
	}
	return o.confirm(lines, currency, now)
}

// catalogueLines returns the lines of a decision and their common currency.
func catalogueLines(d *inventoryv1.StockDecision) (lines []Line, currency string, err error) {
	for _, l := range d.GetLines() {
		if currency != "" && currency != l.GetUnitPrice().GetCurrencyCode() {
			return nil, "", fmt.Errorf("order %s has lines in %s and in %s", d.GetOrderId(), currency, l.GetUnitPrice().GetCurrencyCode())
		}
		currency = l.GetUnitPrice().GetCurrencyCode()
		lines = append(lines, Line{
			Number: l.GetLine(), ProductID: l.GetProductId(), ProductName: l.GetProductName(),
			Quantity: l.GetQuantity(), UnitPrice: money.Minor(l.GetUnitPrice()),
		})
	}
	return lines, currency, nil
}

// store writes those of the orders that are new, with the events that follow, in one transaction, and returns them. If
// inventory was asked longer than decisionTTL ago it stores nothing and fails, so that inventory is asked again.
func (s *Service) store(ctx context.Context, pending []pendingOrder, asked time.Time) (stored []pendingOrder, err error) {
	err = postgres.InTx(ctx, s.db, func(tx *sqlx.Tx) error {
		// In the transaction: the wait for a connection has no bound.
		if age := elapsed(asked); age > decisionTTL {
			return messaging.Unavailable(fmt.Errorf("inventory's answer about %d orders is %s old", len(pending), age.Round(time.Second)))
		}
		orders := make([]*Order, len(pending))
		for i, p := range pending {
			orders[i] = p.order
		}
		fresh, err := storeOrders(ctx, tx, orders)
		if err != nil {
			return err
		}
		if len(fresh) < len(orders) {
			if err := compareStored(ctx, tx, orders); err != nil {
				return err
			}
		}
		stored = make([]pendingOrder, 0, len(fresh))
		entries := make([]outbox.Entry, 0, 2*len(fresh))
		for _, p := range pending {
			if !fresh[p.order.ID] {
				continue
			}
			stored = append(stored, p)
			events, err := eventsOf(p.order)
			if err != nil {
				return err
			}
			for _, m := range events {
				entries = append(entries, outbox.Entry{Message: m, Trace: p.trace})
			}
		}
		if err := outbox.Add(ctx, tx, entries); err != nil {
			return err
		}
		failpoint.Hit("order.uncommitted")
		return nil
	})
	return stored, err
}

// elapsed returns the time since t by the monotonic or the wall clock, whichever is longer: the monotonic clock stops while
// the machine is suspended, and the wall clock can be set back.
func elapsed(t time.Time) time.Duration { return max(time.Since(t), time.Since(t.Round(0))) }

// eventsOf returns the events that follow from the decision about an order.
func eventsOf(o *Order) ([]proto.Message, error) {
	at := timestamppb.New(o.UpdatedAt)
	switch o.State {
	case Rejected:
		return []proto.Message{&eventsv1.OrderRejected{
			OrderId: o.ID.String(), Reason: o.reason(), Detail: o.Detail, RejectedAt: at,
		}}, nil
	case Confirmed:
		lines := pricedLines(o)
		return []proto.Message{
			&eventsv1.OrderConfirmed{
				OrderId: o.ID.String(), Lines: lines, TotalItems: o.TotalItems,
				TotalValue: money.FromMinor(o.TotalValue, o.Currency), ConfirmedAt: at,
			},
			&eventsv1.DecrementQuantity{OrderId: o.ID.String(), Lines: lines},
		}, nil
	default: // no decision
	}
	return nil, fmt.Errorf("order %s: no event says that an order was decided as %s", o.ID, o.State)
}

// pricedLines returns the lines of a confirmed order.
func pricedLines(o *Order) []*eventsv1.PricedLine {
	lines := make([]*eventsv1.PricedLine, len(o.Lines))
	for i, l := range o.Lines {
		lines[i] = &eventsv1.PricedLine{
			Line: l.Number, ProductId: l.ProductID, ProductName: l.ProductName, Quantity: l.Quantity,
			UnitPrice: money.FromMinor(l.UnitPrice, o.Currency),
		}
	}
	return lines
}

func (s *Service) logDecided(ctx context.Context, pending []pendingOrder) {
	if !s.log.Enabled(ctx, slog.LevelInfo) {
		return
	}
	for _, p := range pending {
		o, ctx := p.order, trace.ContextWithRemoteSpanContext(ctx, p.trace)
		if o.State == Rejected {
			s.log.LogAttrs(ctx, slog.LevelInfo, "order rejected",
				orderid.Attr(o.ID.String()), slog.String("reason", o.Reason), slog.String("detail", o.Detail))
			continue
		}
		s.log.LogAttrs(ctx, slog.LevelInfo, "order created",
			orderid.Attr(o.ID.String()), slog.String("state", string(o.State)), slog.Int("total_items", int(o.TotalItems)),
			slog.String("total_value", money.Format(o.TotalValue, o.Currency)), slog.Int("lines", len(o.Lines)))
	}
}
