package messaging

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"shop.example/platform/failpoint"
	"shop.example/platform/mtls"
)

const (
	// maxPending is how many bytes wait to be written before writers wait too: enough for a window of messages of the
	// usual size.
	maxPending = 256 << 10
	// closeTimeout bounds writing what is left when the connection is closed.
	closeTimeout = time.Second
)

// dial opens the socket to n, with TLS if its URL says so. The files for TLS are read each time. The socket's deadline is
// that of ctx until the library has logged in.
func dial(ctx context.Context, n node) (net.Conn, error) {
	config, err := tlsConfig(n.uri)
	if err != nil {
		return nil, err
	}
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", n.addr)
	if err != nil {
		return nil, err
	}
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			_ = conn.Close()
			return nil, err
		}
	}
	if !failpoint.Enabled() { // what is written before a point has left the process when the point kills it
		conn = coalesce(conn, writeTimeout)
	}
	if config == nil {
		return conn, nil
	}
	secured := &tlsConn{Conn: tls.Client(conn, config)}
	if err := secured.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return secured, nil
}

// tlsConfig is how a client that was given uri secures its connection, nil if it does not. The parameters are those that
// RabbitMQ defines for URLs.
func tlsConfig(uri amqp.URI) (*tls.Config, error) {
	if uri.Scheme != "amqps" {
		return nil, nil
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: cmp.Or(uri.ServerName, uri.Host)}
	var err error
	if uri.CACertFile != "" { // otherwise the system's
		if config.RootCAs, err = mtls.Authorities(uri.CACertFile); err != nil {
			return nil, fmt.Errorf("cacertfile: %w", err)
		}
	}
	if uri.CertFile != "" {
		certificate, err := tls.LoadX509KeyPair(uri.CertFile, uri.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("certfile and keyfile: %w", err)
		}
		config.Certificates = []tls.Certificate{certificate}
	}
	return config, nil
}

// tlsConn keeps what the broker says when it refuses the client. In TLS 1.3 it does so after the handshake, and the library
// tells of whatever it was about to do then: that a connection is closed which it is writing to, for example.
type tlsConn struct {
	*tls.Conn
	refusal atomic.Pointer[error]
}

// Read implements net.Conn.
func (c *tlsConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if said, ok := errors.AsType[*net.OpError](err); ok && said.Op == "remote error" { // package tls's word for an alert
		c.refusal.CompareAndSwap(nil, &err)
	}
	return n, err
}

// coalescedConn writes together what is written at the same time: the library writes each message by itself, which
// would be a system call for us, a packet, and a message to the broker's reader, for each. What is written is on its
// way as soon as the goroutines that can run now have run.
//
// Writes have a bound: a broker under a resource alarm stops reading, and a write without one would hold the library's
// lock for ever. An error is that of the write after the one that failed. The socket is closed with it, so that the
// library's reader sees it; if the peer has closed it, a moment later, because what the peer has said last can still be
// read.
type coalescedConn struct {
	net.Conn
	timeout time.Duration // of one write to Conn

	mu      sync.Mutex
	changed sync.Cond // of mu: pending, err and closed
	pending []byte
	err     error
	closed  bool
}

// coalesce takes conn over: it is closed after Close, or because of the first error, and not otherwise.
func coalesce(conn net.Conn, timeout time.Duration) *coalescedConn {
	c := &coalescedConn{Conn: conn, timeout: timeout}
	c.changed.L = &c.mu
	go c.flush()
	return c
}

// Write implements net.Conn.
func (c *coalescedConn) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.pending) > maxPending && c.err == nil && !c.closed {
		c.changed.Wait()
	}
	switch {
	case c.err != nil:
		return 0, c.err
	case c.closed:
		return 0, net.ErrClosed
	}
	c.pending = append(c.pending, b...)
	c.changed.Broadcast()
	return len(b), nil
}

// Close implements net.Conn. What is pending has a second to be written; Close does not wait for that.
func (c *coalescedConn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	c.closed = true
	c.changed.Broadcast()
	_ = c.SetWriteDeadline(time.Now().Add(closeTimeout)) // also for the write in hand
	return c.SetReadDeadline(time.Now())
}

// flush writes until the connection is closed or a write fails, and closes the socket.
func (c *coalescedConn) flush() {
	var writing []byte
	for {
		if writing = c.take(writing[:0]); len(writing) == 0 {
			_ = c.Conn.Close()
			return
		}
		if _, err := c.Conn.Write(writing); err != nil {
			c.mu.Lock()
			c.err = err
			c.changed.Broadcast()
			c.mu.Unlock()
			if errors.Is(err, os.ErrDeadlineExceeded) {
				_ = c.Conn.Close()
			} else {
				time.AfterFunc(closeTimeout, func() { _ = c.Conn.Close() })
			}
			return
		}
	}
}

// take waits for something to write and exchanges it for an empty buffer. It returns nothing when the connection is
// closed and all is written.
func (c *coalescedConn) take(empty []byte) []byte {
	c.mu.Lock()
	for len(c.pending) == 0 && !c.closed {
		c.changed.Wait()
	}
	c.mu.Unlock()
	runtime.Gosched() // whoever else is about to write does so first
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		// An error is that of the write that follows.
		_ = c.SetWriteDeadline(time.Now().Add(c.timeout))
	}
	taken := c.pending
	c.pending = empty
	c.changed.Broadcast()
	return taken
}

// patientConn waits longer for what is read than it is told. The library derives from one heartbeat how soon the broker leaves a
// silent client, and how soon the client a silent broker.
type patientConn struct {
	net.Conn
	longer time.Duration
}

// SetReadDeadline implements net.Conn.
func (c *patientConn) SetReadDeadline(t time.Time) error {
	if time.Until(t) > 0 { // else it is none, or ends a read that waits
		t = t.Add(c.longer)
	}
	return c.Conn.SetReadDeadline(t)
}
