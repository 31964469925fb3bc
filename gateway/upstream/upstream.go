// Package upstream calls the services behind the gateway. It forwards calls of their gRPC methods (forward.go), lets streams
// of the whole event log share one (feed.go), and implements the methods that need several services: the status of the shop (status.go) and the personal data of a customer
// (customer.go).
package upstream

import (
	"context"
	"fmt"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc/filters"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"shop.example/gateway/ingress"
	"shop.example/platform/service"
	"shop.example/platform/telemetry"
)

const (
	// streamWindow and connWindow are how many bytes a service may send before they are read, on one call and on the
	// connection.
	streamWindow = 64 << 10
	connWindow   = 1 << 20
)

// Service is a service behind the gateway.
type Service struct {
	Name     string // for error messages
	Conn     *grpc.ClientConn
	Prepare  Prepare  // of forwarded calls; may be nil
	Fallback Fallback // of forwarded calls; may be nil
}

// Prepare adds metadata to a call before it is forwarded: it returns the outgoing context. ctx has the client's metadata as
// incoming. It may be called concurrently.
type Prepare func(ctx context.Context, request proto.Message) (context.Context, error)

// Fallback handles the error err that a service returned for request: it fills in reply and returns nil, or returns the
// error for the client, which may be err. It may be called concurrently.
type Fallback func(request, reply proto.Message, err error) error

// Dial returns a service at addr, with all its replicas. It connects with the first call. The caller closes Conn.
func Dial(name, addr string, creds credentials.TransportCredentials, t *telemetry.Telemetry) (*Service, error) {
	conn, err := dial(addr, creds, t)
	if err != nil {
		return nil, fmt.Errorf("address of the %s service: %w", name, err)
	}
	return &Service{Name: name, Conn: conn}, nil
}

// Forward registers the gRPC services of these files with to, as if the gateway implemented them; it makes their calls on
// the service. Each stream takes one of streams while it lasts.
func (u *Service) Forward(to grpc.ServiceRegistrar, streams *ingress.Limiter, files ...protoreflect.FileDescriptor) error {
	for _, file := range files {
		for i := range file.Services().Len() {
			desc, err := forward(file.Services().Get(i), u, streams)
			if err != nil {
				return err
			}
			to.RegisterService(desc, u.Conn)
		}
	}
	return nil
}

func dial(addr string, creds credentials.TransportCredentials, t *telemetry.Telemetry) (*grpc.ClientConn, error) {
	return service.Dial(addr, creds, t.Logger,
		// What a client of a stream leaves unread stays with the service. The default windows grow to 16 MiB each.
		grpc.WithStaticStreamWindowSize(streamWindow),
		grpc.WithStaticConnWindowSize(connWindow),
		grpc.WithStatsHandler(otelgrpc.NewClientHandler(
			otelgrpc.WithTracerProvider(t.Tracer),
			otelgrpc.WithMeterProvider(t.Meter),
			otelgrpc.WithPropagators(t.Propagator),
			otelgrpc.WithFilter(filters.Not(filters.ServicePrefix("grpc."))), // whether a replica is alive
		)),
	)
}
