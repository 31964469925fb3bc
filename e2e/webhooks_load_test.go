//go:build webhooks

package e2e

import (
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

// defaultDeliveries is how many deliveries there are unless WEBHOOK_DELIVERIES says otherwise.
const defaultDeliveries = 100_000

// badReceiver is a receiver of webhooks that misbehaves in one way, and records what it has accepted.
type badReceiver struct {
	name   string
	behave func(w http.ResponseWriter, random *rand.Rand) (accepted bool)
	verify *standardwebhooks.Webhook

	mu       sync.Mutex
	random   *rand.Rand
	attempts int
	accepted []string // the ids of events by when they were accepted for the first time
	times    map[string]int
	wrong    []string // what was not signed as it must be
	server   *http.Server
	addr     string
}

func accept(http.ResponseWriter, *rand.Rand) bool { return true }

// refusing responds to so many of 100 requests with a status.
func refusing(percent, status int, header ...string) func(http.ResponseWriter, *rand.Rand) bool {
	return func(w http.ResponseWriter, random *rand.Rand) bool {
		if random.IntN(100) >= percent {
			return true
		}
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(status)
		return false
	}
}

// behaviours of the receivers. What takes time is done outside the lock: see ServeHTTP.
func behaviours() map[string]func(http.ResponseWriter, *rand.Rand) bool {
	return map[string]func(http.ResponseWriter, *rand.Rand) bool{
		"quick": accept, "quick too": accept, "restarts": accept, "late": accept, "hangs": accept,
		"fails":                  refusing(20, http.StatusInternalServerError),
		"refuses":                refusing(5, http.StatusBadRequest),
		"is busy":                refusing(2, http.StatusServiceUnavailable, "Retry-After", "1"),
		"limits the rate":        refusing(2, http.StatusTooManyRequests),
		"redirects now and then": refusing(5, http.StatusFound, "Location", "https://elsewhere.example/"),
	}
}

func (v *badReceiver) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // the sender was killed
	}
	v.mu.Lock()
	wait := v.wait()
	v.mu.Unlock()
	select {
	case <-time.After(wait):
	case <-r.Context().Done(): // it has not waited: it does not know of an answer
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.attempts++
	if err := v.verify.Verify(body, r.Header); err != nil {
		v.wrong = append(v.wrong, fmt.Sprintf("%v: %s", err, body))
	}
	if !v.behave(w, v.random) {
		return
	}
	id := r.Header.Get("webhook-id")
	if v.times[id]++; v.times[id] == 1 {
		v.accepted = append(v.accepted, id)
	}
}

// wait is how long the receiver takes: the services of the tests wait for 2 s.
func (v *badReceiver) wait() time.Duration {
	switch {
	case v.name == "late":
		return time.Duration(20+v.random.IntN(80)) * time.Millisecond
	case v.name == "hangs" && v.random.IntN(500) == 0:
		return time.Minute
	}
	return 0
}

func (v *badReceiver) listen(t *testing.T) {
	t.Helper()
	lis, err := net.Listen("tcp", v.addr)
	if err != nil {
		t.Error(err)
		return
	}
	server := &http.Server{Handler: v, ReadHeaderTimeout: time.Minute}
	v.mu.Lock()
	v.server = server
	v.mu.Unlock()
	go func() { _ = server.Serve(lis) }() // until it is closed
}

func (v *badReceiver) close() {
	v.mu.Lock()
	defer v.mu.Unlock()
	_ = v.server.Close()
}

// missing is how many of the events it has not accepted yet.
func (v *badReceiver) missing(events []loggedEvent) (n int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, e := range events {
		if v.times[e.MessageID] == 0 {
			n++
		}
	}
	return n
}

type loggedEvent struct{ MessageID, OrderID string }

// check compares what the receiver accepted with the log.
func (v *badReceiver) check(t *testing.T, events []loggedEvent) (repeated int) {
	t.Helper()
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.wrong) > 0 {
		t.Errorf("%s: %d deliveries are not signed as they must be, the first: %s", v.name, len(v.wrong), v.wrong[0])
	}
	if len(v.accepted) != len(events) {
		t.Errorf("%s: %d events were accepted, %d are logged", v.name, len(v.accepted), len(events))
	}
	place := map[string]int{}
	for i, id := range v.accepted {
		place[id] = i
	}
	last := map[string]loggedEvent{}
	for _, e := range events { // in the order of the log
		if before, ok := last[e.OrderID]; ok && place[before.MessageID] > place[e.MessageID] {
			t.Errorf("%s: of order %s event %s was accepted before %s, which is before it in the log", v.name, e.OrderID, e.MessageID, before.MessageID)
		}
		last[e.OrderID] = e
	}
	for _, n := range v.times {
		repeated += n - 1
	}
	return repeated
}

