package service

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"shop.example/platform/telemetry"
)

// observed returns a service that runs until the test ends, and its metrics.
func observed(t *testing.T, add func(*Service)) (metrics func() string) {
	t.Helper()
	tel, err := telemetry.New(t.Context(), telemetry.Config{Service: "order", Output: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(t.Context(), Config{}, tel)
	if err != nil {
		t.Fatal(err)
	}
	add(s)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		tel.Shutdown(context.Background())
	})
	return func() string {
		reply := httptest.NewRecorder()
		tel.MetricsHandler().ServeHTTP(reply, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil))
		return reply.Body.String()
	}
}

// eventually waits until all are in the metrics.
func eventually(t *testing.T, metrics func() string, wanted ...string) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		page := metrics()
		missing := slices.IndexFunc(wanted, func(want string) bool { return !strings.Contains(page, want) })
		if missing < 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s is not in the metrics:\n%s", wanted[missing], page)
		}
		<-time.After(10 * time.Millisecond)
	}
}

func TestMetrics_SayWhichCheckFails(t *testing.T) {
	t.Parallel()
	metrics := observed(t, func(s *Service) {
		s.Check("broker", func(context.Context) error { return nil })
		s.Check("database", func(context.Context) error { return errors.New("away") })
		s.Sample("outbox", func(context.Context) error { return nil })
	})
	eventually(t, metrics, `service_ready{check="service"} 1`, `service_ready{check="broker"} 1`, `service_ready{check="database"} 0`, `service_sample_age_seconds{sample="outbox"}`)
}

// A database that hangs took all metrics of the service away, because they were queried inside the scrape.
func TestMetrics_AreThereWhileACheckHangs(t *testing.T) {
	t.Parallel()
	released := make(chan struct{})
	hang := func(context.Context) error { <-released; return nil }
	metrics := observed(t, func(s *Service) {
		s.Check("database", hang)
		s.Check("broker", func(context.Context) error { return nil })
		s.Sample("outbox", hang)
	})
	t.Cleanup(func() { close(released) }) // before the service stops
	start := time.Now()
	eventually(t, metrics, `service_ready{check="database"} 0`, `service_ready{check="broker"} 1`)
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("the metrics came after %s", took)
	}
}

func TestProbe_AResultThatIsOldCountsAsAFailure(t *testing.T) {
	t.Parallel()
	p := newProbe("database", func(context.Context) error { return nil })
	p.once(t.Context())
	if !p.ready() {
		t.Error("it has just succeeded")
	}
	old := time.Now().Add(-probeStale)
	p.at.Store(&old)
	if p.ready() {
		t.Error("it has hung since")
	}
}
