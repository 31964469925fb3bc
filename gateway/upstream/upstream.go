// Package upstream calls the services behind the gateway: it forwards their gRPC methods (forward.go), and implements what
// takes several of them: the status of the shop (status.go) and the personal data of a customer (customer.go).
package upstream

import (
	"context"
	"fmt"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"shop.example/gateway/ingress"
	"shop.example/platform/service"
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
	Name     string // for error messages
	Conn     *grpc.ClientConn
	Prepare  Prepare  // of forwarded calls; may be nil
	Fallback Fallback // of forwarded calls; may be nil
}

// Prepare adds metadata to a call before it is forwarded. ctx has those of the client's call.
type Prepare func(ctx context.Context, request proto.Message) (context.Context, error)

// Fallback answers a call in place of a service that returned err: it fills in reply and returns nil, or returns the error
// that the client is to get.
type Fallback func(request, reply proto.Message, err error) error

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
	return grpc.NewClient(addr, append(service.DialOptions(),
		grpc.WithTransportCredentials(creds),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxReply)),
		// What a client of a stream leaves unread stays with the service. The default windows grow to 16 MiB each.
		grpc.WithStaticStreamWindowSize(streamWindow),
		grpc.WithStaticConnWindowSize(connWindow),
		grpc.WithStatsHandler(otelgrpc.NewClientHandler(
			otelgrpc.WithTracerProvider(t.Tracer),
			otelgrpc.WithMeterProvider(t.Meter),
			otelgrpc.WithPropagators(t.Propagator),
		)),
	)...)
}