// TestWebhooks_EveryEventIsDeliveredThoughReceiversFailAndTheServiceIsKilled delivers the events of orders to ten receivers, most of
// which misbehave, while the replicas of the service are killed at each of its crash points in turn. WEBHOOK_DELIVERIES says how
// many deliveries there are.
func TestWebhooks_EveryEventIsDeliveredThoughReceiversFailAndTheServiceIsKilled(t *testing.T) {
	t.Parallel()
	deliveries := defaultDeliveries
	if given := os.Getenv("WEBHOOK_DELIVERIES"); given != "" {
		var err error
		if deliveries, err = strconv.Atoi(given); err != nil {
			t.Fatalf("WEBHOOK_DELIVERIES: %v", err)
		}
	}
	f := newDeployment(t, deploymentOptions{replicas: map[string]int{"webhooks": 2}})
	for _, r := range f.replicas["webhooks"] {
		r.env = append(r.env, "WEBHOOK_FIRST_RETRY=100ms")
	}
	f.up(t)
	receivers := f.badReceivers(t)
	orders := deliveries / len(receivers) / 2 // placed and decided, and some are cancelled
	limit := testTimeout + time.Duration(deliveries)*10*time.Millisecond

	begin := time.Now()
	load := f.load(t, orders)
	restarts, stop := make(chan int), make(chan struct{})
	go func() { restarts <- receivers["restarts"].restart(t, stop) }()

	var events []loggedEvent
	undelivered := func() error {
		events = f.eventsOfOrders(t)
		if len(events) < 2*orders {
			return fmt.Errorf("%d events of %d orders are logged", len(events), orders)
		}
		for name, v := range receivers {
			if n := v.missing(events); n > 0 {
				return fmt.Errorf("%d of %d events are not delivered to the receiver that %s", n, len(events), name)
			}
		}
		return nil
	}
	crashes := f.killWebhooks(t, begin.Add(limit), undelivered)
	for _, r := range f.replicas["webhooks"] {
		r.waitReady(t)
	}
	took := time.Since(begin)
	close(stop)
	attempts, repeated := 0, 0
	for _, v := range receivers {
		repeated += v.check(t, events)
		v.mu.Lock()
		attempts += v.attempts
		v.mu.Unlock()
	}
	if len(crashes) != 4 {
		t.Errorf("the service was killed at %v only: take more deliveries", crashes)
	}
	t.Logf("%d deliveries of %d events to %d receivers in %s, %.0f a second: %d attempts, %d accepted more than once; killed: %v; restarts of a receiver: %d",
		len(events)*len(receivers), len(events), len(receivers), took.Round(time.Millisecond), float64(len(events)*len(receivers))/took.Seconds(),
		attempts, repeated, crashes, <-restarts)
	load.Wait()
	f.comesToRest(t, orders)
}

// eventsOfOrders are those of the log, in its order.
func (f *deployment) eventsOfOrders(t *testing.T) (events []loggedEvent) {
	t.Helper()
	for _, row := range texts(t, f.openDatabase(t), `
		SELECT message_id || ' ' || order_id FROM logging.event_log WHERE routing_key LIKE 'shop.order.%' ORDER BY id`) {
		message, order, _ := strings.Cut(row, " ")
		events = append(events, loggedEvent{message, order})
	}
	return events
}

func (f *deployment) badReceivers(t *testing.T) map[string]*badReceiver {
	t.Helper()
	receivers := map[string]*badReceiver{}
	for i, name := range slices.Sorted(maps.Keys(behaviours())) {
		v := &badReceiver{name: name, behave: behaviours()[name], times: map[string]int{}, addr: freeAddrOf(t, "127.0.0.1"),
			random: rand.New(rand.NewPCG(uint64(i), 1))} //nolint:gosec // no secret
		_, secret := f.createWebhook(t, "http://"+v.addr)
		var err error
		if v.verify, err = standardwebhooks.NewWebhook(secret); err != nil {
			t.Fatal(err)
		}
		v.listen(t)
		t.Cleanup(v.close)
		receivers[name] = v
	}
	return receivers
}

// killWebhooks has the service kill itself at each crash point in turn, with pauses in which both replicas are at work, until
// nothing is undelivered. It returns how often each point was reached.
func (f *deployment) killWebhooks(t *testing.T, deadline time.Time, undelivered func() error) map[string]int {
	t.Helper()
	crashes := map[string]int{}
	points := []string{"webhooks.uncommitted", "webhooks.fanned-out", "webhooks.sent", "webhooks.recorded"}
	random := rand.New(rand.NewPCG(2, 2)) //nolint:gosec // no secret
	victim, other := f.replicas["webhooks"][0], f.replicas["webhooks"][1]
	for i := 0; ; i++ {
		point := points[i%len(points)]
		victim.kill()
		other.kill() // so that all the work is the victim's, once the leases have ended
		victim.start(t, fmt.Sprintf("SHOP_CRASH_AT=%s:%d", point, 1+random.IntN(3)))
		select {
		case <-victim.exited:
			crashes[point]++
		case <-time.After(20 * time.Second): // there was too little to do
		}
		victim.kill()
		victim.start(t)
		other.start(t)
		var err error
		for pause := time.Now().Add(10 * time.Second); time.Now().Before(pause); <-time.After(time.Second) {
			if err = undelivered(); err == nil {
				return crashes
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("in time: %v; killed: %v", err, crashes)
		}
	}
}

// restart stops the receiver and starts it again until stop is closed, and returns how often.
func (v *badReceiver) restart(t *testing.T, stop <-chan struct{}) (times int) {
	for {
		select {
		case <-time.After(2 * time.Second):
		case <-stop:
			return times
		}
		v.close()
		select {
		case <-time.After(200 * time.Millisecond):
		case <-stop:
		}
		v.listen(t)
		times++
	}
}
