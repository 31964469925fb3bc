// Package telemetry gives a service its logger, metrics and traces.
//
// It sets nothing global: several services share a process, and each passes its own Telemetry to what it builds. Prometheus
// collects metrics from MetricsHandler. Spans are sent if the variables OTEL_* name a collector; otherwise none is
// recorded, and a span only carries its trace id through headers and log lines. Log lines are always written, and also sent
// if OTEL_LOGS_EXPORTER says so.
package telemetry

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	otelprom "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	sdklog "go.opentelemetry.io/otel/sdk/log"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// shutdownTimeout bounds how long the last spans may take to leave the process: what Docker's 10 s leave after a service's stop.
const shutdownTimeout = time.Second

// maxLinks is how many links a span can have: a batch is linked to the trace of each of its messages, of which a consumer can
// have as many as RabbitMQ hands out at most.
const maxLinks = 2000

// Release is the version of a build for a release, which the Dockerfile sets: images are built without git's history.
var Release string

// Config says how a service logs. The tags are those of github.com/caarlos0/env, so that a service's configuration can
// embed it.
type Config struct {
	// Service is the service's name, in log lines and on spans.
	Service string
	// LogLevel is the least level that is logged: debug, info, warn or error.
	LogLevel slog.Level `env:"LOG_LEVEL" envDefault:"info"`
	// LogFormat is text, one line for people, or json, one object for programs.
	LogFormat Format `env:"LOG_FORMAT" envDefault:"text"`
	// Output receives the log lines, each in one Write; standard error if it is nil.
	Output io.Writer
}

// Telemetry holds a service's logger, metrics and traces. Its fields are safe for concurrent use.
type Telemetry struct {
	// Logger adds to each line the service's name and, from the context, the trace id and the attributes of With.
	Logger *slog.Logger
	Meter  metric.MeterProvider
	Tracer trace.TracerProvider
	// Propagator reads and writes W3C trace context.
	Propagator propagation.TextMapPropagator

	registry *prometheus.Registry
	meters   *sdkmetric.MeterProvider
	tracers  *sdktrace.TracerProvider
	exporter sdktrace.SpanExporter  // nil if spans are not sent
	sent     *sdklog.LoggerProvider // nil if log lines are not sent
	lines    *summaries
}

// New returns the telemetry of one service. It does not wait for a connection: spans that cannot be delivered later are
// dropped, and logged as lost. It fails if a variable OTEL_* is invalid.
func New(ctx context.Context, cfg Config) (*Telemetry, error) {
	about, err := resource.New(ctx,
		resource.WithTelemetrySDK(),
		resource.WithFromEnv(),
		// Last, so that it wins: OTEL_SERVICE_NAME cannot name four services in one process.
		resource.WithAttributes(attribute.String("service.name", cfg.Service)),
	)
	if err != nil {
		return nil, fmt.Errorf("reading OTEL_RESOURCE_ATTRIBUTES: %w", err)
	}
	handler := NewHandler(cfg)
	sent, err := newLoggerProvider(ctx, about, slog.New(handler))
	if err != nil {
		return nil, err
	}
	if sent != nil {
		handler = slog.NewMultiHandler(handler, newExportHandler(sent, cfg.LogLevel))
	}
	lines := newSummaries()
	if cfg.LogLevel > slog.LevelDebug {
		handler = summaryHandler{handler, lines}
	}
	logger := slog.New(handler)
	exporter, err := newSpanExporter(ctx, logger)
	if err != nil {
		return nil, err
	}
	tracers := newTracerProvider(about, exporter)
	registry, meters, err := newMeterProvider(about)
	if err != nil {
		return nil, err
	}
	return &Telemetry{
		Logger:     logger,
		Meter:      meters,
		Tracer:     tracers,
		Propagator: propagation.TraceContext{},
		registry:   registry,
		meters:     meters,
		tracers:    tracers,
		exporter:   exporter,
		sent:       sent,
		lines:      lines,
	}, nil
}

// MetricsHandler serves the service's metrics, and those of the Go runtime and the process, in Prometheus' format.
func (t *Telemetry) MetricsHandler() http.Handler {
	return promhttp.HandlerFor(t.registry, promhttp.HandlerOpts{
		ErrorLog:          slog.NewLogLogger(t.Logger.Handler(), slog.LevelError),
		EnableOpenMetrics: true, // for exemplars: the trace of a slow call, if it was sampled
		// One broken metric must not take the others away.
		ErrorHandling: promhttp.ContinueOnError,
	})
}

// Shutdown sends the spans and log lines that are left and stops the exporters, within a second. ctx may have ended. It logs
// what could not be sent, and writes a summary of the log lines that were only counted.
func (t *Telemetry) Shutdown(ctx context.Context) {
	t.lines.close()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	if err := t.tracers.Shutdown(ctx); err != nil {
		t.Logger.WarnContext(ctx, "the last spans were not sent", "error", err)
		if t.exporter != nil { // The SDK leaves it to its retries when the time is up.
			_ = t.exporter.Shutdown(ctx)
		}
	}
	if err := t.meters.Shutdown(ctx); err != nil {
		t.Logger.WarnContext(ctx, "stopping metrics", "error", err)
	}
	if t.sent == nil {
		return
	}
	if err := t.sent.Shutdown(ctx); err != nil { // last: it sends what the others have logged
		t.Logger.WarnContext(ctx, "the last log lines were not sent", "error", err)
	}
}

