package e2e

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"shop.example/db/dbtest"
	"shop.example/dev/local"
	eventsv1 "shop.example/gen/shop/events/v1"
	inventoryv1 "shop.example/gen/shop/inventory/v1"
	"shop.example/platform/messaging"
	"shop.example/platform/messaging/provision"
	"shop.example/platform/testkit/brokertest"
	"shop.example/topology"
)

// resendLimit is how long it may take until an order that was lost with its queue is decided.
const resendLimit = 90 * time.Second

// deletion is a part of the topology that somebody deletes while the shop runs.
type deletion struct {
	name string
	// provisioned says that no service has the right to declare it again: the broker's administrator has to.
	provisioned bool
	do          func(*amqp.Channel) error
}

var deletions = []deletion{
	{"the binding of queue order", false, unbind("order", "shop.order.placed")},
	{"the bindings of queue inventory", false, unbind("inventory", "shop.inventory.#", "shop.order.cancelled")},
	{"queue order", false, deleteQueue("order")},
	{"queue inventory", false, deleteQueue("inventory")},
	{"queue dead-letter", false, deleteQueue("dead-letter")},
	{"a retry queue", false, deleteQueue("order.retry.1s")},
	{"exchange shop.topic", true, deleteExchange("shop.topic")},
	{"exchange shop.direct", true, deleteExchange("shop.direct")},
	{"exchange shop.dlx", true, deleteExchange("shop.dlx")},
}

func deleteQueue(name string) func(*amqp.Channel) error {
	return func(ch *amqp.Channel) error {
		_, err := ch.QueueDelete(name, false, false, false)
		return err
	}
}

func deleteExchange(name string) func(*amqp.Channel) error {
	return func(ch *amqp.Channel) error { return ch.ExchangeDelete(name, false, false) }
}

// unbind removes bindings of a queue.
func unbind(queue string, keys ...string) func(*amqp.Channel) error {
	return func(ch *amqp.Channel) error {
		var errs []error
		for _, key := range keys {
			errs = append(errs, ch.QueueUnbind(queue, key, "shop.topic", nil))
		}
		return errors.Join(errs...)
	}
}

func (s *shop) deletes(t *testing.T, do func(*amqp.Channel) error) {
	t.Helper()
	if err := do(s.openChannel(t)); err != nil {
		t.Fatal(err)
	}
}

// provision imports the shop's definitions, as the broker's administrator would.
func (s *shop) provision(t *testing.T) {
	t.Helper()
	if err := provision.Topology(t.Context(), topology.Broker(), os.Getenv("AMQP_MANAGEMENT_URL"), s.broker.Vhost); err != nil {
		t.Fatal(err)
	}
}

// isWhole waits until everything that was deleted exists again.
func (s *shop) isWhole(t *testing.T) {
	t.Helper()
	eventually(t, func() error {
		return provision.Compare(t.Context(), topology.Broker(), os.Getenv("AMQP_MANAGEMENT_URL"), s.broker.Vhost)
	})
}

