package controls

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
)

// line forwards the connections of a service to a server. Cut, the service reaches the server no more, and the server sees
// what it sees when the service's machine dies: connections that end in the middle of the work.
type line struct {
	url      string // the server's URL, but through the line
	answered atomic.Int64

	target   string
	listener net.Listener
	running  sync.WaitGroup

	mu    sync.Mutex
	isCut bool
	conns []net.Conn
}

// newLine starts a line to the server whose host and port are in serverURL. Cut it in the end.
func newLine(serverURL string) (*line, error) {
	u, err := url.Parse(serverURL)
	if err != nil || u.Host == "" || u.Scheme == "amqps" {
		return nil, fmt.Errorf("a line can be put before one server without TLS: %w", err)
	}
	l := &line{target: u.Host}
	if l.listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		return nil, fmt.Errorf("opening a line: %w", err)
	}
	u.Host = l.listener.Addr().String()
	l.url = u.String()
	l.running.Go(l.accept)
	return l, nil
}

func (l *line) accept() {
	for {
		client, err := l.listener.Accept()
		if err != nil {
			return // it is cut
		}
		server, err := new(net.Dialer).DialContext(context.Background(), "tcp", l.target)
		if err != nil {
			_ = client.Close()
			continue
		}
		l.mu.Lock()
		l.conns = append(l.conns, client, server)
		cut := l.isCut
		l.mu.Unlock()
		if cut {
			_ = client.Close()
			_ = server.Close()
			return
		}
		end := func() { _ = client.Close(); _ = server.Close() }
		l.running.Go(func() { _, _ = io.Copy(server, client); end() })
		l.running.Go(func() { _, _ = io.Copy(io.MultiWriter(client, (*counter)(&l.answered)), server); end() })
	}
}

// cut closes all connections, and takes no new ones.
func (l *line) cut() {
	_ = l.listener.Close()
	l.mu.Lock()
	l.isCut = true
	for _, c := range l.conns {
		if tcp, ok := c.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0) // nothing that is on its way arrives
		}
		_ = c.Close()
	}
	l.mu.Unlock()
	l.running.Wait()
}

// counter counts the bytes that are written to it.
type counter atomic.Int64

func (c *counter) Write(p []byte) (int, error) {
	(*atomic.Int64)(c).Add(int64(len(p)))
	return len(p), nil
}
