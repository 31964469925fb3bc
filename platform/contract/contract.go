// Package contract reads the options of the contracts (proto/shop/options): exchange, routing key and identity of an event,
// and the exchange, key and queue of an RPC over the broker. All publishers and consumers get these from here, so no
// routing key is written in Go.
package contract

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/google/uuid"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	optionsv1 "shop.example/gen/shop/options/v1"
)

// Event describes a message type that is published on the broker by itself, as opposed to one that is a part of another.
type Event struct {
	Name       protoreflect.FullName
	Exchange   string
	RoutingKey string
	// PublishedBy are the services that publish it; empty if only operators and programs outside the shop do.
	PublishedBy []string
	// HandledBy are the services that handle it, by their queues.
	HandledBy []string
	// Answer is the message type of the answer, if the event is a request; "" if it is not.
	Answer protoreflect.FullName

	identity []protoreflect.FieldDescriptor
	kind     protoreflect.MessageType
}

// New returns an empty message of the event's type.
func (e Event) New() proto.Message { return e.kind.New().Interface() }

// FromJSON decodes an event from the JSON in the event log. It fails if that is no event of this type or breaks its
// contract, as do events whose personal data were erased. What only a newer release knows is left out.
func (e Event) FromJSON(payload []byte) (proto.Message, error) {
	m := e.New()
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(payload, m); err != nil {
		return nil, fmt.Errorf("it is not a %s: %w", e.Name, err)
	}
	if err := Validate(m); err != nil {
		return nil, fmt.Errorf("it breaks its contract: %w", err)
	}
	return m, nil
}

// IsRequest reports whether the message asks for an answer. Requests have no identity: each gets a new message id.
func (e Event) IsRequest() bool { return len(e.identity) == 0 }

// Method describes a gRPC method that is called over the broker.
type Method struct {
	Exchange   string
	RoutingKey string
	Queue      string
	CalledBy   []string // the services that may call it
	AnsweredBy string   // the service that answers it
}

type registry struct {
	list  []Event
	names map[protoreflect.FullName]Event
	keys  map[string]Event
}

// registered is built on first use: by then every generated package has registered its files.
var registered = sync.OnceValue(func() registry {
	r := registry{names: map[protoreflect.FullName]Event{}, keys: map[string]Event{}}
	protoregistry.GlobalTypes.RangeMessages(func(mt protoreflect.MessageType) bool {
		e, ok := eventOf(mt)
		if !ok {
			return true
		}
		r.list = append(r.list, e)
		r.names[e.Name] = e
		r.keys[e.RoutingKey] = e
		return true
	})
	slices.SortFunc(r.list, func(a, b Event) int { return strings.Compare(a.RoutingKey, b.RoutingKey) })
	return r
})

func eventOf(mt protoreflect.MessageType) (Event, bool) {
	md := mt.Descriptor()
	opt, _ := proto.GetExtension(md.Options(), optionsv1.E_Event).(*optionsv1.Event)
	if opt == nil {
		return Event{}, false
	}
	e := Event{
		Name: md.FullName(), Exchange: opt.GetExchange(), RoutingKey: opt.GetRoutingKey(),
		PublishedBy: opt.GetPublishedBy(), HandledBy: opt.GetHandledBy(),
		Answer: protoreflect.FullName(opt.GetAnswer()), kind: mt,
	}
	for _, name := range opt.GetIdentity() {
		// A name that is no field leaves nil here, which the package's test refuses.
		e.identity = append(e.identity, md.Fields().ByName(protoreflect.Name(name)))
	}
	return e, true
}

// Events lists every event, by routing key.
func Events() []Event { return registered().list }

// EventOf returns the description of m's type; false if messages of that type are not published by themselves.
func EventOf(m proto.Message) (Event, bool) { return ByName(m.ProtoReflect().Descriptor().FullName()) }

// ByName returns the event with this full message name; false if there is none.
func ByName(name protoreflect.FullName) (Event, bool) {
	e, ok := registered().names[name]
	return e, ok
}

// ByRoutingKey returns the event that is published with this routing key; false if there is none.
func ByRoutingKey(key string) (Event, bool) {
	e, ok := registered().keys[key]
	return e, ok
}

