package eventlog

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/google/uuid"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"shop.example/domain/orderid"
	loggingv1 "shop.example/gen/shop/logging/v1"
	"shop.example/platform/apierror"
	"shop.example/platform/contract"
	"shop.example/platform/failpoint"
	"shop.example/platform/messaging"
	"shop.example/platform/telemetry"
)

// sendBatch is how many events are read and sent together: the largest that the contracts allow have some 100 kB.
const sendBatch = 50

// errNotLogged means that an event is no longer in the log, nor with the service that could make it again.
var errNotLogged = errors.New("it is not in the log any more")

// errNewer means that a newer release has written the event to the log: sent again by this one it would lose what this one does not know.
var errNewer = errors.New("it has fields or values that this release does not know: a replica of the newer one sends it")

// send sends events again that are recorded as unhandled, directly to the queue of the service that handles them, and
// records that. problems says by message id why events could not be sent; those are not tried again, except for errNewer.
func (r *reconciler) send(ctx context.Context, rt *route, entries []entry) (problems map[uuid.UUID]error, err error) {
	problems = map[uuid.UUID]error{}
	for len(entries) > 0 {
		n := min(len(entries), sendBatch)
		if err := r.sendSome(ctx, rt, entries[:n], problems); err != nil {
			return problems, err
		}
		entries = entries[n:]
	}
	return problems, nil
}

func (r *reconciler) sendSome(ctx context.Context, rt *route, entries []entry, problems map[uuid.UUID]error) error {
	byID, err := rt.read(ctx, entries)
	if err != nil {
		return err
	}
	var messages []messaging.Outgoing
	var sent, failed []uuid.UUID
	for _, e := range entries {
		event, ok := byID[e.MessageID]
		errText := errNotLogged
		if ok {
			var m messaging.Outgoing
			if m, errText = event.outgoing(rt); errText == nil {
				messages, sent = append(messages, m), append(sent, e.MessageID)
				continue
			}
		}
		problems[e.MessageID] = errText
		if errors.Is(errText, errNewer) {
			continue
		}
		failed = append(failed, e.MessageID)
		r.log.LogAttrs(ctx, slog.LevelWarn, "an event is lost and cannot be sent again", telemetry.RoutingKey(rt.sent.RoutingKey),
			telemetry.MessageID(rt.sentID(e)), orderid.Attr(e.OrderID.String()), slog.Any("error", errText))
	}
	r.count(ctx, rt, outcomeUnreadable, len(failed))
	if err := closeUnhandled(ctx, r.db, outcomeUnreadable, failed); err != nil || len(messages) == 0 {
		return err
	}
	if err := r.pub.Send(ctx, messages); err != nil {
		return fmt.Errorf("sending %d events to %s: %w", len(messages), rt.queue, err)
	}
	failpoint.Hit("logging.resent")
	if err := markSent(ctx, r.db, sent); err != nil {
		return err
	}
	r.count(ctx, rt, "sent", len(sent))
	r.log.LogAttrs(ctx, slog.LevelWarn, "events were lost and are sent again", slog.String("queue", rt.queue),
		telemetry.RoutingKey(rt.sent.RoutingKey), slog.Int("events", len(sent)), slog.String("first", messages[0].MessageID))
	return nil
}

func (r *reconciler) count(ctx context.Context, rt *route, outcome string, n int) {
	r.events.Add(ctx, int64(n), metric.WithAttributes(attribute.String("queue", rt.queue), attribute.String("outcome", outcome)))
}

