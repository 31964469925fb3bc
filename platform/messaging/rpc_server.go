package messaging

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"shop.example/platform/apierror"
	"shop.example/platform/contract"
	"shop.example/platform/failpoint"
)

// homeInterval is how often a server on a substitute of its queue looks whether the queue itself is back. Each look that
// finds it away is an error in the broker's log.
const homeInterval = 2 * time.Second

// RPCServer serves gRPC methods over the broker: it is a grpc.ServiceRegistrar for generated code. Services are registered
// before Run.
type RPCServer struct {
	conn        *Connection
	pub         *Publisher
	interceptor grpc.UnaryServerInterceptor
	workers     int
	methods     map[string]method
	attached    atomic.Int32
}

// heldCalls are the calls of one queue that are in progress.
type heldCalls struct {
	queue string
	mu    sync.Mutex
	since map[uint64]time.Time // by delivery tag
}

// inHand implements holder.
func (h *heldCalls) inHand() (queue string, messages int, oldest time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, since := range h.since {
		if oldest.IsZero() || since.Before(oldest) {
			oldest = since
		}
	}
	return h.queue, len(h.since), oldest
}

// take notes a call, until done.
func (h *heldCalls) take(tag uint64) (done func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.since[tag] = time.Now()
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.since, tag)
	}
}

type method struct {
	desc grpc.MethodDesc
	impl any
	full string
}

// NewRPCServer returns a server that receives requests over conn and replies through pub. It handles at most workers calls
// at a time. interceptor wraps every call; it may be nil.
func NewRPCServer(conn *Connection, pub *Publisher, workers int, interceptor grpc.UnaryServerInterceptor) *RPCServer {
	return &RPCServer{conn: conn, pub: pub, workers: workers, interceptor: interceptor, methods: map[string]method{}}
}

// RegisterService implements grpc.ServiceRegistrar.
func (s *RPCServer) RegisterService(desc *grpc.ServiceDesc, impl any) {
	for _, m := range desc.Methods {
		full := "/" + desc.ServiceName + "/" + m.MethodName
		s.methods[full] = method{m, impl, full}
	}
}

// Ready returns nil while the server receives requests.
func (s *RPCServer) Ready(context.Context) error {
	if int(s.attached.Load()) < len(s.methods) {
		return errors.New("the server of calls over the broker is not attached")
	}
	return nil
}

// Run serves until ctx ends; calls in progress then have 5 s to finish.
func (s *RPCServer) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, m := range s.methods {
		route, err := contract.MethodOf(m.full)
		if err != nil {
			return err
		}
		if len(route.CalledBy) == 0 {
			return fmt.Errorf("nothing says which services may call %s: give it called_by in the option shop.options.v1.rpc", m.full)
		}
		s.conn.metrics.expectUsers(route.Queue)
		calls := &heldCalls{queue: route.Queue, since: map[uint64]time.Time{}}
		s.conn.metrics.hold(calls)
		g.Go(func() error {
			return s.conn.runSessions(ctx, "server of "+route.Queue, func(ctx context.Context, conn *amqp.Connection) error {
				return s.serve(ctx, conn, m, route, calls)
			})
		})
	}
	return g.Wait()
}

