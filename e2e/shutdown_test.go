package e2e

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// handled are, for each service that consumes, its queue and how many messages it has handled so far.
var handled = map[string]struct{ queue, count string }{
	"order":     {"order", `SELECT count(*)::text FROM orders.orders`},
	"inventory": {"inventory", `SELECT count(DISTINCT (order_id, reason))::text FROM inventory.stock_movement WHERE order_id IS NOT NULL`},
	"logging":   {"logging", `SELECT count(*)::text FROM logging.event_log`},
}

func TestShutdown_OfAConsumerUnderLoadLosesAndRepeatsNothing(t *testing.T) {
	t.Parallel()
	for name, did := range handled {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newDeployment(t, deploymentOptions{})
			f.up(t)
			published := f.tap(t)
			tr := f.traffic(t, f.unlimitedStock(t), answerLimit, f.gateways()...)
			tr.flows(t, 100)

			r, db := f.replicas[name][0], f.openDatabase(t)
			r.term(t)
			before := number(t, texts(t, db, did.count)[0])
			r.start(t)
			r.waitReady(t)
			tr.flows(t, 50)
			orders := tr.end(t)
			f.decides(t, orders)

			// What the first process had handled and not acknowledged, the second one would have handled again.
			eventually(t, func() error {
				again := int(r.metric(t, "messaging_consumed_total", fmt.Sprintf(`queue=%q`, did.queue), `verdict="handled"`))
				if fresh := number(t, texts(t, db, did.count)[0]) - before; again != fresh || f.openHolds(t) > 0 {
					return fmt.Errorf("after its restart %s handled %d messages, of which %d were new", name, again, fresh)
				}
				return nil
			})
			if refused, _ := tr.figures(); len(refused) > 0 {
				t.Errorf("orders were refused: %v", refused)
			}
			f.usedUpNoAttempt(t)
			f.comesToRest(t, orders)
			tr.isDecided(t, &f.shop)
			published.onceEach(t)
		})
	}
}

func TestShutdown_OfTheGatewayAnswersWhatItHasTaken(t *testing.T) {
	t.Parallel()
	f := newDeployment(t, deploymentOptions{})
	f.up(t)
	published := f.tap(t)
	tr := f.traffic(t, f.unlimitedStock(t), answerLimit, f.gateways()...)
	tr.flows(t, 100)

	r := f.replicas["gateway"][0]
	half := beginOrder(t, r.addr)
	r.signal(t, syscall.SIGTERM)
	begin := time.Now()
	r.notReady(t, "service: stopping")
	if !r.running() {
		t.Fatal("the gateway did not wait for the order that it was reading")
	}
	location := half.end(t)
	r.ends(t, begin)
	r.start(t)
	r.waitReady(t)
	tr.flows(t, 50)

	refused, _ := tr.figures()
	for status, n := range refused {
		if status != "no answer" { // there was no gateway
			t.Errorf("%d orders were refused with %s", n, status)
		}
	}
	f.decided(t, location)
	f.comesToRest(t, tr.end(t)+1)
	published.onceEach(t)
}

func TestShutdown_OfTheShopInOneProcessLosesAndRepeatsNothing(t *testing.T) {
	t.Parallel()
	bin := mustBinaries(t)
	f := newDeployment(t, deploymentOptions{})
	f.replicas = nil // only its broker and database are used
	published := f.tap(t)
	dir, addr := t.TempDir(), freeAddr(t)
	open := func() *program {
		return up(t, filepath.Join(bin, "shopdev"), dir, "AMQP_URL="+f.broker.URL, "DATABASE_URL="+f.database, "HTTP_ADDR="+addr,
			"SHOP_OPERATOR_TOKEN="+operatorToken, "SHOP_ID_SECRET=id-secret-of-the-tests")
	}
	first := open()
	f.url = first.url
	tr := f.traffic(t, f.unlimitedStock(t), answerLimit, f.url)
	tr.flows(t, 100)

	if err := first.process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case <-first.exited:
	case <-time.After(stopLimit):
		t.Fatalf("the shop did not end within %s after SIGTERM", stopLimit)
	}
	open()
	tr.flows(t, 50)

	refused, _ := tr.figures()
	for status, n := range refused {
		if status != "no answer" {
			t.Errorf("%d orders were refused with %s", n, status)
		}
	}
	f.comesToRest(t, tr.end(t))
	tr.isDecided(t, &f.shop)
	published.onceEach(t)
}

