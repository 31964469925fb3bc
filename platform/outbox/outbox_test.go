package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/proto"

	eventsv1 "shop.example/gen/shop/events/v1"
	"shop.example/platform/contract"
	"shop.example/platform/messaging"
	"shop.example/platform/outbox"
	"shop.example/platform/postgres"
	"shop.example/platform/testkit/postgrestest"
)

var database = postgrestest.Statements("CREATE SCHEMA app; SET search_path = app; " + outbox.Schema)

func TestAdd_StoresWhatTheBrokerGetsWithTheTraceOfEachEntry(t *testing.T) {
	t.Parallel()
	pool := open(t)
	own, parent := spanContext(1), spanContext(2)
	ctx := trace.ContextWithSpanContext(t.Context(), parent)
	first, second := confirmed(uuid.New()), confirmed(uuid.New())
	addIn(t, ctx, pool, outbox.Entry{Message: first, Trace: own}, outbox.Entry{Message: second})

	r := &recorder{}
	runUntil(t, pool, r, 2)
	for i, want := range []struct {
		event *eventsv1.OrderConfirmed
		span  trace.SpanContext
	}{{first, own}, {second, parent}} {
		body, err := proto.Marshal(want.event)
		if err != nil {
			t.Fatal(err)
		}
		got := r.sent[i]
		if age := time.Since(got.Timestamp); age < 0 || age > time.Minute {
			t.Errorf("timestamp is %s old", age)
		}
		got.Timestamp = time.Time{}
		diff := cmp.Diff(messaging.Outgoing{
			Exchange: "shop.topic", RoutingKey: "shop.order.confirmed", Type: "shop.events.v1.OrderConfirmed",
			MessageID: contract.MessageID(want.event).String(), CorrelationID: want.event.GetOrderId(),
			TraceParent: fmt.Sprintf("00-%s-%s-01", want.span.TraceID(), want.span.SpanID()), Body: body,
		}, got)
		if diff != "" {
			t.Errorf("message %d (-want +got):\n%s", i, diff)
		}
	}
}

func TestAdd_WhatIsNoEventIsAnError(t *testing.T) {
	t.Parallel()
	pool := open(t)
	err := postgres.InTx(t.Context(), pool, func(tx *sqlx.Tx) error {
		return outbox.Add(t.Context(), tx, []outbox.Entry{{Message: confirmed(uuid.New())}, {Message: &eventsv1.PricedLine{}}})
	})
	if err == nil || !strings.Contains(err.Error(), "shop.events.v1.PricedLine is not an event") {
		t.Errorf("Add = %v, want it to name the message", err)
	}
	if n := count(t, pool, "outbox"); n != 0 {
		t.Errorf("%d messages in the outbox, want none", n)
	}
}

