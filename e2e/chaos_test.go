package e2e

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"shop.example/platform/testkit/brokertest"
	"shop.example/platform/testkit/netproxy"
)

const (
	// shortChaos is how long the chaos lasts unless CHAOS_DURATION says otherwise.
	shortChaos = 20 * time.Second
	// callTimeout bounds a call to a gateway, which may be frozen.
	callTimeout = 2 * time.Second
)

// TestChaos_NoAcceptedOrderIsLost places orders while services, and the connections to the servers, fail at random.
// CHAOS_SEED repeats a schedule, CHAOS_DURATION sets its length; from a minute on the servers themselves fail too.
func TestChaos_NoAcceptedOrderIsLost(t *testing.T) {
	t.Parallel()
	duration, seed := chaosSettings(t)
	f := newDeployment(t, deploymentOptions{replicas: map[string]int{"gateway": 2, "order": 2, "inventory": 2, "logging": 2, "webhooks": 2}})
	c := &chaos{deployment: f, away: map[*replica]bool{}}
	if duration >= time.Minute { // they take a while to start
		c.own = newServers(t)
		f.broker, f.amqp, f.database = &brokertest.Broker{URL: c.own.amqp}, nil, c.own.makeDatabase(t)
	}
	c.broker, c.database = f.proxies(t)
	f.up(t)
	registerReceiver(t, f)
	schedule := c.schedule(duration, seed)
	t.Logf("CHAOS_SEED=%d CHAOS_DURATION=%s: %d faults", seed, duration, len(schedule)/2)

	tr := f.mixedTraffic(t, f.unlimitedStock(t), f.stockLargest(t, 1_000_000).byID, callTimeout, f.gateways()...)
	begin := time.Now()
	for _, step := range schedule {
		<-time.After(time.Until(begin.Add(step.at)))
		c.supervise(t)
		step.do(t)
	}
	eventually(t, func() error { return c.recovered(t) })
	tr.flows(t, 20)
	refused, longest := tr.figures()
	took := time.Since(begin)
	orders := tr.end(t)
	f.decidesWithin(t, orders, resendLimit)
	c.discardPoison(t)
	f.receivesEverything(t, orders, resendLimit)
	f.comesToRest(t, orders)
	tr.isDecided(t, &f.shop)

	lost := texts(t, f.openDatabase(t), `SELECT coalesce(sum(sent), 0)::text FROM logging.unhandled_event`)
	t.Logf("events that were lost with the topology and sent again: %s", lost[0])
	t.Logf("%d orders accepted in %s; faults: %s; services that gave up their start and were started again: %d; "+
		"calls that had to be repeated: %v; longest time without an accepted order: %s",
		orders, took.Round(time.Second), count(schedule), c.gaveUp, refused, longest.Round(time.Millisecond))
}

// chaos is a deployment with the faults injected into it. All of them are injected from the test's goroutine.
type chaos struct {
	*deployment
	broker, database *netproxy.Proxy
	own              *servers          // that may be killed; nil if they belong to others, too
	away             map[*replica]bool // killed or stopped, to be started again
	gaveUp           int
	pace             time.Duration // so many times rarer are the faults; 0 is 1
	poison           int           // messages that nobody can read, put into the order queue
	spilled          bool          // a queue that such a message may have been in was deleted
}

// supervise restarts services that have ended by themselves, as an orchestrator does: a service that finds no database at
// its start gives up.
func (c *chaos) supervise(t *testing.T) {
	t.Helper()
	for _, name := range services {
		for _, r := range c.replicas[name] {
			if c.away[r] || r.running() {
				continue
			}
			if code := r.cmd.ProcessState.ExitCode(); code != 1 {
				t.Errorf("%s ended: %s", r.name, r.cmd.ProcessState)
			}
			c.gaveUp++
			r.start(t)
		}
	}
}

// recovered returns an error that names a replica which is not ready.
func (c *chaos) recovered(t *testing.T) error {
	c.supervise(t)
	for _, name := range services {
		for _, r := range c.replicas[name] {
			if code, body, err := r.ask("/readyz"); err != nil || code != http.StatusOK {
				return fmt.Errorf("%s is not ready: %w %s", r.name, err, body)
			}
		}
	}
	return nil
}

