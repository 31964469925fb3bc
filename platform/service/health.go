package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"shop.example/platform/apierror"
	"shop.example/platform/telemetry"
)

const (
	// checkTimeout bounds one round of checks.
	checkTimeout = 2 * time.Second
	// watchInterval is how soon a watcher of grpc.health.v1 learns of a change.
	watchInterval = time.Second
)

type check struct {
	name string
	ask  func(context.Context) error
}

// Check adds a condition of readiness. ask returns nil, or what is wrong; it must return when its context ends. It is
// called concurrently, by every health check.
func (s *Service) Check(name string, ask func(context.Context) error) {
	s.checks = append(s.checks, check{name, ask})
}

// ready makes all checks at once. It returns an error for each failed check, in their order, after that of the life cycle. Before
// Run there is that alone.
func (s *Service) ready(ctx context.Context) []error {
	if !s.running.Load() {
		return []error{s.serving()}
	}
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	errs := make([]error, 1+len(s.checks))
	errs[0] = s.serving()
	var asked sync.WaitGroup
	for i, check := range s.checks {
		asked.Go(func() { errs[1+i] = check.ask(ctx) })
	}
	asked.Wait()
	return errs
}

func (s *Service) serving() error {
	if s.leaving.Load() || s.stopping.Err() != nil {
		return errors.New("stopping")
	}
	if !s.running.Load() {
		if cause := s.waits.Load(); cause != nil {
			return fmt.Errorf("starting: %w", *cause)
		}
		return errors.New("starting")
	}
	return nil
}

func (s *Service) newAdminServer(t *telemetry.Telemetry) *http.Server {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
	mux.HandleFunc("GET /readyz", s.readyz)
	mux.Handle("GET /metrics", t.MetricsHandler())
	return &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
}

// readyz answers with a line for each check, and 503 if one of them fails.
func (s *Service) readyz(w http.ResponseWriter, r *http.Request) {
	errs := s.ready(r.Context())
	var body strings.Builder
	for i, err := range errs {
		name := "service"
		if i > 0 {
			name = s.checks[i-1].name
		}
		if err != nil {
			fmt.Fprintf(&body, "%s: %s\n", name, plain(err))
		} else {
			fmt.Fprintf(&body, "%s: ok\n", name)
		}
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if errors.Join(errs...) != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_, _ = io.WriteString(w, body.String())
}

// Probe returns nil if the service whose admin listener is at addr is ready; otherwise the error says what is not. It is
// the health check of containers, which have no other program.
func Probe(ctx context.Context, addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("probing %s: %w", addr, err)
	}
	if ip := net.ParseIP(host); host == "" || ip.IsUnspecified() {
		host = "localhost"
	}
	ctx, cancel := context.WithTimeout(ctx, checkTimeout+time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(host, port)+"/readyz", nil)
	if err != nil {
		return fmt.Errorf("probing %s: %w", addr, err)
	}
	reply, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("probing %s: %w", addr, err)
	}
	defer func() { _ = reply.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(reply.Body, 1<<16))
	if err != nil {
		return fmt.Errorf("probing %s: %w", addr, err)
	}
	if reply.StatusCode != http.StatusOK {
		return fmt.Errorf("not ready: %s", strings.ReplaceAll(strings.TrimSpace(string(body)), "\n", "; "))
	}
	return nil
}

// health implements grpc.health.v1: either all services of the server are ready or none is.
type health struct {
	healthv1.UnimplementedHealthServer
	service *Service
}

func (h health) status(ctx context.Context) healthv1.HealthCheckResponse_ServingStatus {
	if errors.Join(h.service.ready(ctx)...) != nil {
		return healthv1.HealthCheckResponse_NOT_SERVING
	}
	return healthv1.HealthCheckResponse_SERVING
}

func (h health) known(name string) bool {
	_, ok := h.service.grpc.GetServiceInfo()[name]
	return ok || name == ""
}

func (h health) Check(ctx context.Context, req *healthv1.HealthCheckRequest) (*healthv1.HealthCheckResponse, error) {
	if !h.known(req.GetService()) {
		return nil, apierror.New(codes.NotFound, "UNKNOWN_SERVICE", "there is no service %q here", req.GetService())
	}
	return &healthv1.HealthCheckResponse{Status: h.status(ctx)}, nil
}

func (h health) List(ctx context.Context, _ *healthv1.HealthListRequest) (*healthv1.HealthListResponse, error) {
	status := &healthv1.HealthCheckResponse{Status: h.status(ctx)}
	statuses := map[string]*healthv1.HealthCheckResponse{"": status}
	for name := range h.service.grpc.GetServiceInfo() {
		statuses[name] = status
	}
	return &healthv1.HealthListResponse{Statuses: statuses}, nil
}

// Watch sends the status at once and at every change. A name that is not known is SERVICE_UNKNOWN, as the protocol has it.
func (h health) Watch(req *healthv1.HealthCheckRequest, stream grpc.ServerStreamingServer[healthv1.HealthCheckResponse]) error {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	last := healthv1.HealthCheckResponse_UNKNOWN
	for {
		status := healthv1.HealthCheckResponse_SERVICE_UNKNOWN
		if h.known(req.GetService()) {
			status = h.status(stream.Context())
		}
		if status != last {
			if err := stream.Send(&healthv1.HealthCheckResponse{Status: status}); err != nil {
				return err
			}
			last = status
		}
		select {
		case <-stream.Context().Done():
			return stream.Context().Err()
		case <-tick.C:
		}
	}
}
