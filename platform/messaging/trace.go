package messaging

import (
	"context"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/status"

	"shop.example/platform/telemetry"
)

// One order is one trace (docs/adr/0032): it goes with each message in the header traceparent. Names and attributes are
// OpenTelemetry's for messaging (https://opentelemetry.io/docs/specs/semconv/messaging/rabbitmq/). A message whose trace is
// not sampled costs a look at one character.

// sampled returns the context of a traceparent that belongs to a trace which is recorded.
func sampled(parent string) (context.Context, bool) {
	if !strings.HasSuffix(parent, "-01") {
		return nil, false
	}
	ctx := withTraceParent(context.Background(), parent)
	return ctx, trace.SpanContextFromContext(ctx).IsSampled()
}

var rabbitMQ = attribute.String("messaging.system", "rabbitmq")

// messageAttributes describe a message that is sent or was received.
func messageAttributes(operation, kind, exchange, routingKey, messageID, conversation string, attempt, bytes int) []attribute.KeyValue {
	attrs := []attribute.KeyValue{
		rabbitMQ,
		attribute.String("messaging.operation.name", operation),
		attribute.String("messaging.operation.type", kind),
		attribute.String("messaging.destination.name", exchange),
		attribute.String("messaging.rabbitmq.destination.routing_key", routingKey),
		attribute.String("messaging.message.id", messageID),
		attribute.Int("messaging.message.body.size", bytes),
	}
	if conversation != "" {
		attrs = append(attrs, attribute.String("messaging.message.conversation_id", telemetry.ShortID(conversation)))
	}
	if attempt > 0 {
		attrs = append(attrs, attribute.Int("shop.attempt", attempt))
	}
	return attrs
}

// fail marks a span as failed.
func fail(span trace.Span, err error) {
	if err == nil || !span.IsRecording() {
		return
	}
	span.SetAttributes(attribute.String("error.type", errorType(err)))
	span.SetStatus(codes.Error, telemetry.ShortIDs(err.Error()))
}

// errorType is the label that failures are grouped by. It has few values.
func errorType(err error) string {
	switch st, ok := status.FromError(err); {
	case ok:
		return st.Code().String()
	case isUnavailable(err):
		return "unavailable"
	case isPermanent(err):
		return "permanent"
	}
	return "_OTHER"
}

// startSends begins a span for each message whose trace is recorded, in the context in which the message was written, and has
// the message carry it. end ends them with what became of all.
func (p *Publisher) startSends(messages []Outgoing) (end func(error)) {
	var spans []trace.Span
	for i := range messages {
		m := &messages[i]
		written, recorded := sampled(m.TraceParent)
		if !recorded {
			continue
		}
		attempt, _ := m.Headers[headerAttempt].(int32)
		ctx, span := p.conn.tracer.Start(written, "send "+m.RoutingKey,
			trace.WithSpanKind(trace.SpanKindProducer), trace.WithAttributes(p.conn.at()...),
			trace.WithAttributes(messageAttributes("send", "send", m.Exchange, m.RoutingKey, m.MessageID, m.CorrelationID, int(attempt), len(m.Body))...))
		if span.IsRecording() {
			m.TraceParent = TraceParent(ctx)
		}
		spans = append(spans, span)
	}
	return func(err error) {
		for _, span := range spans {
			fail(span, err)
			span.End()
		}
	}
}

// startProcess begins the spans of messages that are handled together. The work is done in the trace of the first message that
// is recorded, so that it belongs to an order; each of the others gets a span of its own in its own trace, with a link to
// that. What follows from a message follows from its span. Without a recorded message there is no span.
func (c *Consumer) startProcess(ctx context.Context, g group) (context.Context, func(error)) {
	var spans []trace.Span
	start := time.Now()
	for i := range g.deliveries {
		d := &g.deliveries[i]
		published, recorded := sampled(stringHeader(d.Headers, headerTraceParent))
		if !recorded {
			continue
		}
		attrs := trace.WithAttributes(processAttributes(c.queue, d)...)
		options := []trace.SpanStartOption{trace.WithSpanKind(trace.SpanKindConsumer), trace.WithTimestamp(start), trace.WithAttributes(c.conn.at()...), attrs}
		if len(spans) == 0 {
			options = append(options, trace.WithAttributes(attribute.Int("messaging.batch.message_count", len(g.deliveries))))
		} else {
			options = append(options, trace.WithLinks(trace.Link{SpanContext: spans[0].SpanContext()}))
		}
		own, span := c.conn.tracer.Start(published, "process "+c.queue, options...)
		if !span.IsRecording() {
			continue
		}
		if len(spans) > 0 { // from the batch's work to each message, too
			spans[0].AddLink(trace.Link{SpanContext: span.SpanContext()})
		}
		spans = append(spans, span)
		g.decoded[i] = g.handler.traced(g.decoded[i], trace.SpanContextFromContext(own))
	}
	switch {
	case len(spans) > 0:
		ctx = trace.ContextWithSpan(ctx, spans[0])
	case len(g.deliveries) == 1: // for log lines
		ctx = withTraceParent(ctx, stringHeader(g.deliveries[0].Headers, headerTraceParent))
	}
	return ctx, func(err error) {
		for _, span := range spans {
			fail(span, err)
			span.End()
		}
	}
}

func processAttributes(queue string, d *amqp.Delivery) []attribute.KeyValue {
	exchange, key := firstRoute(d)
	attrs := messageAttributes("process", "process", exchange, key, d.MessageId, d.CorrelationId, attemptOf(d), len(d.Body))
	return append(attrs, attribute.String("shop.queue", queue))
}