func TestClaim_IsFreshOnce(t *testing.T) {
	t.Parallel()
	pool := open(t)
	a, b, c := uuid.New(), uuid.New(), uuid.New()
	claim := func(ids ...uuid.UUID) (fresh []bool) {
		err := postgres.InTx(t.Context(), pool, func(tx *sqlx.Tx) (err error) {
			fresh, err = outbox.Claim(t.Context(), tx, ids)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return fresh
	}
	if diff := cmp.Diff([]bool{true, true, false}, claim(b, a, b)); diff != "" {
		t.Errorf("new ids, one of them twice (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]bool{false, true, false}, claim(a, c, b)); diff != "" {
		t.Errorf("one new id among known ones (-want +got):\n%s", diff)
	}
	if fresh := claim(); len(fresh) != 0 {
		t.Errorf("no ids: %v", fresh)
	}
}

func TestClaim_IsUndoneByARollback(t *testing.T) {
	t.Parallel()
	pool := open(t)
	id := []uuid.UUID{uuid.New()}
	for range 2 {
		failed := errors.New("handler failed")
		err := postgres.InTx(t.Context(), pool, func(tx *sqlx.Tx) error {
			fresh, err := outbox.Claim(t.Context(), tx, id)
			if err != nil || !fresh[0] {
				t.Errorf("Claim = %v, %v; want it fresh", fresh, err)
			}
			return failed
		})
		if !errors.Is(err, failed) {
			t.Fatal(err)
		}
	}
}

func TestClaim_ConsumersThatGetTheSameMessagesAtOnceShareThemWithoutDeadlock(t *testing.T) {
	t.Parallel()
	pool := open(t)
	const n = 3000 // enough for the transactions to overlap
	ids := make([]uuid.UUID, n)
	backwards := make([]uuid.UUID, n)
	for i := range n {
		ids[i] = uuid.New()
		backwards[n-1-i] = ids[i]
	}
	var (
		mu    sync.Mutex
		fresh = map[uuid.UUID]int{}
		wg    sync.WaitGroup
		begun sync.WaitGroup
	)
	begun.Add(8)
	for i := range 8 {
		order := ids
		if i%2 == 1 {
			order = backwards
		}
		wg.Go(func() {
			err := postgres.InTx(t.Context(), pool, func(tx *sqlx.Tx) error {
				begun.Done()
				begun.Wait()
				flags, err := outbox.Claim(t.Context(), tx, order)
				mu.Lock()
				defer mu.Unlock()
				for i, f := range flags {
					if f {
						fresh[order[i]]++
					}
				}
				return err
			})
			if err != nil {
				t.Errorf("Claim: %v", err)
			}
		})
	}
	wg.Wait()
	for _, id := range ids {
		if fresh[id] != 1 {
			t.Errorf("message %s was fresh %d times, want once", id, fresh[id])
		}
	}
}

func TestRelay_PublishesInTheOrderOfCommitsAndEmptiesTheOutbox(t *testing.T) {
	t.Parallel()
	pool := open(t)
	var want []string
	for range 5 {
		entries := make([]outbox.Entry, 7)
		for i := range entries {
			m := confirmed(uuid.New())
			entries[i] = outbox.Entry{Message: m}
			want = append(want, m.GetOrderId())
		}
		add(t, pool, entries...)
	}
	r := &recorder{}
	runUntil(t, pool, r, len(want))
	if diff := cmp.Diff(want, r.orders()); diff != "" {
		t.Errorf("published (-want +got):\n%s", diff)
	}
	if r.calls < 4 {
		t.Errorf("%d rounds for 35 messages, want batches of 10", r.calls)
	}
	if n := count(t, pool, "outbox"); n != 0 {
		t.Errorf("%d messages left in the outbox", n)
	}
}

// A round is held in memory: what it takes of the largest messages must not be what it takes of the usual ones.
func TestRelay_ARoundIsBoundedInBytes(t *testing.T) {
	t.Parallel()
	pool := open(t)
	const large, small, size, bound = 23, 40, 900_000, 4 << 20
	var want []string
	for i := range large + small {
		m := confirmed(uuid.New())
		if i < large {
			m.Lines = []*eventsv1.PricedLine{{ProductName: strings.Repeat("x", size)}}
		}
		want = append(want, m.GetOrderId())
		add(t, pool, outbox.Entry{Message: m})
	}
	r := &recorder{}
	begin := time.Now()
	runUntil(t, pool, r, len(want))
	took := time.Since(begin)
	if diff := cmp.Diff(want, r.orders()); diff != "" {
		t.Errorf("published (-want +got):\n%s", diff)
	}
	for sent, i := r.sent, 0; i < len(r.sizes); i++ {
		bytes := 0
		for _, m := range sent[:r.sizes[i]] {
			bytes += len(m.Body)
		}
		if last := len(sent[r.sizes[i]-1].Body); bytes-last > bound {
			t.Errorf("round %d has %d bytes before its last message", i, bytes-last)
		}
		sent = sent[r.sizes[i]:]
	}
	// It goes on at once: what is left is no reason to wait for the next look, a second later.
	if rounds := len(r.sizes); rounds < 5+4 || took > time.Duration(rounds-1)*time.Second {
		t.Errorf("%d rounds took %s", rounds, took)
	}
}

func TestAdd_WhatIsTooLargeIsRefusedForGood(t *testing.T) {
	t.Parallel()
	pool := open(t)
	m := confirmed(uuid.New())
	m.Lines = []*eventsv1.PricedLine{{ProductName: strings.Repeat("x", messaging.MaxEvent)}}
	err := postgres.InTx(t.Context(), pool, func(tx *sqlx.Tx) error {
		return outbox.Add(t.Context(), tx, []outbox.Entry{{Message: m}})
	})
	if !errors.Is(err, messaging.ErrTooLarge) {
		t.Errorf("Add = %v, want ErrTooLarge", err)
	}
}

func TestRelay_IsWokenByACommitAndLooksByItselfToo(t *testing.T) {
	t.Parallel()
	pool := open(t)
	r := &recorder{arrived: make(chan int, 10)}
	relay := start(t, pool, r)
	for _, wake := range []bool{true, false, true} {
		add(t, pool, outbox.Entry{Message: confirmed(uuid.New())})
		if wake {
			relay.Wake()
			relay.Wake() // never blocks
			relay.Wake()
		}
		receive(t, r.arrived)
	}
}

func TestRelay_AnOutageOfTheBrokerDelaysAndKeepsTheOrder(t *testing.T) {
	t.Parallel()
	pool := open(t)
	var want []string
	for range 20 {
		m := confirmed(uuid.New())
		want = append(want, m.GetOrderId())
		add(t, pool, outbox.Entry{Message: m})
	}
	r := &recorder{fail: func(call int) error {
		if call == 1 || call == 3 || call == 4 {
			return errors.New("no broker")
		}
		return nil
	}}
	runUntil(t, pool, r, len(want))
	if diff := cmp.Diff(want, r.orders()); diff != "" {
		t.Errorf("published (-want +got):\n%s", diff)
	}
}

func TestRelay_ALostCommitPublishesAgain(t *testing.T) {
	t.Parallel()
	url := database.New(t)
	pool, killer := openURL(t, url), openURL(t, url)
	m := confirmed(uuid.New())
	add(t, pool, outbox.Entry{Message: m})
	r := &recorder{after: func(call int) {
		if call == 1 {
			killer.MustExec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction'`)
		}
	}}
	runUntil(t, pool, r, 2)
	if diff := cmp.Diff([]string{m.GetOrderId(), m.GetOrderId()}, r.orders()); diff != "" {
		t.Errorf("published (-want +got):\n%s", diff)
	}
	if n := count(t, pool, "outbox"); n != 0 {
		t.Errorf("%d messages left in the outbox", n)
	}
}

func TestRelay_ReplicasKeepTheOrderOfEachOrderAndPublishOnce(t *testing.T) {
	t.Parallel()
	url := database.New(t)
	pool := openURL(t, url)
	r := &recorder{arrived: make(chan int, 10_000)}
	var relays []*outbox.Relay
	for range 3 {
		relays = append(relays, start(t, openURL(t, url), r))
	}
	const writers, events = 4, 50
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for version := range events {
				add(t, pool, outbox.Entry{Message: &eventsv1.StockChanged{ProductId: int32(w + 1), Version: int64(version + 1)}})
				relays[(w+version)%len(relays)].Wake()
			}
		})
	}
	wg.Wait()
	for n := 0; n < writers*events; {
		n += receive(t, r.arrived)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	last := map[int32]int64{}
	for _, sent := range r.sent {
		var m eventsv1.StockChanged
		if err := proto.Unmarshal(sent.Body, &m); err != nil {
			t.Fatal(err)
		}
		if m.GetVersion() != last[m.GetProductId()]+1 {
			t.Errorf("product %d: version %d after %d", m.GetProductId(), m.GetVersion(), last[m.GetProductId()])
		}
		last[m.GetProductId()] = m.GetVersion()
	}
}

func TestRelay_WaitsWhileAnotherReplicasRelayWorks(t *testing.T) {
	t.Parallel()
	pool := open(t)
	add(t, pool, outbox.Entry{Message: confirmed(uuid.New())})
	other := &recorder{during: func(ctx context.Context) {
		// Meanwhile a second relay starts, and is seen to wait.
		r := &recorder{}
		started := start(t, pool, r)
		started.Wake()
		for waiting := 0; waiting == 0 && ctx.Err() == nil; {
			if err := pool.GetContext(ctx, &waiting, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"); err != nil {
				t.Error(err)
			}
		}
		if len(r.orders()) != 0 || ctx.Err() != nil {
			t.Errorf("the second relay published %d messages, want it to wait (%v)", len(r.orders()), ctx.Err())
		}
	}}
	runUntil(t, pool, other, 1)
}

func TestRelay_AShutdownFinishesTheRoundItIsIn(t *testing.T) {
	t.Parallel()
	pool := open(t)
	add(t, pool, outbox.Entry{Message: confirmed(uuid.New())})
	ctx, cancel := context.WithCancel(t.Context())
	r := &recorder{}
	r.during = func(sendCtx context.Context) {
		cancel()
		if sendCtx.Err() != nil {
			t.Error("publishing was cancelled with the relay")
		}
	}
	if err := newRelay(t, pool, r, outbox.Options{}).Run(ctx); err != nil {
		t.Errorf("Run = %v", err)
	}
	if n := count(t, pool, "outbox"); n != 0 || len(r.sent) != 1 {
		t.Errorf("%d messages left, %d published; want 0 and 1", n, len(r.sent))
	}
}

func TestRelay_IsNotReadyWhileTheOldestMessageIsOld(t *testing.T) {
	t.Parallel()
	pool := open(t)
	reader := metric.NewManualReader()
	relay := newRelay(t, pool, &recorder{}, outbox.Options{Meter: metric.NewMeterProvider(metric.WithReader(reader))})
	if age, err := relay.Age(t.Context()); err != nil || age != 0 {
		t.Errorf("Age of an empty outbox = %v, %v", age, err)
	}
	add(t, pool, outbox.Entry{Message: confirmed(uuid.New())}, outbox.Entry{Message: confirmed(uuid.New())})
	if err := relay.Ready(t.Context()); err != nil {
		t.Errorf("Ready with a new message = %v", err)
	}
	pool.MustExec("UPDATE outbox SET created_at = now() - interval '100 s' WHERE id = (SELECT min(id) FROM outbox)")
	if err := relay.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "1m40s") {
		t.Errorf("Ready with a message that is 100 s old = %v", err)
	}
	if err := relay.Sample(t.Context()); err != nil {
		t.Fatal(err)
	}
	if age := gauge(t, reader, "outbox.oldest.age"); age < 100 || age > 160 {
		t.Errorf("outbox.oldest.age = %v, want 100", age)
	}
}

