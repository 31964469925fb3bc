package messaging

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"
	statusv1 "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"shop.example/platform/apierror"
	"shop.example/platform/contract"
	"shop.example/platform/failpoint"
)

// Calls over the broker look like gRPC in headers: the method and the time left go with the request, the status with
// the reply, metadata with a prefix.
const (
	headerMethod         = "grpc-method"
	headerTimeout        = "grpc-timeout-ms"
	headerStatus         = "grpc-status"
	headerStatusDetails  = "grpc-status-details-bin" // a google.rpc.Status
	headerMetadataPrefix = "grpc-metadata-"
)

// repliesQueue is the name that metrics and log lines use for a client's reply queue, whose real name is chosen by the
// broker.
const repliesQueue = "replies"

const (
	// rpcTimeout bounds a call whose context does not end earlier.
	rpcTimeout = 10 * time.Second
	// resendInterval is after how long a request is sent again while no answer comes, and then after twice as long each time, so
	// that a server that is slow is not given much more to do. If the node goes that keeps the queue, or the server that has the
	// request freezes, or the broker comes back empty and the log's queue is the first to be declared, nobody says so. What answers
	// is idempotent.
	resendInterval = 2 * time.Second
	// homeInterval is how often a server on a substitute of its queue looks whether the queue itself is back. Each look that
	// finds it away is an error in the broker's log.
	homeInterval = 2 * time.Second
)

// RPCClient calls gRPC methods over the broker: it is a grpc.ClientConnInterface for generated clients whose methods have
// the option shop.options.v1.rpc. It has a reply queue of its own. Calls may be made concurrently.
type RPCClient struct {
	conn *Connection
	pub  *Publisher
	id   string // distinguishes the calls of this client from those of others
	next atomic.Uint64

	mu      sync.Mutex
	queue   string        // the reply queue; "" while there is none
	changed chan struct{} // closed and replaced when queue changes
	waiting map[string]waiter
}

// waiter is a call that waits for its reply, with the services that may send it.
type waiter struct {
	replies chan<- reply
	from    []string
}

type reply struct {
	body []byte
	err  error
}

// NewRPCClient returns a client that receives replies over conn and sends requests through pub. It works while Run runs.
func NewRPCClient(conn *Connection, pub *Publisher) *RPCClient {
	conn.metrics.expectUsers(repliesQueue)
	return &RPCClient{conn: conn, pub: pub, id: rand.Text(), changed: make(chan struct{}), waiting: map[string]waiter{}}
}

// Run receives replies until ctx ends. If the connection breaks, the calls in flight fail with Unavailable.
func (c *RPCClient) Run(ctx context.Context) error {
	return c.conn.runSessions(ctx, "replies", func(ctx context.Context, conn *amqp.Connection) error {
		ch, err := conn.Channel()
		if err != nil {
			return fmt.Errorf("opening the channel for replies: %w", err)
		}
		defer func() { _ = ch.Close() }()
		q, err := declareOwn(ctx, conn, ch, amqp.Table{amqp.QueueTypeArg: amqp.QueueTypeClassic})
		if err != nil {
			return fmt.Errorf("declaring the reply queue: %w", err)
		}
		replies, err := ch.Consume(q.Name, "", true, true, false, false, nil)
		if err != nil {
			return fmt.Errorf("consuming replies: %w", err)
		}
		c.setQueue(q.Name)
		defer c.setQueue("")
		for {
			select {
			case <-ctx.Done():
				return nil
			case d, ok := <-replies:
				if !ok {
					return errors.New("the reply queue is gone")
				}
				if from, waiting := c.answerers(d.CorrelationId); waiting && !c.conn.sentBy(&d, repliesQueue, from...) {
					continue // the call goes on waiting for one who may answer it
				}
				if !c.completeCall(d.CorrelationId, reply{d.Body, statusOf(d.Headers)}) {
					c.conn.metrics.rpcUnknown.Add(ctx, 1)
				}
			}
		}
	})
}