// newSpanExporter returns what sends spans as the variables OTEL_* say, or nil if none are sent. Unlike OpenTelemetry's default
// they are sent only where a variable says so: who runs the shop without a collector would get a warning every few seconds.
func newSpanExporter(ctx context.Context, logger *slog.Logger) (sdktrace.SpanExporter, error) {
	if disabled, _ := strconv.ParseBool(os.Getenv("OTEL_SDK_DISABLED")); disabled {
		return nil, nil
	}
	switch name := os.Getenv("OTEL_TRACES_EXPORTER"); name {
	case "none":
		return nil, nil
	case "":
		if os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") == "" && os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") == "" {
			return nil, nil
		}
	case "otlp":
	default:
		return nil, fmt.Errorf("OTEL_TRACES_EXPORTER is %q: use otlp or none", name)
	}
	var client otlptrace.Client
	switch protocol := cmp.Or(os.Getenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"), os.Getenv("OTEL_EXPORTER_OTLP_PROTOCOL"), "http/protobuf"); protocol {
	case "http/protobuf":
		client = otlptracehttp.NewClient()
	case "grpc":
		client = otlptracegrpc.NewClient()
	default:
		return nil, fmt.Errorf("OTEL_EXPORTER_OTLP_PROTOCOL is %q: use http/protobuf or grpc", protocol)
	}
	exporter, err := otlptrace.New(ctx, client)
	if err != nil {
		return nil, fmt.Errorf("setting up the export of traces (OTEL_EXPORTER_OTLP_*): %w", err)
	}
	return loggingExporter{SpanExporter: exporter, logger: logger}, nil
}

// newTracerProvider samples as OTEL_TRACES_SAMPLER says, which the SDK reads, as it reads OTEL_BSP_* and OTEL_SPAN_*.
func newTracerProvider(about *resource.Resource, exporter sdktrace.SpanExporter) *sdktrace.TracerProvider {
	if exporter == nil {
		return sdktrace.NewTracerProvider(sdktrace.WithResource(about), sdktrace.WithSampler(sdktrace.NeverSample()))
	}
	limits := sdktrace.NewSpanLimits()
	if os.Getenv("OTEL_SPAN_LINK_COUNT_LIMIT") == "" {
		limits.LinkCountLimit = maxLinks
	}
	return sdktrace.NewTracerProvider(sdktrace.WithResource(about), sdktrace.WithBatcher(exporter), sdktrace.WithRawSpanLimits(limits))
}

// loggingExporter logs a failed export through the service's logger; the SDK would hand it to a global one.
type loggingExporter struct {
	sdktrace.SpanExporter
	logger *slog.Logger
}

func (e loggingExporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	if err := e.SpanExporter.ExportSpans(ctx, spans); err != nil {
		e.logger.WarnContext(ctx, "spans were dropped", "spans", len(spans), "error", err)
	}
	return nil
}

func newMeterProvider(about *resource.Resource) (*prometheus.Registry, *sdkmetric.MeterProvider, error) {
	registry := prometheus.NewRegistry()
	registry.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	exporter, err := otelprom.New(otelprom.WithRegisterer(registry), otelprom.WithoutScopeInfo())
	if err != nil {
		return nil, nil, fmt.Errorf("registering metrics: %w", err)
	}
	meters := sdkmetric.NewMeterProvider(
		sdkmetric.WithResource(about),
		sdkmetric.WithReader(exporter),
		sdkmetric.WithView(durations),
	)
	if err := observeBuild(meters); err != nil {
		return nil, nil, err
	}
	return registry, meters, nil
}

// observeBuild registers what the process was built from: dashboards show when a release came.
func observeBuild(meters metric.MeterProvider) error {
	gauge, err := meters.Meter("shop.example/platform/telemetry").Int64Gauge("service.build_info", metric.WithDescription("1, with what the process was built from."))
	if err != nil {
		return fmt.Errorf("registering the metric of the build: %w", err)
	}
	version, revision, goVersion := cmp.Or(Release, "unknown"), "unknown", runtime.Version()
	if info, ok := debug.ReadBuildInfo(); ok {
		version = cmp.Or(Release, info.Main.Version, version)
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				revision = s.Value
			}
		}
	}
	gauge.Record(context.Background(), 1, metric.WithAttributes(
		attribute.String("version", version), attribute.String("revision", revision), attribute.String("goversion", goVersion)))
	return nil
}

// durations gives every histogram of seconds buckets from 1 ms to 1 min; the SDK's own are made for milliseconds.
var durations = sdkmetric.NewView(
	sdkmetric.Instrument{Kind: sdkmetric.InstrumentKindHistogram, Unit: "s"},
	sdkmetric.Stream{Aggregation: sdkmetric.AggregationExplicitBucketHistogram{
		Boundaries: []float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60},
	}},
)
