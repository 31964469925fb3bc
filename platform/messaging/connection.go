package messaging

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/trace"
	tracenoop "go.opentelemetry.io/otel/trace/noop"

	"shop.example/platform/backoff"
	"shop.example/platform/contract"
)

const (
	// tryTimeout bounds connecting to a node, and then its answers about the topology, if there is another node to try. A
	// node that is the only one gets longer, because giving up on it early gains nothing.
	tryTimeout   = 2 * time.Second
	loneTimeout  = 5 * time.Second
	writeTimeout = 15 * time.Second
	minBackoff   = 100 * time.Millisecond
	maxBackoff   = 10 * time.Second
	// maxReconnect is the longest wait before the nodes are tried again: a cluster that has its majority back is found soon.
	maxReconnect = 2 * time.Second
	// A session that has lasted this long was a success: the next failure starts with a short wait again.
	sessionLasted = 5 * time.Second
)

// The broker closes the connection of a client from which nothing came for two to three heartbeats, and gives what it held to
// other consumers; a client leaves a broker that is silent for one and a half, and for nodeSilence at least.
const (
	// Heartbeat is that of a connection on which calls are answered or messages are published: RabbitMQ advises against less
	// than 5 s, with which a busy machine is taken for a dead one, and what was on the connection is lost.
	Heartbeat = 5 * time.Second
	// ConsumerHeartbeat is for a connection that holds messages alone: if it is lost without need they go to another consumer,
	// which costs nothing. Of a frozen one they are waited for for at most 3 s.
	ConsumerHeartbeat = time.Second
	nodeSilence       = 3 * time.Second
)

// Options says which service a connection belongs to, what it declares, and what it reports to.
type Options struct {
	Service string // its name in the topology, and the app_id of the messages that are published
	Role    string // "publish" or "consume", part of the connection's name in the broker
	// Topology is checked on each new connection, and what the service needs of it is declared if it is missing.
	Topology Topology
	// KeepTopology makes the connection check and repair the service's own queues every second, not only when it connects.
	// Set it on one connection of a service.
	KeepTopology bool
	Heartbeat    time.Duration // Heartbeat if it is 0
	Logger       *slog.Logger
	Meter        metric.MeterProvider // nil: no metrics
	Tracer       trace.TracerProvider // nil: no traces
}

// Connection is one supervised connection to the broker. It never gives up: a lost connection is replaced, after a wait
// that grows with each failure. A service uses one for publishing and another one for consuming, because a broker that is
// short of memory or disk stops reading from connections that publish, and acknowledgements would wait too. Its methods may
// be called concurrently.
type Connection struct {
	endpoints []endpoint
	service   string
	topology  Topology
	identity  identity
	role      string
	heartbeat time.Duration
	log       *slog.Logger
	tracer    trace.Tracer
	server    atomic.Pointer[[]attribute.KeyValue] // of spans: which node it is connected to; see at
	metrics   *metrics

	warnMissing sync.Once

	connected bool    // once at least; Run's alone
	keeper    *keeper // nil if this connection looks after no queues

	mu             sync.Mutex
	publishCtx     context.Context // ends when the broker begins to block publishers; another one takes its place afterwards
	stopPublishing context.CancelFunc
	current        *amqp.Connection
	alternatives   bool          // there was another node to connect to
	changed        chan struct{} // closed and replaced when current changes
	lastErr        error

	queryMu sync.Mutex // held while the broker owes an answer about its queues
}