// The inbox of a service that only consumes was cleaned by nobody.
func TestKeepInboxClean_ForgetsWithoutARelayUntilItsContextEnds(t *testing.T) {
	t.Parallel()
	pool := open(t)
	if _, err := pool.ExecContext(t.Context(), `
		INSERT INTO inbox (message_id, received_at) VALUES (gen_random_uuid(), now() - interval '8 days'), (gen_random_uuid(), now())`); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- outbox.KeepInboxClean(ctx, pool, 7*24*time.Hour, slog.New(slog.DiscardHandler))
	}()
	eventually(t, func() bool { return count(t, pool, "inbox") == 1 })
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestDeleteOlder_ForgetsWhatIsOlderThanTheRetention(t *testing.T) {
	t.Parallel()
	pool := open(t)
	pool.MustExec(`INSERT INTO inbox SELECT gen_random_uuid(), now() - interval '8 days' FROM generate_series(1, 12000)`)
	pool.MustExec(`INSERT INTO inbox SELECT gen_random_uuid(), now() - interval '6 days' FROM generate_series(1, 10)`)
	var (
		mu    sync.Mutex
		total int64
		wg    sync.WaitGroup
	)
	for range 3 { // replicas that clean together
		wg.Go(func() {
			n, err := postgres.DeleteOlder(t.Context(), pool, "inbox", "received_at", 7*24*time.Hour)
			if err != nil {
				t.Errorf("DeleteOlder: %v", err)
			}
			mu.Lock()
			defer mu.Unlock()
			total += n
		})
	}
	wg.Wait()
	if n := count(t, pool, "inbox"); total != 12000 || n != 10 {
		t.Errorf("forgot %d and kept %d, want 12000 and 10", total, n)
	}
}

