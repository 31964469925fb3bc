package telemetry_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caarlos0/env/v11"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	collectorv1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"shop.example/platform/telemetry"
)

func TestMain(m *testing.M) {
	telemetry.Release = "v1.2.3" // as the linker sets it
	goleak.VerifyTestMain(m)
}

// buffer is a bytes.Buffer that may be read while an exporter still logs.
type buffer struct {
	mu    sync.Mutex
	bytes bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.bytes.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.bytes.String()
}

// newTelemetry returns telemetry that logs to the buffer it returns.
func newTelemetry(t *testing.T, cfg telemetry.Config) (*telemetry.Telemetry, *buffer) {
	t.Helper()
	out := &buffer{}
	cfg.Service, cfg.Output = "order", out
	tel, err := telemetry.New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tel.Shutdown(context.Background()) })
	return tel, out
}

func TestConfig_IsReadFromTheEnvironment(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		environment map[string]string
		level       slog.Level
		format      telemetry.Format
		err         string
	}{
		"nothing set":    {map[string]string{}, slog.LevelInfo, telemetry.Text, ""},
		"set":            {map[string]string{"LOG_LEVEL": "debug", "LOG_FORMAT": "json"}, slog.LevelDebug, telemetry.JSON, ""},
		"set to nothing": {map[string]string{"LOG_LEVEL": "", "LOG_FORMAT": ""}, slog.LevelInfo, telemetry.Text, ""},
		"bad level":      {map[string]string{"LOG_LEVEL": "loud"}, 0, "", `"loud": unknown name`},
		"bad format":     {map[string]string{"LOG_FORMAT": "xml"}, 0, "", `log format "xml" is not known: use text or json`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg, err := env.ParseAsWithOptions[telemetry.Config](env.Options{Environment: test.environment})
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Fatalf("got error %v, want one with %q", err, test.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if cfg.LogLevel != test.level || cfg.LogFormat != test.format {
				t.Errorf("got %v %q, want %v %q", cfg.LogLevel, cfg.LogFormat, test.level, test.format)
			}
		})
	}
}

func TestLogger_TextIsOnePlainLineWithWhatTheContextSays(t *testing.T) {
	t.Parallel()
	tel, out := newTelemetry(t, telemetry.Config{})
	ctx := telemetry.With(t.Context(), slog.String("order_id", "7d1c"))
	ctx = telemetry.With(ctx, telemetry.RoutingKey("shop.order.placed"))
	ctx, span := tel.Tracer.Tracer("test").Start(ctx, "call")
	defer span.End()

	tel.Logger.InfoContext(ctx, "order created", "total", 205)
	tel.Logger.DebugContext(ctx, "not shown")

	want := `^\d\d:\d\d:\d\d\.\d{3} INF order     order created total=205 order_id=7d1c routing_key=shop\.order\.placed trace_id=` +
		span.SpanContext().TraceID().String() + "\n$"
	if !regexp.MustCompile(want).MatchString(out.String()) {
		t.Errorf("got %q, want it to match %s", out.String(), want)
	}
}

func TestLogger_JSONIsOneObjectWithWhatTheContextSays(t *testing.T) {
	t.Parallel()
	tel, out := newTelemetry(t, telemetry.Config{LogFormat: telemetry.JSON})
	ctx := telemetry.With(t.Context(), slog.String("order_id", "7d1c"))
	ctx, span := tel.Tracer.Tracer("test").Start(ctx, "call")
	defer span.End()

	tel.Logger.With("queue", "order").WarnContext(ctx, "retrying", "attempt", 2)

	var line map[string]any
	if err := json.Unmarshal([]byte(out.String()), &line); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for key, want := range map[string]any{
		"level": "WARN", "msg": "retrying", "service": "order", "queue": "order", "attempt": 2.0, "order_id": "7d1c",
		"trace_id": span.SpanContext().TraceID().String(),
	} {
		if line[key] != want {
			t.Errorf("%s is %v, want %v", key, line[key], want)
		}
	}
}