func (s *RPCServer) serve(ctx context.Context, conn *amqp.Connection, m method, route contract.Method, held *heldCalls) error {
	queue, err := declareRPCQueue(ctx, conn, route)
	if err != nil {
		return err
	}
	ch, err := conn.Channel()
	if err != nil {
		return fmt.Errorf("opening a channel: %w", err)
	}
	defer func() { _ = ch.Close() }()
	if err := ch.Qos(s.workers, 0, false); err != nil {
		return fmt.Errorf("setting the prefetch: %w", err)
	}
	requests, err := ch.Consume(queue, "", false, false, false, false, nil)
	if err != nil {
		return fmt.Errorf("consuming %s: %w", queue, err)
	}
	s.attached.Add(1)
	defer s.attached.Add(-1)
	defer s.conn.keepBound(queue, route.RoutingKey, route.Exchange)()
	home := make(chan struct{}) // closed when a server on a substitute has to go back to the queue itself
	if queue != route.Queue {
		s.conn.log.Warn("the queue of calls is on a node that is down, serving a substitute", "queue", route.Queue, "substitute", queue)
		looking, stop := context.WithCancel(ctx)
		var looks sync.WaitGroup
		looks.Go(func() {
			if awaitRPCQueue(looking, conn, route) {
				close(home)
			}
		})
		defer looks.Wait()
		defer stop()
	}

	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(drainTimeout, cancel) })
	defer stop()
	var calls errgroup.Group // before cancel and Close in time: deferred later
	defer func() { _ = calls.Wait() }()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-home:
			s.conn.log.Info("the queue of calls is back", "queue", route.Queue, "substitute", queue)
			return nil
		case d, ok := <-requests:
			if !ok {
				return errors.New("the broker has ended the consumer")
			}
			calls.Go(func() error {
				defer held.take(d.DeliveryTag)()
				s.answer(work, m, route, d)
				return nil
			})
		}
	}
}

// answer runs one call, replies and acknowledges. If the process dies in between, another server answers the call
// again; methods are idempotent.
func (s *RPCServer) answer(ctx context.Context, m method, route contract.Method, d amqp.Delivery) {
	ctx = withTraceParent(ctx, stringHeader(d.Headers, headerTraceParent))
	if ms, ok := intHeader(d.Headers, headerTimeout); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(ms)*time.Millisecond)
		defer cancel()
	}
	ctx = metadata.NewIncomingContext(ctx, incomingMetadata(d.Headers))
	ctx, span := s.conn.tracer.Start(ctx, strings.TrimPrefix(m.full, "/"), trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(rpcAttributes(m.full)...))
	defer span.End()

	err := errNoReplyTo // what nobody is told is not done
	if d.ReplyTo != "" {
		answer, failure := s.admitAndCall(ctx, m, route, &d)
		fail(span, failure)
		err = s.pub.reply(ctx, d.ReplyTo, d.CorrelationId, answer, failure)
	}
	if err != nil {
		s.conn.log.Warn("a call over the broker was not answered", "method", m.full, "error", err)
	}
	failpoint.Hit("rpc.replied")
	if err := d.Ack(false); err != nil && !errors.Is(err, amqp.ErrClosed) {
		s.conn.log.Warn("acknowledging a call", "method", m.full, "error", err)
	}
}

func (s *RPCServer) admitAndCall(ctx context.Context, m method, route contract.Method, d *amqp.Delivery) (proto.Message, error) {
	if err := s.conn.checkCaller(d, route); err != nil {
		return nil, err
	}
	if !isProtobuf(d.ContentType) {
		return nil, apierror.New(codes.InvalidArgument, "INVALID_ARGUMENT", "the property content_type says %q: a request is protobuf, %s", d.ContentType, contentType)
	}
	answer, err := s.call(ctx, m, d.Body)
	if err != nil {
		return nil, err
	}
	return answer.(proto.Message), nil
}

func (s *RPCServer) call(ctx context.Context, m method, body []byte) (answer any, err error) {
	defer func() {
		if r := recover(); r != nil {
			s.conn.log.Error("a call over the broker panicked", "method", m.full, "panic", r)
			err = apierror.New(codes.Internal, "INTERNAL", "internal error")
		}
	}()
	decode := func(v any) error {
		if err := proto.Unmarshal(body, v.(proto.Message)); err != nil {
			return apierror.New(codes.InvalidArgument, "INVALID_PROTOBUF", "decoding the request: %v", err)
		}
		return nil
	}
	return m.desc.Handler(m.impl, ctx, decode, s.interceptor)
}

func incomingMetadata(headers amqp.Table) metadata.MD {
	md := metadata.MD{}
	for k, v := range headers {
		if key, ok := strings.CutPrefix(k, headerMetadataPrefix); ok {
			if value, ok := v.(string); ok {
				md.Append(key, value)
			}
		}
	}
	return md
}
