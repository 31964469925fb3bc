// Package inprocess makes gRPC calls to handlers in the same process, which look to both sides like calls over the network.
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

// Conn is a gRPC connection to the handlers of this process. REST calls use it, so they get the same handlers and
// interceptors as gRPC calls: services register with it as with a server, and generated clients call through it. All are
// registered before the first call; calls may be made concurrently.
//
// It is not a gRPC server on an in-memory listener, which would encode each message twice and put HTTP/2 in between. It
// copies only the top level of a message.
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

// New returns a connection without handlers. interceptor wraps each unary call.
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

// Invoke calls the handler of fullMethod. Handler and caller see what they would see over the network: the outgoing
// metadata of ctx arrive as incoming metadata, and every error is a status. Below the top level, request and reply are
// shared instead of copied, so neither side may change them.
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

// ServeStream runs the handler of fullMethod on a stream that the caller implements, and returns the handler's status.
func (c *Conn) ServeStream(fullMethod string, stream grpc.ServerStream) error {
	m, ok := c.streams[fullMethod]
	if !ok {
		return status.Errorf(codes.Unimplemented, "unknown method %s", fullMethod)
	}
	return asStatus(c.interceptor.Stream(m.server, stream, &grpc.StreamServerInfo{FullMethod: fullMethod, IsServerStream: true}, m.handler))
}

// NewStream always fails: streams are served by ServeStream, which needs no goroutine in between.
func (c *Conn) NewStream(_ context.Context, _ *grpc.StreamDesc, fullMethod string, _ ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, status.Errorf(codes.Unimplemented, "%s is not callable within the process: it streams", fullMethod)
}

// ServerContext returns the context that the handler of fullMethod gets for a call that is made with ctx.
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

// Assign copies src to dst, which must be empty. Below the top level they share their values. It fails if their types
// differ.
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

// asStatus turns a handler's error into a status, as a gRPC server does.
func asStatus(err error) error {
	if s, ok := status.FromError(err); ok {
		return s.Err()
	}
	return status.FromContextError(err).Err()
}

// transportStream collects the metadata of a handler's response.
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
