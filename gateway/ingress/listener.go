package ingress

import (
	"net"
	"sync"
)

// Listener returns a listener that closes new connections while the maximum is open.
func (l Limits) Listener(lis net.Listener) net.Listener { return boundedListener{lis, l.connections} }

// boundedListener closes new connections while the maximum is open.
type boundedListener struct {
	net.Listener
	open *Limiter
}

// Accept implements net.Listener.
func (l boundedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		from := Client{addr: clientAddr(conn.RemoteAddr().String())}
		if l.open.Acquire(from, 1) == nil {
			return &boundedConn{Conn: conn, release: sync.OnceFunc(func() { l.open.Release(from, 1) })}, nil
		}
		_ = conn.Close() // nothing was said on it
	}
}

type boundedConn struct {
	net.Conn
	release func()
}

// Close implements net.Conn.
func (c *boundedConn) Close() error {
	c.release()
	return c.Conn.Close()
}
