package postgres

import (
	"context"
	"net"
	"time"
)

// dialer makes connections on which every read and write has a time limit, which lib/pq does not provide.
type dialer struct {
	net.Dialer
	answer time.Duration // the longest wait for the next byte
}

// DialContext is what lib/pq calls; the two others are there for its interface.
func (d dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := d.Dialer.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return &boundedConn{Conn: c, answer: d.answer}, nil
}

func (d dialer) Dial(network, address string) (net.Conn, error) {
	return d.DialContext(context.Background(), network, address)
}

func (d dialer) DialTimeout(network, address string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return d.DialContext(ctx, network, address)
}

// boundedConn limits the time of every read and write, except while lib/pq has set a deadline, for the login. Only one
// goroutine uses it at a time.
type boundedConn struct {
	net.Conn
	answer        time.Duration
	loginDeadline bool
}

func (c *boundedConn) SetDeadline(t time.Time) error {
	c.loginDeadline = !t.IsZero()
	return c.Conn.SetDeadline(t)
}

func (c *boundedConn) Read(b []byte) (int, error) {
	if err := c.extend(c.SetReadDeadline); err != nil {
		return 0, err
	}
	return c.Conn.Read(b)
}

func (c *boundedConn) Write(b []byte) (int, error) {
	if err := c.extend(c.SetWriteDeadline); err != nil {
		return 0, err
	}
	return c.Conn.Write(b)
}

func (c *boundedConn) extend(set func(time.Time) error) error {
	if c.loginDeadline {
		return nil
	}
	return set(time.Now().Add(c.answer))
}
