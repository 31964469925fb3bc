package service_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
	"google.golang.org/grpc/status"

	orderv1 "shop.example/gen/shop/order/v1"
	"shop.example/platform/service"
	"shop.example/platform/testkit/netproxy"
)

// replica is a service with an HTTP address, as a balancer sees it.
type replica struct {
	started
	addr string
}

func startReplica(t *testing.T, delay time.Duration) *replica {
	t.Helper()
	r := &replica{}
	r.started = run(t, service.Config{StopDelay: delay}, func(s *service.Service) {
		lis, err := s.Listen("HTTP_ADDR", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		r.addr = lis.Addr().String()
		s.ServeHTTP("http", lis, &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, "done")
		})})
	})
	return r
}

// balancer passes connections on to the replicas that were ready when it last looked, every 50 ms. It does not try again.
type balancer struct {
	mu       sync.Mutex
	replicas []*replica
	ready    []string
	next     int
	refused  atomic.Int64
}

func (b *balancer) look(t *testing.T) {
	b.mu.Lock()
	replicas := slices.Clone(b.replicas)
	b.mu.Unlock()
	var ready []string
	for _, r := range replicas {
		if status, _, err := get(t.Context(), "http://"+r.AdminAddr()+"/readyz"); err == nil && status == http.StatusOK {
			ready = append(ready, r.addr)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ready = ready
}

// DialContext connects to the next of the replicas that are believed to be ready.
func (b *balancer) DialContext(ctx context.Context, network, _ string) (net.Conn, error) {
	b.mu.Lock()
	if len(b.ready) == 0 {
		b.mu.Unlock()
		return nil, errors.New("no replica is ready")
	}
	b.next++
	addr := b.ready[b.next%len(b.ready)]
	b.mu.Unlock()
	conn, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err != nil {
		b.refused.Add(1)
	}
	return conn, err
}

// A listener that closes before the balancer knows refuses connections; one that closes later does not.
func TestShutdownDelay_ARollingRestartBehindABalancerRefusesNothing(t *testing.T) {
	t.Parallel()
	const delay = time.Second
	b := &balancer{replicas: []*replica{startReplica(t, delay), startReplica(t, delay)}}
	b.look(t)
	var looking, calling sync.WaitGroup
	ended := make(chan struct{})
	looking.Go(func() {
		for {
			select {
			case <-ended:
				return
			case <-time.After(50 * time.Millisecond):
				b.look(t)
			}
		}
	})
	var calls, failed atomic.Int64
	for _, keep := range []bool{false, true, true} { // connections of one request, and kept ones
		transport := &http.Transport{DialContext: b.DialContext, DisableKeepAlives: !keep}
		t.Cleanup(transport.CloseIdleConnections)
		client := http.Client{Transport: transport}
		calling.Go(func() {
			for {
				select {
				case <-ended:
					return
				case <-time.After(time.Millisecond):
				}
				// net/http tries a GET again on another connection if a kept one was closed; a POST that has a body it does not.
				req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://balancer/", io.NopCloser(io.LimitReader(zeros{}, 1)))
				if err != nil {
					t.Error(err)
					return
				}
				calls.Add(1)
				reply, err := client.Do(req)
				if err != nil {
					failed.Add(1)
					t.Logf("a call failed: %v", err)
					continue
				}
				_, _ = io.Copy(io.Discard, reply.Body)
				_ = reply.Body.Close()
			}
		})
	}
	for i := range 2 {
		fresh := startReplica(t, delay)
		b.mu.Lock()
		old := b.replicas[i]
		b.replicas[i] = fresh
		b.replicas = append(b.replicas, old) // which is asked until it is gone, as a balancer does
		b.mu.Unlock()
		if err := old.ended(); err != nil {
			t.Error(err)
		}
		b.mu.Lock()
		b.replicas = slices.DeleteFunc(b.replicas, func(r *replica) bool { return r == old })
		b.mu.Unlock()
	}
	close(ended)
	calling.Wait()
	looking.Wait()
	if calls.Load() < 20 || failed.Load() > 0 || b.refused.Load() > 0 {
		t.Errorf("of %d calls %d failed, and %d connections were refused", calls.Load(), failed.Load(), b.refused.Load())
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestShutdownDelay_ReadinessGoesDownFirstAndTheServiceStillWorks(t *testing.T) {
	t.Parallel()
	failure := make(chan error)
	s := run(t, service.Config{StopDelay: time.Hour}, func(s *service.Service) {
		serveOrders(s)
		s.Go("part", func(context.Context) error { return <-failure })
	})
	s.awaitReady(t, http.StatusOK)
	s.stop()
	s.awaitReady(t, http.StatusServiceUnavailable)
	if _, err := orderv1.NewOrderServiceClient(s.dial(t)).GetOrder(t.Context(), &orderv1.GetOrderRequest{OrderId: id}); err != nil {
		t.Errorf("a call after readiness has gone down: %v", err)
	}
	select {
	case <-s.Stopping():
		t.Error("streams are ended before the delay is over")
	default:
	}
	failure <- errors.New("broken") // then nothing is worth waiting for
	if err := s.ended(); err == nil || err.Error() != "part: broken" {
		t.Errorf("the service ends with %v", err)
	}
}

func (s started) awaitReady(t *testing.T, want int) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); ; {
		status, body := s.get(t, "/readyz")
		if status == want {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("readyz is %d %s, want %d", status, body, want)
		}
		<-time.After(10 * time.Millisecond)
	}
}

func TestNew_ANegativeShutdownDelayIsRefused(t *testing.T) {
	t.Parallel()
	_, err := service.New(t.Context(), service.Config{StopDelay: -time.Second}, telemetryTo(t, io.Discard))
	if err == nil || err.Error() != "SHUTDOWN_DELAY is -1s: it must be 0 or more" {
		t.Errorf("got %v", err)
	}
}

// named answers which replica it is, in the id of the order.
type named struct {
	orderv1.UnimplementedOrderServiceServer
	name string
}

func (n named) GetOrder(context.Context, *orderv1.GetOrderRequest) (*orderv1.GetOrderResponse, error) {
	return &orderv1.GetOrderResponse{Order: &orderv1.Order{Id: n.name}}, nil
}

func TestDial_CallsGoToAllReplicasAndNoLongerToOneThatDoesNotAnswer(t *testing.T) {
	t.Parallel()
	var proxies []*netproxy.Proxy
	var addresses []resolver.Address
	for i := range 2 {
		s := run(t, service.Config{}, func(s *service.Service) {
			orderv1.RegisterOrderServiceServer(s.GRPC(), named{name: fmt.Sprint("replica ", i)})
		})
		proxies = append(proxies, netproxy.New(t, "tcp://"+s.GRPCAddr()))
		addresses = append(addresses, resolver.Address{Addr: strings.TrimPrefix(proxies[i].URL, "tcp://")})
	}
	names := manual.NewBuilderWithScheme("replicas")
	names.InitialState(resolver.State{Addresses: addresses})
	conn, err := service.Dial("replicas:///order", insecure.NewCredentials(), slog.New(slog.DiscardHandler), grpc.WithResolvers(names))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	ask := func() (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		reply, err := orderv1.NewOrderServiceClient(conn).GetOrder(ctx, &orderv1.GetOrderRequest{OrderId: id})
		return reply.GetOrder().GetId(), err
	}
	answered := map[string]bool{}
	for end := time.Now().Add(30 * time.Second); len(answered) < 2 && time.Now().Before(end); {
		if name, err := ask(); err == nil {
			answered[name] = true
		}
	}
	if len(answered) < 2 {
		t.Fatalf("calls were answered by %v, want both", answered)
	}

	proxies[0].DropResponses() // frozen: it takes what is sent, and says nothing
	frozen := time.Now()
	good := 0
	for end := frozen.Add(30 * time.Second); good < 20 && time.Now().Before(end); {
		if name, err := ask(); err == nil && name == "replica 1" {
			good++ // of two replicas every second call would fail
		} else {
			good = 0
		}
	}
	if good < 20 {
		t.Fatalf("%s after a replica was frozen it is still called", time.Since(frozen))
	}
	t.Logf("no call to the frozen replica %s after it was frozen", time.Since(frozen).Round(time.Millisecond))
}

func TestDial_AStreamOfAReplicaThatFreezesEndsWithinSeconds(t *testing.T) {
	t.Parallel()
	replica := run(t, service.Config{}, func(*service.Service) {})
	proxy := netproxy.New(t, "tcp://"+replica.GRPCAddr())
	conn, err := service.Dial(strings.TrimPrefix(proxy.URL, "tcp://"), insecure.NewCredentials(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	stream, err := healthv1.NewHealthClient(conn).Watch(t.Context(), &healthv1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		_, err := stream.Recv() // says nothing while the status is the same
		ended <- err
	}()
	select {
	case err := <-ended:
		t.Fatalf("a replica that is well was left: %v", err)
	case <-time.After(2 * time.Second):
	}
	proxy.DropResponses()
	select {
	case err := <-ended:
		if status.Code(err) != codes.Unavailable {
			t.Errorf("the stream ended with %v", err)
		}
	case <-time.After(9 * time.Second): // 3 s on a machine that is not busy, 12 s by gRPC's own pings
		t.Error("the stream of a frozen replica goes on")
	}
}