func TestTracer_WithoutACollectorRecordsNothingButCarriesTheTrace(t *testing.T) {
	t.Parallel()
	tel, _ := newTelemetry(t, telemetry.Config{})
	ctx, span := tel.Tracer.Tracer("test").Start(t.Context(), "first")
	if span.IsRecording() || !span.SpanContext().IsValid() {
		t.Fatalf("recording: %v, context: %v", span.IsRecording(), span.SpanContext())
	}
	header := propagation.MapCarrier{}
	tel.Propagator.Inject(ctx, header)

	other, _ := newTelemetry(t, telemetry.Config{})
	_, next := other.Tracer.Tracer("test").Start(other.Propagator.Extract(t.Context(), header), "second")
	if got, want := next.SpanContext().TraceID(), span.SpanContext().TraceID(); got != want {
		t.Errorf("got trace %s, want %s", got, want)
	}
	if next.SpanContext().SpanID() == span.SpanContext().SpanID() {
		t.Error("the second span has the first one's id")
	}
}

func TestNew_SetsNothingGlobal(t *testing.T) {
	t.Parallel()
	logger := slog.Default()
	tel, _ := newTelemetry(t, telemetry.Config{})
	if otel.GetTracerProvider() == tel.Tracer || otel.GetMeterProvider() == tel.Meter || slog.Default() != logger {
		t.Error("a global provider or logger was set")
	}
}

func TestMetricsHandler_ServesTheServicesOwnMetricsAndTheRuntimes(t *testing.T) {
	t.Parallel()
	tel, _ := newTelemetry(t, telemetry.Config{})
	other, _ := newTelemetry(t, telemetry.Config{})
	orders, err := tel.Meter.Meter("test").Int64Counter("shop.orders.accepted", metric.WithUnit("{order}"))
	if err != nil {
		t.Fatal(err)
	}
	orders.Add(t.Context(), 3)
	wait, err := tel.Meter.Meter("test").Float64Histogram("shop.wait", metric.WithUnit("s"))
	if err != nil {
		t.Fatal(err)
	}
	wait.Record(t.Context(), 0.002)

	page := metrics(t, tel)
	for _, want := range []string{
		"shop_orders_accepted_total 3\n",
		`shop_wait_seconds_bucket{le="0.001"} 0` + "\n",
		`shop_wait_seconds_bucket{le="0.0025"} 1` + "\n",
		`service_name="order"`,
		"go_goroutines ",
		"process_resident_memory_bytes ",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("%q is not in the metrics:\n%s", want, page)
		}
	}
	if strings.Contains(metrics(t, other), "shop_orders_accepted") {
		t.Error("another service in the process serves this one's metrics")
	}
}

// Services of a release said that their version was "(devel)": only the shop command was told.
func TestMetrics_TheVersionOfAServiceIsThatOfItsRelease(t *testing.T) {
	t.Parallel()
	tel, _ := newTelemetry(t, telemetry.Config{})
	if page := metrics(t, tel); !regexp.MustCompile(`(?m)^service_build_info\{.*version="v1\.2\.3"\} 1$`).MatchString(page) {
		t.Errorf("the release is not in the metrics:\n%s", page)
	}
}

func metrics(t *testing.T, tel *telemetry.Telemetry) string {
	t.Helper()
	reply := httptest.NewRecorder()
	tel.MetricsHandler().ServeHTTP(reply, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil))
	if reply.Code != 200 {
		t.Fatalf("status %d: %s", reply.Code, reply.Body)
	}
	return reply.Body.String()
}

// collector receives spans as an OpenTelemetry collector does.
type collector struct {
	collectorv1.UnimplementedTraceServiceServer
	spans chan string
}

func (c *collector) Export(_ context.Context, req *collectorv1.ExportTraceServiceRequest) (*collectorv1.ExportTraceServiceResponse, error) {
	for _, resource := range req.GetResourceSpans() {
		var service string
		for _, attr := range resource.GetResource().GetAttributes() {
			if attr.GetKey() == "service.name" {
				service = attr.GetValue().GetStringValue()
			}
		}
		for _, scope := range resource.GetScopeSpans() {
			for _, span := range scope.GetSpans() {
				c.spans <- service + "/" + span.GetName()
			}
		}
	}
	return &collectorv1.ExportTraceServiceResponse{}, nil
}

