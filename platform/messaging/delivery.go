package messaging

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"mime"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"shop.example/platform/contract"
	"shop.example/platform/telemetry"
)

// Meta is what is known about a message besides its body.
type Meta struct {
	Exchange      string // the one it was published to first, whatever detour it took
	RoutingKey    string // likewise
	CorrelationID string
	ReplyTo       string
	AppID         string    // the service that published it, by its own word
	User          string    // the broker's user who published it first; "" if that is not known
	Attempt       int       // 0 for the first
	Timestamp     time.Time // when it was published; zero if it does not say
	Trace         trace.SpanContext
}

// Message is a message of type T, whose body meets its contract.
type Message[T proto.Message] struct {
	Meta
	ID   uuid.UUID // contract.MessageID of the body: the same event has the same id, whatever its properties say
	Body T
}

// Context returns ctx with the message's trace, for what is done on behalf of this one message of a batch.
func (m Message[T]) Context(ctx context.Context) context.Context {
	return trace.ContextWithRemoteSpanContext(ctx, m.Trace)
}

// Delivery is a message as the broker delivered it, for a handler made with HandleRaw. Its body is not decoded or
// validated.
type Delivery struct {
	Meta
	MessageID   string
	Type        string
	Reason      string // of a dead letter: why it is one
	SourceQueue string // of a dead letter: where it comes from
	Headers     amqp.Table
	Redelivered bool
	Body        []byte
}

// Handler handles the messages of one type, or of all types. Handle, HandleWeighed and HandleRaw make one.
type Handler struct {
	event protoreflect.FullName // "" for every message
	// decode turns a delivery into what run takes; its error makes the delivery a dead letter.
	decode func(*amqp.Delivery) (any, error)
	run    func(context.Context, []any) error
	// traced returns a decoded message whose trace is another one: that of its handling.
	traced func(any, trace.SpanContext) any
	weigh  func(any) int // what a decoded message causes, in bytes; nil if that is no more than the message
}

// Handle makes a handler for messages of type T, which must be an event of the contracts.
//
// handle gets messages that were next to each other in the queue, and must handle all of them or none: if it returns nil
// they are acknowledged; if it returns an error none of its effects may remain. A message may have been handled before.
// Errors: one marked Unavailable keeps the batch until the dependency is back, in smaller pieces after the second failure.
// After any other error of several messages each is given to handle alone; then one marked Permanent makes the message a
// dead letter, and any other one is retried after 1 s, 10 s and 60 s before the message becomes a dead letter. handle is
// never called concurrently by one consumer. Its context stays valid for 5 s when the consumer is told to stop, to finish
// the batch.
//
// The bodies of a batch have at most 2 MiB together, unless it is a single message. A message of more than MaxEvent becomes
// a dead letter without being decoded.
func Handle[T proto.Message](handle func(ctx context.Context, batch []Message[T]) error) Handler {
	var zero T
	return Handler{
		event: zero.ProtoReflect().Descriptor().FullName(),
		decode: func(d *amqp.Delivery) (any, error) {
			if len(d.Body) > MaxEvent {
				return nil, fmt.Errorf("the body has %d bytes, and an event %d at most", len(d.Body), MaxEvent)
			}
			body := zero.ProtoReflect().New().Interface().(T)
			if err := proto.Unmarshal(d.Body, body); err != nil {
				return nil, fmt.Errorf("the body is not a %s: %w", zero.ProtoReflect().Descriptor().FullName(), err)
			}
			if err := contract.Validate(body); err != nil {
				return nil, fmt.Errorf("the message breaks its contract: %w", err)
			}
			return Message[T]{Meta: metaOf(d), ID: contract.MessageID(body), Body: body}, nil
		},
		traced: func(m any, sc trace.SpanContext) any {
			message := m.(Message[T])
			message.Trace = sc
			return message
		},
		run: func(ctx context.Context, batch []any) error {
			messages := make([]Message[T], len(batch))
			for i, m := range batch {
				messages[i] = m.(Message[T])
			}
			return handle(ctx, messages)
		},
	}
}

// HandleWeighed is Handle for messages whose handling takes more memory than their size: weigh returns how much, in bytes,
// and the sum over a batch is at most 2 MiB, unless it is a single message.
func HandleWeighed[T proto.Message](weigh func(T) int, handle func(ctx context.Context, batch []Message[T]) error) Handler {
	h := Handle(handle)
	h.weigh = func(m any) int { return weigh(m.(Message[T]).Body) }
	return h
}

// HandleRaw makes a handler for every message of the queue, whether or not a contract describes it. handle follows the
// rules of Handle, and gets bodies of any size.
func HandleRaw(handle func(ctx context.Context, batch []Delivery) error) Handler {
	return Handler{
		decode: func(d *amqp.Delivery) (any, error) { return rawDelivery(d), nil },
		traced: func(d any, sc trace.SpanContext) any {
			delivery := d.(Delivery)
			delivery.Trace = sc
			return delivery
		},
		run: func(ctx context.Context, batch []any) error {
			deliveries := make([]Delivery, len(batch))
			for i, d := range batch {
				deliveries[i] = d.(Delivery)
			}
			return handle(ctx, deliveries)
		},
	}
}