func chaosSettings(t *testing.T) (duration time.Duration, seed uint64) {
	t.Helper()
	duration, seed = shortChaos, rand.Uint64() //nolint:gosec // no secret
	var err error
	if given := os.Getenv("CHAOS_DURATION"); given != "" {
		if duration, err = time.ParseDuration(given); err != nil {
			t.Fatalf("CHAOS_DURATION: %v", err)
		}
	}
	if given := os.Getenv("CHAOS_SEED"); given != "" {
		if seed, err = strconv.ParseUint(given, 10, 64); err != nil {
			t.Fatalf("CHAOS_SEED: %v", err)
		}
	}
	return duration, seed
}

// fault injects a fault and repairs it.
type fault struct {
	name       string
	longest    time.Duration // until it is mended
	begin, end func(*testing.T)
}

// step is the beginning or the end of a fault.
type step struct {
	at     time.Duration
	name   string   // of a fault that begins
	victim *replica // nil: a line, a server or the topology
	do     func(*testing.T)
}

// block makes the broker block publishers, as if it were short of memory. Meanwhile, after 1 s and after 10 s, the order
// queue gets a message that cannot be decoded, and cannot be published as a dead letter yet.
func (c *chaos) block(t *testing.T) {
	ch := c.openChannel(t)
	if err := ch.Confirm(false); err != nil {
		t.Fatal(err)
	}
	returned := ch.NotifyReturn(make(chan amqp.Return, 2)) // a queue that was just deleted takes nothing
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	for _, queue := range []string{"order.retry.1s", "order.retry.10s"} {
		confirm, err := ch.PublishWithDeferredConfirm("", queue, true, false,
			amqp.Publishing{MessageId: uuid.NewString(), DeliveryMode: amqp.Persistent, Body: []byte("poison")})
		if err != nil {
			t.Fatal(err)
		}
		if acked, err := confirm.WaitContext(ctx); err != nil || !acked {
			t.Fatalf("the broker did not take the message for %s: %v", queue, err)
		}
		c.poison++
	}
	c.poison -= len(returned)
	c.own.control(t, "set_vm_memory_high_watermark", "0")
}

func (c *chaos) unblock(t *testing.T) { c.own.control(t, "set_vm_memory_high_watermark", "0.25") }

// discardPoison waits until each message that block has published is a dead letter, once, and discards it. These messages
// did not pass the exchange and are not in the log, so they may be lost with a deleted queue.
func (c *chaos) discardPoison(t *testing.T) {
	t.Helper()
	var list struct {
		DeadLetters []struct{ ID, Reason string } `json:"dead_letters"`
	}
	ch := c.openChannel(t)
	discarded, idle := 0, 0
	eventually(t, func() error {
		a := c.get(t, "/v1/dead-letters?state=OPEN&page_size=1000")
		if a.code != http.StatusOK {
			return fmt.Errorf("listing dead letters: %d %s", a.code, a.body)
		}
		a.json(t, &list)
		for _, letter := range list.DeadLetters {
			if !strings.Contains(letter.Reason, `no message has the routing key "order.retry.`) {
				t.Errorf("a good message is a dead letter: %s", letter.Reason)
			}
			a := c.call(t, http.MethodPost, "/v1/dead-letters/"+letter.ID+":discard", "{}", "Authorization", "Bearer "+operatorToken)
			if a.code != http.StatusOK {
				return fmt.Errorf("discarding dead letter %s: %d %s", letter.ID, a.code, a.body)
			}
			discarded++
		}
		if idle++; len(list.DeadLetters) > 0 || emptyQueues(t, ch) != nil {
			idle = 0
		}
		if discarded != c.poison && (!c.spilled || discarded > c.poison || idle < 20) {
			return fmt.Errorf("%d dead letters of %d messages that nobody can read: %v", discarded, c.poison, list)
		}
		return nil
	})
}

