package intake

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"go.opentelemetry.io/otel/metric"
	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"shop.example/domain/idempotency"
	"shop.example/domain/money"
	"shop.example/domain/orderid"
	"shop.example/domain/text"
	"shop.example/gateway/access"
	eventsv1 "shop.example/gen/shop/events/v1"
	orderv1 "shop.example/gen/shop/order/v1"
	"shop.example/platform/apierror"
	"shop.example/platform/messaging"
)

// retryAfter is how long clients are told to wait while the broker is unavailable.
const retryAfter = 2 * time.Second

// lookupTimeout bounds the question to the order service whether an idempotency key was used before. Without an answer the
// order is taken all the same.
const lookupTimeout = 500 * time.Millisecond

// Orders takes orders, whichever API they come through. It is safe for concurrent use.
type Orders struct {
	secrets []*Secret                                  // the current one, and perhaps the previous one
	publish func(context.Context, proto.Message) error // returns once the broker has the event
	stored  orderv1.OrderServiceClient                 // reads orders that have been decided
	keys    orderv1.IntakeServiceClient                // knows which idempotency keys were used
	// inFlight bounds the orders that wait for the broker; a large one counts as several. Without a bound they would fill the
	// memory while the broker is away.
	inFlight *semaphore.Weighted
	metrics  *metrics
	log      *slog.Logger
}

// Config has what Orders depend on.
type Config struct {
	Secrets      []*Secret
	Publish      func(context.Context, proto.Message) error // returns nil once the broker has the event
	OrderService grpc.ClientConnInterface
	MaxInFlight  int64 // 0 for the default
	Log          *slog.Logger
	Meter        metric.Meter // nil: no metrics
}

// NewOrders returns Orders that are ready for use. It fails if a metric cannot be registered.
func NewOrders(cfg Config) (*Orders, error) {
	metrics, err := newMetrics(cfg.Meter)
	if err != nil {
		return nil, err
	}
	return &Orders{
		secrets: cfg.Secrets, publish: cfg.Publish, log: cfg.Log, metrics: metrics,
		stored: orderv1.NewOrderServiceClient(cfg.OrderService), keys: orderv1.NewIntakeServiceClient(cfg.OrderService),
		inFlight: semaphore.NewWeighted(cmp.Or(cfg.MaxInFlight, defaultOrdersInFlight)),
	}, nil
}

// defaultOrdersInFlight takes some 80 MB for the calls, and is twice as many as can wait for the broker's confirms at a
// time.
const defaultOrdersInFlight = 2000

// weightOf returns how many orders of usual size an order counts as, at most MaxWeight, by the memory that it takes while
// it waits: one with 100 lines and names of 200 characters takes 350 kB.
func weightOf(lines []*eventsv1.RequestedLine) int64 {
	const line, usual = 100, 8 << 10
	size := line * len(lines)
	for _, l := range lines {
		size += len(l.GetProductName())
	}
	return int64(1 + size/usual)
}

// MaxWeight is how many orders of usual size the largest order counts as in the limit of orders in flight.
const MaxWeight = 11

// Place takes an order, in which the customer and the lines are set: it completes placed, gives it an id, and publishes it.
// The result is PENDING. It needs the broker only. announce is called with the order's id before anybody else can know it.
//
// With an idempotency key the id is derived from caller, key and order, so an order that is sent again is the same order,
// and is returned as it stands if it has been decided. A different order under the same caller's key fails with
// ALREADY_EXISTS if the order service says in time that the key is taken; otherwise it is accepted under another id, and
// the order service rejects it (docs/adr/0012).
//
// After UNAVAILABLE the order may have been taken all the same, except if the reason is OVERLOADED. Sent again with its
// idempotency key it is taken only once.
func (o *Orders) Place(
	ctx context.Context, placed *eventsv1.OrderPlaced, announce func(orderID string),
) (order *orderv1.Order, err error) {
	repeated := false
	defer func(start time.Time) { o.metrics.placed(ctx, start, repeated, err) }(time.Now())
	weight := weightOf(placed.GetLines())
	if !o.inFlight.TryAcquire(weight) {
		return nil, apierror.Unavailable(reasonOverloaded, retryAfter, "too many orders wait for the message broker; this one was not accepted, send it again")
	}
	o.metrics.inFlight.Add(weight)
	defer func() {
		o.metrics.inFlight.Add(-weight)
		o.inFlight.Release(weight)
	}()
	placed.CustomerName, placed.CustomerEmail = text.Normal(placed.GetCustomerName()), text.Normal(placed.GetCustomerEmail())
	for _, line := range placed.GetLines() {
		line.ProductName = text.Normal(line.GetProductName())
	}
	if wrong := append(checkTexts(placed), checkPrices(placed.GetLines())...); len(wrong) > 0 {
		return nil, apierror.InvalidArgument(wrong...)
	}
	by := access.PrincipalOf(ctx)
	key, keyed, err := keyOf(ctx)
	if err != nil {
		return nil, err
	}
	placed.Owner = by.Owner()
	placed.PlacedAt = timestamppb.New(time.Now().Truncate(time.Microsecond)) // as the database keeps it
	placed.Fingerprint = fingerprint(placed)
	if keyed {
		known := o.identify(placed, requestKey{by.KeyScope(placed.GetCustomerEmail()), key})
		announce(placed.GetOrderId())
		if found, err := known(ctx); found != nil || err != nil {
			repeated = found != nil
			return found, err
		}
	} else {
		id, err := o.secrets[0].newOrderID()
		if err != nil {
			return nil, err
		}
		placed.OrderId = id.String()
		announce(placed.GetOrderId())
	}
	if err := o.publish(ctx, placed); err != nil {
		return nil, publishError(err)
	}
	o.log.InfoContext(ctx, "order published", orderid.Attr(placed.GetOrderId()), slog.Int("lines", len(placed.GetLines())))
	return pending(placed), nil
}

