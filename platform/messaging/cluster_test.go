package messaging_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"shop.example/platform/contract"
	"shop.example/platform/messaging"
	"shop.example/platform/testkit/brokertest"
	"shop.example/platform/testkit/netproxy"
)

// twoNodes are two ways to one broker, which behave as two nodes do when one of them is taken away.
func twoNodes(t *testing.T) (address string, byNode map[string]*netproxy.Proxy) {
	t.Helper()
	broker := brokertest.New(t)
	a, b := broker.Proxy(t), broker.Proxy(t)
	byNode = map[string]*netproxy.Proxy{host(t, a.URL): a, host(t, b.URL): b}
	return strings.Replace(a.URL, host(t, a.URL), host(t, a.URL)+","+host(t, b.URL), 1), byNode
}

func host(t *testing.T, address string) string {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	return u.Host
}

// nodeOf waits for the connection and says to which node it is.
func nodeOf(t *testing.T, c *messaging.Connection) string {
	t.Helper()
	node, err := messaging.NodeOf(within(t), c)
	if err != nil {
		t.Fatal(err)
	}
	return node
}

func TestConnection_TheConnectionsOfAProcessAreOnDifferentNodes(t *testing.T) {
	t.Parallel()
	address, _ := twoNodes(t)
	p := join(t, address, "order")
	if publish, consume := nodeOf(t, p.publish), nodeOf(t, p.consume); publish == consume {
		t.Errorf("both connections are on %s", publish)
	}
}

// The heartbeat by which the broker leaves a frozen client within three seconds has the library leave a slow broker after one and a half.
func TestConnection_ASilentNodeIsLeftAfterThreeSecondsAlsoWithShortHeartbeats(t *testing.T) {
	t.Parallel()
	address, nodes := twoNodes(t)
	conn, err := messaging.Dial(address, messaging.Options{Topology: brokertest.Topology(), Service: "order", Role: "publish", Heartbeat: messaging.ConsumerHeartbeat})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = conn.Run(ctx) })
	t.Cleanup(func() { stop(); running.Wait() })
	first := nodeOf(t, conn)
	nodes[first].DropResponses()
	start := time.Now()
	eventually(t, func() error {
		if nodeOf(t, conn) == first {
			return fmt.Errorf("it is on %s still", first)
		}
		return nil
	})
	// The last heartbeat came half a second before the silence, or a moment.
	if took := time.Since(start); took < 2*time.Second {
		t.Errorf("it was left after %s", took)
	}
}

func TestConnection_AfterItsNodeHasGoneItIsOnAnotherOne(t *testing.T) {
	t.Parallel()
	address, nodes := twoNodes(t)
	p := join(t, address, "order")
	first := nodeOf(t, p.publish)
	publish(t, p, placed())
	nodes[first].Down()
	start := time.Now()
	publish(t, p, placed())
	t.Logf("published %s after the node had gone", time.Since(start).Round(time.Millisecond))
	if second := nodeOf(t, p.publish); second == first {
		t.Errorf("the connection is on %s, which is down", second)
	}
}

// A node that is frozen, or cut off, accepts connections at most and says nothing on them.
func TestConnection_ANodeThatAcceptsAndSaysNothingIsGivenUpAndRemembered(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { silent.Close() })
	good := brokertest.New(t).Proxy(t).URL // an address that no other test has failed to connect to
	address := strings.Replace(good, host(t, good), host(t, good)+","+silent.Addr().String(), 1)
	slow := 0
	for attempt := range 6 { // in half of the cases the silent one is met first, by chance, but not twice
		start := time.Now()
		ctx, stop := context.WithCancel(t.Context())
		c, err := messaging.Dial(address, messaging.Options{Topology: brokertest.Topology(), Service: "order", Role: "publish"})
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- c.Run(ctx) }()
		if node := nodeOf(t, c); node != host(t, good) {
			t.Errorf("connected to %s, which says nothing", node)
		}
		took := time.Since(start)
		t.Logf("attempt %d took %s", attempt, took.Round(time.Millisecond))
		if took > messaging.TryTimeout {
			slow++
		}
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	if slow > 1 {
		t.Errorf("%d of 6 attempts waited for the silent node, want that only the first one does", slow)
	}
}

// Frozen after the connection was made, a node confirms nothing and closes nothing.
func TestPublisher_AConfirmThatDoesNotComeMovesItOnWithTheSameMessageID(t *testing.T) {
	t.Parallel()
	address, nodes := twoNodes(t)
	p := join(t, address, "order")
	seen := make(chan string, 10)
	p.run(messaging.NewConsumer(p.consume, p.pub, "order", messaging.ConsumerOptions{},
		messaging.HandleRaw(func(_ context.Context, batch []messaging.Delivery) error {
			for _, d := range batch {
				seen <- d.MessageID
			}
			return nil
		})).Run)
	publish(t, p, placed())
	first := next(t, seen, "the first order")
	frozen := nodeOf(t, p.publish)
	nodes[frozen].DropResponses()

	order := placed()
	start := time.Now()
	publish(t, p, order)
	took := time.Since(start)
	t.Logf("published after %s", took.Round(time.Millisecond))
	if now := nodeOf(t, p.publish); now == frozen {
		t.Errorf("the publisher is still on %s", now)
	}
	if took > 8*time.Second { // confirmTimeout is 10 s
		t.Errorf("it took %s to move on", took)
	}
	// The node that cannot be heard has heard: the order comes twice, under one id.
	for range 2 {
		if got := next(t, seen, "the order"); got == first {
			t.Errorf("the first order came again")
		} else if want := contract.MessageID(order).String(); got != want {
			t.Errorf("message %s came, want %s", got, want)
		}
	}
}

func TestPublisher_StaysIfThereIsNoOtherNode(t *testing.T) {
	t.Parallel()
	proxy := brokertest.New(t).Proxy(t)
	var log bytes.Buffer // read when all that write to it have ended
	t.Cleanup(func() {
		if strings.Contains(log.String(), "confirms nothing") {
			t.Errorf("the publisher has moved on, to the same node: %s", log.String())
		}
	})
	p := joinAs(t, proxy.URL, messaging.Options{Topology: brokertest.Topology(), Service: "order", Logger: slog.New(slog.NewTextHandler(&log, nil))})
	publish(t, p, placed())
	proxy.DropResponses()
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
	defer cancel()
	if err := p.pub.Publish(ctx, placed()); err == nil {
		t.Fatal("an order was confirmed by a broker that cannot be heard")
	}
}

func TestAlone_OneOfTwoProcessesFindsOut(t *testing.T) {
	t.Parallel()
	topology := brokertest.Topology()
	topology.Services[0].Exclusive = []string{"gateway.mark"}
	gateway := brokertest.New(t).Services(t, topology)["gateway"]
	told := make(chan int, 10)
	for i := range 2 {
		p := join(t, gateway, "gateway")
		p.run(messaging.Alone(p.consume, "gateway.mark", func() { told <- i }))
	}
	who := next(t, told, "that one of them finds out")
	p := join(t, gateway, "gateway")
	p.run(messaging.Alone(p.consume, "gateway.mark", func() { told <- 2 }))
	if third := next(t, told, "that the third finds out"); third != 2 {
		t.Errorf("after process %d process %d has found out, want the third, 2: one of the first two holds the queue", who, third)
	}
}
