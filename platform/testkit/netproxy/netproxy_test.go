package netproxy_test

import (
	"bufio"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"shop.example/platform/testkit/netproxy"
)

// echo answers each line with the same line.
func echo(t *testing.T) (url string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c); c.Close() }()
		}
	}()
	return "tcp://" + listener.Addr().String()
}

type client struct {
	net.Conn
	in *bufio.Reader
}

func connect(t *testing.T, p *netproxy.Proxy) *client {
	t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(p.URL, "tcp://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &client{c, bufio.NewReader(c)}
}

// says returns how the line comes back.
func (c *client) says(line string) (string, error) {
	if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(c, line+"\n"); err != nil {
		return "", err
	}
	got, err := c.in.ReadString('\n')
	return strings.TrimSuffix(got, "\n"), err
}

func TestProxy_ForwardsAgainAfterItWasDown(t *testing.T) {
	t.Parallel()
	p := netproxy.New(t, echo(t))
	c := connect(t, p)
	if got, err := c.says("one"); got != "one" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	p.Down()
	if got, err := c.says("two"); err == nil {
		t.Errorf("a connection that was cut says %q", got)
	}
	if again, err := net.Dial("tcp", strings.TrimPrefix(p.URL, "tcp://")); err == nil {
		again.Close()
		t.Error("a connection is taken while the proxy is down")
	}
	p.Up(t)
	if got, err := connect(t, p).says("three"); got != "three" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestProxy_DelaysResponsesUntilUp(t *testing.T) {
	t.Parallel()
	p := netproxy.New(t, echo(t))
	c := connect(t, p)
	const delay = 100 * time.Millisecond
	p.Delay(delay)
	begin := time.Now()
	if got, err := c.says("late"); got != "late" || err != nil || time.Since(begin) < delay {
		t.Errorf("got %q, %v after %s", got, err, time.Since(begin))
	}
	p.Up(t)
	if got, err := c.says("again"); got != "again" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestProxy_ConnectionsThatMissResponsesEndWithUp(t *testing.T) {
	t.Parallel()
	p := netproxy.New(t, echo(t))
	c := connect(t, p)
	p.DropResponses()
	if _, err := io.WriteString(c, "unheard\n"); err != nil {
		t.Fatal(err)
	}
	if err := c.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if got, err := c.in.ReadString('\n'); err == nil {
		t.Errorf("got %q", got)
	}
	p.Up(t)
	if got, err := c.says("more"); err == nil {
		t.Errorf("a stream with a hole in it says %q", got)
	}
	if got, err := connect(t, p).says("new"); got != "new" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestProxy_RetargetLeadsToAnotherServer(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	silent.Close()
	p := netproxy.New(t, "tcp://"+silent.Addr().String())
	if got, err := connect(t, p).says("nobody"); err == nil {
		t.Errorf("a server that is not there says %q", got)
	}
	p.Retarget(t, echo(t))
	if got, err := connect(t, p).says("somebody"); got != "somebody" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}
