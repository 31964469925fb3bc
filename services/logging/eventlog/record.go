package eventlog

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"shop.example/domain/orderid"
	eventsv1 "shop.example/gen/shop/events/v1"
	"shop.example/platform/contract"
	"shop.example/platform/messaging"
)

// record is a row of event_log that is yet to be written.
type record struct {
	routingKey  string
	exchange    string
	payload     []byte // JSON on one line; nil if the message could not be read
	body        []byte // the message as it came, if payload is nil
	errText     string // why the status is error; "" if it is success
	messageID   uuid.UUID
	orderID     string // "" if it belongs to no order
	trace       trace.SpanContext
	source      string
	attempt     int
	publishedAt time.Time               // in whole milliseconds
	acted       *eventsv1.OperatorActed // what the message is, if it can be read and is one
}

// readDelivery makes the row of a message. It never fails: what cannot be read is a row too, which says why.
func readDelivery(d messaging.Delivery, now time.Time) record {
	r := record{
		routingKey:  sanitizeText(d.RoutingKey),
		exchange:    sanitizeText(d.Exchange),
		trace:       d.Trace,
		source:      sanitizeText(d.AppID),
		attempt:     d.Attempt,
		publishedAt: clampTime(d.Timestamp, now),
	}
	m, err := decode(d)
	if m != nil {
		if r.payload, err = toJSON(m, err); err == nil {
			r.acted, _ = m.(*eventsv1.OperatorActed)
		}
	}
	r.messageID = messageID(m, d.MessageID)
	r.orderID = orderID(m, d)
	r.errText = errorText(err)
	if r.payload == nil {
		r.body = d.Body
	}
	return r
}

// asUndecodable turns r, which the database has refused, into a row without the message's content, which it accepts.
func (r record) asUndecodable(d messaging.Delivery, cause error) record {
	r.payload, r.body, r.acted = nil, d.Body, nil
	r.errText = sanitizeText(fmt.Sprintf("the database refused it: %v", cause))
	return r
}

// decode reads the body as the message that the routing key stands for. A message that breaks the rules of its contract
// comes with the error that says so. What is larger than an event may be is not read.
func decode(d messaging.Delivery) (proto.Message, error) {
	event, ok := contract.ByRoutingKey(d.RoutingKey)
	if !ok {
		return nil, fmt.Errorf("no message has the routing key %q", d.RoutingKey)
	}
	if d.Type != "" && d.Type != string(event.Name) {
		return nil, fmt.Errorf("the type property says %s, but %s carries %s", d.Type, d.RoutingKey, event.Name)
	}
	if len(d.Body) > messaging.MaxEvent {
		return nil, fmt.Errorf("the body has %d bytes, and an event %d at most", len(d.Body), messaging.MaxEvent)
	}
	m := event.New()
	if err := proto.Unmarshal(d.Body, m); err != nil {
		return nil, fmt.Errorf("the body is not a %s: %w", event.Name, err)
	}
	if err := contract.Validate(m); err != nil {
		return m, fmt.Errorf("the message breaks its contract: %w", err)
	}
	return m, nil
}

// payloadCapacity is room for the JSON of most events, in bytes: it need not be moved while it grows.
const payloadCapacity = 512

// snakeCase is the JSON of the API.
var snakeCase = protojson.MarshalOptions{UseProtoNames: true}

// toJSON writes m; err is what is wrong with m already, and is passed on.
func toJSON(m proto.Message, err error) ([]byte, error) {
	text, jsonErr := snakeCase.MarshalAppend(make([]byte, 0, payloadCapacity), m)
	switch {
	case jsonErr != nil:
		return nil, errors.Join(err, fmt.Errorf("it cannot be written as JSON: %w", jsonErr))
	case bytes.Contains(text, []byte(`\u0000`)):
		return nil, errors.Join(err, errors.New("a text in it holds a NUL character, which the database cannot store"))
	}
	return text, err
}

// decodeJSON is decode, and the message as JSON if it can be read.
func decodeJSON(d messaging.Delivery) ([]byte, error) {
	m, err := decode(d)
	if m == nil {
		return nil, err
	}
	return toJSON(m, err)
}

// messageID is the id of m: an event has one of its own; a request, which contract gives a random one, and what could not
// be read, which is nil, have the one they were published with.
func messageID(m proto.Message, property string) uuid.UUID {
	if m != nil {
		if id := contract.MessageID(m); id.Version() == 8 {
			return id
		}
	}
	return propertyID(property)
}

// orderID is the order that m belongs to, "" for none. If m does not say or could not be read, the message's
// correlation id does, unless it is that of a request, which names the request.
func orderID(m proto.Message, d messaging.Delivery) string {
	if m != nil {
		if id := canonicalUUID(orderid.Of(m)); id != "" {
			return id
		}
	}
	if d.ReplyTo != "" {
		return ""
	}
	return canonicalUUID(d.CorrelationID)
}

// propertyID makes an id of the message_id property. Other people's messages may carry one that is no UUID, or none: the
// first keeps an id of its own when it is delivered again, the other cannot be told from a new one.
func propertyID(property string) uuid.UUID {
	if property == "" {
		return uuid.Must(uuid.NewV7())
	}
	if id, err := uuid.Parse(property); err == nil {
		return id
	}
	return uuid.NewSHA1(uuid.NameSpaceOID, []byte(property))
}

func canonicalUUID(s string) string {
	if id, err := uuid.Parse(s); err == nil {
		return id.String()
	}
	return ""
}

var earliest = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// clampTime is when a message was published, as far as it can be believed: a clock that is more than a day ahead, or a
// header that holds something else, must not send a row to the end of time.
func clampTime(published, now time.Time) time.Time {
	if published.Before(earliest) || published.After(now.Add(24*time.Hour)) {
		published = now
	}
	return published.Truncate(time.Millisecond)
}

// errorText is err as a text column takes it, "" for nil.
func errorText(err error) string {
	if err == nil {
		return ""
	}
	// Package protobuf writes a no-break space into its errors in some builds and not in others.
	return sanitizeText(strings.ReplaceAll(err.Error(), "\u00a0", " "))
}

func traceID(sc trace.SpanContext) string {
	if !sc.HasTraceID() {
		return ""
	}
	return sc.TraceID().String()
}

// maxText is how long a text from a header may be, in bytes. Routing keys and names have at most 255.
const maxText = 1000

// sanitizeText is s as a text column takes it: valid UTF-8 without NUL, and no longer than maxText.
func sanitizeText(s string) string {
	if len(s) > maxText {
		s = s[:maxText]
	}
	if utf8.ValidString(s) && strings.IndexByte(s, 0) < 0 {
		return s
	}
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}
