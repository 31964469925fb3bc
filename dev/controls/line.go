package controls

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// line forwards the connections of a service to a server. Cut, the service reaches the server no more, and both see what
// they see when the other's machine dies: connections that end in the middle of the work, and none that is taken.
type line struct {
	url      string       // the server's URL, but through the line
	answered atomic.Int64 // bytes of the server
	delay    atomic.Int64 // of each answer, a time.Duration

	target   string
	listener net.Listener
	running  sync.WaitGroup

	mu    sync.Mutex
	isCut bool
	conns []net.Conn
}

// newLine starts a line to the server whose host and port are in serverURL. End it.
func newLine(serverURL string) (*line, error) {
	const form = "a line can be put before one server that is reached over TCP, without TLS: amqp://host:5672/ or postgres://host:5432/"
	u, err := url.Parse(serverURL)
	if err != nil {
		return nil, errors.New(form) // the error has the URL in it, and so the password
	}
	port, known := map[string]string{"amqp": "5672", "postgres": "5432", "postgresql": "5432"}[u.Scheme]
	if !known || u.Hostname() == "" || strings.Contains(u.Host, ",") || u.Query().Has("host") {
		return nil, errors.New(form)
	}
	l := &line{target: net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), port))}
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
			return // it has ended
		}
		server, err := new(net.Dialer).DialContext(context.Background(), "tcp", l.target)
		if err != nil {
			_ = client.Close()
			continue
		}
		l.mu.Lock()
		if l.isCut {
			reset(client, server)
			l.mu.Unlock()
			continue
		}
		l.conns = append(l.conns, client, server)
		l.mu.Unlock()
		end := func() { _ = client.Close(); _ = server.Close() }
		l.running.Go(func() { _, _ = io.Copy(server, client); end() })
		l.running.Go(func() { _, _ = io.Copy(answers{client, l}, server); end() })
	}
}

// cut closes all connections, and lets no new ones live until the line is mended.
func (l *line) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.isCut = true
	reset(l.conns...)
	l.conns = nil
}

func (l *line) mend() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.isCut = false
}

// end cuts the line for good.
func (l *line) end() {
	_ = l.listener.Close()
	l.cut()
	l.running.Wait()
}

// reset closes connections so that nothing that is on its way arrives.
func reset(conns ...net.Conn) {
	for _, c := range conns {
		if tcp, ok := c.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
		_ = c.Close()
	}
}

// answers writes what a server answers to the client: after the delay of the line.
type answers struct {
	client net.Conn
	line   *line
}

func (a answers) Write(p []byte) (int, error) {
	a.line.answered.Add(int64(len(p)))
	if delay := time.Duration(a.line.delay.Load()); delay > 0 {
		<-time.After(delay)
	}
	return a.client.Write(p)
}
