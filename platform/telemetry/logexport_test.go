package telemetry_test

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	logsv1 "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	commonv1 "go.opentelemetry.io/proto/otlp/common/v1"
	"google.golang.org/protobuf/proto"

	eventsv1 "shop.example/gen/shop/events/v1"
	"shop.example/platform/telemetry"
)

// logCollector keeps the lines that it gets over HTTP, each as "service severity body key=value …".
type logCollector struct {
	*httptest.Server
	mu    sync.Mutex
	lines []string
}

func newLogCollector(t *testing.T) *logCollector {
	t.Helper()
	c := &logCollector{}
	c.Server = httptest.NewServer(http.HandlerFunc(c.take))
	t.Cleanup(c.Close)
	return c
}

func (c *logCollector) take(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	var req logsv1.ExportLogsServiceRequest
	if err != nil || r.URL.Path != "/v1/logs" || proto.Unmarshal(body, &req) != nil {
		http.Error(w, "no lines in protobuf", http.StatusBadRequest)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, resource := range req.GetResourceLogs() {
		service := ""
		for _, attr := range resource.GetResource().GetAttributes() {
			if attr.GetKey() == "service.name" {
				service = attr.GetValue().GetStringValue()
			}
		}
		for _, scope := range resource.GetScopeLogs() {
			for _, record := range scope.GetLogRecords() {
				line := fmt.Sprintf("%s %s %s", service, record.GetSeverityText(), record.GetBody().GetStringValue())
				for _, attr := range record.GetAttributes() {
					line += " " + attr.GetKey() + "=" + valueText(attr.GetValue())
				}
				if len(record.GetTraceId()) > 0 {
					line += fmt.Sprintf(" trace=%x", record.GetTraceId())
				}
				c.lines = append(c.lines, line)
			}
		}
	}
}

func valueText(v *commonv1.AnyValue) string {
	switch v := v.GetValue().(type) {
	case *commonv1.AnyValue_StringValue:
		return v.StringValue
	case *commonv1.AnyValue_DoubleValue:
		return fmt.Sprint(v.DoubleValue)
	case *commonv1.AnyValue_IntValue:
		return fmt.Sprint(v.IntValue)
	case *commonv1.AnyValue_KvlistValue:
		var parts []string
		for _, kv := range v.KvlistValue.GetValues() {
			parts = append(parts, kv.GetKey()+":"+valueText(kv.GetValue()))
		}
		return "{" + strings.Join(parts, " ") + "}"
	default:
		return fmt.Sprintf("%T", v)
	}
}

func (c *logCollector) got() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.lines)
}

func TestLogger_SendsToTheCollectorWhatAJSONLineSays(t *testing.T) {
	collector := newLogCollector(t)
	t.Setenv("OTEL_LOGS_EXPORTER", "otlp")
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.URL)
	t.Setenv("OTEL_TRACES_EXPORTER", "none")
	tel, out := newTelemetry(t, telemetry.Config{})

	const id = "01980000-0000-7000-8000-0123456789ab"
	ctx, span := tel.Tracer.Tracer("test").Start(telemetry.With(t.Context(), slog.String("queue", "order")), "call")
	defer span.End()
	tel.Logger.DebugContext(ctx, "below the level")
	tel.Logger.With("part", "relay").WarnContext(ctx, "refused", "error", fmt.Errorf("order %s is gone", id),
		"order", telemetry.Redacted(&eventsv1.OrderPlaced{CustomerName: "Ann Example", CustomerEmail: "ann@example.com"}),
		"message", &eventsv1.OrderPlaced{CustomerEmail: "ann@example.com"},
		slog.Group("pool", slog.Int("open", 3), slog.Any("error", fmt.Errorf("of %s", id))))
	tel.Shutdown(t.Context())

	want := "order WARN refused part=relay error=order 01980000-0000-7000 is gone order={} message={} pool={error:of 01980000-0000-7000 open:3} queue=order trace=" +
		span.SpanContext().TraceID().String()
	if got := collector.got(); !slices.Equal(got, []string{want}) {
		t.Errorf("got\n%q, want\n%q", got, want)
	}
	if !strings.Contains(out.String(), "refused") {
		t.Errorf("it was not written: %q", out)
	}
}

func TestLogger_SendsLinesOnlyIfItIsToldTo(t *testing.T) {
	for name, test := range map[string]struct {
		environment map[string]string
		sent        int
	}{
		"an endpoint alone": {map[string]string{}, 0},
		"none":              {map[string]string{"OTEL_LOGS_EXPORTER": "none"}, 0},
		"disabled":          {map[string]string{"OTEL_LOGS_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "true"}, 0},
		"HTTP for logs":     {map[string]string{"OTEL_LOGS_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_LOGS_PROTOCOL": "http/protobuf"}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			collector := newLogCollector(t)
			t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.URL)
			for key, value := range test.environment {
				t.Setenv(key, value)
			}
			tel, out := newTelemetry(t, telemetry.Config{})
			tel.Logger.InfoContext(t.Context(), "order created")
			tel.Shutdown(t.Context())
			if got := collector.got(); len(got) != test.sent {
				t.Errorf("%q were sent, want %d: %s", got, test.sent, out)
			}
		})
	}
}

// A warning about lines that were not sent would be the next line to be sent.
func TestLogger_SaysOnceAndLocallyThatLinesWereNotSent(t *testing.T) {
	refuses := httptest.NewServer(http.NotFoundHandler())
	defer refuses.Close()
	t.Setenv("OTEL_LOGS_EXPORTER", "otlp")
	t.Setenv("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", refuses.URL+"/v1/logs")
	tel, out := newTelemetry(t, telemetry.Config{})
	tel.Logger.InfoContext(t.Context(), "order created")
	tel.Shutdown(t.Context())
	if got := strings.Count(out.String(), "log lines were not sent"); got != 1 || !strings.Contains(out.String(), "lines=1 ") {
		t.Errorf("said %d times: %s", got, out)
	}
}
