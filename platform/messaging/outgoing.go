package messaging

import (
	"context"
	"fmt"
	"time"

	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/proto"

	"shop.example/platform/contract"
)

// Outgoing is a message that is ready to be published.
type Outgoing struct {
	Exchange      string
	RoutingKey    string
	Type          string // full name of the protobuf message
	MessageID     string
	CorrelationID string // what the messages about one process share, see contract.CorrelationID; "" for none
	ReplyTo       string // of a request: the queue for its answer
	TraceParent   string // W3C trace context, "" if there is none
	Timestamp     time.Time
	AppID         string         // the service that said it, if that is not the publisher's own
	Headers       map[string]any // beyond those the publisher sets itself
	Body          []byte
}

// NewOutgoing encodes the event m, and adds the trace context of ctx. It fails if m is no event of the contracts, and with
// ErrTooLarge if the encoded event is larger than MaxEvent.
func NewOutgoing(ctx context.Context, m proto.Message) (Outgoing, error) {
	e, ok := contract.EventOf(m)
	if !ok {
		return Outgoing{}, fmt.Errorf("%s is not an event: it has no routing key", m.ProtoReflect().Descriptor().FullName())
	}
	body, err := proto.Marshal(m)
	if err != nil {
		return Outgoing{}, fmt.Errorf("encoding %s: %w", e.Name, err)
	}
	if len(body) > MaxEvent {
		return Outgoing{}, fmt.Errorf("%w: the %s has %d bytes, an event %d at most", ErrTooLarge, e.Name, len(body), MaxEvent)
	}
	return Outgoing{
		Exchange:      e.Exchange,
		RoutingKey:    e.RoutingKey,
		Type:          string(e.Name),
		MessageID:     contract.MessageID(m).String(),
		CorrelationID: contract.CorrelationID(m),
		TraceParent:   TraceParent(ctx),
		Timestamp:     time.Now(),
		Body:          body,
	}, nil
}

var traceContext propagation.TraceContext

// parentCarrier carries a traceparent and nothing else.
type parentCarrier struct{ parent string }

func (c *parentCarrier) Get(key string) string {
	if key == headerTraceParent {
		return c.parent
	}
	return ""
}

func (c *parentCarrier) Set(key, value string) {
	if key == headerTraceParent {
		c.parent = value
	}
}

func (c *parentCarrier) Keys() []string { return []string{headerTraceParent} }

// TraceParent returns the W3C traceparent of the span in ctx, "" if there is none.
func TraceParent(ctx context.Context) string {
	var carrier parentCarrier
	traceContext.Inject(ctx, &carrier)
	return carrier.parent
}

// withTraceParent returns ctx as a child of the remote span that parent names.
func withTraceParent(ctx context.Context, parent string) context.Context {
	if parent == "" {
		return ctx
	}
	return traceContext.Extract(ctx, &parentCarrier{parent})
}

func spanContext(parent string) trace.SpanContext {
	return trace.SpanContextFromContext(withTraceParent(context.Background(), parent))
}