// Dial parses address and returns a connection that Run will establish; it does not connect itself. address has the form
// amqp://user:password@host:5672/vhost, or amqps://…:5671/vhost for TLS, with the parameters cacertfile, certfile and
// keyfile that RabbitMQ defines for URLs. It may name several nodes of a cluster, see SplitURL, and a name may resolve to
// several addresses: the connections of a process are spread over them.
func Dial(address string, o Options) (*Connection, error) {
	endpoints, err := parseURL(address)
	if err != nil {
		return nil, fmt.Errorf("AMQP_URL: %w", err)
	}
	if len(contract.Events()) == 0 {
		return nil, errors.New("this program knows no event: import the generated packages of its contracts")
	}
	if o.Meter == nil {
		o.Meter = metricnoop.NewMeterProvider()
	}
	if o.Tracer == nil {
		o.Tracer = tracenoop.NewTracerProvider()
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	const scope = "shop.example/platform/messaging"
	who := identityOf(endpoints[0].uri, o.Service)
	m, err := newMetrics(o.Meter.Meter(scope), o.Service, who.known())
	if err != nil {
		return nil, fmt.Errorf("messaging metrics: %w", err)
	}
	c := &Connection{
		endpoints: endpoints, service: o.Service, topology: o.Topology, identity: who, role: o.Role, heartbeat: cmp.Or(o.Heartbeat, Heartbeat),
		log: o.Logger.With("connection", o.Role), tracer: o.Tracer.Tracer(scope), metrics: m, changed: make(chan struct{}),
		lastErr: errors.New("not connected yet"),
	}
	c.setBlocked(false)
	if o.KeepTopology && len(c.topology.ownQueues(c.service)) > 0 {
		c.keeper = newKeeper(c.topology, c.service, c.log)
	}
	return c, nil
}

// Run keeps the connection open until ctx ends, then closes it and returns nil. It checks the topology on each new
// connection before anything else may use it. If the first connection finds an exchange or queue that differs from the
// topology Run returns an ErrTopology, because a person has to decide what to do. If that happens later somebody is
// changing the broker, and Run tries again.
func (c *Connection) Run(ctx context.Context) error {
	wait := backoff.New(minBackoff, maxReconnect)
	for ctx.Err() == nil {
		start := time.Now()
		established, err := c.connectOnce(ctx)
		if ctx.Err() != nil {
			break
		}
		if errors.Is(err, ErrTopology) && !c.connected {
			return err
		}
		if time.Since(start) > sessionLasted {
			wait.Reset()
		}
		if established {
			c.log.Warn("broker connection lost, connecting again", "error", err, "lasted", time.Since(start))
			c.metrics.countReconnect(ctx, 1, causeLost)
		} else {
			c.log.Warn("no connection to the broker, trying again", "error", err, "took", time.Since(start))
			c.metrics.countReconnect(ctx, 1, causeDial)
		}
		wait.Sleep(ctx)
	}
	return nil
}

// connectOnce connects to one of the nodes and keeps that connection until it breaks or ctx ends. established reports
// whether it got that far.
func (c *Connection) connectOnce(ctx context.Context) (established bool, err error) {
	conn, n, err := c.connect(ctx)
	if err != nil {
		c.set(nil, err)
		return false, err
	}
	err = c.hold(ctx, conn)
	nodes.release(n, ctx.Err() == nil)
	return true, err
}

// connect tries each node once, one after the other, and returns the first connection, with its topology checked.
func (c *Connection) connect(ctx context.Context) (*amqp.Connection, node, error) {
	left, err := lookUp(ctx, c.endpoints)
	alternatives := slices.ContainsFunc(left, func(n node) bool { return !n.spare && n.addr != left[0].addr })
	c.mu.Lock()
	c.alternatives = alternatives
	c.mu.Unlock()
	several := len(left) > 1
	for len(left) > 0 && ctx.Err() == nil {
		var n node
		n, left = nodes.claim(left)
		conn, failure := c.try(ctx, n, several)
		if failure == nil {
			return conn, n, nil
		}
		nodes.release(n, true)
		if several {
			failure = fmt.Errorf("%s: %w", n.addr, failure)
		}
		if errors.Is(failure, ErrTopology) {
			return nil, n, failure // as it would be on every other node
		}
		err = joinOnOneLine(err, failure)
	}
	return nil, node{}, cmp.Or(err, ctx.Err())
}

// try connects to one node.
func (c *Connection) try(ctx context.Context, n node, several bool) (*amqp.Connection, error) {
	limit := loneTimeout
	if several {
		limit = tryTimeout
	}
	conn, err := c.open(ctx, n, limit)
	if err != nil {
		return nil, err
	}
	if several { // a node without the others of its cluster takes connections, and answers no question about a queue
		err = bounded(ctx, conn, limit, func() error {
			_, err := firstMissing(conn, c.topology, c.service)
			return err
		})
	}
	if err == nil {
		err = bounded(ctx, conn, declareTimeout, func() error { return ensureTopology(conn, c.topology, c.service) })
	}
	if err != nil {
		_ = conn.CloseDeadline(time.Now().Add(time.Second))
		return nil, err
	}
	return conn, nil
}

// hold keeps a connection until it closes or ctx ends.
func (c *Connection) hold(ctx context.Context, conn *amqp.Connection) error {
	closed := conn.NotifyClose(make(chan *amqp.Error, 1))
	blocked := conn.NotifyBlocked(make(chan amqp.Blocking, 1))
	c.setBlocked(false)
	c.server.Store(&[]attribute.KeyValue{attribute.String("server.address", conn.RemoteAddr().String())})
	c.set(conn, nil)
	c.connected = true
	c.log.Debug("broker connected", "node", conn.RemoteAddr().String(), "server", conn.Properties["version"])
	if c.keeper != nil {
		keeping, stop := context.WithCancel(ctx)
		var kept sync.WaitGroup
		kept.Go(func() { c.keeper.run(keeping, conn) })
		defer kept.Wait() // what it asks ends with the connection, which is closed by then
		defer stop()
	}
	for {
		select {
		case <-ctx.Done():
			c.set(nil, errors.New("shutting down"))
			if err := conn.CloseDeadline(time.Now().Add(2 * time.Second)); err != nil && !errors.Is(err, amqp.ErrClosed) {
				return fmt.Errorf("closing the broker connection: %w", err)
			}
			return nil
		case b, ok := <-blocked:
			if !ok {
				blocked = nil // closed with the connection; closed reports why
				continue
			}
			c.setBlocked(b.Active)
			c.log.Warn("broker blocks publishers", "active", b.Active, "reason", b.Reason)
		case cause := <-closed:
			err := closeError(cause)
			c.set(nil, err)
			return err
		}
	}
}

// open makes a connection to n.
func (c *Connection) open(ctx context.Context, n node, limit time.Duration) (*amqp.Connection, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var socket net.Conn
	conn, err := amqp.DialConfig(n.plain, amqp.Config{
		Heartbeat:  c.heartbeat,
		Properties: amqp.Table{"connection_name": c.service + " " + c.role, "product": c.service},
		Dial: func(string, string) (_ net.Conn, err error) {
			socket, err = dial(ctx, n)
			if err != nil {
				return nil, err
			}
			return &patientConn{Conn: readable(socket), longer: max(nodeSilence-3*c.heartbeat/2, 0)}, nil
		},
	})
	if err == nil {
		return conn, nil
	}
	if socket != nil {
		_ = socket.Close() // the library may leave it open
	}
	if secured, ok := socket.(*tlsConn); ok && secured.refusal.Load() != nil {
		return nil, *secured.refusal.Load()
	}
	return nil, err
}

// moveOn closes a connection at once because its node does not confirm what is published, so that the next connection is
// made to another node if there is one.
func (c *Connection) moveOn(conn *amqp.Connection, waited time.Duration) {
	c.log.Warn("the broker's node confirms nothing, moving on to another one", "node", conn.RemoteAddr().String(), "for", waited.Round(time.Millisecond))
	_ = conn.CloseDeadline(time.Now()) // without waiting for its answer
}

// hasAlternatives reports whether there was another node to connect to when the connection was made.
func (c *Connection) hasAlternatives() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.alternatives
}