// The bounds of OrderPlaced, in characters.
const (
	maxName  = 200
	maxEmail = 254
)

// checkTexts returns violations for a customer without a name or an address, for texts with deceptive characters, and for texts that
// are too long in normal form, which may be longer than what was sent.
func checkTexts(placed *eventsv1.OrderPlaced) (wrong []apierror.Violation) {
	check := func(field, value string, limit int) {
		switch {
		case value == "" || !text.Visible(value): // an address of spaces alone is empty once they are cut off
			wrong = append(wrong, apierror.Violation{Field: field, Description: text.Rule})
		case len(value) > limit && utf8.RuneCountInString(value) > limit:
			wrong = append(wrong, apierror.Violation{Field: field, Description: fmt.Sprintf("must be at most %d characters", limit)})
		}
	}
	check("customer_name", placed.GetCustomerName(), maxName)
	check("customer_email", placed.GetCustomerEmail(), maxEmail)
	for i, line := range placed.GetLines() {
		if name := line.GetProductName(); name != "" {
			check(fmt.Sprintf("order_items[%d].product_name", i), name, maxName)
		}
	}
	return wrong
}

// checkPrices returns violations for expected prices that no order could have: invalid amounts, several currencies, or too
// large a sum.
func checkPrices(lines []*eventsv1.RequestedLine) (wrong []apierror.Violation) {
	var sum int64
	var currency string
	for i, line := range lines {
		price := line.GetExpectedUnitPrice()
		if price == nil {
			continue
		}
		field := fmt.Sprintf("order_items[%d].expected_unit_price", i)
		if err := money.Check(price); err != nil {
			wrong = append(wrong, apierror.Violation{Field: field, Description: err.Error()})
			continue
		}
		if currency = cmp.Or(currency, price.GetCurrencyCode()); currency != price.GetCurrencyCode() {
			wrong = append(wrong, apierror.Violation{Field: field, Description: "must be in " + currency + ", as the other prices of the order are"})
			continue
		}
		if money.Minor(price) > (money.Max-sum)/int64(line.GetQuantity()) {
			wrong = append(wrong, apierror.Violation{Field: "order_items", Description: "must be worth at most " + money.Format(money.Max, currency)})
			break
		}
		sum += money.Minor(price) * int64(line.GetQuantity())
	}
	return wrong
}

