package messaging

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"shop.example/platform/mtls"
)

// socketPair returns both ends of a TCP connection, the first one coalesced.
func socketPair(t *testing.T, timeout time.Duration) (*coalescedConn, *net.TCPConn) {
	t.Helper()
	lis := listen(t)
	dialled, err := net.Dial("tcp", lis.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c := coalesce(dialled, timeout)
	t.Cleanup(func() { _ = c.Close() })
	return c, accept(t, lis)
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = lis.Close() })
	return lis
}

func accept(t *testing.T, lis net.Listener) *net.TCPConn {
	t.Helper()
	peer, err := lis.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = peer.Close() })
	if err := peer.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return peer.(*net.TCPConn)
}

func TestCoalescedConn_WhatIsWrittenTogetherArrivesWholeAndInOrder(t *testing.T) {
	t.Parallel()
	c, peer := socketPair(t, time.Minute)
	const writers, each = 8, 2000
	go func() {
		defer c.Close()
		var all sync.WaitGroup
		for w := range writers {
			all.Go(func() {
				for n := range each {
					message := fmt.Sprintf("%d %d %s\n", w, n, strings.Repeat("x", n%300))
					if wrote, err := io.WriteString(c, message); err != nil || wrote != len(message) {
						t.Errorf("wrote %d of %d bytes: %v", wrote, len(message), err)
						return
					}
				}
			})
		}
		all.Wait()
	}()
	got, err := io.ReadAll(peer)
	if err != nil {
		t.Fatal(err)
	}
	var next [writers]int
	for line := range strings.Lines(string(got)) {
		var w, n int
		if _, err := fmt.Sscanf(line, "%d %d", &w, &n); err != nil || w >= writers || n != next[w] ||
			line != fmt.Sprintf("%d %d %s\n", w, n, strings.Repeat("x", n%300)) {
			t.Fatalf("after the messages %v came %q", next, line)
		}
		next[w]++
	}
	for w, n := range next {
		if n != each {
			t.Errorf("of writer %d %d messages arrived, want %d", w, n, each)
		}
	}
}

func TestCoalescedConn_CloseWritesWhatIsPending(t *testing.T) {
	t.Parallel()
	c, peer := socketPair(t, time.Minute)
	want := bytes.Repeat([]byte("pending "), maxPending/8)
	if _, err := c.Write(want); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(peer); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d of %d bytes arrived: %v", len(got), len(want), err)
	}
	if _, err := c.Write(want); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a write after Close is %v, want net.ErrClosed", err)
	}
	if err := c.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a second Close is %v, want net.ErrClosed", err)
	}
}

// writeUntilError returns how many bytes were taken before the error.
func writeUntilError(c net.Conn, chunk []byte) (taken int, err error) {
	for err == nil {
		var n int
		n, err = c.Write(chunk)
		taken += n
	}
	return taken, err
}

func TestCoalescedConn_AWriteErrorClosesTheSocket(t *testing.T) {
	t.Parallel()
	c, peer := socketPair(t, time.Minute)
	if err := peer.SetLinger(0); err != nil { // Close resets the connection
		t.Fatal(err)
	}
	if err := peer.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := writeUntilError(c, []byte("nobody reads this")); err == nil || errors.Is(err, net.ErrClosed) {
		t.Errorf("writes to a peer that is gone end with %v, want the system's error", err)
	}
	if _, err := c.Conn.Read(make([]byte, 1)); err == nil {
		t.Error("the socket can still be read")
	}
}

// A broker under a resource alarm does not read.
func TestCoalescedConn_APeerThatDoesNotReadHoldsWritersUpUntilTheTimeout(t *testing.T) {
	t.Parallel()
	const timeout = 300 * time.Millisecond
	c, peer := socketPair(t, timeout)
	start := time.Now()
	chunk := make([]byte, 32<<10)
	taken, err := writeUntilError(c, chunk)
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("writes end with %v, want the timeout", err)
	}
	if took := time.Since(start); took < timeout {
		t.Errorf("writes ended after %s, before the timeout of %s", took, timeout)
	}
	// What was taken was sent, was on its way, or waited: no more than the bound and one write beyond it each.
	sent, err := io.Copy(io.Discard, peer)
	if most := int(sent) + 2*(maxPending+len(chunk)); taken > most {
		t.Errorf("%d bytes were taken, want at most %d: %d were sent", taken, most, sent)
	}
	if err != nil && !strings.Contains(err.Error(), "reset") {
		t.Errorf("the peer sees %v, want the end of the connection", err)
	}
}

// Writers that wait for room are let go by Close.
func TestCoalescedConn_CloseEndsWritersThatWait(t *testing.T) {
	t.Parallel()
	c, peer := socketPair(t, time.Minute)
	ended := make(chan error, 1)
	go func() {
		_, err := writeUntilError(c, make([]byte, 32<<10))
		ended <- err
	}()
	c.mu.Lock()
	for len(c.pending) <= maxPending {
		c.changed.Wait()
	}
	c.mu.Unlock()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("the writer ends with %v, want net.ErrClosed", err)
	}
	if _, err := io.Copy(io.Discard, peer); err != nil && !strings.Contains(err.Error(), "reset") {
		t.Errorf("the peer sees %v, want the end of the connection", err)
	}
}

// The files for TLS are read for each connection: while they cannot be read, no attempt may leave a socket behind.
func TestConnection_AnAttemptThatFailsOverItsFilesLeavesNoSocket(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := mtls.GenerateDevCerts(dir, time.Hour, "order"); err != nil {
		t.Fatal(err)
	}
	authorities := mtls.CertPaths(dir, "order").CAFile
	lis := listen(t)
	address := "amqps://" + lis.Addr().String() + "/?cacertfile=" + url.QueryEscape(filepath.ToSlash(authorities))
	c, err := Dial(address, Options{Service: "order", Role: "publish"})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(authorities); err != nil {
		t.Fatal(err)
	}
	if _, err := c.connectOnce(t.Context()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the attempt ends with %v, want that the file is not there", err)
	}
	if err := lis.(*net.TCPListener).SetDeadline(time.Now()); err != nil {
		t.Fatal(err)
	}
	if peer, err := lis.Accept(); err == nil {
		_ = peer.Close()
		t.Error("it has made a connection all the same")
	}
}

// With TLS 1.3 a client has shaken hands, and is about to speak or has spoken, when the server refuses its certificate.
func TestConnection_ACertificateThatTheBrokerRefusesIsTheReason(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := mtls.GenerateDevCerts(dir, time.Hour, "server"); err != nil {
		t.Fatal(err)
	}
	files := mtls.CertPaths(dir, "server")
	own, err := tls.LoadX509KeyPair(files.CertFile, files.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	lis := listen(t)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			socket, err := lis.Accept()
			if err != nil {
				return
			}
			peer := tls.Server(socket, &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{own}, ClientAuth: tls.RequireAnyClientCert})
			if err := peer.Handshake(); err == nil {
				t.Error("the server takes a client without a certificate")
			}
			_ = socket.Close() // what the client has sent meanwhile is answered with a reset
		}
	}()
	t.Cleanup(func() { _ = lis.Close(); <-ended })
	_, port, err := net.SplitHostPort(lis.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c, err := Dial("amqps://localhost:"+port+"/?server_name_indication=server&cacertfile="+url.QueryEscape(filepath.ToSlash(files.CAFile)), Options{Service: "order", Role: "publish"})
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		if _, err := c.connectOnce(t.Context()); err == nil || !strings.Contains(err.Error(), "certificate required") {
			t.Fatalf("the attempt ends with %v, want that the broker wants a certificate", err)
		}
	}
}