func rawDelivery(d *amqp.Delivery) Delivery {
	out := Delivery{
		Meta: metaOf(d), MessageID: d.MessageId, Type: d.Type, Headers: d.Headers, Redelivered: d.Redelivered, Body: d.Body,
		Reason: stringHeader(d.Headers, headerReason), SourceQueue: stringHeader(d.Headers, headerSourceQueue),
	}
	// What the broker itself gave up has no word of ours. (Our reason for an earlier retry is not why it died.)
	if death := lastDeath(d.Headers); out.SourceQueue == "" && death != nil {
		out.SourceQueue = stringHeader(death, "queue")
		out.Reason = "given up by the broker: " + stringHeader(death, "reason")
	}
	return out
}

// sourceQueue is the queue that a dead letter comes from, "" if it does not say.
func sourceQueue(d *amqp.Delivery) string {
	if queue := stringHeader(d.Headers, headerSourceQueue); queue != "" {
		return queue
	}
	return stringHeader(lastDeath(d.Headers), "queue")
}

// lastDeath is the broker's record (x-death) of the queue that the message was dead-lettered from last, nil if it never
// was.
func lastDeath(headers amqp.Table) amqp.Table {
	deaths, _ := headers["x-death"].([]any)
	if len(deaths) == 0 {
		return nil
	}
	death, _ := deaths[0].(amqp.Table)
	return death
}

func metaOf(d *amqp.Delivery) Meta {
	m := Meta{
		CorrelationID: d.CorrelationId, ReplyTo: d.ReplyTo, AppID: d.AppId, User: publisherOf(d), Attempt: attemptOf(d), Timestamp: d.Timestamp,
		Trace: spanContext(stringHeader(d.Headers, headerTraceParent)),
	}
	m.Exchange, m.RoutingKey = firstRoute(d)
	if ms, ok := intHeader(d.Headers, headerTimestamp); ok {
		m.Timestamp = time.UnixMilli(ms)
	}
	return m
}

// firstRoute returns the exchange and routing key that d was first published with.
func firstRoute(d *amqp.Delivery) (exchange, routingKey string) {
	if key := nameHeader(d.Headers, HeaderRoutingKey); key != "" {
		return nameHeader(d.Headers, HeaderExchange), key
	}
	death := lastDeath(d.Headers)
	if death == nil {
		return d.Exchange, d.RoutingKey
	}
	exchange, routingKey = nameHeader(death, "exchange"), d.RoutingKey
	if keys, _ := death["routing-keys"].([]any); len(keys) > 0 {
		key, _ := keys[0].(string)
		routingKey = asName(key)
	}
	return exchange, routingKey
}

func stringHeader(t amqp.Table, key string) string {
	s, _ := t[key].(string)
	return s
}

func nameHeader(t amqp.Table, key string) string { return asName(stringHeader(t, key)) }

// asName returns s if it can be the name of an exchange, a queue or a user, or a routing key: else it is too long, and "" is returned.
func asName(s string) string {
	if len(s) > math.MaxUint8 {
		return ""
	}
	return s
}

func intHeader(t amqp.Table, key string) (int64, bool) {
	switch v := t[key].(type) {
	case int64:
		return v, true
	case int32:
		return int64(v), true
	case int16:
		return int64(v), true
	case uint8:
		return int64(v), true
	}
	return 0, false
}

// attemptOf is at most that of the last attempt, whatever a publisher has written.
func attemptOf(d *amqp.Delivery) int {
	n, _ := intHeader(d.Headers, headerAttempt)
	return int(min(max(n, 0), int64(len(retryDelays))))
}

// republish returns the message of d, for publishing it elsewhere, without the headers that the broker has added, and with none that its
// publisher made long: the broker closes the connection on which headers come that are larger than a frame.
func republish(d *amqp.Delivery) Outgoing {
	m := metaOf(d)
	out := Outgoing{
		Type: d.Type, MessageID: d.MessageId, CorrelationID: d.CorrelationId, ReplyTo: d.ReplyTo, Timestamp: m.Timestamp,
		TraceParent: TraceParent(trace.ContextWithRemoteSpanContext(context.Background(), m.Trace)), AppID: d.AppId,
		Headers: map[string]any{HeaderExchange: m.Exchange, HeaderRoutingKey: m.RoutingKey, HeaderUser: m.User},
		Body:    d.Body,
	}
	if m.Timestamp.IsZero() {
		out.Timestamp = time.Now()
	}
	if out.MessageID == "" {
		// The broker's word that it could not be routed names the message by this id.
		out.MessageID = uuid.NewString()
	}
	return out
}

