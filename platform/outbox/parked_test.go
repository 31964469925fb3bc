package outbox_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	amqp "github.com/rabbitmq/amqp091-go"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"shop.example/platform/messaging"
	"shop.example/platform/outbox"
	"shop.example/platform/postgres"
	"shop.example/platform/testkit/brokertest"
)

// insert puts a message into the outbox that no service of the contracts would.
func insert(t *testing.T, pool *sqlx.DB, exchange, key string, body []byte) string {
	t.Helper()
	id := uuid.NewString()
	_, err := pool.Exec(`INSERT INTO outbox (message_id, exchange, routing_key, type, correlation_id, traceparent, body) VALUES ($1, $2, $3, 'any', '', '', $4)`, id, exchange, key, body)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// logged consumes the queue that takes every event, and returns their message ids as they come.
func logged(t *testing.T, broker *brokertest.Broker) <-chan string {
	t.Helper()
	conn, err := amqp.Dial(broker.URL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	ch, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	deliveries, err := ch.Consume("logging", "", true, false, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	ids := make(chan string, 100)
	go func() {
		for d := range deliveries {
			ids <- d.MessageId
		}
	}()
	return ids
}

// A message that the broker will never take kept every message behind it from leaving, for ever.
func TestRelay_WhatTheBrokerWillNeverTakeIsParkedAndStopsNothing(t *testing.T) {
	t.Parallel()
	for what, poison := range map[string]struct {
		exchange, key string
		size          int
		reason        string
	}{
		"no queue takes its routing key": {"shop.topic", "nobody.listens", 1, "no queue takes this message"},
		"there is no such exchange":      {"shop.gone", "shop.order.placed", 1, "no exchange 'shop.gone'"},
		"it is too large":                {"shop.topic", "shop.order.placed", 16<<20 + 1, "the message is too large"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			pool, broker := open(t), brokertest.New(t)
			log, metrics := &lines{}, metric.NewManualReader()
			conn := dial(t, broker.URL)
			publisher := messaging.NewPublisher(conn)
			eventually(t, func() bool { return conn.Ready(t.Context()) == nil })
			ids := logged(t, broker)
			var want []string
			var bad string
			for i := range 5 {
				if i == 2 {
					bad = insert(t, pool, poison.exchange, poison.key, make([]byte, poison.size))
				}
				order := placed(uuid.NewString())
				m, err := messaging.NewOutgoing(t.Context(), order)
				if err != nil {
					t.Fatal(err)
				}
				add(t, pool, outbox.Entry{Message: order})
				want = append(want, m.MessageID)
			}
			relay := newRelay(t, pool, publisher, outbox.Options{
				Batch: 10, Logger: slog.New(slog.NewTextHandler(log, nil)), Meter: metric.NewMeterProvider(metric.WithReader(metrics)),
			})
			background(t, publisher.Run)
			background(t, relay.Run)
			for i, id := range want {
				got := receive(t, ids)
				for i > 0 && slices.Contains(want[:i], got) { // it may come twice
					got = receive(t, ids)
				}
				if got != id {
					t.Errorf("got %s, want %s", got, id)
				}
			}
			emptied(t, pool)
			parked, err := outbox.ListParked(t.Context(), pool)
			if err != nil || len(parked) != 1 || parked[0].MessageID != bad || parked[0].Size != poison.size || !strings.Contains(parked[0].Reason, poison.reason) {
				t.Fatalf("parked is %+v, %v", parked, err)
			}
			if err := relay.Sample(t.Context()); err != nil {
				t.Fatal(err)
			}
			if n := gauge64(t, metrics, "outbox.parked.waiting"); n != 1 {
				t.Errorf("the metric says that %d messages are parked", n)
			}
			if !strings.Contains(log.String(), bad) || strings.Count(log.String(), "level=ERROR") != 1 {
				t.Errorf("the log says %s", log)
			}

			// Sent again as it is, it is parked again; what can be taken by now leaves.
			if poison.key == "nobody.listens" {
				bind(t, broker, "logging", poison.key)
			}
			var sent []string
			err = postgres.InTx(t.Context(), pool, func(tx *sqlx.Tx) (err error) {
				sent, err = outbox.Unpark(t.Context(), tx, []string{bad, uuid.NewString()})
				return err
			})
			if err != nil || !slices.Equal(sent, []string{bad}) {
				t.Fatalf("sent again: %q, %v", sent, err)
			}
			emptied(t, pool)
			stay := 1
			if poison.key == "nobody.listens" {
				stay = 0
				for got := receive(t, ids); got != bad; got = receive(t, ids) {
					if !slices.Contains(want, got) {
						t.Errorf("got %s after the parked message was sent again", got)
					}
				}
			}
			if left := count(t, pool, "outbox_parked"); left != stay {
				t.Errorf("%d messages are parked after they were sent again, want %d", left, stay)
			}
		})
	}
}

// Each refused message published what follows it once more: of a round with hundreds of them the rest came a hundred times, until
// its time was over and nothing was parked.
func TestRelay_ManyRefusedMessagesAreParkedTogetherAndRepeatNothing(t *testing.T) {
	t.Parallel()
	pool, broker := open(t), brokertest.New(t)
	conn := dial(t, broker.URL)
	publisher := messaging.NewPublisher(conn)
	eventually(t, func() bool { return conn.Ready(t.Context()) == nil })
	ids := logged(t, broker)
	const each = 300
	var last string
	for range each {
		insert(t, pool, "shop.topic", "nobody.listens", []byte{0})
		last = insert(t, pool, "shop.topic", "shop.order.placed", []byte{0})
	}
	relay := newRelay(t, pool, publisher, outbox.Options{Logger: slog.New(slog.DiscardHandler)})
	background(t, publisher.Run)
	background(t, relay.Run)
	came := 0
	for id := ""; id != last; came++ {
		id = receive(t, ids)
	}
	emptied(t, pool)
	if n := count(t, pool, "outbox_parked"); n != each {
		t.Errorf("%d of %d messages are parked", n, each)
	}
	if came > each+each/10 { // a connection that is cut may repeat some
		t.Errorf("%d messages that a queue takes came %d times", each, came)
	}
}

// What a complete topology would route is waited for, for a minute: whoever owns the missing queue declares it again. Then
// it is parked, and with it what comes of its kind, until one of them is taken or none is refused for a minute.
func TestRelay_WhatAMissingQueueWouldTakeIsWaitedForAMinute(t *testing.T) {
	t.Parallel()
	pool := open(t)
	add(t, pool, outbox.Entry{Message: confirmed(uuid.New())})
	refusing := &refusals{key: "shop.order.confirmed"}
	relay := newRelay(t, pool, refusing, outbox.Options{})
	relay.SetGrace(2 * time.Second)
	start := time.Now()
	background(t, relay.Run)
	insert(t, pool, "shop.topic", "shop.order.placed", []byte{0})
	eventually(t, func() bool { return refusing.count("shop.order.placed") == 1 })
	if took := time.Since(start); took < 2*time.Second {
		t.Errorf("what follows left after %s", took)
	}
	// It is parked in the transaction that ends when what follows was sent.
	eventually(t, func() bool { return count(t, pool, "outbox_parked") == 1 })
}

// A refusal was remembered until this relay published one of its kind: hours later, when others had, the first refusal parked a message.
func TestRelay_ARefusalOfLongAgoParksNothing(t *testing.T) {
	t.Parallel()
	pool := open(t)
	add(t, pool, outbox.Entry{Message: confirmed(uuid.New())})
	refusing := &refusals{err: refuse(0), times: 3}
	relay := newRelay(t, pool, refusing, outbox.Options{})
	relay.SetGrace(time.Millisecond) // each pause is longer
	relay.SetRefusalKept(0)
	background(t, relay.Run)
	eventually(t, func() bool { return refusing.count("shop.order.confirmed") == 1 })
	emptied(t, pool)
	if n := count(t, pool, "outbox_parked"); n != 0 {
		t.Errorf("%d messages are parked", n)
	}
}

// A nack, a time-out and a broker that is away are not about a message.
func TestRelay_WhatIsOnlyUnconfirmedIsNeverParked(t *testing.T) {
	t.Parallel()
	for _, err := range []error{messaging.ErrUnconfirmed, messaging.ErrBlocked, messaging.ErrNotConnected, fmt.Errorf("%w: no exchange", messaging.ErrUnroutable)} {
		pool := open(t)
		add(t, pool, outbox.Entry{Message: confirmed(uuid.New())})
		failing := &refusals{err: err, times: 5}
		relay := newRelay(t, pool, failing, outbox.Options{})
		relay.SetGrace(0)
		background(t, relay.Run)
		eventually(t, func() bool { return failing.count("shop.order.confirmed") == 1 })
		emptied(t, pool)
		if n := count(t, pool, "outbox_parked"); n != 0 {
			t.Errorf("%v: %d messages are parked", err, n)
		}
	}
}

// refusals is a sender that refuses messages of one key, or fails a few times.
type refusals struct {
	key   string
	err   error
	times int

	mu   sync.Mutex
	sent []string
}

func (r *refusals) Send(_ context.Context, messages []messaging.Outgoing) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.times > 0 && len(messages) > 0 {
		r.times--
		return r.err
	}
	for i, m := range messages {
		if m.RoutingKey == r.key {
			return refuse(i)
		}
		r.sent = append(r.sent, m.RoutingKey)
	}
	return nil
}

// refuse returns the error about the message at i, behind which nothing was sent.
func refuse(i int) error {
	return &messaging.RefusedError{Refused: []messaging.Refusal{{Index: i, Cause: messaging.ErrUnroutable}}, Done: i + 1}
}

func (r *refusals) count(key string) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, sent := range r.sent {
		if sent == key {
			n++
		}
	}
	return n
}

// emptied waits until the outbox is empty.
func emptied(t *testing.T, pool *sqlx.DB) {
	t.Helper()
	eventually(t, func() bool { return count(t, pool, "outbox") == 0 })
}

func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(time.Minute); !ok(); {
		select {
		case <-deadline:
			t.Fatal("it has not happened within a minute")
		case <-tick.C:
		}
	}
}

func bind(t *testing.T, broker *brokertest.Broker, queue, key string) {
	t.Helper()
	conn, err := amqp.Dial(broker.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	ch, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	if err := ch.QueueBind(queue, key, "shop.topic", false, nil); err != nil {
		t.Fatal(err)
	}
}

func gauge64(t *testing.T, reader metric.Reader, name string) int64 {
	t.Helper()
	var all metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &all); err != nil {
		t.Fatal(err)
	}
	for _, scope := range all.ScopeMetrics {
		for _, m := range scope.Metrics {
			if data, ok := m.Data.(metricdata.Gauge[int64]); ok && m.Name == name {
				return data.DataPoints[0].Value
			}
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

// lines is a log that tests read while it is written.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}