// recorder is a broker that keeps what it confirms, and fails as told.
type recorder struct {
	fail    func(call int) error      // before publishing
	after   func(call int)            // after publishing
	during  func(ctx context.Context) // while publishing
	arrived chan int                  // how many each call published, if it is not nil

	mu    sync.Mutex
	calls int
	sent  []messaging.Outgoing
	sizes []int // how many messages each call that published had
}

func (r *recorder) Send(ctx context.Context, messages []messaging.Outgoing) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls++
	if r.fail != nil {
		if err := r.fail(r.calls); err != nil {
			return err
		}
	}
	if r.during != nil {
		r.during(ctx)
	}
	r.sent = append(r.sent, messages...)
	r.sizes = append(r.sizes, len(messages))
	if r.after != nil {
		r.after(r.calls)
	}
	if r.arrived != nil {
		r.arrived <- len(messages)
	}
	return nil
}

func (r *recorder) orders() (ids []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, m := range r.sent {
		ids = append(ids, m.CorrelationID)
	}
	return ids
}

// runUntil runs a relay until it has published n messages, and waits for its end.
func runUntil(t *testing.T, pool *sqlx.DB, r *recorder, n int) {
	t.Helper()
	r.arrived = make(chan int, 1000)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	relay := newRelay(t, pool, r, outbox.Options{Batch: 10})
	go func() { done <- relay.Run(ctx) }()
	for seen := 0; seen < n; {
		seen += receive(t, r.arrived)
	}
	cancel()
	if err := receive(t, done); err != nil {
		t.Errorf("Run = %v", err)
	}
}