// half is an order of which the gateway has received only the header.
type half struct {
	conn net.Conn
	in   *bufio.Reader
}

const halfOrder = `{"customer_name":"Ada","customer_email":"ada@example.org","order_items":[{"product_id":1,"quantity":1}]}`

// beginOrder returns when the gateway asks for the body.
func beginOrder(t *testing.T, addr string) half {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(testTimeout)); err != nil {
		t.Fatal(err)
	}
	_, err = fmt.Fprintf(conn, "POST /v1/orders HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n",
		addr, len(halfOrder))
	if err != nil {
		t.Fatal(err)
	}
	h := half{conn, bufio.NewReader(conn)}
	line, err := h.in.ReadString('\n')
	if err != nil || !strings.Contains(line, "100 Continue") {
		t.Fatalf("the gateway does not ask for the body: %q %v", line, err)
	}
	if _, err := h.in.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	return h
}

// end sends the body and returns the path of the order.
func (h half) end(t *testing.T) (location string) {
	t.Helper()
	if _, err := h.conn.Write([]byte(halfOrder)); err != nil {
		t.Fatalf("the gateway no longer takes the order that it was reading: %v", err)
	}
	res, err := http.ReadResponse(h.in, nil)
	if err != nil {
		t.Fatalf("the gateway does not answer the order that it was reading: %v", err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusAccepted {
		t.Fatalf("the order that the gateway was reading: %s", res.Status)
	}
	return res.Header.Get("Location")
}

// ends waits for the end of a replica that was told at begin to end.
func (r *replica) ends(t *testing.T, begin time.Time) {
	t.Helper()
	select {
	case <-r.exited:
	case <-time.After(time.Until(begin.Add(stopLimit))):
		t.Fatalf("%s did not end within %s after SIGTERM", r.name, stopLimit)
	}
	if code := r.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("%s ended with exit code %d after SIGTERM", r.name, code)
	}
}

// openHolds is how many holds wait to be settled.
func (s *shop) openHolds(t *testing.T) int {
	t.Helper()
	return number(t, texts(t, s.openDatabase(t), `SELECT count(*)::text FROM inventory.hold WHERE state = 'HELD'`)[0])
}

func number(t *testing.T, text string) int {
	t.Helper()
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// tap counts what is published.
type tap struct {
	mu       sync.Mutex
	messages map[string]int // how often, by routing key and message id
}

func (s *shop) tap(t *testing.T) *tap {
	t.Helper()
	ch := s.openChannel(t)
	if err := ch.ExchangeDeclare("shop.topic", "topic", true, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
	q, err := ch.QueueDeclare("", false, true, true, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := ch.QueueBind(q.Name, "shop.#", "shop.topic", false, nil); err != nil {
		t.Fatal(err)
	}
	deliveries, err := ch.Consume(q.Name, "", true, true, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	tp := &tap{messages: map[string]int{}}
	go func() {
		for d := range deliveries {
			tp.mu.Lock()
			tp.messages[d.RoutingKey+" "+d.MessageId]++
			tp.mu.Unlock()
		}
	}()
	return tp
}

// onceEach checks that nothing was published twice.
func (tp *tap) onceEach(t *testing.T) {
	t.Helper()
	tp.mu.Lock()
	defer tp.mu.Unlock()
	if len(tp.messages) == 0 {
		t.Error("nothing was published")
	}
	for message, n := range tp.messages {
		if n != 1 {
			t.Errorf("%s was published %d times", message, n)
		}
	}
}
