package telemetry

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"os"
	"strconv"

	"go.opentelemetry.io/contrib/bridges/otelslog"
	"go.opentelemetry.io/otel/exporters/otlp/otlplog/otlploggrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlplog/otlploghttp"
	sdklog "go.opentelemetry.io/otel/sdk/log"
	"go.opentelemetry.io/otel/sdk/resource"
)

// newLoggerProvider returns what sends log lines as the variables OTEL_* say, or nil if none are sent. They are sent only if
// OTEL_LOGS_EXPORTER says so: most who collect traces read lines from the standard error of containers, and would have them twice.
// What cannot be sent is logged to local alone: as a line to be sent it would lead to the next failure.
func newLoggerProvider(ctx context.Context, about *resource.Resource, local *slog.Logger) (*sdklog.LoggerProvider, error) {
	if disabled, _ := strconv.ParseBool(os.Getenv("OTEL_SDK_DISABLED")); disabled {
		return nil, nil
	}
	switch name := os.Getenv("OTEL_LOGS_EXPORTER"); name {
	case "", "none":
		return nil, nil
	case "otlp":
	default:
		return nil, fmt.Errorf("OTEL_LOGS_EXPORTER is %q: use otlp or none", name)
	}
	var exporter sdklog.Exporter
	var err error
	switch protocol := cmp.Or(os.Getenv("OTEL_EXPORTER_OTLP_LOGS_PROTOCOL"), os.Getenv("OTEL_EXPORTER_OTLP_PROTOCOL"), "http/protobuf"); protocol {
	case "http/protobuf":
		exporter, err = otlploghttp.New(ctx)
	case "grpc":
		exporter, err = otlploggrpc.New(ctx)
	default:
		return nil, fmt.Errorf("OTEL_EXPORTER_OTLP_LOGS_PROTOCOL is %q: use http/protobuf or grpc", protocol)
	}
	if err != nil {
		return nil, fmt.Errorf("setting up the export of log lines (OTEL_EXPORTER_OTLP_*): %w", err)
	}
	return sdklog.NewLoggerProvider(sdklog.WithResource(about), sdklog.WithProcessor(sdklog.NewBatchProcessor(logExporter{exporter, local}))), nil
}

// logExporter logs a failed export to local.
type logExporter struct {
	sdklog.Exporter
	local *slog.Logger
}

func (e logExporter) Export(ctx context.Context, records []sdklog.Record) error {
	if err := e.Exporter.Export(ctx, records); err != nil {
		e.local.WarnContext(ctx, "log lines were not sent", "lines", len(records), "error", err)
	}
	return nil
}

// exportHandler gives the bridge what a JSON line would say: with the attributes of With, and without personal data and whole
// ids. The bridge itself takes trace and span from the context.
type exportHandler struct {
	bridge slog.Handler
	level  slog.Level
}

func newExportHandler(lines *sdklog.LoggerProvider, level slog.Level) slog.Handler {
	return exportHandler{otelslog.NewHandler("shop.example/platform/telemetry", otelslog.WithLoggerProvider(lines)), level}
}

func (h exportHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= h.level && h.bridge.Enabled(ctx, level)
}

func (h exportHandler) Handle(ctx context.Context, record slog.Record) error {
	line := slog.NewRecord(record.Time, record.Level, record.Message, record.PC)
	record.Attrs(func(attr slog.Attr) bool {
		line.AddAttrs(exported(attr))
		return true
	})
	attrs, _ := ctx.Value(attrsKey{}).([]slog.Attr)
	for _, attr := range attrs {
		line.AddAttrs(exported(attr))
	}
	return h.bridge.Handle(ctx, line)
}

func (h exportHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return exportHandler{h.bridge.WithAttrs(exportedAll(attrs)), h.level}
}

func (h exportHandler) WithGroup(name string) slog.Handler {
	return exportHandler{h.bridge.WithGroup(name), h.level}
}

// exported is an attribute as jsonAttr writes it.
func exported(attr slog.Attr) slog.Attr {
	attr.Value = attr.Value.Resolve()
	if attr.Value.Kind() == slog.KindGroup {
		return slog.Attr{Key: attr.Key, Value: slog.GroupValue(exportedAll(attr.Value.Group())...)}
	}
	attr = jsonAttr(nil, attr)
	attr.Value = attr.Value.Resolve() // a redacted message is a LogValuer
	if text, ok := attr.Value.Any().(jsonText); ok {
		attr.Value = slog.StringValue(string(text))
	}
	return attr
}

func exportedAll(attrs []slog.Attr) []slog.Attr {
	all := make([]slog.Attr, len(attrs))
	for i, attr := range attrs {
		all[i] = exported(attr)
	}
	return all
}