// at returns the span attributes that name the node of the newest connection.
func (c *Connection) at() []attribute.KeyValue {
	if server := c.server.Load(); server != nil {
		return *server
	}
	return nil
}

// closeError turns the content of a close notification into an error: the library sends nil for an orderly close.
func closeError(cause *amqp.Error) error {
	if cause == nil {
		return amqp.ErrClosed
	}
	return cause
}

func (c *Connection) set(conn *amqp.Connection, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.current, c.lastErr = conn, err
	close(c.changed)
	c.changed = make(chan struct{})
}

func (c *Connection) setBlocked(blocked bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case blocked:
		c.stopPublishing()
	case c.publishCtx == nil || c.publishCtx.Err() != nil:
		c.publishCtx, c.stopPublishing = context.WithCancel(context.Background())
	}
}

// unblocked returns a context that ends when the broker blocks publishers.
func (c *Connection) unblocked() context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.publishCtx
}

// await returns the live connection, waiting for it until ctx ends.
func (c *Connection) await(ctx context.Context) (*amqp.Connection, error) {
	for {
		c.mu.Lock()
		conn, changed, last := c.current, c.changed, c.lastErr
		c.mu.Unlock()
		if conn != nil && !conn.IsClosed() {
			return conn, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", ErrNotConnected, last)
		case <-changed:
		case <-time.After(minBackoff):
			// current was closed under us and Run has not seen it yet.
		}
	}
}

