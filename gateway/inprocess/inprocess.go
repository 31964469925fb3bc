// Package inprocess calls gRPC handlers of the same process as if over the network.
package inprocess

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"shop.example/platform/apierror"
)

// Conn is a gRPC connection to the handlers of this process: REST calls use it, so they meet the same handlers and
// interceptors as gRPC calls. Handlers are registered with it, and clients call them through it. Register everything before
// the first call; calls may be concurrent.
//
// It is no gRPC server on an in-memory listener, because that encodes each message twice and needs HTTP/2 in between, and it
// copies no more than the first level of a message.
type Conn struct {
	interceptor *apierror.Interceptor
	methods     map[string]unaryMethod // by full method name
	streams     map[string]streamMethod
}

type unaryMethod struct {
	server  any
	handler grpc.MethodHandler
}

type streamMethod struct {
	server  any
	handler grpc.StreamHandler
}

// New returns a connection to no handlers yet.
func New(interceptor *apierror.Interceptor) *Conn {
	return &Conn{interceptor: interceptor, methods: map[string]unaryMethod{}, streams: map[string]streamMethod{}}
}

// RegisterService implements grpc.ServiceRegistrar.
func (c *Conn) RegisterService(desc *grpc.ServiceDesc, server any) {
	for _, m := range desc.Methods {
		c.methods["/"+desc.ServiceName+"/"+m.MethodName] = unaryMethod{server: server, handler: m.Handler}
	}
	for _, m := range desc.Streams {
		c.streams["/"+desc.ServiceName+"/"+m.StreamName] = streamMethod{server: server, handler: m.Handler}
	}
}

// Invoke calls the handler of fullMethod. Handler and caller see the same as over the network: the outgoing metadata of ctx
// arrive as incoming, and every error is a status. Below their first level request and reply are shared, not copied.
func (c *Conn) Invoke(ctx context.Context, fullMethod string, args, reply any, opts ...grpc.CallOption) error {
	m, ok := c.methods[fullMethod]
	if !ok {
		return status.Errorf(codes.Unimplemented, "unknown method %s", fullMethod)
	}
	stream := transportStream{method: fullMethod}
	answer, err := m.handler(m.server, serverContext(ctx, &stream), func(in any) error {
		return Assign(in, args)
	}, c.interceptor.Unary)
	for _, o := range opts {
		switch o := o.(type) {
		case grpc.HeaderCallOption:
			*o.HeaderAddr = stream.header
		case grpc.TrailerCallOption:
			*o.TrailerAddr = stream.trailer
		}
	}
	if err != nil {
		return asStatus(err)
	}
	return Assign(reply, answer)
}

// ServeStream runs the handler of fullMethod on a stream of the caller's own, and returns the status that it ends with.
func (c *Conn) ServeStream(fullMethod string, stream grpc.ServerStream) error {
	m, ok := c.streams[fullMethod]
	if !ok {
		return status.Errorf(codes.Unimplemented, "unknown method %s", fullMethod)
	}
	return asStatus(c.interceptor.Stream(m.server, stream, &grpc.StreamServerInfo{FullMethod: fullMethod, IsServerStream: true}, m.handler))
}

// NewStream refuses: streams are served by ServeStream, which needs no goroutine in between.
func (c *Conn) NewStream(_ context.Context, _ *grpc.StreamDesc, fullMethod string, _ ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, status.Errorf(codes.Unimplemented, "%s is not callable within the process: it streams", fullMethod)
}

// ServerContext is the context that a handler of fullMethod gets for a call made with ctx.
func ServerContext(ctx context.Context, fullMethod string) context.Context {
	return serverContext(ctx, &transportStream{method: fullMethod})
}

func serverContext(ctx context.Context, stream *transportStream) context.Context {
	md, _ := metadata.FromOutgoingContext(ctx)
	ctx = metadata.NewIncomingContext(ctx, md)
	// The metadata of this call are not those of the calls that the handler makes.
	ctx = metadata.NewOutgoingContext(ctx, nil)
	return grpc.NewContextWithServerTransportStream(ctx, stream)
}

// Assign makes dst, which is empty, equal to src. Below the first level they share their values.
func Assign(dst, src any) error {
	to, ok := dst.(proto.Message)
	from, ok2 := src.(proto.Message)
	if !ok || !ok2 || to.ProtoReflect().Descriptor() != from.ProtoReflect().Descriptor() {
		return status.Errorf(codes.Internal, "cannot pass a %T as a %T", src, dst)
	}
	from.ProtoReflect().Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		to.ProtoReflect().Set(fd, v)
		return true
	})
	to.ProtoReflect().SetUnknown(from.ProtoReflect().GetUnknown())
	return nil
}

// asStatus makes of a handler's error what a gRPC server makes of it.
func asStatus(err error) error {
	if s, ok := status.FromError(err); ok {
		return s.Err()
	}
	return status.FromContextError(err).Err()
}

// transportStream takes the metadata that a handler answers with.
type transportStream struct {
	method  string
	header  metadata.MD
	trailer metadata.MD
}

func (s *transportStream) Method() string { return s.method }

func (s *transportStream) SetHeader(md metadata.MD) error {
	s.header = metadata.Join(s.header, md)
	return nil
}

func (s *transportStream) SendHeader(md metadata.MD) error { return s.SetHeader(md) }

func (s *transportStream) SetTrailer(md metadata.MD) error {
	s.trailer = metadata.Join(s.trailer, md)
	return nil
}

var _ interface {
	grpc.ServiceRegistrar
	grpc.ClientConnInterface
} = (*Conn)(nil)
