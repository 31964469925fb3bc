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

// record is a row of event_log that is not written yet.
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

// readDelivery makes the row of a message. It never fails: a message that cannot be decoded gets a row that says why.
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
	r.messageID = messageID(m, err, d)
	if m != nil {
		if r.payload, err = toJSON(m, err); err == nil {
			r.acted, _ = m.(*eventsv1.OperatorActed)
		}
	}
	r.orderID = orderID(m, d)
	r.errText = errorText(err)
	if r.payload == nil {
		r.body = d.Body
	}
	return r
}

// asUndecodable returns r without the message's content, for when the database has refused it. The database accepts that.
func (r record) asUndecodable(d messaging.Delivery, cause error) record {
	r.payload, r.body, r.acted = nil, d.Body, nil
	r.errText = sanitizeText(fmt.Sprintf("the database refused it: %v", cause))
	return r
}

// decode decodes the body as the message type of the routing key. A message that breaks its contract is returned together
// with the error. Bodies larger than an event may be are not decoded.
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

// payloadCapacity is enough room for the JSON of most events, in bytes, so that it need not grow.
const payloadCapacity = 512

// snakeCase is the JSON of the API.
var snakeCase = protojson.MarshalOptions{UseProtoNames: true}

// toJSON encodes m. err is what is already known to be wrong with m, and is passed on.
func toJSON(m proto.Message, err error) ([]byte, error) {
	text, jsonErr := snakeCase.MarshalAppend(make([]byte, 0, payloadCapacity), m)
	switch {
	case jsonErr != nil:
		return nil, errors.Join(err, fmt.Errorf("it cannot be written as JSON: %w", jsonErr))
	case holdsNUL(text):
		return nil, errors.Join(err, errors.New("a text in it holds a NUL character, which the database cannot store"))
	}
	return text, err
}

// holdsNUL reports whether a text in JSON has the escape of a NUL character. After an odd number of backslashes the last one is a backslash
// of the text itself, and what follows it are five characters.
func holdsNUL(text []byte) bool {
	escape := []byte(`\u0000`)
	for {
		before, after, found := bytes.Cut(text, escape)
		if !found {
			return false
		}
		if (len(before)-len(bytes.TrimRight(before, `\`)))%2 == 0 {
			return true
		}
		text = after
	}
}

// decodeJSON returns the message of decode as JSON, if it can be decoded.
func decodeJSON(d messaging.Delivery) ([]byte, error) {
	m, err := decode(d)
	if m == nil {
		return nil, err
	}
	return toJSON(m, err)
}

// messageID returns the id of the message of d, which is m. An event has an id of its own. A request, for which package contract makes
// up a random one, and a message that could not be decoded (nil) have the id that they were published with.
//
// The id of a refused message is one of its content, too, unless it was published with a UUID and has no other. What it lacks may be what
// would tell it from others, such as a request_id, or all have the same message_id: and of two with one id the second is taken for the
// first, delivered again.
func messageID(m proto.Message, refused error, d messaging.Delivery) uuid.UUID {
	id, unique := propertyID(d.MessageID), canonicalUUID(d.MessageID) != ""
	if m != nil {
		if own := contract.MessageID(m); own.Version() == 8 {
			id, unique = own, false
		}
	}
	if refused != nil && !unique {
		id = uuid.NewSHA1(id, d.Body)
	}
	return id
}

// orderID returns the order that m is about, "" for none. If m does not say or could not be decoded it is the message's
// correlation id, except for a request, whose correlation id identifies the request.
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

// propertyID makes an id of the property message_id. Messages of other programs may have one that is no UUID, or none: the
// same text gives the same id when the message is redelivered; without one, a redelivery cannot be told from a new message.
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

// clampTime returns when a message was published, within reason: a clock that is more than a day fast, or nonsense in a
// header, must not put a row at the end of time.
func clampTime(published, now time.Time) time.Time {
	if published.Before(earliest) || published.After(now.Add(24*time.Hour)) {
		published = now
	}
	return published.Truncate(time.Millisecond)
}

// errorText returns err as a text column accepts it, "" for nil.
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

// maxText is the maximum length of a text from a header, in bytes. Routing keys and names have at most 255.
const maxText = 1000

// sanitizeText returns s as a text column accepts it: valid UTF-8 without NUL, and at most maxText long.
func sanitizeText(s string) string {
	if len(s) > maxText {
		s = s[:maxText]
	}
	if utf8.ValidString(s) && strings.IndexByte(s, 0) < 0 {
		return s
	}
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}
