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

// localConn is a gRPC connection to the handlers of this process, without a network between: REST calls use it, so
// they meet the same handlers and interceptors as gRPC calls. It is the registrar of the handlers and the connection
// of the clients. A server stream is answered on a grpc.ServerStream of the caller's own. Register everything before the first call; calls may be concurrent.
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

// Invoke calls the handler of fullMethod. What a handler sees and what its caller gets is as over the network: the
// outgoing metadata of ctx arrive as incoming, every error is a status. The messages of request and reply are shared,
// not copied, below their first level.
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

// serveStream has the handler of fullMethod answer on stream, and returns the status that it ends with.
func (c *Conn) ServeStream(fullMethod string, stream grpc.ServerStream) error {
	m, ok := c.streams[fullMethod]
	if !ok {
		return status.Errorf(codes.Unimplemented, "unknown method %s", fullMethod)
	}
	return asStatus(c.interceptor.Stream(m.server, stream, &grpc.StreamServerInfo{FullMethod: fullMethod, IsServerStream: true}, m.handler))
}

// NewStream refuses: within the process streams are answered by serveStream, which needs no goroutine between.
func (c *Conn) NewStream(_ context.Context, _ *grpc.StreamDesc, fullMethod string, _ ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, status.Errorf(codes.Unimplemented, "%s is not callable within the process: it streams", fullMethod)
}

// serverContextOf is the context that a handler of fullMethod gets for a call made with ctx.
func ServerContext(ctx context.Context, fullMethod string) context.Context {
	return serverContext(ctx, &transportStream{method: fullMethod})
}

func serverContext(ctx context.Context, stream *transportStream) context.Context {
	md, _ := metadata.FromOutgoingContext(ctx)
	ctx = metadata.NewIncomingContext(ctx, md)
	// What was meant for this call must not travel on with the calls that the handler makes.
	ctx = metadata.NewOutgoingContext(ctx, nil)
	return grpc.NewContextWithServerTransportStream(ctx, stream)
}

// assign makes dst, which is empty, equal to src.
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

// localStream takes the metadata that a handler answers with.
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
