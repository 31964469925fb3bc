package telemetry

import (
	"bytes"
	"encoding/json"
	"log/slog"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/known/anypb"
)

// Redacted returns a value that logs m as JSON, without the fields marked debug_redact at any depth. It is encoded only if
// the line is written; m must not change until then.
func Redacted(m proto.Message) slog.LogValuer { return redacted{m} }

type redacted struct{ message proto.Message }

func (r redacted) LogValue() slog.Value {
	message := proto.Clone(r.message)
	redact(message.ProtoReflect())
	text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(message)
	if err != nil {
		return slog.StringValue(string(message.ProtoReflect().Descriptor().FullName()) + ", not printable")
	}
	// protojson varies its spacing from build to build.
	var compact bytes.Buffer
	if err := json.Compact(&compact, text); err != nil {
		return slog.AnyValue(err)
	}
	return slog.AnyValue(jsonText(compact.String()))
}

// jsonText is JSON that a JSON line embeds as it is and a line of text shows as it is.
type jsonText string

func (t jsonText) MarshalJSON() ([]byte, error) { return []byte(t), nil }

func redact(message protoreflect.Message) {
	if packed, ok := message.Interface().(*anypb.Any); ok {
		redactAny(packed)
		return
	}
	message.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		switch {
		case personal(field):
			message.Clear(field)
		case field.IsMap():
			if field.MapValue().Message() != nil {
				value.Map().Range(func(_ protoreflect.MapKey, entry protoreflect.Value) bool {
					redact(entry.Message())
					return true
				})
			}
		case field.Message() == nil:
		case field.IsList():
			for i := range value.List().Len() {
				redact(value.List().Get(i).Message())
			}
		default:
			redact(value.Message())
		}
		return true
	})
}

// redactAny redacts the message in an Any. If its type is not known here, the content is dropped.
func redactAny(packed *anypb.Any) {
	inside, err := packed.UnmarshalNew()
	if err != nil {
		packed.Reset()
		return
	}
	redact(inside.ProtoReflect())
	if err := packed.MarshalFrom(inside); err != nil {
		packed.Reset()
	}
}

func personal(field protoreflect.FieldDescriptor) bool {
	options, ok := field.Options().(*descriptorpb.FieldOptions)
	return ok && options.GetDebugRedact()
}
