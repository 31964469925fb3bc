package service

import (
	"fmt"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/resolver/dns"

	"shop.example/platform/mtls"
)

// maxReply is the maximum size of a service's response, in bytes: a dead letter contains its body, for which RabbitMQ allows 16 MiB, and
// an event of 1 MiB takes several times as much in the event log.
const maxReply = 17 << 20

// DialService returns a connection to all replicas of another service at addr, secured with tls. It connects with the first
// call, so the other service may start later, and is closed when what was added later has stopped. An error names variable,
// the environment variable with the address.
func (s *Service) DialService(variable, addr string, tls mtls.Config) (*grpc.ClientConn, error) {
	creds, err := tls.Client(s.logger)
	if err != nil {
		return nil, err
	}
	conn, err := Dial(addr, creds, s.logger)
	if err != nil {
		return nil, fmt.Errorf("%s %q: %w", variable, addr, err)
	}
	s.OnStop("connection to "+addr, conn.Close)
	return conn, nil
}

// resolveOften lets names be looked up again when a connection ends, and not only every 30 s: otherwise, of replicas that come and
// go, none that is known may be left.
var resolveOften = sync.OnceFunc(func() { dns.SetMinResolutionInterval(time.Second) })

// Dial returns a connection to all replicas of a service at addr: calls are spread over them in turn, and a replica that dies or
// freezes is noticed within seconds. It connects with the first call. The caller closes it.
func Dial(addr string, creds credentials.TransportCredentials, log *slog.Logger, more ...grpc.DialOption) (*grpc.ClientConn, error) {
	resolveOften()
	silent := &silentReplicas{log: log, open: map[*replicaConn]struct{}{}}
	conn, err := grpc.NewClient(addr, append([]grpc.DialOption{
		grpc.WithTransportCredentials(creds),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxReply)),
		grpc.WithContextDialer(silent.dial),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig": [{"round_robin": {}}]}`),
		// A service that comes back is found again within a second or two; the default waits up to two minutes.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
			MinConnectTimeout: 2 * time.Second,
		}),
	}, more...)...)
	if err != nil {
		return nil, err
	}
	go silent.watch(conn) // ends when conn is closed
	return conn, nil
}
