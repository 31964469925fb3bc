// Package orderid reads the id of an order from messages, and shortens it for logs: whoever knows a whole id may see and
// cancel the order.
package orderid

import (
	"log/slog"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"shop.example/platform/telemetry"
)

// HiddenKey is an entry in the metadata of the order service's ORDER_NOT_FOUND: the order is stored, but belongs to
// somebody else. The gateway, which must not take the order for one that is not decided yet, keeps the entry to itself.
const HiddenKey = "hidden"

// Of returns the value of m's field order_id, "" if m has no such field.
func Of(m proto.Message) string {
	r := m.ProtoReflect()
	field := r.Descriptor().Fields().ByName("order_id")
	if field == nil || field.Kind() != protoreflect.StringKind {
		return ""
	}
	return r.Get(field).String()
}

// Attr returns the attribute order_id for a log line: the first 16 digits of the id, because whoever knows a whole id may see
// and cancel the order. For the id "" the attribute is empty, and slog leaves it out.
func Attr(id string) slog.Attr {
	if id == "" {
		return slog.Attr{}
	}
	return slog.String("order_id", telemetry.ShortID(id))
}