// start runs a relay until the test ends.
func start(t *testing.T, pool *sqlx.DB, r *recorder) *outbox.Relay {
	t.Helper()
	relay := newRelay(t, pool, r, outbox.Options{Batch: 10})
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- relay.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := receive(t, done); err != nil {
			t.Errorf("Run = %v", err)
		}
	})
	return relay
}

// receive waits for what has to come.
func receive[T any](t testing.TB, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(time.Minute):
		t.Fatal("nothing came within a minute")
	}
	return v
}

func newRelay(t testing.TB, pool *sqlx.DB, sender outbox.Sender, o outbox.Options) *outbox.Relay {
	t.Helper()
	relay, err := outbox.NewRelay(pool, sender, o)
	if err != nil {
		t.Fatal(err)
	}
	return relay
}

func confirmed(order uuid.UUID) *eventsv1.OrderConfirmed {
	return &eventsv1.OrderConfirmed{OrderId: order.String(), TotalItems: 7}
}

func add(t testing.TB, pool *sqlx.DB, entries ...outbox.Entry) {
	t.Helper()
	addIn(t, t.Context(), pool, entries...)
}

func addIn(t testing.TB, ctx context.Context, pool *sqlx.DB, entries ...outbox.Entry) {
	t.Helper()
	err := postgres.InTx(ctx, pool, func(tx *sqlx.Tx) error { return outbox.Add(ctx, tx, entries) })
	if err != nil {
		t.Error(err)
	}
}

func count(t *testing.T, pool *sqlx.DB, table string) (n int) {
	t.Helper()
	if err := pool.Get(&n, "SELECT count(*) FROM "+table); err != nil {
		t.Fatal(err)
	}
	return n
}

func open(t testing.TB) *sqlx.DB {
	t.Helper()
	return openURL(t, database.New(t))
}

func openURL(t testing.TB, url string) *sqlx.DB {
	t.Helper()
	pool, err := postgres.Open(t.Context(), url, "app", postgres.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pool.Close() })
	return pool
}

func spanContext(n byte) trace.SpanContext {
	return trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{n}, SpanID: trace.SpanID{n}, TraceFlags: trace.FlagsSampled})
}

func gauge(t *testing.T, reader metric.Reader, name string) float64 {
	t.Helper()
	var all metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &all); err != nil {
		t.Fatal(err)
	}
	for _, scope := range all.ScopeMetrics {
		for _, m := range scope.Metrics {
			if data, ok := m.Data.(metricdata.Gauge[float64]); ok && m.Name == name {
				return data.DataPoints[0].Value
			}
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}
