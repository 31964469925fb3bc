package messaging

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"
	statusv1 "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"shop.example/platform/contract"
	"shop.example/platform/failpoint"
)

const (
	// rpcTimeout bounds a call whose context does not end earlier.
	rpcTimeout = 10 * time.Second
	// resendInterval is after how long a request is sent again while no answer comes, and then after twice as long each time, so
	// that a server that is slow is not given much more to do. If the node goes that keeps the queue, or the server that has the
	// request freezes, or the broker comes back empty and the log's queue is the first to be declared, nobody says so. What answers
	// is idempotent.
	resendInterval = 2 * time.Second
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