// Methods lists the gRPC methods that are called over the broker, by routing key.
func Methods() []Method {
	var list []Method
	protoregistry.GlobalFiles.RangeFiles(func(file protoreflect.FileDescriptor) bool {
		for i := range file.Services().Len() {
			methods := file.Services().Get(i).Methods()
			for j := range methods.Len() {
				if m, ok := methodOf(methods.Get(j)); ok {
					list = append(list, m)
				}
			}
		}
		return true
	})
	slices.SortFunc(list, func(a, b Method) int { return strings.Compare(a.RoutingKey, b.RoutingKey) })
	return list
}

// MethodOf returns the description of a gRPC method, given as "/package.Service/Method". It fails if the method is not
// called over the broker.
func MethodOf(fullMethod string) (Method, error) {
	md, err := methodDescriptor(fullMethod)
	if err != nil {
		return Method{}, err
	}
	m, ok := methodOf(md)
	if !ok {
		return Method{}, fmt.Errorf("method %s has no route over the broker (option shop.options.v1.rpc)", fullMethod)
	}
	return m, nil
}

func methodOf(md protoreflect.MethodDescriptor) (m Method, ok bool) {
	opt, _ := proto.GetExtension(md.Options(), optionsv1.E_Rpc).(*optionsv1.Rpc)
	if opt == nil {
		return m, false
	}
	return Method{
		Exchange: opt.GetExchange(), RoutingKey: opt.GetRoutingKey(), Queue: opt.GetQueue(),
		CalledBy: opt.GetCalledBy(), AnsweredBy: opt.GetAnsweredBy(),
	}, true
}

// Callers returns the services that may call a gRPC method, given as "/package.Service/Method", on the gRPC port of the
// service that implements it; none if the contract does not restrict it. It fails if no contract has the method.
func Callers(fullMethod string) ([]string, error) {
	md, err := methodDescriptor(fullMethod)
	if err != nil {
		return nil, err
	}
	callers, _ := proto.GetExtension(md.Options(), optionsv1.E_Callers).([]string)
	return callers, nil
}

func methodDescriptor(fullMethod string) (protoreflect.MethodDescriptor, error) {
	name := []byte(fullMethod[min(1, len(fullMethod)):])
	if i := slices.Index(name, '/'); i >= 0 {
		name[i] = '.'
	}
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(name))
	if err != nil {
		return nil, fmt.Errorf("method %s: %w", fullMethod, err)
	}
	md, ok := d.(protoreflect.MethodDescriptor)
	if !ok {
		return nil, fmt.Errorf("%s is not a method", fullMethod)
	}
	return md, nil
}

// MessageID returns the id under which m is published and deduplicated. It is derived from the message type and the fields
// that identify the event, so the same event has the same id, whoever computes it and however often. A request, which has
// no identity, gets a new id each time.
//
// The id of an event about an order begins with the first 48 bits of the order id, which are its time, so that ids which
// are created together are neighbours in a database index. The rest is a hash; the form is UUID version 8 (RFC 9562).
func MessageID(m proto.Message) uuid.UUID {
	e, ok := EventOf(m)
	if !ok || len(e.identity) == 0 {
		return uuid.Must(uuid.NewV7())
	}
	r := m.ProtoReflect()
	buf := make([]byte, 0, 128)
	buf = append(buf, e.Name...)
	for _, fd := range e.identity {
		buf = append(buf, 0)
		buf = appendValue(buf, fd, r.Get(fd))
	}
	sum := sha256.Sum256(buf)
	var id uuid.UUID
	copy(id[:], sum[:])
	if first := e.identity[0]; first.Kind() == protoreflect.StringKind {
		if u, err := uuid.Parse(r.Get(first).String()); err == nil {
			copy(id[:6], u[:6])
		}
	}
	id[6] = id[6]&0x0f | 0x80
	id[8] = id[8]&0x3f | 0x80
	return id
}

func appendValue(buf []byte, fd protoreflect.FieldDescriptor, v protoreflect.Value) []byte {
	if fd.Kind() == protoreflect.StringKind {
		return append(buf, v.String()...)
	}
	return strconv.AppendInt(buf, v.Int(), 10)
}

// correlationField is the field whose value all messages about one process share: in these contracts, about one order.
const correlationField = "order_id"

// CorrelationID returns the id that m shares with all messages about the same process, here an order; "" if it has none.
func CorrelationID(m proto.Message) string {
	r := m.ProtoReflect()
	fd := r.Descriptor().Fields().ByName(correlationField)
	if fd == nil || fd.Kind() != protoreflect.StringKind {
		return ""
	}
	return r.Get(fd).String()
}
