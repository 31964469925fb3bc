// Package netproxy puts a proxy between a test and a TCP server, with which the test can cut connections, and delay or drop
// what the server sends.
package netproxy

import (
	"context"
	"io"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"
)

// Proxy forwards connections to one server. Its methods may be called concurrently.
type Proxy struct {
	URL string // the server's URL, but through the proxy

	addr string // where it listens, the same after Up

	mu       sync.Mutex
	target   string
	listener net.Listener // nil while it is down
	conns    map[net.Conn]struct{}
	delay    time.Duration
	dropping bool
	running  sync.WaitGroup
}

// New starts a proxy in front of the server whose host and port are in serverURL. It is closed when the test ends.
func New(t testing.TB, serverURL string) *Proxy {
	t.Helper()
	u, err := url.Parse(serverURL)
	if err != nil {
		t.Fatalf("the URL of a server: %v", err)
	}
	p := &Proxy{addr: "127.0.0.1:0", target: u.Host, conns: map[net.Conn]struct{}{}}
	p.Up(t)
	u.Host = p.addr
	p.URL = u.String()
	t.Cleanup(func() {
		p.Down()
		p.running.Wait()
	})
	return p
}

// Up undoes Down, Delay and DropResponses. Connections on which responses were dropped are closed.
func (p *Proxy) Up(t testing.TB) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dropping {
		p.cut() // a stream with a hole in it is of no use
	}
	p.delay, p.dropping = 0, false
	if p.listener != nil {
		return
	}
	listener, err := net.Listen("tcp", p.addr)
	if err != nil {
		t.Fatalf("starting a proxy: %v", err)
	}
	p.listener, p.addr = listener, listener.Addr().String()
	p.running.Go(func() { p.accept(listener) })
}

// Down closes all connections and refuses new ones until Up.
func (p *Proxy) Down() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.listener != nil {
		_ = p.listener.Close()
		p.listener = nil
	}
	p.cut()
}

// Retarget makes new connections go to the server in another URL, and closes the existing ones.
func (p *Proxy) Retarget(t testing.TB, serverURL string) {
	t.Helper()
	u, err := url.Parse(serverURL)
	if err != nil {
		t.Fatalf("the URL of a server: %v", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = u.Host
	p.cut()
}

// Cut closes all connections. New ones are accepted.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut()
}

func (p *Proxy) cut() {
	for c := range p.conns {
		_ = c.Close()
	}
	clear(p.conns)
}

// Delay delays everything that the server sends by that much, until Up.
func (p *Proxy) Delay(by time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay = by
}

// DropResponses drops everything that the server sends, until Up. The server still receives everything.
func (p *Proxy) DropResponses() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dropping = true
}

func (p *Proxy) accept(listener net.Listener) {
	for {
		client, err := listener.Accept()
		if err != nil {
			return // it is down
		}
		server, err := p.dial()
		if err != nil {
			_ = client.Close()
			continue
		}
		if !p.add(listener, client, server) {
			return
		}
		p.running.Go(func() { _, _ = io.Copy(server, client); p.end(client, server) })
		p.running.Go(func() { p.answer(client, server); p.end(client, server) })
	}
}

func (p *Proxy) dial() (net.Conn, error) {
	p.mu.Lock()
	target := p.target
	p.mu.Unlock()
	return new(net.Dialer).DialContext(context.Background(), "tcp", target)
}

// add registers a connection, for Cut and Down; false if the proxy has gone down in the meantime.
func (p *Proxy) add(listener net.Listener, client, server net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.listener != listener {
		_ = client.Close()
		_ = server.Close()
		return false
	}
	p.conns[client], p.conns[server] = struct{}{}, struct{}{}
	return true
}

func (p *Proxy) end(client, server net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	_ = client.Close()
	_ = server.Close()
	delete(p.conns, client)
	delete(p.conns, server)
}

// chunk is a piece of what the server sent, and when it may arrive.
type chunk struct {
	bytes []byte
	at    time.Time
}

// answer copies what the server sends. It goes on reading while a piece waits for its time, so that a delay costs no
// throughput.
func (p *Proxy) answer(client, server net.Conn) {
	chunks := make(chan chunk, 1024)
	p.running.Go(func() {
		defer close(chunks)
		for {
			buffer := make([]byte, 32<<10)
			n, err := server.Read(buffer)
			delay, dropping := p.effect()
			if n > 0 && !dropping {
				chunks <- chunk{buffer[:n], time.Now().Add(delay)}
			}
			if err != nil {
				return
			}
		}
	})
	var failed error
	for c := range chunks { // to the end, so that the reader never waits
		if failed != nil {
			continue
		}
		if wait := time.Until(c.at); wait > 0 {
			<-time.After(wait)
		}
		if _, failed = client.Write(c.bytes); failed != nil {
			_ = server.Close()
		}
	}
}

func (p *Proxy) effect() (delay time.Duration, dropping bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.delay, p.dropping
}
