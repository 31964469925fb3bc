package edge

import (
	"net"
	"sync"
)

// bound returns a listener that closes new connections while too many are open.
func (l limits) bound(lis net.Listener) net.Listener { return boundedListener{lis, l.connections} }

// boundedListener closes new connections while too many are open.
type boundedListener struct {
	net.Listener
	open *limiter
}

// Accept implements net.Listener.
func (l boundedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		from := caller{addr: remote(conn.RemoteAddr().String())}
		if l.open.acquire(from, 1) == nil {
			return &boundedConn{Conn: conn, release: sync.OnceFunc(func() { l.open.release(from, 1) })}, nil
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