// Ready returns nil while replies can be received.
func (c *RPCClient) Ready(context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.queue == "" {
		return errors.New("no queue for replies")
	}
	return nil
}

func (c *RPCClient) setQueue(name string) {
	c.mu.Lock()
	c.queue = name
	close(c.changed)
	c.changed = make(chan struct{})
	waiting := c.waiting
	if name == "" {
		c.waiting = map[string]waiter{}
	}
	c.mu.Unlock()
	if name != "" {
		return
	}
	for _, w := range waiting {
		w.replies <- reply{err: status.Error(codes.Unavailable, "the connection to the broker was lost during the call")}
	}
}

func (c *RPCClient) completeCall(call string, r reply) bool {
	c.mu.Lock()
	w, ok := c.waiting[call]
	delete(c.waiting, call)
	c.mu.Unlock()
	if ok {
		w.replies <- r // has room for the one reply
	}
	return ok
}

// answerers returns the services that may reply to a call, and whether anybody still waits for the reply.
func (c *RPCClient) answerers(call string) (from []string, waiting bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w, waiting := c.waiting[call]
	return w.from, waiting
}

// registerCall registers a call before its request is sent, so that no reply can come too early. from are the services that
// may reply.
func (c *RPCClient) registerCall(ctx context.Context, from []string) (call, queue string, replies <-chan reply, err error) {
	for {
		c.mu.Lock()
		queue, changed := c.queue, c.changed
		if queue != "" {
			call = c.id + "-" + strconv.FormatUint(c.next.Add(1), 36)
			w := make(chan reply, 1)
			c.waiting[call] = waiter{w, from}
			c.mu.Unlock()
			return call, queue, w, nil
		}
		c.mu.Unlock()
		select {
		case <-ctx.Done():
			return "", "", nil, status.Error(codes.Unavailable, "no connection to the broker")
		case <-changed:
		}
	}
}

// Invoke makes a unary call; it waits at most 10 s, or less by ctx. Errors are gRPC statuses: the server's own;
// Unavailable if no server is there or the connection breaks; DeadlineExceeded; ResourceExhausted if the request or the
// reply is larger than MaxCall or than the broker accepts, so that repeating the call is useless.
func (c *RPCClient) Invoke(ctx context.Context, method string, args, out any, _ ...grpc.CallOption) error {
	route, err := contract.MethodOf(method)
	if err != nil {
		return status.Error(codes.Unimplemented, err.Error())
	}
	request := amqp.Publishing{
		Headers:      amqp.Table{headerMethod: method},
		DeliveryMode: amqp.Transient,
		Type:         string(args.(proto.Message).ProtoReflect().Descriptor().FullName()),
	}
	if md, ok := metadata.FromOutgoingContext(ctx); ok {
		for k, v := range md {
			request.Headers[headerMetadataPrefix+k] = strings.Join(v, ",")
		}
	}
	return c.call(ctx, method, route.Exchange, route.RoutingKey, []string{route.AnsweredBy}, request, args.(proto.Message), out.(proto.Message), true)
}

// NewStream always fails: a call over the broker is one request and one reply.
func (c *RPCClient) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, status.Error(codes.Unimplemented, "streams do not travel over the broker")
}

// Request publishes an event that asks for an answer, and waits for the answer as Invoke does, with the same errors. The
// request itself stays in its queues until it is handled, in that of the log for example, also after the caller has given
// up. A request that is sent again has the same id.
func (c *RPCClient) Request(ctx context.Context, m, out proto.Message) error {
	e, ok := contract.EventOf(m)
	if !ok {
		return status.Errorf(codes.Unimplemented, "%s has no routing key", m.ProtoReflect().Descriptor().FullName())
	}
	request := amqp.Publishing{Headers: amqp.Table{headerTimestamp: time.Now().UnixMilli()}, DeliveryMode: amqp.Persistent, Type: string(e.Name)}
	return c.call(ctx, e.RoutingKey, e.Exchange, e.RoutingKey, e.HandledBy, request, m, out, false)
}

