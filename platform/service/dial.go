package service

import (
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/resolver/dns"

	"shop.example/platform/mtls"
)

// DialService returns a connection to all replicas of another service at addr, secured with tls. It connects with the first
// call, so the other service may start later, and is closed when what was added later has stopped. An error names variable,
// the environment variable with the address.
func (s *Service) DialService(variable, addr string, tls mtls.Config) (*grpc.ClientConn, error) {
	creds, err := tls.Client(s.logger)
	if err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient(addr, append(DialOptions(), grpc.WithTransportCredentials(creds))...)
	if err != nil {
		return nil, fmt.Errorf("%s %q: %w", variable, addr, err)
	}
	s.OnStop("connection to "+addr, conn.Close)
	return conn, nil
}

// resolveOften lets names be looked up again when a connection ends, and not only every 30 s: otherwise, of replicas that come and
// go, none that is known may be left.
var resolveOften = sync.OnceFunc(func() { dns.SetMinResolutionInterval(time.Second) })

// DialOptions are the options for connections between services: calls are spread over all replicas in turn, and dead
// replicas are noticed within seconds.
func DialOptions() []grpc.DialOption {
	resolveOften()
	return []grpc.DialOption{
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig": [{"round_robin": {}}]}`),
		// A service that comes back is found again within a second or two; the default waits up to two minutes.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
			MinConnectTimeout: 2 * time.Second,
		}),
		// A replica that is frozen, or gone without a word, is noticed by the pings and gets no more calls; also one that is
		// idle, before it is given a call. 10 s is the shortest time that gRPC allows.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 2 * time.Second, PermitWithoutStream: true}),
	}
}
