package service_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	orderv1 "shop.example/gen/shop/order/v1"
	"shop.example/platform/service"
	"shop.example/platform/telemetry"
)

// TestMain also is the program that TestMain_… run.
func TestMain(m *testing.M) {
	if os.Getenv("RUN_AS") != "" {
		service.Main("order", program)
		return
	}
	goleak.VerifyTestMain(m)
}

// started is a service that is being run.
type started struct {
	*service.Service
	stop  func()       // begins to stop it
	ended func() error // stops it, waits, and returns Run's error
	logs  *logs
}

type logs struct {
	mu    sync.Mutex
	bytes bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bytes.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bytes.String()
}

func newService(t *testing.T, cfg service.Config) (*service.Service, *logs) {
	t.Helper()
	out := &logs{}
	cfg.GRPCAddr, cfg.AdminAddr = "127.0.0.1:0", "127.0.0.1:0"
	s, err := service.New(t.Context(), cfg, telemetryTo(t, out))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s, out
}

func telemetryTo(t *testing.T, out io.Writer) *telemetry.Telemetry {
	t.Helper()
	tel, err := telemetry.New(t.Context(), telemetry.Config{Service: "order", Output: out})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tel.Shutdown(context.Background()) })
	return tel
}

// run starts the service with the parts that add adds; it is stopped at the end of the test.
func run(t *testing.T, cfg service.Config, add func(*service.Service)) started {
	t.Helper()
	s, out := newService(t, cfg)
	if add != nil {
		add(s)
	}
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() { result <- s.Run(ctx) }()
	ended := sync.OnceValue(func() error { cancel(); return <-result })
	t.Cleanup(func() { _ = ended() })
	return started{Service: s, stop: cancel, ended: ended, logs: out}
}