func (c *RPCClient) call(ctx context.Context, name, exchange, key string, from []string, request amqp.Publishing, args, out proto.Message, expires bool) (err error) {
	start := time.Now()
	ctx, cancel := context.WithTimeout(ctx, rpcTimeout)
	defer cancel()
	ctx, span := c.conn.tracer.Start(ctx, strings.TrimPrefix(name, "/"), trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(c.conn.at()...), trace.WithAttributes(rpcAttributes(name)...))
	defer func() {
		fail(span, err)
		span.End()
		c.conn.metrics.rpcSeconds.Record(ctx, time.Since(start).Seconds(),
			metric.WithAttributes(label("method", name), label("code", status.Code(err).String())))
	}()

	call, queue, replies, err := c.registerCall(ctx, from)
	if err != nil {
		return err
	}
	defer c.completeCall(call, reply{}) // forgets the call if no reply came
	if request.Body, err = proto.Marshal(args); err != nil {
		return status.Errorf(codes.Internal, "encoding the request: %v", err)
	}
	request.CorrelationId, request.ReplyTo, request.MessageId = call, queue, call
	if !expires {
		request.MessageId = contract.MessageID(args).String()
	}
	if parent := TraceParent(ctx); parent != "" {
		request.Headers[headerTraceParent] = parent
	}
	if err := c.send(ctx, exchange, key, request, expires); err != nil {
		return err
	}
	failpoint.Hit("rpc.called")
	wait := resendInterval
	again := time.NewTimer(wait)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		case r := <-replies:
			if r.err != nil {
				return r.err
			}
			if err := proto.Unmarshal(r.body, out); err != nil {
				return status.Errorf(codes.Internal, "decoding the reply to %s: %v", name, err)
			}
			return nil
		case <-again.C:
			c.conn.log.Warn("a call over the broker is not answered, sending it again", "method", name, "after", time.Since(start).Round(time.Millisecond))
			if err := c.send(ctx, exchange, key, request, expires); err != nil {
				return err
			}
			wait *= 2
			again.Reset(wait)
		}
	}
}

// send publishes the request of a call that waits for its reply. If no queue takes it, it completes the call.
func (c *RPCClient) send(ctx context.Context, exchange, key string, request amqp.Publishing, expires bool) error {
	deadline, _ := ctx.Deadline()
	left := max(1, time.Until(deadline).Milliseconds())
	request.Headers[headerTimeout] = left
	if expires {
		request.Expiration = strconv.FormatInt(left, 10)
	}
	onUnroutable := func() {
		c.completeCall(request.CorrelationId, reply{err: status.Errorf(codes.Unavailable, "nobody answers %s: the service is not running", key)})
	}
	err := c.pub.publishTransient(ctx, exchange, key, request, onUnroutable)
	switch {
	case errors.Is(err, ErrTooLarge):
		return status.Errorf(codes.ResourceExhausted, "sending the request: %v", err)
	case err != nil:
		return status.Errorf(codes.Unavailable, "sending the request: %v", err)
	}
	return nil
}

// Reply sends the answer to the request that m describes, or failure if that is not nil. An answer that is too large is
// replaced by ResourceExhausted. It returns an error if nobody waits for the answer any more, for the caller to log. It
// does not answer to queues of the topology, whoever names them: the answers would become dead letters there.
func (p *Publisher) Reply(ctx context.Context, m Meta, answer proto.Message, failure error) error {
	return p.reply(ctx, m.ReplyTo, m.CorrelationID, answer, failure)
}

