package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"shop.example/domain/idempotency"
	"shop.example/gateway/access"
	"shop.example/gateway/ingress"
	"shop.example/platform/apierror"
)

const (
	// CallTimeout bounds a unary call whose client has set no deadline, and maxCallTimeout one with a deadline: the
	// response must be written before the server's write timeout.
	CallTimeout    = 10 * time.Second
	maxCallTimeout = 50 * time.Second
	// reconnectAfter is how long clients are told to wait while a service is unavailable.
	reconnectAfter = 2 * time.Second
)

// forward returns a gRPC service whose calls are made on another service. To interceptors, reflection and clients it is a
// service like any other: its messages are the generated types.
//
// The other service gets the deadline, the trace context and the caller's identity, but not the client's metadata: tokens
// are checked here. Each stream counts as open while it lasts.
func forward(sd protoreflect.ServiceDescriptor, to *Service, open *ingress.Limiter) (*grpc.ServiceDesc, error) {
	desc := &grpc.ServiceDesc{
		ServiceName: string(sd.FullName()),
		HandlerType: (*any)(nil),
		Metadata:    sd.ParentFile().Path(),
	}
	for i := range sd.Methods().Len() {
		f, err := newForwarding(sd.Methods().Get(i), to, open)
		if err != nil {
			return nil, fmt.Errorf("forwarding %s: %w", sd.FullName(), err)
		}
		if f.streams {
			desc.Streams = append(desc.Streams, grpc.StreamDesc{StreamName: f.method, Handler: f.stream, ServerStreams: true})
		} else {
			desc.Methods = append(desc.Methods, grpc.MethodDesc{MethodName: f.method, Handler: f.unary})
		}
	}
	return desc, nil
}

// forwarding is one forwarded method.
type forwarding struct {
	method   string
	fullName string
	request  protoreflect.MessageType
	reply    protoreflect.MessageType
	streams  bool
	to       *Service
	open     *ingress.Limiter // for streams
	feeds    *feeds           // for streams of the whole event log
}

func newForwarding(md protoreflect.MethodDescriptor, to *Service, open *ingress.Limiter) (*forwarding, error) {
	if md.IsStreamingClient() {
		return nil, fmt.Errorf("%s streams from the client, which is not forwarded", md.Name())
	}
	request, err := protoregistry.GlobalTypes.FindMessageByName(md.Input().FullName())
	if err != nil {
		return nil, fmt.Errorf("request of %s: %w", md.Name(), err)
	}
	reply, err := protoregistry.GlobalTypes.FindMessageByName(md.Output().FullName())
	if err != nil {
		return nil, fmt.Errorf("reply of %s: %w", md.Name(), err)
	}
	f := &forwarding{
		method: string(md.Name()), fullName: fullName(md), request: request, reply: reply,
		streams: md.IsStreamingServer(), to: to, open: open,
	}
	f.feeds = &feeds{begin: f.begin, name: to.Name, byKey: map[string]*feed{}}
	return f, nil
}

// unary is a grpc.MethodHandler.
func (f *forwarding) unary(server any, ctx context.Context, decode func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error) { //nolint:revive // gRPC's order of parameters
	request := f.request.New().Interface()
	if err := decode(request); err != nil {
		return nil, err
	}
	if interceptor == nil {
		return f.call(ctx, request)
	}
	return interceptor(ctx, request, &grpc.UnaryServerInfo{Server: server, FullMethod: f.fullName}, f.call)
}

func (f *forwarding) call(ctx context.Context, request any) (any, error) {
	timeout := CallTimeout
	if _, set := ctx.Deadline(); set {
		timeout = maxCallTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	outgoing := access.OnBehalfOf(ctx)
	if f.to.Prepare != nil {
		var err error
		if outgoing, err = f.to.Prepare(outgoing, request.(proto.Message)); err != nil {
			return nil, err
		}
	}
	reply := f.reply.New().Interface()
	var header metadata.MD
	err := f.to.Conn.Invoke(outgoing, f.fullName, request, reply, grpc.Header(&header))
	if err != nil && f.to.Fallback != nil {
		err = f.to.Fallback(request.(proto.Message), reply, err)
	}
	if err != nil {
		return nil, Error(f.to.Name, err)
	}
	if idempotency.IsReplayed(header) {
		idempotency.MarkReplayed(ctx)
	}
	return reply, nil
}

// stream is a grpc.StreamHandler.
func (f *forwarding) stream(_ any, client grpc.ServerStream) error {
	request := f.request.New().Interface()
	if err := client.RecvMsg(request); err != nil {
		return err
	}
	from := ingress.ClientOf(client.Context())
	if e := f.open.Acquire(from, 1); e != nil {
		return ingress.TooManyStreams(e)
	}
	defer f.open.Release(from, 1)
	if events, ok := isShared(client.Context(), request); ok {
		return f.feeds.serve(client, events)
	}
	replies, err := f.begin(client.Context(), request)
	if err != nil {
		return Error(f.to.Name, err)
	}
	for {
		reply := f.reply.New().Interface()
		switch err := replies.RecvMsg(reply); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return Error(f.to.Name, err)
		}
		if err := client.SendMsg(reply); err != nil {
			return err
		}
	}
}

func (f *forwarding) begin(ctx context.Context, request proto.Message) (grpc.ClientStream, error) {
	stream, err := f.to.Conn.NewStream(access.OnBehalfOf(ctx), &grpc.StreamDesc{StreamName: f.method, ServerStreams: true}, f.fullName)
	if err != nil {
		return nil, err
	}
	// io.EOF means that the backend has ended the stream; RecvMsg returns why.
	if err := stream.SendMsg(request); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return stream, stream.CloseSend()
}

// Error returns the client's error for a failed call to the service name. Errors of the service itself pass unchanged;
// errors of the connection are replaced, because they contain addresses.
func Error(name string, err error) error {
	s := status.Convert(err)
	if len(s.Details()) > 0 {
		return err
	}
	switch {
	case s.Code() == codes.Unavailable:
		return Unavailable(name, err)
	case s.Code() == codes.DeadlineExceeded:
		return apierror.New(codes.DeadlineExceeded, "DEADLINE_EXCEEDED", "%s service did not answer in time", name).
			WithMetadata("service", name).WithCause(err)
	}
	return err
}

// Unavailable returns the client's error while the service name cannot be reached. Clients do not see cause.
func Unavailable(name string, cause error) error {
	return apierror.Unavailable("SERVICE_UNAVAILABLE", reconnectAfter, "%s service is not available", name).
		WithMetadata("service", name).WithCause(cause)
}

// fullName returns the name of a method in gRPC's form, "/package.Service/Method".
func fullName(m protoreflect.MethodDescriptor) string {
	return fmt.Sprintf("/%s/%s", m.Parent().FullName(), m.Name())
}
