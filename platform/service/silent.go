package service

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

const (
	// askInterval is how often replicas are asked whether they are alive, askTimeout how long one has for its answer, and
	// askGrace how much longer something may still arrive: if it is this process that was frozen, it does.
	askInterval = time.Second
	askTimeout  = 2 * time.Second
	askGrace    = 100 * time.Millisecond
)

// silentReplicas closes connections to replicas of a service that are frozen, or gone without a word. Calls and streams on them
// fail at once, and clients go to another replica. gRPC's own pings take 12 s for that, because 10 s is their shortest interval.
type silentReplicas struct {
	log *slog.Logger

	mu   sync.Mutex
	open map[*replicaConn]struct{}
}

// begun makes times comparable by the monotonic clock: the time of day may jump.
var begun = time.Now()

// replicaConn is a connection that remembers when something came last.
type replicaConn struct {
	net.Conn
	lastRead atomic.Int64 // when, since begun
	closed   func()
}

func (c *replicaConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 {
		c.lastRead.Store(int64(time.Since(begun)))
	}
	return n, err
}

func (c *replicaConn) Close() error {
	c.closed()
	return c.Conn.Close()
}

// dial is a gRPC dialer.
func (s *silentReplicas) dial(ctx context.Context, addr string) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	c := &replicaConn{Conn: conn}
	c.closed = func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.open, c)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open[c] = struct{}{}
	return c, nil
}

// watch asks the replicas until conn is closed. As many calls as there are connections reach each of them, in turns.
func (s *silentReplicas) watch(conn *grpc.ClientConn) {
	var asking sync.WaitGroup
	defer asking.Wait()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	tick := time.NewTicker(askInterval)
	defer tick.Stop()
	closed := make(chan struct{})
	asking.Go(func() {
		defer close(closed)
		for state := conn.GetState(); state != connectivity.Shutdown; state = conn.GetState() {
			conn.WaitForStateChange(context.Background(), state)
		}
	})
	for {
		select {
		case <-closed:
			return
		case <-tick.C:
		}
		s.mu.Lock()
		connections := len(s.open)
		s.mu.Unlock()
		for range connections {
			asking.Go(func() { s.ask(ctx, healthv1.NewHealthClient(conn)) })
		}
	}
}

// ask makes a call to some replica, and closes the connections to that replica if nothing comes from it.
func (s *silentReplicas) ask(ctx context.Context, client healthv1.HealthClient) {
	asked := time.Now()
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var replica peer.Peer
	// It does not matter what the answer is. That there is no such service is known without asking anybody else.
	_, err := client.Check(ctx, &healthv1.HealthCheckRequest{Service: "alive"}, grpc.Peer(&replica))
	if status.Code(err) != codes.DeadlineExceeded || replica.Addr == nil {
		return
	}
	<-time.After(askGrace)
	s.mu.Lock()
	var silent []*replicaConn
	for c := range s.open {
		if c.RemoteAddr().String() == replica.Addr.String() && time.Duration(c.lastRead.Load()) < asked.Sub(begun) {
			silent = append(silent, c)
		}
	}
	s.mu.Unlock()
	for _, c := range silent {
		s.log.Warn("a replica does not answer, its connection is closed", "address", replica.Addr.String(), "for", time.Since(asked).Round(time.Millisecond))
		_ = c.Close()
	}
}