// refuses waits until the gateway is not ready and refuses orders, because nobody would decide them; that must be within
// two seconds or so.
func (s *shop) refuses(t *testing.T, tr *traffic, since time.Time) {
	t.Helper()
	before, _ := tr.figures()
	eventually(t, func() error {
		now, _ := tr.figures()
		if now["503"] == before["503"] {
			return errors.New("orders are accepted")
		}
		return nil
	})
	eventually(t, func() error {
		res, err := http.Get("http://" + s.Gateway.AdminAddr() + "/readyz")
		if err != nil {
			return err
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		if res.StatusCode != http.StatusServiceUnavailable || !strings.Contains(string(body), "queues of orders: looking for ") {
			return fmt.Errorf("meanwhile it says %d %s %w", res.StatusCode, body, err)
		}
		return nil
	})
	if took := time.Since(since); took > testTimeout/3 { // it looks once a second; the machine may be busy
		t.Errorf("orders were refused after %s", took)
	}
}

// allDecided waits until every accepted order is decided, and fails if the audit finds violations.
func (s *shop) allDecided(t *testing.T, tr *traffic) {
	t.Helper()
	orders := tr.end(t)
	begin := time.Now()
	s.decidesWithin(t, orders, resendLimit)
	tr.isDecided(t, s)
	r, err := auditor(t, s).RunWhenQuiet(t.Context(), resendLimit)
	if err != nil || r.Count() > 0 || r.InFlight() > 0 {
		t.Errorf("%v: %d violations, %d on their way: %v %+v", err, r.Count(), r.InFlight(), r.Violations, r.Checks)
	}
	sent := texts(t, s.openDatabase(t), `SELECT routing_key || ': ' || count(*) || ', sent ' || sum(sent) || ' times' FROM logging.unhandled_event GROUP BY routing_key`)
	refused, longest := tr.figures()
	t.Logf("%d orders, refused meanwhile: %v, longest time without an order: %s; all decided after %s; lost: %v",
		orders, refused, longest.Round(time.Millisecond), time.Since(begin).Round(time.Second), sent)
}

// Somebody deletes parts of the topology while the shop is busy. The gateway once answered 202 to orders that were then
// never decided.
func TestTopology_WhatIsDeletedUnderLoadCostsNoAcceptedOrder(t *testing.T) {
	t.Parallel()
	s := start(t) // each service with no more rights than it needs
	tr := s.traffic(t, s.unlimitedStock(t), answerLimit, s.url)
	tr.flows(t, 20)
	for _, d := range deletions {
		begin := time.Now()
		s.deletes(t, d.do)
		if d.provisioned {
			if d.name == "exchange shop.topic" {
				s.refuses(t, tr, begin)
			}
			s.provision(t)
		}
		s.isWhole(t)
		tr.flows(t, 20)
		t.Logf("%s: orders flow again after %s", d.name, time.Since(begin).Round(time.Millisecond))
	}
	s.allDecided(t, tr)
}

// Messages that wait in a queue are lost when it is deleted, although the orders were accepted.
func TestTopology_OrdersThatWaitedInADeletedQueueAreDecided(t *testing.T) {
	t.Parallel()
	s := start(t)
	tr := s.traffic(t, s.unlimitedStock(t), answerLimit, s.url)
	tr.flows(t, 20)
	if err := s.Order.Stop(); err != nil {
		t.Fatal(err)
	}
	tr.flows(t, 50)
	begin := time.Now()
	s.deletes(t, deleteQueue("order"))
	s.refuses(t, tr, begin)
	if err := s.Order.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	tr.flows(t, 50)
	s.allDecided(t, tr)
}

// With a broker user who may do everything, the services repair all of the topology themselves.
func TestTopology_ServicesWithAllRightsDeclareExchangesAgain(t *testing.T) {
	t.Parallel()
	broker, database := brokertest.New(t), dbtest.New(t)
	built, err := local.New(t.Context(), config(t, database, local.OneBroker(broker.URL)))
	if err != nil {
		t.Fatal(err)
	}
	s := &shop{Shop: built, url: "http://" + built.Gateway.HTTPAddr(), database: database, broker: broker}
	run(t, s.Shop)
	tr := s.traffic(t, s.unlimitedStock(t), answerLimit, s.url)
	tr.flows(t, 20)
	for _, d := range deletions {
		s.deletes(t, d.do)
		s.isWhole(t)
		tr.flows(t, 20)
	}
	s.allDecided(t, tr)
}

// When the dead letter of an order was discarded, its customer once waited for ever.
func TestDiscard_AnOrderThatCouldNotBeHandledIsRejected(t *testing.T) {
	t.Parallel()
	s := start(t)
	stop := func() {
		if err := s.Order.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	begin := func() {
		if err := s.Order.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	location := s.place(t, 2, 7)
	id := strings.TrimPrefix(location, "/v1/orders/")
	s.holds(t, id, 1, 3) // inventory has decided another order under this id: the order service can do nothing with that
	begin()
	letter := s.open(t, 1)[0]
	if letter.OrderID != id || letter.SourceQueue != "order" {
		t.Fatalf("the letter is %+v", letter)
	}
	stop()
	if a := s.post(t, letter.path()+":discard"); a.code != http.StatusServiceUnavailable || len(s.deadLetters(t, "OPEN")) != 1 {
		t.Errorf("without the order service: %d %s", a.code, a.body)
	}
	begin()
	eventually(t, func() error {
		if a := s.post(t, letter.path()+":discard"); a.code != http.StatusOK {
			return fmt.Errorf("discarding: %d %s", a.code, a.body)
		}
		return nil
	})
	o := s.decided(t, location)
	if o.State != "REJECTED" || o.Reason != "DISCARDED" || o.Name != "Ada" || o.TotalItems != 7 {
		t.Errorf("the order is %+v", o)
	}
	s.isLoggedOnce(t, id, "shop.order.rejected")
	// The stock that is held for it is looked after by the sweeper: until then it is no violation.
	r, err := auditor(t, s).Run(t.Context())
	if err != nil || r.Count() > 0 || r.InFlight() == 0 {
		t.Errorf("%v: %d on their way, %v", err, r.InFlight(), r.Violations)
	}
	// Nobody's order is what somebody sent who may not place any: an order that is still to come must not be rejected for it.
	forged := uuid.NewString()
	s.send(t, s.confirming(t), "shop.topic", "shop.order.placed", amqp.Publishing{CorrelationId: forged, UserId: s.administrator(t), Body: []byte("an order")})
	for _, l := range s.open(t, 2) {
		if a := s.post(t, l.path()+":discard"); a.code != http.StatusOK {
			t.Errorf("discarding: %d %s", a.code, a.body)
		}
	}
	if a := s.get(t, "/v1/orders/"+forged); a.code != http.StatusNotFound {
		t.Errorf("the forged order: %d %s", a.code, a.body)
	}
}

// administrator returns the broker's user that tests publish as.
func (s *shop) administrator(t *testing.T) string {
	t.Helper()
	uri, err := amqp.ParseURI(s.broker.URL)
	if err != nil {
		t.Fatal(err)
	}
	return uri.Username
}

// isLoggedOnce waits until the log has an event of an order exactly once.
func (s *shop) isLoggedOnce(t *testing.T, order, key string) {
	t.Helper()
	db := s.openDatabase(t)
	eventually(t, func() error {
		if n := len(texts(t, db, `SELECT id::text FROM logging.event_log WHERE order_id = $1 AND routing_key = $2`, order, key)); n != 1 {
			return fmt.Errorf("the log has %s of order %s %d times", key, order, n)
		}
		return nil
	})
}

// holds makes inventory hold stock for an order.
func (s *shop) holds(t *testing.T, order string, product, quantity int32) {
	t.Helper()
	conn, err := messaging.Dial(s.broker.URL, messaging.Options{Topology: topology.Broker(), Service: "test", Role: "test"})
	if err != nil {
		t.Fatal(err)
	}
	pub := messaging.NewPublisher(conn)
	calls := messaging.NewRPCClient(conn, pub)
	keepRunning(t, conn.Run)
	keepRunning(t, pub.Run)
	keepRunning(t, calls.Run)
	eventually(t, func() error {
		_, err := inventoryv1.NewStockServiceClient(calls).CheckStock(t.Context(), &inventoryv1.CheckStockRequest{Orders: []*inventoryv1.CheckStockRequest_Order{
			{OrderId: order, Lines: []*eventsv1.RequestedLine{{ProductId: product, Quantity: quantity}}},
		}})
		return err
	})
}