func TestTracer_SendsSpansToTheCollector(t *testing.T) {
	lis, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	received := &collector{spans: make(chan string, 1)}
	server := grpc.NewServer()
	collectorv1.RegisterTraceServiceServer(server, received)
	served := make(chan error, 1)
	go func() { served <- server.Serve(lis) }()
	defer func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://"+lis.Addr().String())
	t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
	t.Setenv("OTEL_SERVICE_NAME", "everything")

	tel, out := newTelemetry(t, telemetry.Config{})
	_, span := tel.Tracer.Tracer("test").Start(t.Context(), "PlaceOrder")
	span.End()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	tel.Shutdown(ended)

	select {
	case got := <-received.spans:
		if got != "order/PlaceOrder" {
			t.Errorf("got %s", got)
		}
	default:
		t.Errorf("no span was sent: %s", out)
	}
}

// Whatever the protocol said, spans went over gRPC.
func TestTracer_DoesWhatTheVariablesOfOpenTelemetrySay(t *testing.T) {
	for name, test := range map[string]struct {
		environment map[string]string
		sent        int // spans that the collector gets over HTTP
	}{
		"HTTP by default":          {map[string]string{}, 20},
		"HTTP":                     {map[string]string{"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, 20},
		"traces have the last say": {map[string]string{"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"}, 20},
		"disabled":                 {map[string]string{"OTEL_SDK_DISABLED": "true"}, 0},
		"no exporter":              {map[string]string{"OTEL_TRACES_EXPORTER": "none"}, 0},
		"never sampled":            {map[string]string{"OTEL_TRACES_SAMPLER": "always_off"}, 0},
		"ratio":                    {map[string]string{"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0"}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			var sent atomic.Int64
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				body, err := io.ReadAll(r.Body)
				var req collectorv1.ExportTraceServiceRequest
				if err != nil || r.URL.Path != "/v1/traces" || proto.Unmarshal(body, &req) != nil {
					http.Error(w, "no spans in protobuf", http.StatusBadRequest)
					return
				}
				for _, resource := range req.GetResourceSpans() {
					for _, scope := range resource.GetScopeSpans() {
						sent.Add(int64(len(scope.GetSpans())))
					}
				}
			}))
			defer server.Close()
			t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.URL)
			for key, value := range test.environment {
				t.Setenv(key, value)
			}
			tel, out := newTelemetry(t, telemetry.Config{})
			for range 20 {
				_, span := tel.Tracer.Tracer("test").Start(t.Context(), "PlaceOrder")
				if !span.SpanContext().IsValid() {
					t.Error("a span carries no trace")
				}
				span.End()
			}
			tel.Shutdown(t.Context())
			if got := int(sent.Load()); got != test.sent {
				t.Errorf("%d spans were sent, want %d: %s", got, test.sent, out)
			}
		})
	}
}

func TestNew_RefusesWhatItCannotDo(t *testing.T) {
	for key, value := range map[string]string{
		"OTEL_TRACES_EXPORTER": "zipkin", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json", "OTEL_LOGS_EXPORTER": "console",
	} {
		t.Run(key, func(t *testing.T) {
			t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318")
			t.Setenv(key, value)
			if _, err := telemetry.New(t.Context(), telemetry.Config{}); err == nil || !strings.Contains(err.Error(), key+" is") {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestShutdown_WithoutTheCollectorIsBoundedAndSaysSo(t *testing.T) {
	lis, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0") // It accepts nothing.
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lis.Close() }()
	t.Setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", fmt.Sprintf("http://%s", lis.Addr()))
	tel, out := newTelemetry(t, telemetry.Config{})
	_, span := tel.Tracer.Tracer("test").Start(t.Context(), "PlaceOrder")
	span.End()

	begin := time.Now()
	tel.Shutdown(t.Context())
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("it took %s", took)
	}
	if !strings.Contains(out.String(), "the last spans were not sent") {
		t.Errorf("the log does not say so: %q", out)
	}
}

// A program that reads the log took nanoseconds for whatever it liked.
func TestLogger_JSONHasDurationsInSeconds(t *testing.T) {
	t.Parallel()
	tel, out := newTelemetry(t, telemetry.Config{LogFormat: telemetry.JSON})
	tel.Logger.InfoContext(t.Context(), "done", "took", 1500*time.Millisecond)
	if !strings.Contains(out.String(), `"took":1.5`) {
		t.Errorf("the line is %s", out)
	}
}