// identify sets the order's id and the hashes that are derived from its key. known then asks the order service about the
// key: it returns the order as it stands if it was placed before, nil if the order is to be published, and an error if the
// key belongs to another order.
func (o *Orders) identify(order *eventsv1.OrderPlaced, k requestKey) (known func(context.Context) (*orderv1.Order, error)) {
	order.OrderId = o.secrets[0].sign(o.secrets[0].unsignedOrderID(k, order.GetFingerprint())).String()
	order.KeyHash = o.secrets[0].keyHash(k)
	if len(o.secrets) > 1 {
		order.PreviousKeyHash = o.secrets[1].keyHash(k)
	}
	return func(ctx context.Context) (*orderv1.Order, error) {
		ids, find := []string{}, &orderv1.FindKeyRequest{}
		for _, secret := range slices.Backward(o.secrets) { // orders under the previous secret are older
			unsigned := secret.unsignedOrderID(k, order.GetFingerprint()) // as ids were before they were signed
			ids = append(ids, secret.sign(unsigned).String(), unsigned.String())
			find.KeyHashes = append(find.KeyHashes, secret.keyHash(k))
			find.FormerOrderIds = append(find.FormerOrderIds, secret.formerOrderID(k).String())
		}
		ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
		defer cancel()
		found, err := o.keys.FindKey(ctx, find)
		switch id := found.GetOrderId(); {
		case err != nil || id == "":
			return nil, nil // the key is free, as far as is known
		case found.Order == nil && id == order.GetOrderId():
			idempotency.MarkReplayed(ctx)
			return nil, nil // it is being decided: it is published again, and the order service finds its own claim
		case found.Order == nil && slices.Contains(ids, id):
			idempotency.MarkReplayed(ctx)
			before := proto.CloneOf(order) // it is being decided, under the id that the previous secret gave it, or an unsigned one
			before.OrderId = id
			return pending(before), nil
		case slices.Contains(ids, id):
			idempotency.MarkReplayed(ctx)
			return found.GetOrder(), nil
		case slices.Contains(find.GetFormerOrderIds(), id):
			return formerOrder(ctx, found.GetOrder(), order)
		}
		return nil, errKeyReused
	}
}

var errKeyReused = apierror.New(codes.AlreadyExists, "IDEMPOTENCY_KEY_REUSED",
	"this Idempotency-Key has placed another order: use a new key for a new order")

// formerOrder compares an order with the one that the release before this one has stored under its key, whoever placed
// that. It can be removed in the next release, or 30 days after the last gateway of the release before was stopped.
func formerOrder(ctx context.Context, stored *orderv1.Order, order *eventsv1.OrderPlaced) (*orderv1.Order, error) {
	switch {
	case !strings.EqualFold(stored.GetCustomerEmail(), order.GetCustomerEmail()):
		return nil, nil // another customer's: the key is free for this one
	case stored.GetCustomerName() == order.GetCustomerName() && slices.EqualFunc(stored.GetOrderItems(), order.GetLines(), sameLine):
		idempotency.MarkReplayed(ctx)
		return stored, nil
	}
	return nil, errKeyReused
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

// Lookup reads an order from the order service; nil if it has not been decided. The error is that of a service that does not
// answer.
func (o *Orders) Lookup(ctx context.Context, id string) (*orderv1.Order, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	got, err := o.stored.GetOrder(access.OnBehalfOf(ctx), &orderv1.GetOrderRequest{OrderId: id})
	if apierror.ReasonOf(err) == "ORDER_NOT_FOUND" {
		return nil, nil
	}
	return got.GetOrder(), err
}

// pending returns an order as far as it is known before it is decided.
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

// publishError returns the error for the client whose order was not published.
func publishError(err error) error {
	if errors.Is(err, messaging.ErrTooLarge) {
		return apierror.New(codes.FailedPrecondition, "MESSAGE_TOO_LARGE",
			"the order is larger than the message broker accepts: order fewer lines at once").WithCause(err)
	}
	for _, sentinel := range []error{messaging.ErrNotConnected, messaging.ErrBlocked, messaging.ErrUnconfirmed, messaging.ErrUnroutable} {
		if errors.Is(err, sentinel) {
			return apierror.Unavailable(reasonBroker, retryAfter,
				"the order was not confirmed by the message broker; send it again, with an Idempotency-Key so that you do not order twice").
				WithCause(err)
		}
	}
	return err
}

// RequireQueues wraps publish: it refuses orders while a queue that they wait in is missing. Without that, the broker would
// confirm an order although the order service's queue is missing, because the log's queue takes it, and nobody would decide
// it.
func RequireQueues(queues *messaging.QueueWatch, publish func(context.Context, proto.Message) error) func(context.Context, proto.Message) error {
	return func(ctx context.Context, order proto.Message) error {
		err := queues.Ready(ctx)
		if errors.Is(err, messaging.ErrNoAnswer) {
			return apierror.Unavailable(reasonBroker, retryAfter,
				"the message broker does not answer; this order was not accepted, send it again").WithCause(err)
		}
		if err != nil {
			return apierror.Unavailable(reasonQueue, retryAfter,
				"the queue of orders is missing; this order was not accepted, send it again").WithCause(err)
		}
		return publish(ctx, order)
	}
}
