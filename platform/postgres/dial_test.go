package postgres

import (
	"context"
	"errors"
	"net"
	"os"
	"testing"
	"time"
)

func TestDialer_AServerThatVanishedWithoutAWordIsNoticed(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0") // accepts and never says a word
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	c, err := dialer{answer: 20 * time.Millisecond}.DialContext(context.Background(), "tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range 2 { // the bound holds for each read
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) || !errors.Is(Classify(err), ErrUnavailable) {
			t.Errorf("Read = %v, want a timeout that is ErrUnavailable", err)
		}
	}
}

func TestDialer_TheDeadlineOfTheLoginIsKept(t *testing.T) {
	t.Parallel()
	client, server := net.Pipe()
	defer client.Close()
	defer server.Close()
	c := &boundedConn{Conn: client, answer: time.Hour}
	if err := c.SetDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Read = %v, want the deadline that was set", err)
	}
}
