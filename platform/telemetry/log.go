package telemetry

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/go-logr/logr"
	"github.com/lmittmann/tint"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/grpclog"
	"google.golang.org/protobuf/proto"
)

// Format is how log lines are written.
type Format string

const (
	// Text is one line for people, coloured on a terminal.
	Text Format = "text"
	// JSON is one object a line.
	JSON Format = "json"
)

// UnmarshalText accepts "text" and "json".
func (f *Format) UnmarshalText(text []byte) error {
	switch format := Format(text); format {
	case Text, JSON:
		*f = format
		return nil
	default:
		return fmt.Errorf("log format %q is not known: use text or json", format)
	}
}

// The attributes that tie the log lines of different services together.

// ShortID returns the first 16 hexadecimal digits of an id that is itself a permission (whoever knows an order's id may
// read the order), which are enough to tell ids apart in logs. It is the first ones because message ids begin with the
// first 12 digits of the order's id and end with a hash of all of it: an attacker with the last 12 digits too would have to
// guess only 26 bits, and could check each guess by the hash, within a minute.
func ShortID(id string) string { return id[:min(len(id), len("01234567-89ab-cdef"))] }

// MessageID returns the attribute message_id for a log line.
func MessageID(id fmt.Stringer) slog.Attr { return slog.String("message_id", id.String()) }

// RoutingKey returns the attribute routing_key for a log line.
func RoutingKey(key string) slog.Attr { return slog.String("routing_key", key) }

// With returns a context that adds attrs to every line that is logged with it, after the attributes it adds already.
func With(ctx context.Context, attrs ...slog.Attr) context.Context {
	have, _ := ctx.Value(attrsKey{}).([]slog.Attr)
	return context.WithValue(ctx, attrsKey{}, slices.Concat(have, attrs))
}

type attrsKey struct{}

// contextHandler adds what the context says: the attributes of With and the trace id.
type contextHandler struct{ slog.Handler }

func (h contextHandler) Handle(ctx context.Context, record slog.Record) error {
	attrs, _ := ctx.Value(attrsKey{}).([]slog.Attr)
	span := trace.SpanContextFromContext(ctx)
	if len(attrs) > 0 || span.HasTraceID() {
		record = record.Clone()
		record.AddAttrs(attrs...)
		if span.HasTraceID() {
			record.AddAttrs(slog.String("trace_id", span.TraceID().String()))
			if span.IsSampled() { // otherwise there is no such span
				record.AddAttrs(slog.String("span_id", span.SpanID().String()))
			}
		}
	}
	return h.Handler.Handle(ctx, record)
}

func (h contextHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return contextHandler{h.Handler.WithAttrs(attrs)}
}

func (h contextHandler) WithGroup(name string) slog.Handler {
	return contextHandler{h.Handler.WithGroup(name)}
}

// LogLibraries redirects to logger what libraries would write to standard error in formats of their own: OpenTelemetry,
// gRPC, and everything that uses the packages log and slog. It sets global state, so only main programs call it.
func LogLibraries(logger *slog.Logger) {
	slog.SetDefault(logger) // of package log, too
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { logger.Warn("OpenTelemetry reports an error", "error", err) }))
	otel.SetLogger(logr.FromSlogHandler(logger.Handler()))
	level := func(l slog.Level) io.Writer { return slog.NewLogLogger(logger.Handler(), l).Writer() }
	grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, level(slog.LevelError)))
}

// NewHandler returns a handler that writes log lines as cfg says, without summarizing them.
func NewHandler(cfg Config) slog.Handler {
	if cfg.Output == nil {
		cfg.Output = os.Stderr
	}
	if cfg.LogFormat == JSON {
		handler := slog.NewJSONHandler(cfg.Output, &slog.HandlerOptions{Level: cfg.LogLevel, ReplaceAttr: jsonAttr})
		return contextHandler{handler.WithAttrs([]slog.Attr{slog.String("service", cfg.Service)})}
	}
	// Services that share a terminal are told apart by a column, so the service is written before the message.
	column := fmt.Sprintf("%-9s ", cfg.Service)
	return contextHandler{tint.NewTextHandler(cfg.Output, &tint.Options{
		Level:      cfg.LogLevel,
		TimeFormat: "15:04:05.000",
		NoColor:    !isTerminal(cfg.Output),
		ReplaceAttr: func(groups []string, attr slog.Attr) slog.Attr {
			if len(groups) == 0 && attr.Key == slog.MessageKey {
				return slog.String(attr.Key, column+attr.Value.String())
			}
			return redactAttr(groups, attr)
		},
	})}
}

// ShortIDs returns text with every id in it shortened by ShortID, for errors that are logged.
func ShortIDs(text string) string {
	if !strings.Contains(text, "-") {
		return text
	}
	return uuids.ReplaceAllString(text, "$1")
}

// uuids are ids in a text, the ShortID of each by itself.
var uuids = regexp.MustCompile(`([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4})-[0-9a-f]{4}-[0-9a-f]{12}`)

// redactAttr removes personal data from messages that are logged directly, and shortens the ids in errors.
func redactAttr(_ []string, attr slog.Attr) slog.Attr {
	switch attr.Key {
	case "error", "reason":
		if text := attr.Value.String(); strings.Contains(text, "-") {
			attr.Value = slog.StringValue(ShortIDs(text))
		}
		return attr
	}
	if attr.Value.Kind() == slog.KindAny {
		if message, ok := attr.Value.Any().(proto.Message); ok {
			attr.Value = Redacted(message).LogValue()
		}
	}
	return attr
}

// jsonAttr is redactAttr for programs, which read durations in seconds.
func jsonAttr(groups []string, attr slog.Attr) slog.Attr {
	if attr.Value.Kind() == slog.KindDuration {
		return slog.Float64(attr.Key, attr.Value.Duration().Seconds())
	}
	return redactAttr(groups, attr)
}

func isTerminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	if !ok || os.Getenv("NO_COLOR") != "" {
		return false
	}
	info, err := file.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
