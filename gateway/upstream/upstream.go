// Package upstream calls the services behind the gateway: it forwards their gRPC methods (forward.go), and implements what
// takes several of them: the status of the shop (status.go) and the personal data of a customer (customer.go).
package upstream

import (
	"fmt"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/protobuf/reflect/protoreflect"

	"shop.example/gateway/ingress"
	"shop.example/platform/telemetry"
)

const (
	// maxReply bounds a response of a service, in bytes: a dead letter comes with its body, for which RabbitMQ allows 16 MiB.
	maxReply = 17 << 20
	// streamWindow and connWindow are how many bytes a service may send ahead of what is read, in one call and in all.
	streamWindow = 64 << 10
	connWindow   = 1 << 20
)

// Service is a service that the gateway calls.
type Service struct {
	Name string // for error messages
	Conn *grpc.ClientConn
}

// Dial returns a service whose connection is made when it is first used, to all replicas behind addr. Close the
// connection in the end.
func Dial(name, addr string, creds credentials.TransportCredentials, t *telemetry.Telemetry) (*Service, error) {
	conn, err := dial(addr, creds, t)
	if err != nil {
		return nil, fmt.Errorf("address of the %s service: %w", name, err)
	}
	return &Service{Name: name, Conn: conn}, nil
}

// Forward registers the gRPC services of these files as if they were the gateway's own: their calls are made on the
// service. Each of its streams counts as open while it lasts.
func (u *Service) Forward(to grpc.ServiceRegistrar, streams *ingress.Limiter, files ...protoreflect.FileDescriptor) error {
	for _, file := range files {
		for i := range file.Services().Len() {
			desc, err := forward(file.Services().Get(i), u.Name, u.Conn, streams)
			if err != nil {
				return err
			}
			to.RegisterService(desc, u.Conn)
		}
	}
	return nil
}

func dial(addr string, creds credentials.TransportCredentials, t *telemetry.Telemetry) (*grpc.ClientConn, error) {
	return grpc.NewClient(addr,
		grpc.WithTransportCredentials(creds),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxReply)),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig": [{"round_robin": {}}]}`),
		// What a client of a stream leaves unread stays with the service. The default windows grow to 16 MiB each.
		grpc.WithStaticStreamWindowSize(streamWindow),
		grpc.WithStaticConnWindowSize(connWindow),
		// A service that comes back is found again within a second or two; the default waits up to two minutes.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
			MinConnectTimeout: 2 * time.Second,
		}),
		// Pings notice a replica that is gone without closing its connections.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 20 * time.Second, Timeout: 5 * time.Second}),
		grpc.WithStatsHandler(otelgrpc.NewClientHandler(
			otelgrpc.WithTracerProvider(t.Tracer),
			otelgrpc.WithMeterProvider(t.Meter),
			otelgrpc.WithPropagators(t.Propagator),
		)),
	)
}