// outgoing returns the event as it was published, as a first attempt addressed to the queue: through its exchange all other
// queues would get it again.
func (e *loggedEvent) outgoing(rt *route) (messaging.Outgoing, error) {
	if e.Payload == nil {
		return messaging.Outgoing{}, errors.New("the log could not read it")
	}
	m, err := rt.sent.FromJSON(e.Payload)
	if err != nil {
		return messaging.Outgoing{}, err
	}
	if protojson.Unmarshal(e.Payload, rt.sent.New()) != nil {
		return messaging.Outgoing{}, errNewer
	}
	if id := contract.MessageID(m); id != e.MessageID {
		return messaging.Outgoing{}, fmt.Errorf("its message id would be %s", id)
	}
	body, err := proto.Marshal(m)
	if err != nil {
		return messaging.Outgoing{}, fmt.Errorf("encoding it: %w", err)
	}
	return messaging.Outgoing{
		RoutingKey:    rt.queue,
		Type:          string(rt.sent.Name),
		MessageID:     e.MessageID.String(),
		CorrelationID: e.OrderID.String(),
		TraceParent:   traceParent(e.TraceID),
		Timestamp:     e.PublishedAt,
		AppID:         e.Source,
		Headers: map[string]any{
			messaging.HeaderExchange: rt.sent.Exchange, messaging.HeaderRoutingKey: rt.sent.RoutingKey, messaging.HeaderUser: rt.user,
		},
		Body: body,
	}, nil
}

// traceParent returns a traceparent that continues a trace of which only the id is known; "" if it is not known.
func traceParent(id string) string {
	traceID, err := trace.TraceIDFromHex(id)
	if err != nil {
		return ""
	}
	var span trace.SpanID // any one but zero
	binary.BigEndian.PutUint64(span[:], rand.Uint64()|1)
	parent := trace.NewSpanContext(trace.SpanContextConfig{TraceID: traceID, SpanID: span, TraceFlags: trace.FlagsSampled})
	return messaging.TraceParent(trace.ContextWithRemoteSpanContext(context.Background(), parent))
}

// resendOrders sends the unhandled events of orders again, whether they are lost or may still be waiting.
func (r *reconciler) resendOrders(ctx context.Context, orders []uuid.UUID) (results []*loggingv1.ResentEvent, err error) {
	for _, rt := range r.routes {
		some, err := r.resendRoute(ctx, &lossCheck{reconciler: r, route: rt}, orders)
		if err != nil {
			return nil, err
		}
		results = append(results, some...)
	}
	return results, nil
}

func (r *reconciler) resendRoute(ctx context.Context, e *lossCheck, orders []uuid.UUID) (results []*loggingv1.ResentEvent, err error) {
	open, err := e.findUnhandled(ctx, orders)
	if err != nil {
		return nil, apierror.Unavailable("SERVICE_UNAVAILABLE", time.Second, "the %s service does not say which events it has handled; try again", e.queue).WithCause(err)
	}
	entries, err := entriesOf(ctx, r.db, e.event.RoutingKey, slices.Collect(maps.Keys(open)), logPosition{}, logPosition{EventID: math.MaxInt64})
	if err != nil {
		return nil, err
	}
	letters, err := deadLetterStates(ctx, r.db, e.queue, entries)
	if err != nil {
		return nil, err
	}
	var due []entry
	for _, entry := range entries {
		result := &loggingv1.ResentEvent{
			OrderId: entry.OrderID.String(), RoutingKey: e.sent.RoutingKey, MessageId: e.sentID(entry).String(), Queue: e.queue,
		}
		if state := letters[entry.MessageID]; state != "" && state != stateRedriven {
			result.Problem = "it is a dead letter: redrive or discard that"
		} else {
			due = append(due, entry)
		}
		results = append(results, result)
	}
	if err := insertUnhandled(ctx, r.db, e.event.RoutingKey, e.queue, due, "UPDATE SET closed_at = NULL, outcome = NULL"); err != nil {
		return nil, err
	}
	problems, err := r.send(ctx, e.route, due)
	if apierror.ReasonOf(err) == "SERVICE_UNAVAILABLE" {
		return nil, err
	}
	if err != nil {
		return nil, apierror.Unavailable("BROKER_UNAVAILABLE", time.Second, "the broker did not take all events; try again").WithCause(err)
	}
	for i, entry := range entries {
		if errText := problems[entry.MessageID]; errText != nil {
			results[i].Problem = errText.Error()
		}
	}
	return results, nil
}