const maxReason = 1000 // bytes

// truncate makes a reason of at most maxReason bytes from the text of an error. It replaces no-break spaces, which package
// protobuf writes in some builds and not in others, so that a search for a reason finds it.
func truncate(s string) string {
	s = strings.ReplaceAll(s, "\u00a0", " ")
	if len(s) <= maxReason {
		return s
	}
	cut := maxReason
	for !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + "…"
}

// undecodable is the error about a message that no handler could be given.
type undecodable struct{ error }

func (e undecodable) Unwrap() error { return e.error }

func isUnreadable(err error) bool {
	_, is := errors.AsType[undecodable](err)
	return is
}

// group is a run of deliveries that one handler gets together, or one delivery that no handler can take.
type group struct {
	deliveries []amqp.Delivery
	decoded    []any
	handler    Handler
	err        error
}

func (g group) run(ctx context.Context) error { return g.handler.run(ctx, g.decoded) }

// slice returns the messages from index first up to, but not including, end.
func (g group) slice(first, end int) group {
	return group{deliveries: g.deliveries[first:end], decoded: g.decoded[first:end], handler: g.handler}
}

type dispatcher struct {
	check  func(*amqp.Delivery) error // says who may publish what; before all else
	all    *Handler
	events map[protoreflect.FullName]Handler
}

func newDispatcher(handlers []Handler) dispatcher {
	d := dispatcher{check: func(*amqp.Delivery) error { return nil }, events: map[protoreflect.FullName]Handler{}}
	for _, h := range handlers {
		if h.event == "" {
			d.all = &h
			continue
		}
		d.events[h.event] = h
	}
	return d
}

// groups splits a batch into runs of one type and of at most maxBatch bytes, in the order of the queue. They share the
// memory of batch.
func (d dispatcher) groups(batch []amqp.Delivery) []group {
	var out []group
	decoded := make([]any, len(batch))
	size := 0 // of the last run
	for i := range batch {
		h, err := d.handler(&batch[i])
		if err == nil {
			decoded[i], err = h.decode(&batch[i])
		}
		if err != nil {
			out = append(out, group{deliveries: batch[i : i+1], err: err})
			continue
		}
		weight := len(batch[i].Body)
		if h.weigh != nil {
			weight = max(weight, h.weigh(decoded[i]))
		}
		if n := len(out); n == 0 || out[n-1].err != nil || out[n-1].handler.event != h.event || size+weight > maxBatch {
			out = append(out, group{deliveries: batch[i:i], decoded: decoded[i:i], handler: h})
			size = 0
		}
		size += weight
		last := &out[len(out)-1]
		last.deliveries = last.deliveries[:len(last.deliveries)+1]
		last.decoded = last.decoded[:len(last.decoded)+1]
	}
	return out
}

// handler finds who takes a delivery that may be taken: the routing key says what it is, and the type property must not contradict it.
func (d dispatcher) handler(delivery *amqp.Delivery) (Handler, error) {
	if err := d.check(delivery); err != nil {
		return Handler{}, err
	}
	if d.all != nil {
		return *d.all, nil
	}
	_, key := firstRoute(delivery)
	event, ok := contract.ByRoutingKey(key)
	switch {
	case !ok:
		return Handler{}, fmt.Errorf("no message has the routing key %q", key)
	case !isProtobuf(delivery.ContentType):
		return Handler{}, fmt.Errorf("the property content_type says %q: a message is protobuf, %s", delivery.ContentType, contentType)
	case delivery.Type != "" && delivery.Type != string(event.Name):
		return Handler{}, fmt.Errorf("the type property says %s, but %s carries %s", delivery.Type, key, event.Name)
	}
	h, ok := d.events[event.Name]
	if !ok {
		return Handler{}, fmt.Errorf("this queue's service does not handle %s", event.Name)
	}
	return h, nil
}

// isProtobuf reports whether a content_type may stand for protobuf. Publishers may leave it out, or use any of the names
// that protobuf has.
func isProtobuf(property string) bool {
	name, _, err := mime.ParseMediaType(property)
	return property == "" || err == nil && slices.Contains([]string{contentType, "application/x-protobuf", "application/vnd.google.protobuf", "application/octet-stream"}, name)
}

func (c *Consumer) log(d *amqp.Delivery) *slog.Logger {
	m := metaOf(d)
	log := c.conn.log.With("queue", c.queue, "routing_key", m.RoutingKey)
	if d.MessageId != "" {
		log = log.With("message_id", d.MessageId)
	}
	if d.CorrelationId != "" {
		log = log.With("order_id", telemetry.ShortID(d.CorrelationId))
	}
	if m.Trace.HasTraceID() {
		log = log.With("trace_id", m.Trace.TraceID().String())
	}
	return log
}

var errNoReplyTo = errors.New("the request has no reply_to: nobody waits for an answer")