// schedule has the faults of each victim one after the other, and those of different victims at the same time. The same
// seed gives the same schedule.
func (c *chaos) schedule(duration time.Duration, seed uint64) []step {
	const lineRests, serverRests, replicaRests, topologyRests = 6 * time.Second, 30 * time.Second, 12 * time.Second, 15 * time.Second
	var steps []step
	victims := uint64(0)
	add := func(rest time.Duration, victim *replica, faults []fault) {
		rest *= max(1, c.pace)
		random := rand.New(rand.NewPCG(seed, victims)) //nolint:gosec // it is to be repeatable
		upTo := func(d time.Duration) time.Duration { return time.Duration(random.Int64N(int64(d))) }
		victims++
		for at := upTo(rest); at < duration; at += rest/2 + upTo(rest) {
			fault := faults[random.IntN(len(faults))]
			steps = append(steps, step{at, fault.name, victim, fault.begin})
			at += 50*time.Millisecond + upTo(fault.longest)
			steps = append(steps, step{at, "", victim, fault.end})
		}
	}
	add(lineRests, nil, []fault{
		{"broker away", 3 * time.Second, cutOff(c.broker), restore(c.broker)},
		{"connections to the broker cut", time.Millisecond, cutOff(c.broker), restore(c.broker)},
	})
	add(lineRests, nil, []fault{
		{"database away", 3 * time.Second, cutOff(c.database), restore(c.database)},
		{"connections to the database cut", time.Millisecond, cutOff(c.database), restore(c.database)},
		{"database slow", 3 * time.Second, func(*testing.T) { c.database.Delay(200 * time.Millisecond) }, restore(c.database)},
	})
	if c.own != nil {
		add(serverRests, nil, []fault{
			{"broker killed", time.Second, func(t *testing.T) { c.own.kill(t, "rabbitmq") }, c.own.start},
			{"database killed", time.Second, func(t *testing.T) { c.own.kill(t, "postgres") }, c.own.start},
			{"both servers restarted", time.Millisecond, c.own.stop, c.own.start},
			{"database turned standby and promoted", 3 * time.Second, c.own.demote, c.own.promote},
			{"broker blocked, with poison in a queue", 12 * time.Second, c.block, c.unblock},
		})
	}
	add(topologyRests, nil, c.topologyFaults())
	for _, name := range services {
		for _, r := range c.replicas[name] {
			leave := func(signal syscall.Signal) func(*testing.T) {
				return func(t *testing.T) {
					if !r.end(signal) {
						t.Errorf("%s did not end within %s after SIGTERM", r.name, stopLimit)
					}
					c.away[r] = true
				}
			}
			back := func(t *testing.T) {
				delete(c.away, r)
				r.start(t)
			}
			add(replicaRests, r, []fault{
				{"service killed", 2 * time.Second, leave(syscall.SIGKILL), back},
				{"service restarted", time.Millisecond, leave(syscall.SIGTERM), back},
				{"service frozen", 3 * time.Second, r.send(syscall.SIGSTOP), r.send(syscall.SIGCONT)},
			})
		}
	}
	slices.SortStableFunc(steps, func(a, b step) int { return cmp.Compare(a.at, b.at) })
	return steps
}

// topologyFaults delete parts of the topology. A service declares its own queues again; if the services have no further rights
// the broker's administrator has to restore the rest.
func (c *chaos) topologyFaults() (faults []fault) {
	for _, d := range deletions {
		f := fault{"topology deleted: " + d.name, time.Millisecond, func(t *testing.T) { c.remove(t, d) }, func(*testing.T) {}}
		if d.provisioned {
			f.longest = 3 * time.Second
			f.end = func(t *testing.T) {
				if c.amqp != nil { // each service has a user of its own
					c.provision(t)
				}
			}
		}
		faults = append(faults, f)
	}
	return faults
}

// remove deletes a part of the topology, unless the broker is down or the part is already missing.
func (c *chaos) remove(t *testing.T, d deletion) {
	conn, err := amqp.DialConfig(c.deployment.broker.URL, amqp.Config{Dial: amqp.DefaultDial(time.Second)})
	if err != nil {
		t.Logf("%s cannot be deleted: %v", d.name, err)
		return
	}
	defer func() { _ = conn.CloseDeadline(time.Now().Add(time.Second)) }()
	ch, err := conn.Channel()
	if err == nil {
		err = d.do(ch)
	}
	if err != nil {
		t.Logf("%s was not deleted: %v", d.name, err)
	}
	c.spilled = c.spilled || c.poison > 0
}

// send sends a signal to a process that may have ended meanwhile.
func (r *replica) send(signal syscall.Signal) func(*testing.T) {
	return func(*testing.T) { _ = r.cmd.Process.Signal(signal) }
}

func count(schedule []step) string {
	kinds := map[string]int{}
	for _, s := range schedule {
		if s.name != "" {
			kinds[s.name]++
		}
	}
	var out []string
	for _, name := range slices.Sorted(maps.Keys(kinds)) {
		out = append(out, fmt.Sprintf("%d %s", kinds[name], name))
	}
	return strings.Join(out, ", ")
}

func cutOff(p *netproxy.Proxy) func(*testing.T) { return func(*testing.T) { p.Down() } }

func restore(p *netproxy.Proxy) func(*testing.T) { return func(t *testing.T) { p.Up(t) } }