func (p *Publisher) reply(ctx context.Context, replyTo, call string, answer proto.Message, failure error) error {
	if replyTo == "" {
		return errNoReplyTo
	}
	if slices.Contains(p.queues, replyTo) {
		return fmt.Errorf("the request's reply_to is the queue %q, which takes no answers", replyTo)
	}
	if failure != nil {
		return p.replyFailure(ctx, replyTo, call, failure)
	}
	body, err := proto.Marshal(answer)
	if err != nil {
		return fmt.Errorf("encoding the answer: %w", err)
	}
	err = p.publishTransient(ctx, "", replyTo, amqp.Publishing{
		Headers:       amqp.Table{headerStatus: int32(codes.OK)},
		DeliveryMode:  amqp.Transient,
		CorrelationId: call,
		Type:          string(answer.ProtoReflect().Descriptor().FullName()),
		Body:          body,
	}, nil)
	if errors.Is(err, ErrTooLarge) {
		// The broker would close the channel, and with it lose the answers to other calls.
		return errors.Join(err, p.replyFailure(ctx, replyTo, call, status.Errorf(codes.ResourceExhausted, "the answer: %v", err)))
	}
	return err
}

const (
	// maxStatus bounds the details of a failure, in bytes: headers have to fit into one frame, of 128 KiB as a rule.
	maxStatus = 32 << 10
	// failureType is the property type of an answer that is a failure, and failureContentType says how its body is written.
	// JSON is read by a person without our contracts, and by no decoder of protobuf: nobody takes it for an empty success.
	failureType        = "google.rpc.Status"
	failureContentType = "application/json"
)

// replyFailure answers with a status: in the headers for our own clients, and in the body for others.
func (p *Publisher) replyFailure(ctx context.Context, replyTo, call string, failure error) error {
	st := status.Convert(failure)
	details, err := proto.Marshal(st.Proto())
	if err == nil && len(details) > maxStatus {
		details, err = proto.Marshal(status.New(st.Code(), truncate(st.Message())).Proto())
	}
	if err != nil {
		return fmt.Errorf("encoding the status: %w", err)
	}
	body, err := protojson.Marshal(st.Proto())
	if err != nil || len(body) > maxStatus { // details of a type that is not known here, or long ones
		if body, err = protojson.Marshal(status.New(st.Code(), truncate(st.Message())).Proto()); err != nil {
			return fmt.Errorf("encoding the status: %w", err)
		}
	}
	return p.publishTransient(ctx, "", replyTo, amqp.Publishing{
		Headers:       amqp.Table{headerStatus: int32(st.Code()), headerStatusDetails: details}, //nolint:gosec // codes are below 17
		DeliveryMode:  amqp.Transient,
		CorrelationId: call,
		Type:          failureType,
		ContentType:   failureContentType,
		Body:          body,
	}, nil)
}

// statusOf returns the error in the headers of a reply, nil for success.
func statusOf(headers amqp.Table) error {
	code, ok := intHeader(headers, headerStatus)
	if !ok {
		return status.Error(codes.Internal, "the reply has no status")
	}
	if code == int64(codes.OK) {
		return nil
	}
	var st statusv1.Status
	if raw, ok := headers[headerStatusDetails].([]byte); ok && proto.Unmarshal(raw, &st) == nil && st.Code == int32(code) { //nolint:gosec // codes are below 17
		return status.ErrorProto(&st)
	}
	return status.Error(codes.Code(code), "the server gave no details") //nolint:gosec // codes are below 17
}

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

// rpcAttributes returns the attributes that OpenTelemetry's conventions give an RPC.
func rpcAttributes(name string) []attribute.KeyValue {
	service, method, isMethod := strings.Cut(strings.TrimPrefix(name, "/"), "/")
	if !isMethod {
		return []attribute.KeyValue{rabbitMQ, attribute.String("messaging.rabbitmq.destination.routing_key", name)}
	}
	return []attribute.KeyValue{
		attribute.String("rpc.system", "grpc"), attribute.String("rpc.service", service), attribute.String("rpc.method", method), rabbitMQ,
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
