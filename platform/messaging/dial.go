package messaging

import (
	"net"
	"runtime"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"shop.example/platform/crash"
)

const (
	// mostPending is how many bytes wait to be written before writers wait too: enough for a window of messages of the
	// usual size.
	mostPending = 256 << 10
	// closeTimeout bounds writing what is left when the connection is closed.
	closeTimeout = time.Second
)

// dial opens the socket.
func dial(network, addr string) (net.Conn, error) {
	conn, err := amqp.DefaultDial(dialTimeout)(network, addr)
	if err != nil {
		return nil, err
	}
	if crash.Armed() {
		return conn, nil // what is written before a point has left the process when the point kills it
	}
	return coalesce(conn, writeTimeout), nil
}

// coalescedConn writes together what is written at the same time: the library writes each message by itself, which
// would be a system call for us, a packet, and a message to the broker's reader, for each. What is written is on its
// way as soon as the goroutines that can run now have run.
//
// Writes have a bound: a broker under a resource alarm stops reading, and a write without one would hold the library's
// lock for ever. An error is that of the write after the one that failed; the socket is closed with it, so the
// library's reader sees it at once.
type coalescedConn struct {
	net.Conn
	timeout time.Duration // of one write to Conn

	mu      sync.Mutex
	changed sync.Cond // of mu: pending, err and closed
	pending []byte
	err     error
	closed  bool
}

// coalesce takes conn over: it is closed after Close, or with the first error, and not otherwise.
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
	for len(c.pending) > mostPending && c.err == nil && !c.closed {
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
	defer func() { _ = c.Conn.Close() }()
	var writing []byte
	for {
		if writing = c.take(writing[:0]); len(writing) == 0 {
			return
		}
		if _, err := c.Conn.Write(writing); err != nil {
			c.mu.Lock()
			c.err = err
			c.changed.Broadcast()
			c.mu.Unlock()
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
