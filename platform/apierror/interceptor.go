package apierror

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"runtime/pprof"
	"sync/atomic"
	"time"

	"buf.build/go/protovalidate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
)

// Interceptor wraps every handler of a server: it validates requests, recovers panics, and replaces errors by what Status
// returns. It logs what the client is not told. It is safe for concurrent use.
type Interceptor struct {
	logger    *slog.Logger
	transient []error

	lastUnavailable atomic.Int64 // Unix seconds
	skipped         atomic.Int64
}

// NewInterceptor returns an interceptor that logs to logger. An error that matches one of transient (errors.Is) means that
// a dependency is down: the client gets UNAVAILABLE, and is told to try again.
func NewInterceptor(logger *slog.Logger, transient ...error) *Interceptor {
	return &Interceptor{logger: logger, transient: transient}
}

// Unary is a grpc.UnaryServerInterceptor.
func (i *Interceptor) Unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (reply any, err error) {
	defer func() {
		if err = i.settle(ctx, info.FullMethod, recover(), err); err != nil {
			reply = nil
		}
	}()
	if err := validate(info.Server, req); err != nil {
		return nil, err
	}
	// Profiles tell calls apart.
	pprof.Do(ctx, pprof.Labels("call", info.FullMethod), func(ctx context.Context) { reply, err = handler(ctx, req) })
	return reply, err
}

// Stream is a grpc.StreamServerInterceptor. It validates every message that the client sends on the stream.
func (i *Interceptor) Stream(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
	defer func() { err = i.settle(stream.Context(), info.FullMethod, recover(), err) }()
	return handler(server, validatedStream{stream, server})
}

type validatedStream struct {
	grpc.ServerStream
	server any
}

func (s validatedStream) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	return validate(s.server, m)
}

// RequestChecker can be implemented by a service whose requests have rules that the contract cannot express.
type RequestChecker interface {
	// Violations is called with every request, also one that breaks the contract's rules, so that the client is told
	// everything that is wrong in one answer; but not with lists that are longer than the contract allows. It may be called
	// concurrently.
	Violations(request proto.Message) []Violation
}

// validate uses protovalidate's global validator, so that a process has the compiled rules once. They are compiled when
// they are first used: 2 ms and 0.8 MiB for the environment, up to 6 ms and 0.5 MiB for a message.
func validate(server, req any) error {
	message, ok := req.(proto.Message)
	if !ok {
		return nil
	}
	if long, ok := tooLong(message.ProtoReflect()); ok {
		return InvalidArgument(long)
	}
	violations, err := violationsOf(protovalidate.Validate(message))
	if err != nil {
		return err
	}
	if checker, ok := server.(RequestChecker); ok {
		violations = append(violations, checker.Violations(message)...)
	}
	if len(violations) == 0 {
		return nil
	}
	return InvalidArgument(violations...)
}

// settle turns the outcome of a handler into the error that the client gets, and logs what the client is not told.
func (i *Interceptor) settle(ctx context.Context, method string, panicked any, err error) error {
	if panicked != nil {
		i.logger.ErrorContext(ctx, "a handler panicked", "method", method, "error", fmt.Sprint(panicked), "stack", string(debug.Stack()))
		return internal().GRPCStatus().Err()
	}
	if err == nil {
		return nil
	}
	if ended := ctx.Err(); ended != nil {
		// Whatever failed, failed because the caller left or the time was up.
		err = fmt.Errorf("%w: %w", ended, err)
	}
	status := Status(err, i.transient...)
	switch status.Code() {
	case codes.Internal:
		i.logger.ErrorContext(ctx, "a call failed", "method", method, "error", err)
	case codes.Unavailable:
		i.logUnavailable(ctx, method, err)
	default: // The client knows all there is to know.
	}
	return status.Err()
}

// logUnavailable logs at most once a second: while a dependency is down every call fails, and for the same reason.
func (i *Interceptor) logUnavailable(ctx context.Context, method string, err error) {
	now, last := time.Now().Unix(), i.lastUnavailable.Load()
	if now == last || !i.lastUnavailable.CompareAndSwap(last, now) {
		i.skipped.Add(1)
		return
	}
	i.logger.WarnContext(ctx, "a call was refused", "method", method, "error", err, "since_last_line", i.skipped.Swap(0))
}
