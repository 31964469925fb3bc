// Package orderid is what all services know of the id of an order: where messages carry it, and how much of it may be
// logged.
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

// Of is the value of m's field order_id, "" if it has none.
func Of(m proto.Message) string {
	r := m.ProtoReflect()
	field := r.Descriptor().Fields().ByName("order_id")
	if field == nil || field.Kind() != protoreflect.StringKind {
		return ""
	}
	return r.Get(field).String()
}

// Attr names the order that a log line is about by the first 16 digits of its id: whoever knows a whole id may see and
// cancel the order. If there is none, "", the line does not mention any.
func Attr(id string) slog.Attr {
	if id == "" {
		return slog.Attr{}
	}
	return slog.String("order_id", telemetry.ShortID(id))
}
