package messaging

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.opentelemetry.io/otel/metric"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/trace"
	tracenoop "go.opentelemetry.io/otel/trace/noop"

	"shop.example/platform/backoff"
	"shop.example/platform/contract"
)

const (
	dialTimeout  = 5 * time.Second
	writeTimeout = 15 * time.Second
	heartbeat    = 10 * time.Second
	minBackoff   = 100 * time.Millisecond
	maxBackoff   = 10 * time.Second
	// A session that has lasted this long was a success: the next failure starts with a short wait again.
	sessionLasted = 5 * time.Second
)

// Options says who a connection belongs to and where it reports.
type Options struct {
	Service string // app_id of what is published
	Role    string // "publish" or "consume", part of the connection's name in the broker
	// Topology is made sure of on each new connection, as far as the service needs it.
	Topology Topology
	// KeepTopology has the connection look after the service's own queues as long as it lives, not only when it is made. One
	// connection of a service is enough for that.
	KeepTopology bool
	Logger       *slog.Logger
	Meter        metric.MeterProvider // nil: no metrics
	Tracer       trace.TracerProvider // nil: no traces
}

// Connection is one supervised connection to the broker. It never gives up: a lost connection is replaced after a
// wait that grows with each failure. Use one for publishing and another for consuming, so that a broker which holds
// publishers back does not hold back acknowledgements.
type Connection struct {
	url      string
	service  string
	topology Topology
	identity identity
	role     string
	log      *slog.Logger
	tracer   trace.Tracer
	metrics  *metrics

	warnMissing sync.Once

	connected bool    // once at least; Run's alone
	keeper    *keeper // nil if this connection looks after no queues

	mu             sync.Mutex
	publishCtx     context.Context // ends when the broker begins to block publishers; another one takes its place afterwards
	stopPublishing context.CancelFunc
	current        *amqp.Connection
	changed        chan struct{} // closed and replaced when current changes
	lastErr        error

	queryMu sync.Mutex // held while the broker owes an answer about its queues
}

// Dial returns a connection that Run will establish. address is of the form amqp://user:password@host:5672/vhost, or
// amqps://…:5671/vhost for TLS, with the parameters cacertfile, certfile and keyfile that RabbitMQ defines for URLs.
func Dial(address string, o Options) (*Connection, error) {
	uri, err := checkURL(address)
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
	m, err := newMetrics(o.Meter.Meter(scope))
	if err != nil {
		return nil, fmt.Errorf("messaging metrics: %w", err)
	}
	c := &Connection{
		url: address, service: o.Service, topology: o.Topology, identity: identityOf(uri, o.Service), role: o.Role, log: o.Logger.With("connection", o.Role),
		tracer: o.Tracer.Tracer(scope), metrics: m, changed: make(chan struct{}),
		lastErr: errors.New("not connected yet"),
	}
	c.setBlocked(false)
	if o.KeepTopology && len(c.topology.ownQueues(c.service)) > 0 {
		c.keeper = newKeeper(c.topology, c.service, c.log)
	}
	return c, nil
}

// checkURL reads a URL. It refuses what would fail with every connection, or be no TLS although files for it are named.
func checkURL(address string) (amqp.URI, error) {
	uri, err := amqp.ParseURI(address)
	if parse, ok := errors.AsType[*url.Error](err); ok {
		err = parse.Err // without the URL, which holds a password
	}
	switch {
	case err != nil:
		return uri, fmt.Errorf("%w (it has the form amqp://user:password@host:5672/vhost)", err)
	case uri.Scheme == "amqp" && (uri.CACertFile != "" || uri.CertFile != "" || uri.KeyFile != ""):
		return uri, errors.New("it names files for TLS, which amqp:// does not use: write amqps://")
	case (uri.CertFile == "") != (uri.KeyFile == ""):
		return uri, errors.New("certfile and keyfile go together")
	}
	_, err = tlsConfig(uri)
	return uri, err
}

// Run keeps the connection until ctx ends, then closes it. On each new connection it makes sure of the topology before
// anyone may use it. If the first connection finds another topology than the one that it was given, Run returns that, an ErrTopology:
// a person has to look at it. If a later one does, somebody is at work on the broker, and Run tries again.
func (c *Connection) Run(ctx context.Context) error {
	wait := newBackoff()
	for ctx.Err() == nil {
		start := time.Now()
		err := c.connectOnce(ctx)
		if ctx.Err() != nil {
			break
		}
		if errors.Is(err, ErrTopology) && !c.connected {
			return err
		}
		if time.Since(start) > sessionLasted {
			wait.Reset()
		}
		c.log.Warn("broker connection lost, connecting again", "error", err, "outage_of", time.Since(start).Round(time.Millisecond))
		c.metrics.reconnects.Add(ctx, 1)
		wait.Sleep(ctx)
	}
	return nil
}

// connectOnce dials, declares and holds one connection until it closes or ctx ends.
func (c *Connection) connectOnce(ctx context.Context) error {
	conn, err := c.open()
	if err != nil {
		c.set(nil, err)
		return err
	}
	closed := conn.NotifyClose(make(chan *amqp.Error, 1))
	blocked := conn.NotifyBlocked(make(chan amqp.Blocking, 1))
	if err := bounded(ctx, conn, func() error { return ensureTopology(conn, c.topology, c.service) }); err != nil {
		_ = conn.CloseDeadline(time.Now().Add(time.Second))
		c.set(nil, err)
		return err
	}
	c.setBlocked(false)
	c.set(conn, nil)
	c.connected = true
	c.log.Debug("broker connected", "server", conn.Properties["version"])
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

// open makes a connection.
func (c *Connection) open() (*amqp.Connection, error) {
	uri, plain, err := withoutTLS(c.url)
	if err != nil {
		return nil, err
	}
	var socket net.Conn
	conn, err := amqp.DialConfig(plain, amqp.Config{
		Heartbeat:  heartbeat,
		Properties: amqp.Table{"connection_name": c.service + " " + c.role, "product": c.service},
		Dial: func(network, addr string) (_ net.Conn, err error) {
			socket, err = dial(network, addr, uri)
			return socket, err
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

// closeError turns what a close notification carried into an error: the library sends nil on an orderly close.
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

// unblocked returns a context that lasts while the broker takes messages.
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

// Ready is nil while the broker is connected and takes messages.
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

// Topology is nil if the service's own queues and the exchanges that they are bound to were there when the connection last
// looked. A connection that does not keep the topology does not know.
func (c *Connection) Topology(context.Context) error {
	if c.keeper == nil {
		return nil
	}
	return c.keeper.state()
}

// keepBound keeps a queue of a running server bound until forget is called.
func (c *Connection) keepBound(queue, key, exchange string) (forget func()) {
	if c.keeper == nil {
		return func() {}
	}
	return c.keeper.keepBound(binding{queue, key, exchange})
}

// runSessions runs session on every connection there is, one after the other, until ctx ends. A session opens what it needs
// on the connection and returns when that has failed; it starts over on the same connection if that still lives, at
// once if it returns nil.
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
		if time.Since(start) > sessionLasted {
			wait.Reset()
		}
		if !conn.IsClosed() { // else Run says so
			c.log.Warn("broker session ended, starting over", "session", name, "error", err)
			if c.keeper != nil {
				c.keeper.lookNow()
			}
		}
		wait.Sleep(ctx)
	}
	return nil
}

func newBackoff() *backoff.Backoff { return backoff.New(minBackoff, maxBackoff) }