// Ready returns nil while the broker is connected and does not block publishers.
func (c *Connection) Ready(context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.current == nil:
		return fmt.Errorf("%w: %w", ErrNotConnected, c.lastErr)
	case c.publishCtx.Err() != nil:
		return ErrBlocked
	}
	return nil
}

// missing returns what kept the last attempt from connecting if that is an exchange or queue which somebody else has to
// declare, otherwise nil.
func (c *Connection) missing() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if missing, ok := errors.AsType[*missingError](c.lastErr); ok {
		return missing
	}
	return nil
}

// InHand returns how many messages the consumers and RPC servers on this connection have received and not settled yet, by
// queue.
func (c *Connection) InHand() map[string]int {
	messages := map[string]int{}
	for queue, held := range c.metrics.inHand() {
		messages[queue] = held.messages
	}
	return messages
}

// Topology returns nil if the service's own queues, and the exchanges that they are bound to, existed at the last check. It
// is also nil on a connection without KeepTopology, which does not check.
func (c *Connection) Topology(context.Context) error {
	if c.keeper == nil {
		return nil
	}
	return c.keeper.state()
}

// keepBound restores the binding of a queue whenever it is missing, until forget is called. It is for the queues of RPC
// servers.
func (c *Connection) keepBound(queue, key, exchange string) (forget func()) {
	if c.keeper == nil {
		return func() {}
	}
	return c.keeper.keepBound(binding{queue, key, exchange})
}

// runSessions calls session with each connection in turn until ctx ends. A session opens the channels it needs and returns
// when they have failed. It is called again with the same connection if that is still open, at once if it returned nil.
func (c *Connection) runSessions(ctx context.Context, name string, session func(context.Context, *amqp.Connection) error) error {
	wait := newBackoff()
	for ctx.Err() == nil {
		conn, err := c.await(ctx)
		if err != nil {
			break
		}
		start := time.Now()
		err = session(ctx, conn)
		if ctx.Err() != nil {
			break
		}
		if err == nil {
			continue
		}
		if conn.IsClosed() { // Run says so, and makes the pauses
			wait.Reset()
			continue
		}
		if time.Since(start) > sessionLasted {
			wait.Reset()
		}
		c.log.Warn("broker session ended, starting over", "session", name, "error", err)
		if c.keeper != nil {
			c.keeper.lookNow()
		}
		wait.Sleep(ctx)
	}
	return nil
}

func newBackoff() *backoff.Backoff { return backoff.New(minBackoff, maxBackoff) }
