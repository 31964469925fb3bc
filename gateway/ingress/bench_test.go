package ingress

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	"go.opentelemetry.io/otel/metric/noop"
	"google.golang.org/grpc"

	"shop.example/gateway/access"
)

type nothing struct{}

func (nothing) ServeCall(http.ResponseWriter, *http.Request, CallMemory, error) {}

func (nothing) ServeHTTP(http.ResponseWriter, *http.Request) {}

// BenchmarkIngress is what a call costs before it gets to REST or the gRPC server.
func BenchmarkIngress(b *testing.B) {
	meter := noop.Meter{}
	limits, err := NewLimits(0, 0, 0, false, meter)
	if err != nil {
		b.Fatal(err)
	}
	d, err := New(Config{}, grpc.NewServer(), nothing{}, ClientIdentifier{Authorizer: access.New(nil, nil, Login)}, limits, nil, slog.New(slog.DiscardHandler), meter)
	if err != nil {
		b.Fatal(err)
	}
	d.GRPC = nothing{}
	for name, contentType := range map[string]string{"REST": "application/json", "gRPC": "application/grpc"} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			w := httptest.NewRecorder()
			r := httptest.NewRequestWithContext(b.Context(), http.MethodPost, "/shop.checkout.v1.CheckoutService/PlaceOrder", http.NoBody)
			r.ProtoMajor, r.Body = 2, io.NopCloser(http.NoBody)
			r.Header = http.Header{"Content-Type": {contentType}, "User-Agent": {"curl/8.0"}, "Accept": {"*/*"}}
			for b.Loop() {
				d.ServeHTTP(w, r)
			}
		})
	}
}