func (s started) dial(t *testing.T) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(s.GRPCAddr(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func (s started) get(t *testing.T, path string) (status int, body string) {
	t.Helper()
	status, body, err := get(t.Context(), "http://"+s.AdminAddr()+path)
	if err != nil {
		t.Fatal(err)
	}
	return status, body
}

func get(ctx context.Context, url string) (status int, body string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, "", err
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	reply, err := client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = reply.Body.Close() }()
	text, err := io.ReadAll(reply.Body)
	return reply.StatusCode, string(text), err
}

func TestNew_ATakenPortIsOneLineThatSaysWhatToChange(t *testing.T) {
	t.Parallel()
	lis, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lis.Close() }()
	taken := lis.Addr().String()
	tel, err := telemetry.New(t.Context(), telemetry.Config{Service: "order", Output: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	for variable, cfg := range map[string]service.Config{
		"GRPC_ADDR":  {GRPCAddr: taken, AdminAddr: "127.0.0.1:0"},
		"ADMIN_ADDR": {GRPCAddr: "127.0.0.1:0", AdminAddr: taken},
	} {
		_, err := service.New(t.Context(), cfg, tel)
		want := "cannot listen on " + taken + ": address already in use (set " + variable + " to another address)"
		if err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

func TestRun_ServesAdminHealthAndReflection(t *testing.T) {
	t.Parallel()
	s := run(t, service.Config{}, func(s *service.Service) {
		orderv1.RegisterOrderServiceServer(s.GRPC(), &orders{})
	})
	conn := s.dial(t)

	for _, name := range []string{"", "shop.order.v1.OrderService"} {
		reply, err := healthv1.NewHealthClient(conn).Check(t.Context(), &healthv1.HealthCheckRequest{Service: name})
		if err != nil || reply.GetStatus() != healthv1.HealthCheckResponse_SERVING {
			t.Errorf("health of %q: %v, %v", name, reply, err)
		}
	}
	if _, err := healthv1.NewHealthClient(conn).Check(t.Context(), &healthv1.HealthCheckRequest{Service: "x"}); status.Code(err) != codes.NotFound {
		t.Errorf("health of an unknown service: %v", err)
	}
	list, err := healthv1.NewHealthClient(conn).List(t.Context(), &healthv1.HealthListRequest{})
	if err != nil || list.GetStatuses()["shop.order.v1.OrderService"].GetStatus() != healthv1.HealthCheckResponse_SERVING {
		t.Errorf("list of health: %v, %v", list, err)
	}
	if got, want := reflected(t, conn), "shop.order.v1.OrderService"; !slices.Contains(got, want) {
		t.Errorf("reflection lists %v, want %s among them", got, want)
	}
	if _, err := orderv1.NewOrderServiceClient(conn).GetOrder(t.Context(), &orderv1.GetOrderRequest{OrderId: id}); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"/livez":   "ok\n",
		"/readyz":  "service: ok\n",
		"/metrics": `rpc_server_call_duration_seconds_count{`,
	} {
		status, body := s.get(t, path)
		for begin := time.Now(); !strings.Contains(body, want) && time.Since(begin) < 10*time.Second; {
			<-time.After(10 * time.Millisecond) // a call is counted when it has ended, which may be after its client has the answer
			status, body = s.get(t, path)
		}
		if status != http.StatusOK || !strings.Contains(body, want) {
			t.Errorf("%s: %d %.300q, want %q", path, status, body, want)
		}
	}
	if err := s.ended(); err != nil {
		t.Error(err)
	}
	if logs := s.logs.String(); !strings.Contains(logs, "serving grpc="+s.GRPCAddr()+" admin="+s.AdminAddr()) || !strings.Contains(logs, "stopped after=") {
		t.Errorf("the log does not tell of start and stop: %s", logs)
	}
}

func reflected(t *testing.T, conn *grpc.ClientConn) (services []string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream, err := reflectionv1.NewServerReflectionClient(conn).ServerReflectionInfo(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&reflectionv1.ServerReflectionRequest{
		MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{},
	}); err != nil {
		t.Fatal(err)
	}
	reply, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	for _, service := range reply.GetListServicesResponse().GetService() {
		services = append(services, service.GetName())
	}
	return services
}

const id = "0191f3c2-7a5b-7c3d-8e4f-0123456789ab"

// orders answers GetOrder when its test lets it.
type orders struct {
	orderv1.UnimplementedOrderServiceServer
	called chan struct{} // nil: answer at once
	answer chan struct{}
}

func (o *orders) GetOrder(ctx context.Context, req *orderv1.GetOrderRequest) (*orderv1.GetOrderResponse, error) {
	if o.called != nil {
		close(o.called)
		select {
		case <-o.answer:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return &orderv1.GetOrderResponse{Order: &orderv1.Order{Id: req.GetOrderId()}}, nil
}

func TestReadiness_FollowsTheChecks(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	broken := fmt.Errorf("asking inventory: %w", status.Error(codes.Unavailable, "nobody answers"))
	s := run(t, service.Config{}, func(s *service.Service) {
		s.Check("broker", func(context.Context) error { return nil })
		s.Check("database", func(context.Context) error {
			mu.Lock()
			defer mu.Unlock()
			return broken
		})
	})
	watch, err := healthv1.NewHealthClient(s.dial(t)).Watch(t.Context(), &healthv1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	expect := func(want healthv1.HealthCheckResponse_ServingStatus) {
		t.Helper()
		if reply, err := watch.Recv(); err != nil || reply.GetStatus() != want {
			t.Fatalf("watched %v, %v, want %v", reply, err, want)
		}
	}

	expect(healthv1.HealthCheckResponse_NOT_SERVING)
	begun := time.Now()
	for _, body := s.get(t, "/readyz"); strings.HasPrefix(body, "service: starting"); _, body = s.get(t, "/readyz") {
		if time.Since(begun) > 10*time.Second {
			t.Fatalf("it is not started: %s", body)
		}
	}
	if status, body := s.get(t, "/readyz"); status != http.StatusServiceUnavailable || body != "service: ok\nbroker: ok\ndatabase: asking inventory: nobody answers\n" {
		t.Errorf("got %d %q", status, body)
	}
	if err := service.Probe(t.Context(), s.AdminAddr()); err == nil || err.Error() != "not ready: service: ok; broker: ok; database: asking inventory: nobody answers" {
		t.Errorf("the probe got %v", err)
	}
	if status, _ := s.get(t, "/livez"); status != http.StatusOK {
		t.Errorf("not ready is not dead: %d", status)
	}

	mu.Lock()
	broken = nil
	mu.Unlock()
	expect(healthv1.HealthCheckResponse_SERVING)
	if status, _ := s.get(t, "/readyz"); status != http.StatusOK {
		t.Errorf("got %d", status)
	}
	_, port, err := net.SplitHostPort(s.AdminAddr())
	if err != nil {
		t.Fatal(err)
	}
	for _, addr := range []string{s.AdminAddr(), ":" + port, "0.0.0.0:" + port} {
		if err := service.Probe(t.Context(), addr); err != nil {
			t.Errorf("probing %s: %v", addr, err)
		}
	}
}

func TestReadiness_IsOffWhileStopping(t *testing.T) {
	t.Parallel()
	stopping, goOn := make(chan struct{}), make(chan struct{})
	s := run(t, service.Config{}, func(s *service.Service) {
		s.Go("consumer", func(ctx context.Context) error {
			<-ctx.Done()
			close(stopping)
			<-goOn
			return nil
		})
	})
	s.stop()
	<-stopping
	if status, body := s.get(t, "/readyz"); status != http.StatusServiceUnavailable || body != "service: stopping\n" {
		t.Errorf("got %d %q", status, body)
	}
	select {
	case <-s.Stopping():
	default:
		t.Error("Stopping is not closed")
	}
	close(goOn)
	if err := s.ended(); err != nil {
		t.Error(err)
	}
}

func TestRun_StopsInReverseOrderEachPartWhenTheLaterOnesHaveEnded(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var events []string
	note := func(event string) {
		mu.Lock()
		defer mu.Unlock()
		events = append(events, event)
	}
	var running sync.WaitGroup
	part := func(name string) func(context.Context) error {
		running.Add(1)
		return func(ctx context.Context) error {
			running.Done()
			<-ctx.Done()
			note(name + " told")
			note(name + " ended")
			return ctx.Err()
		}
	}
	s := run(t, service.Config{}, func(s *service.Service) {
		s.OnStop("database", func() error { note("database closed"); return nil })
		s.Go("migration", func(context.Context) error { return nil }) // Done is no reason to stop.
		s.Go("relay", part("relay"))
		s.Go("consumer", part("consumer"))
	})
	running.Wait()
	if err := s.ended(); err != nil {
		t.Fatal(err)
	}
	want := []string{"consumer told", "consumer ended", "relay told", "relay ended", "database closed"}
	if !slices.Equal(events, want) {
		t.Errorf("got %q, want %q", events, want)
	}
}

func TestRun_AFailedPartEndsTheServiceWithItsError(t *testing.T) {
	t.Parallel()
	broken := errors.New("queue order does not exist")
	stopped := false
	s, _ := newService(t, service.Config{})
	s.OnStop("database", func() error { stopped = true; return nil })
	s.Go("consumer", func(context.Context) error { return broken })
	err := s.Run(t.Context())
	if !errors.Is(err, broken) || err.Error() != "consumer: queue order does not exist" {
		t.Errorf("got %v", err)
	}
	if !stopped {
		t.Error("the database was not closed")
	}
}

func TestRun_APartThatDoesNotStopCostsNoMoreThanTheBound(t *testing.T) {
	t.Parallel()
	goOn := make(chan struct{})
	relayStopped := make(chan struct{})
	s := run(t, service.Config{StopTimeout: 2 * time.Second}, func(s *service.Service) {
		s.Go("relay", func(ctx context.Context) error { <-ctx.Done(); close(relayStopped); return nil })
		s.Go("consumer", func(context.Context) error { <-goOn; return nil })
	})
	begin := time.Now()
	err := s.ended()
	if err == nil || err.Error() != "consumer did not stop in time" {
		t.Errorf("got %v", err)
	}
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("it took %s", took)
	}
	<-relayStopped
	close(goOn)
}

func TestRun_CallsInFlightEndWellBeforeAnythingElseStops(t *testing.T) {
	t.Parallel()
	handler := &orders{called: make(chan struct{}), answer: make(chan struct{})}
	partStopped := make(chan struct{})
	s := run(t, service.Config{}, func(s *service.Service) {
		orderv1.RegisterOrderServiceServer(s.GRPC(), handler)
		s.Go("part", func(ctx context.Context) error { <-ctx.Done(); close(partStopped); return nil })
	})
	conn := s.dial(t)
	reply := make(chan error, 1)
	go func() {
		_, err := orderv1.NewOrderServiceClient(conn).GetOrder(context.Background(), &orderv1.GetOrderRequest{OrderId: id})
		reply <- err
	}()
	<-handler.called
	s.stop()
	<-s.Stopping()
	select {
	case <-partStopped:
		t.Error("a part was stopped under a call")
	default:
	}
	close(handler.answer)
	if err := <-reply; err != nil {
		t.Errorf("the call failed: %v", err)
	}
	if err := s.ended(); err != nil {
		t.Error(err)
	}
}

func TestRun_CallsThatDoNotEndAreCutOff(t *testing.T) {
	t.Parallel()
	handler := &orders{called: make(chan struct{}), answer: make(chan struct{})}
	s := run(t, service.Config{StopTimeout: 200 * time.Millisecond}, func(s *service.Service) {
		orderv1.RegisterOrderServiceServer(s.GRPC(), handler)
	})
	conn := s.dial(t)
	reply := make(chan error, 1)
	go func() {
		_, err := orderv1.NewOrderServiceClient(conn).GetOrder(context.Background(), &orderv1.GetOrderRequest{OrderId: id})
		reply <- err
	}()
	<-handler.called
	if err := s.ended(); err != nil {
		t.Error(err)
	}
	if err := <-reply; status.Code(err) != codes.Unavailable {
		t.Errorf("the call got %v", err)
	}
	if !strings.Contains(s.logs.String(), "calls that are still running are cut off") {
		t.Errorf("the log does not say so: %s", s.logs)
	}
}

func TestRun_StreamsEndAtOnceAndTellTheClientToConnectAgain(t *testing.T) {
	t.Parallel()
	s := run(t, service.Config{StopTimeout: time.Minute}, nil)
	watch, err := healthv1.NewHealthClient(s.dial(t)).Watch(t.Context(), &healthv1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for first := true; ; first = false {
		_, err := watch.Recv()
		if err == nil && first {
			s.stop()
			continue
		}
		if err == nil {
			continue // It may yet have seen that the service is not ready any more.
		}
		if got := status.Convert(err); got.Code() != codes.Unavailable || !strings.Contains(fmt.Sprint(got.Details()), `"STOPPING"`) {
			t.Errorf("got %v with %v", err, got.Details())
		}
		break
	}
	begin := time.Now()
	if err := s.ended(); err != nil {
		t.Error(err)
	}
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("the stop waited %s for streams", took)
	}
}

func TestClose_ReleasesWhatAServiceThatWasNotRunHolds(t *testing.T) {
	t.Parallel()
	s, _ := newService(t, service.Config{})
	var released []string
	s.OnStop("database", func() error { released = append(released, "database"); return nil })
	s.OnStop("broker", func() error { released = append(released, "broker"); return nil })
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("closing twice: %v", err)
	}
	if want := []string{"broker", "database"}; !slices.Equal(released, want) {
		t.Errorf("released %q, want %q", released, want)
	}
	lis, err := new(net.ListenConfig).Listen(t.Context(), "tcp", s.GRPCAddr())
	if err != nil {
		t.Fatalf("the port is still taken: %v", err)
	}
	_ = lis.Close()
	if err := s.Run(t.Context()); err == nil {
		t.Error("a closed service ran")
	}
}

// freeAddr returns an address of this machine where nobody listens.
func freeAddr(t *testing.T) string {
	t.Helper()
	lis, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lis.Close() }()
	return lis.Addr().String()
}

// A service whose database was away when it started ended, and answered nothing while it migrated: it was killed in the middle.
func TestNew_AServiceThatCannotStartYetIsAliveAndSaysWhatItWaitsFor(t *testing.T) {
	t.Parallel()
	away := errors.New("the database is away")
	cfg := service.Config{GRPCAddr: freeAddr(t), AdminAddr: freeAddr(t), Transient: []error{away}}
	tried := make(chan error)
	cfg.Prepare = func(context.Context) error { return <-tried }
	type result struct {
		s   *service.Service
		err error
	}
	made := make(chan result)
	out := &logs{}
	tel := telemetryTo(t, out)
	go func() {
		s, err := service.New(t.Context(), cfg, tel)
		made <- result{s, err}
	}()
	for range 2 { // so the first one is known
		select {
		case tried <- fmt.Errorf("asking db:5432: %w", away):
		case r := <-made:
			t.Fatal(r.err)
		}
	}
	if status, body, err := get(t.Context(), "http://"+cfg.AdminAddr+"/livez"); err != nil || status != http.StatusOK {
		t.Errorf("livez: %d %s %v", status, body, err)
	}
	if status, body, err := get(t.Context(), "http://"+cfg.AdminAddr+"/readyz"); err != nil || status != http.StatusServiceUnavailable || body != "service: starting: asking db:5432: the database is away\n" {
		t.Errorf("readyz: %d %s %v", status, body, err)
	}
	if conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", cfg.GRPCAddr); err == nil {
		_ = conn.Close()
		t.Error("clients can connect to a service that does not answer")
	}
	if !strings.Contains(out.String(), "asking db:5432: the database is away") {
		t.Errorf("it does not say what it waits for: %s", out)
	}
	tried <- nil
	r := <-made
	if r.err != nil {
		t.Fatal(r.err)
	}
	if status, body, err := get(t.Context(), "http://"+cfg.AdminAddr+"/readyz"); err != nil || body != "service: starting\n" {
		t.Errorf("readyz before Run: %d %s %v", status, body, err)
	}
	if err := r.s.Close(); err != nil {
		t.Error(err)
	}
}

func TestNew_EndsWithAnErrorThatDoesNotPassByItselfAndWithItsContext(t *testing.T) {
	t.Parallel()
	away, wrong := errors.New("away"), errors.New("wrong password")
	ctx, cancel := context.WithCancel(t.Context())
	for want, prepare := range map[error]func(context.Context) error{
		wrong:            func(context.Context) error { return wrong },
		context.Canceled: func(context.Context) error { cancel(); return away },
	} {
		cfg := service.Config{AdminAddr: "127.0.0.1:0", Transient: []error{away}, Prepare: prepare}
		if _, err := service.New(ctx, cfg, telemetryTo(t, io.Discard)); !errors.Is(err, want) || errors.Is(err, away) {
			t.Errorf("got %v, want %v", err, want)
		}
	}
}
