package messaging_test

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	eventsv1 "shop.example/gen/shop/events/v1"
	"shop.example/platform/messaging"
	"shop.example/platform/testkit/brokertest"
)

// traced is a party whose spans the test reads.
func traced(t *testing.T, url, service string, sampler sdktrace.Sampler) (*party, *tracetest.SpanRecorder, trace.Tracer) {
	t.Helper()
	spans := tracetest.NewSpanRecorder()
	limits := sdktrace.NewSpanLimits()
	limits.LinkCountLimit = 2000
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans), sdktrace.WithSampler(sampler), sdktrace.WithRawSpanLimits(limits))
	p := joinAs(t, url, messaging.Options{
		Topology: brokertest.Topology(), Service: service, Logger: slog.New(slog.NewTextHandler(t.Output(), nil)), Tracer: provider,
	})
	return p, spans, provider.Tracer("test")
}

// named are the ended spans of a name in a trace.
func named(spans *tracetest.SpanRecorder, name string, of trace.TraceID) (found []sdktrace.ReadOnlySpan) {
	for _, span := range spans.Ended() {
		if span.Name() == name && span.SpanContext().TraceID() == of {
			found = append(found, span)
		}
	}
	return found
}

func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	deadline := time.Now().Add(testTimeout)
	for !is() {
		if time.Now().After(deadline) {
			t.Fatalf("waited %s for %s", testTimeout, what)
		}
		<-time.After(time.Millisecond)
	}
}

// One order was six traces, and most orders of a batch were in none.
func TestTrace_EachMessageOfABatchIsInTheTraceOfItsPublisher(t *testing.T) {
	t.Parallel()
	const messages = 100 // more than the 32 whose links were kept
	url := brokertest.New(t).URL
	gateway, sent, tracer := traced(t, url, "gateway", sdktrace.AlwaysSample())
	var traces []trace.TraceID
	for range messages {
		ctx, span := tracer.Start(within(t), "POST /v1/orders")
		traces = append(traces, span.SpanContext().TraceID())
		if err := gateway.pub.Publish(ctx, placed()); err != nil {
			t.Fatal(err)
		}
		span.End()
	}
	order, handled, _ := traced(t, url, "order", sdktrace.ParentBased(sdktrace.AlwaysSample()))
	var mu sync.Mutex
	batches, followed := 0, map[trace.TraceID]trace.SpanContext{}
	order.orders(func(ctx context.Context, batch []messaging.Message[*eventsv1.OrderPlaced]) error {
		mu.Lock()
		defer mu.Unlock()
		batches++
		if !trace.SpanContextFromContext(ctx).IsValid() {
			t.Error("the work of a batch is in no trace")
		}
		for _, m := range batch {
			followed[m.Trace.TraceID()] = m.Trace
		}
		return nil
	})
	until(t, "all messages to be handled", func() bool {
		n := 0
		for _, id := range traces {
			n += len(named(handled, "process order", id))
		}
		return n == messages
	})
	mu.Lock()
	defer mu.Unlock()
	linked := 0
	for _, id := range traces {
		send, process := named(sent, "send shop.order.placed", id), named(handled, "process order", id)
		if len(send) != 1 || len(process) != 1 {
			t.Fatalf("trace %s has %d sends and %d handlings", id, len(send), len(process))
		}
		if process[0].Parent().SpanID() != send[0].SpanContext().SpanID() {
			t.Errorf("trace %s: the handling does not follow from the sending", id)
		}
		if followed[id].SpanID() != process[0].SpanContext().SpanID() {
			t.Errorf("trace %s: what follows from the message does not follow from its handling", id)
		}
		if n := len(process[0].Links()); n == 1 {
			linked++ // to the work of its batch
		}
	}
	if linked < messages-2*batches || linked == 0 { // the first of a batch is linked to the others
		t.Errorf("%d of %d messages are linked to the work of %d batches", linked, messages, batches)
	}
}

func TestTrace_WhatIsNotSampledHasNoSpan(t *testing.T) {
	t.Parallel()
	url := brokertest.New(t).URL
	gateway, sent, tracer := traced(t, url, "gateway", sdktrace.NeverSample())
	ctx, span := tracer.Start(within(t), "POST /v1/orders")
	if err := gateway.pub.Publish(ctx, placed()); err != nil {
		t.Fatal(err)
	}
	order, handled, _ := traced(t, url, "order", sdktrace.ParentBased(sdktrace.AlwaysSample()))
	seen := make(chan trace.SpanContext, 1)
	order.orders(func(ctx context.Context, _ []messaging.Message[*eventsv1.OrderPlaced]) error {
		seen <- trace.SpanContextFromContext(ctx)
		return nil
	})
	if got := next(t, seen, "the message"); got.TraceID() != span.SpanContext().TraceID() || got.IsSampled() {
		t.Errorf("it is handled in %v", got)
	}
	if n := len(sent.Ended()) + len(handled.Ended()); n > 0 {
		t.Errorf("%d spans were recorded", n)
	}
}

// Failed messaging looked green.
func TestTrace_AFailureIsRedAndEachAttemptIsASpan(t *testing.T) {
	t.Parallel()
	url := brokertest.New(t).URL
	gateway, _, tracer := traced(t, url, "gateway", sdktrace.AlwaysSample())
	order, handled, _ := traced(t, url, "order", sdktrace.ParentBased(sdktrace.AlwaysSample()))
	order.orders(func(context.Context, []messaging.Message[*eventsv1.OrderPlaced]) error {
		return errors.New("no such product")
	})
	ctx, span := tracer.Start(within(t), "POST /v1/orders")
	if err := gateway.pub.Publish(ctx, placed()); err != nil {
		t.Fatal(err)
	}
	id := span.SpanContext().TraceID()
	until(t, "the second attempt", func() bool { return len(named(handled, "process order", id)) >= 2 })
	for i, process := range named(handled, "process order", id)[:2] {
		if process.Status().Code != codes.Error {
			t.Errorf("attempt %d has the status %v", i, process.Status())
		}
		attempt := int64(0)
		for _, attr := range process.Attributes() {
			if attr.Key == "shop.attempt" {
				attempt = attr.Value.AsInt64()
			}
		}
		if attempt != int64(i) {
			t.Errorf("attempt %d says %d", i, attempt)
		}
	}
	if retry := named(handled, "send order.retry.1s", id); len(retry) != 1 || !slices.ContainsFunc(named(handled, "process order", id), func(p sdktrace.ReadOnlySpan) bool {
		return p.Parent().SpanID() == retry[0].SpanContext().SpanID()
	}) {
		t.Errorf("the retry is no span, or the second attempt does not follow from it: %v", retry)
	}
}
