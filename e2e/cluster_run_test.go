//go:build cluster || clocks

package e2e

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"shop.example/platform/contract"
	"shop.example/platform/messaging/provision"
	"shop.example/platform/service"
)

const (
	clusterBrokers = 3
	// clusterCalm is how long orders are placed before a fault, and after it is mended.
	clusterCalm = 3 * time.Second
	// clusterFrozen is how long something stays frozen: longer than it takes anybody to notice.
	clusterFrozen = 20 * time.Second
	// clusterHeal is how long brokers may list a partition after all of them run: RabbitMQ needs some seconds to heal it.
	clusterHeal = 30 * time.Second
	// clusterNotice is how long whatever balances takes to notice what is ready: it asks so often.
	clusterNotice = 250 * time.Millisecond
	// clusterStopDelay is SHUTDOWN_DELAY.
	clusterStopDelay = time.Second
)

// clusterFault is a row of the table.
type clusterFault struct {
	name string
	aim  string        // for refused orders, or for decisions
	most time.Duration // that an order may be refused for; 0 if the aim is about something else
	// decided is within which time 99 % of the orders are decided; 0 if that is no aim.
	decided time.Duration
	// silent is for how long the stream may show nothing; 0 if that is no aim.
	silent time.Duration
	do     func(t *testing.T, c *clusterShop) (note string)
}

// TestCluster_WhateverLeavesItNothingAcceptedIsLost takes away, one after the other, what a cluster may lose: three brokers, a database
// with a synchronous standby, two of each service behind a name, gateways behind a balancer. After each fault all that was accepted must
// be in the books, once, the audit clean, and the event stream whole. How long customers noticed is printed as a table. CLUSTER_SEED
// chooses who is hit, CLUSTER_AWAY how long two of three brokers are away, CLUSTER_RATE the orders a second, CLUSTER_ONLY names faults.
func TestCluster_WhateverLeavesItNothingAcceptedIsLost(t *testing.T) {
	seed, away, rate := rand.Uint64(), 10*time.Second, 50 //nolint:gosec // no secret
	setting(t, "CLUSTER_SEED", &seed, func(s string) (uint64, error) { return strconv.ParseUint(s, 10, 64) })
	setting(t, "CLUSTER_AWAY", &away, time.ParseDuration)
	setting(t, "CLUSTER_RATE", &rate, strconv.Atoi)
	t.Logf("CLUSTER_SEED=%d CLUSTER_AWAY=%s CLUSTER_RATE=%d", seed, away, rate)
	c := newClusterShop(t, stoppedServers(t, t.TempDir()+"/servers"), seed, away, rate, func(*deployment) {})
	c.suffersAll(t, "| fault | refused for | aim | refused | accepted, p99 | decided, p99 | decided, longest | stream silent | lost | doubled | audit |",
		os.Getenv("CLUSTER_ONLY"), clusterFaults, c.row)
	c.comesToRest(t, c.placed)
}

// suffersAll prints a table with a row for each of the faults that has only in its name, under the names of its columns.
func (c *clusterShop) suffersAll(t *testing.T, columns, only string, faults []clusterFault, row func(*testing.T, clusterFault) string) {
	t.Helper()
	table := []string{columns, strings.Repeat("| --- ", strings.Count(columns, "|")-1) + "|"}
	for _, fault := range faults {
		if !strings.Contains(fault.name, only) {
			continue
		}
		r := row(t, fault)
		t.Log(r)
		table = append(table, r)
		if t.Failed() && c.broken() {
			break
		}
	}
	t.Log("\n" + strings.Join(table, "\n"))
}

func setting[T any](t *testing.T, name string, to *T, parse func(string) (T, error)) {
	t.Helper()
	given := os.Getenv(name)
	if given == "" {
		return
	}
	value, err := parse(given)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	*to = value
}

// clusterFaults are in the order of the table; the failover is the last, because nothing follows the new primary.
var clusterFaults = []clusterFault{
	{name: "nothing", aim: "0", do: func(*testing.T, *clusterShop) string { time.Sleep(5 * time.Second); return "" }},
	{name: "broker node killed", aim: "1 s", most: time.Second, do: func(t *testing.T, c *clusterShop) string {
		node := c.random.IntN(clusterBrokers)
		c.own.kill(t, brokerName(node))
		time.Sleep(clusterFrozen / 2)
		c.own.start(t)
		return "node " + strconv.Itoa(node+1)
	}},
	{name: "broker node killed that has the queue of calls", aim: "1 s, decided in 3 s", most: time.Second, decided: 3 * time.Second, do: func(t *testing.T, c *clusterShop) string {
		node := c.leader(t, contract.Methods()[0].Queue)
		c.own.kill(t, brokerName(node))
		time.Sleep(clusterFrozen / 2)
		c.own.start(t)
		return "node " + strconv.Itoa(node+1)
	}},
	{name: "broker node frozen that leads neither order nor logging", aim: "3 s", most: 3 * time.Second, do: func(t *testing.T, c *clusterShop) string {
		node := slices.IndexFunc([]int{0, 1, 2}, func(i int) bool { return i != c.leader(t, "order") && i != c.leader(t, "logging") })
		return c.freezeBroker(t, node)
	}},
	{name: "broker node frozen that leads the order queue", aim: "measured", do: func(t *testing.T, c *clusterShop) string {
		return c.freezeBroker(t, c.leader(t, "order"))
	}},
	{name: "two of three brokers away", aim: "away + 5 s", do: func(t *testing.T, c *clusterShop) string {
		stays := c.random.IntN(clusterBrokers)
		for i := range clusterBrokers {
			if i != stays {
				c.own.kill(t, brokerName(i))
			}
		}
		time.Sleep(c.away)
		back := c.majority(t)
		c.own.start(t)
		return c.acceptedAfter(t, <-back)
	}},
	{name: "all brokers restarted", aim: "majority + 5 s", do: func(t *testing.T, c *clusterShop) string {
		c.own.stopBrokers(t, 0, 1, 2)
		back := c.majority(t)
		c.own.start(t)
		return c.acceptedAfter(t, <-back)
	}},
	{name: "brokers replaced one after the other", aim: "0", most: time.Nanosecond, do: func(t *testing.T, c *clusterShop) string {
		for node := range clusterBrokers { // as docs/upgrading.md says
			run := c.onBroker(t, node, "docs/upgrading.md")
			run("upgrade-broker")
			c.own.stopBrokers(t, node)
			c.own.start(t)
			run("upgrade-broker-next")
		}
		return ""
	}},
	{name: "broker node restarted as for a partition that is over", aim: "1 s", most: time.Second, do: func(t *testing.T, c *clusterShop) string {
		node := c.random.IntN(clusterBrokers)
		c.onBroker(t, node, "docs/operations.md")("partition")
		return "node " + strconv.Itoa(node+1)
	}},
	{name: "replica of order frozen", aim: "decided in 5 s", most: time.Second, decided: 5 * time.Second, do: freezeReplica("order")},
	{name: "replica of inventory frozen", aim: "decided in 5 s", most: time.Second, decided: 5 * time.Second, do: freezeReplica("inventory")},
	{name: "replica of logging frozen", aim: "stream in 5 s", most: time.Second, silent: 5 * time.Second, do: freezeReplica("logging")},
	{name: "replicas 1, 3, 1, one killed", aim: "0", most: time.Second, do: func(t *testing.T, c *clusterShop) string {
		scaled := []string{"order", "inventory", "logging"}
		for _, name := range scaled {
			c.remove(t, name, 1, func(r *replica) { r.term(t) })
		}
		time.Sleep(clusterCalm)
		for _, name := range scaled {
			c.add(t, name)
			c.add(t, name)
		}
		time.Sleep(clusterCalm)
		for _, name := range scaled {
			c.remove(t, name, c.random.IntN(3), func(r *replica) { r.kill() })
		}
		time.Sleep(clusterCalm)
		for _, name := range scaled {
			c.remove(t, name, c.random.IntN(2), func(r *replica) { r.term(t) })
		}
		time.Sleep(clusterCalm)
		for _, name := range scaled {
			c.add(t, name)
		}
		return ""
	}},
	{name: "rolling restart of all services", aim: "0", do: func(t *testing.T, c *clusterShop) string {
		before := c.balancer.refused.Load()
		for i := range 2 {
			for _, name := range []string{"logging", "inventory", "order", "webhooks", "gateway"} {
				r := c.replicas[name][i]
				r.restart(t)
				time.Sleep(2 * clusterNotice)
			}
		}
		return fmt.Sprintf("%d connections refused at gateways", c.balancer.refused.Load()-before)
	}},
	{name: "database primary killed, standby promoted", aim: "0", do: func(t *testing.T, c *clusterShop) string {
		c.own.kill(t, "postgres")
		time.Sleep(2 * time.Second)
		c.standby.promote(t)
		c.database = atDatabaseOf(t, c.database, c.standby.database)
		return "promoted after 2 s"
	}},
}

// freezeReplica freezes the replica of a service that has been given the most messages: it is the one that holds some.
func freezeReplica(name string) func(*testing.T, *clusterShop) string {
	return func(t *testing.T, c *clusterShop) string {
		r := busiest(t, c.replicas[name])
		r.signal(t, syscall.SIGSTOP)
		time.Sleep(clusterFrozen)
		r.signal(t, syscall.SIGCONT)
		return r.name
	}
}

// clusterShop is a deployment on a cluster.
type clusterShop struct {
	*deployment
	own, standby *servers
	random       *rand.Rand
	away         time.Duration
	rate         int
	spare        map[string][]*replica // that do not run
	names        *names
	balancer     *tcpBalancer
	stream       *follower
	products     [2]int
	load         *steadyLoad // of the row
	placed       int         // orders of all rows
	streamed     int         // events that were compared with the log
	lastLogged   int64
}

// newClusterShop starts a cluster on own servers; prepare is called before the services start.
func newClusterShop(t *testing.T, own *servers, seed uint64, away time.Duration, rate int, prepare func(*deployment)) *clusterShop {
	t.Helper()
	var err error
	own.brokers = clusterBrokers
	own.start(t)
	f := newDeployment(t, deploymentOptions{own: own, replicas: map[string]int{"gateway": 2, "order": 3, "inventory": 3, "logging": 3, "webhooks": 2}})
	c := &clusterShop{deployment: f, own: own, random: rand.New(rand.NewPCG(seed, 0)), away: away, rate: rate, spare: map[string][]*replica{}} //nolint:gosec // it is to be repeatable
	c.standby = own.standby(t)
	c.exec(t, "ALTER SYSTEM SET synchronous_standby_names = '*'")
	c.exec(t, "SELECT pg_reload_conf()")
	eventually(t, func() error {
		if state := texts(t, c.openDatabase(t), "SELECT sync_state FROM pg_stat_replication"); !slices.Equal(state, []string{"sync"}) {
			return fmt.Errorf("standbys are %v, want one that is sync", state)
		}
		return nil
	})
	f.servers(t, own.amqp, both(t, f.database, c.standby.database))
	c.names = newNames(t, f)
	c.balancer = newTCPBalancer(t, c.names)
	for name, replicas := range f.replicas {
		if len(replicas) == 3 {
			c.spare[name], f.replicas[name] = replicas[2:], replicas[:2:2]
		}
	}
	prepare(f)
	f.up(t)
	f.url = c.balancer.url
	c.products = c.unlimitedStock(t)
	ctx, leave := context.WithCancel(t.Context())
	var following sync.WaitGroup
	c.stream = &follower{began: make(chan string, 1), decided: map[string]time.Time{}}
	following.Go(func() { c.stream.follow(ctx, []string{c.balancer.url}) })
	t.Cleanup(func() { leave(); following.Wait() })
	if c.lastLogged, err = strconv.ParseInt(<-c.stream.began, 10, 64); err != nil {
		t.Fatal(err)
	}
	return c
}

// broken says that what follows would only tell the same again.
func (c *clusterShop) broken() bool { return c.load.unsent() > 0 }

// row is that of a fault in the table.
func (c *clusterShop) row(t *testing.T, fault clusterFault) string {
	t.Helper()
	o := c.suffers(t, fault)
	name := fault.name
	if o.note != "" {
		name += " (" + o.note + ")"
	}
	decidedAfter := percentile(o.hit, 0.99, (*steadyOrder).decidedAfter)
	aim := fault.aim
	missed := func(most, took time.Duration) bool { return most > 0 && took > most }
	if missed(fault.most, o.refusedFor) || missed(fault.decided, decidedAfter) || missed(fault.silent, o.silent) {
		aim += ", missed"
	}
	return fmt.Sprintf("| %s | %s | %s | %d of %d | %s | %s | %s | %s | %d | %d | %s |", name, seconds(o.refusedFor), aim, o.refused, len(o.hit),
		seconds(percentile(o.hit, 0.99, (*steadyOrder).acceptedAfter)), seconds(decidedAfter),
		seconds(percentile(o.hit, 1, (*steadyOrder).decidedAfter)), seconds(o.silent), o.lost, o.doubled, o.audit)
}

// outcome is what customers have noticed of a fault.
type outcome struct {
	note               string
	hit                []*steadyOrder // the orders that were begun since then
	refusedFor, silent time.Duration
	refused            int
	lost, doubled      int
	audit              string
}

// suffers places orders while a fault happens, and fails if one is lost or doubled, or the books or the stream are wrong.
func (c *clusterShop) suffers(t *testing.T, fault clusterFault) (o outcome) {
	t.Helper()
	c.load = c.placeOrders(t)
	time.Sleep(clusterCalm)
	begin := time.Now()
	o.note = fault.do(t, c)
	if healed := c.recovers(t); healed != "" {
		o.note = strings.TrimPrefix(o.note+", "+healed, ", ")
	}
	time.Sleep(clusterCalm)
	end := time.Now()
	orders := c.load.end(t)
	c.placed += len(orders)
	if o.lost, o.doubled = c.decided(t, orders); o.lost+o.doubled > 0 {
		t.Errorf("%s: %d orders lost, %d doubled", fault.name, o.lost, o.doubled)
	}
	o.audit = c.audit(t)
	o.silent = c.comparesStream(t, begin, end)
	o.hit = slices.DeleteFunc(slices.Clone(orders), func(o *steadyOrder) bool { return o.begun.Before(begin) })
	o.refusedFor, o.refused = refusals(o.hit)
	return o
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.2f s", d.Seconds()) }

// recovers waits until all is ready again: brokers, and every replica. A broker node that goes on listing a partition which is over
// is restarted, as docs/operations.md says; then recovers says so.
func (c *clusterShop) recovers(t *testing.T) (healed string) {
	t.Helper()
	begun := time.Now()
	eventuallyWithin(t, 3*time.Minute, func() error {
		time.Sleep(100 * time.Millisecond)
		for _, name := range services {
			for _, r := range c.replicas[name] {
				if code, body, err := r.ask("/readyz"); err != nil || code != http.StatusOK {
					return fmt.Errorf("%s is not ready: %w %s", r.name, err, body)
				}
			}
		}
		listing, err := c.brokersRun(t)
		if len(listing) == 0 || err != nil {
			return err
		}
		if time.Since(begun) > clusterHeal {
			c.onBroker(t, listing[0], "docs/operations.md")("partition")
			healed += fmt.Sprintf("node %d restarted, because it listed a partition that was over", listing[0]+1)
			begun = time.Now()
		}
		return fmt.Errorf("broker nodes %v list a partition", listing)
	})
	return healed
}

// onBroker executes the commands of a document on a node of the broker.
func (c *clusterShop) onBroker(t *testing.T, node int, document string) func(scene string) {
	t.Helper()
	return scenesOf(t, document, append(os.Environ(), "PATH="+c.own.brokerTools(t, node)+":"+os.Getenv("PATH")))
}

// manage asks the management API of a node.
func (c *clusterShop) manage(t *testing.T, node int, path string, into any) error {
	t.Helper()
	u := parseURL(t, c.own.management)
	u.Host = net.JoinHostPort(fmt.Sprintf("127.0.0.%d", 2+node), strconv.Itoa(c.own.brokerPorts(t, node)[1]))
	u.Path = ""
	body, err := provision.Call(t.Context(), http.MethodGet, u.String()+path, nil)
	if err != nil {
		return err
	}
	return json.Unmarshal(body, into)
}

// brokersRun is an error unless all nodes run and see each other, and returns those that list a partition all the same.
func (c *clusterShop) brokersRun(t *testing.T) (listing []int, err error) {
	t.Helper()
	for node := range clusterBrokers {
		var nodes []struct {
			Name       string
			Running    bool
			Partitions []string
		}
		if err := c.manage(t, node, "/api/nodes?columns=name,running,partitions", &nodes); err != nil {
			return nil, fmt.Errorf("broker node %d: %w", node+1, err)
		}
		for _, n := range nodes {
			if !n.Running {
				return nil, fmt.Errorf("broker node %d sees nodes %+v", node+1, nodes)
			}
			if i := nodeNumber(t, n.Name); len(n.Partitions) > 0 && !slices.Contains(listing, i) {
				listing = append(listing, i)
			}
		}
	}
	return listing, nil
}

// leader is the node that leads a queue.
func (c *clusterShop) leader(t *testing.T, queue string) int {
	t.Helper()
	var q struct{ Leader, Node string } // a classic queue has no leader
	if err := c.manage(t, 0, "/api/queues/%2F/"+queue, &q); err != nil {
		t.Fatalf("who leads queue %s: %v", queue, err)
	}
	return nodeNumber(t, cmp.Or(q.Leader, q.Node))
}

// nodeNumber is the number of a node of the broker, from 0, by its name: shop@localhost, shop-2@localhost and so on.
func nodeNumber(t *testing.T, node string) int {
	t.Helper()
	name, _, _ := strings.Cut(node, "@")
	_, number, _ := strings.Cut(name, "-")
	n, err := strconv.Atoi(cmp.Or(number, "1"))
	if err != nil {
		t.Fatalf("%q is no node of the broker", node)
	}
	return n - 1
}

func (c *clusterShop) freezeBroker(t *testing.T, node int) string {
	t.Helper()
	pid := c.own.pid(t, brokerName(node))
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	time.Sleep(clusterFrozen)
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	return "node " + strconv.Itoa(node+1)
}

// majority tells when two brokers take connections.
func (c *clusterShop) majority(t *testing.T) <-chan time.Time {
	t.Helper()
	back := make(chan time.Time, 1)
	var addrs []string
	for i := range clusterBrokers {
		addrs = append(addrs, net.JoinHostPort(fmt.Sprintf("127.0.0.%d", 2+i), strconv.Itoa(c.own.brokerPorts(t, i)[0])))
	}
	go func() {
		for t.Context().Err() == nil {
			up := 0
			for _, addr := range addrs {
				if conn, err := net.DialTimeout("tcp", addr, 100*time.Millisecond); err == nil {
					up++
					_ = conn.Close()
				}
			}
			if up >= 2 {
				back <- time.Now()
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	}()
	return back
}

// acceptedAfter waits for the first order that is accepted after at.
func (c *clusterShop) acceptedAfter(t *testing.T, at time.Time) string {
	t.Helper()
	var first time.Time
	eventuallyWithin(t, 2*time.Minute, func() error {
		if first = c.load.firstAccepted(at); first.IsZero() {
			return errors.New("no order is accepted")
		}
		return nil
	})
	return fmt.Sprintf("accepted %s after two nodes took connections", seconds(first.Sub(at)))
}

// remove takes a replica of a service out and ends it.
func (c *clusterShop) remove(t *testing.T, name string, i int, end func(*replica)) {
	t.Helper()
	r := c.replicas[name][i]
	c.replicas[name] = slices.Delete(slices.Clone(c.replicas[name]), i, i+1)
	end(r)
	c.spare[name] = append(c.spare[name], r)
}

// add starts a replica that does not run.
func (c *clusterShop) add(t *testing.T, name string) {
	t.Helper()
	r := c.spare[name][0]
	c.spare[name] = c.spare[name][1:]
	r.start(t)
	c.replicas[name] = append(slices.Clone(c.replicas[name]), r)
	r.waitReady(t)
}

// decided waits until the orders are in the books, notes when, and returns how many are missing or there twice.
func (c *clusterShop) decided(t *testing.T, orders []*steadyOrder) (lost, doubled int) {
	t.Helper()
	database := c.openDatabase(t)
	for deadline := time.Now().Add(resendLimit); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if n, err := strconv.Atoi(texts(t, database, `SELECT count(*)::text FROM orders.orders`)[0]); err != nil || n >= c.placed {
			break
		}
	}
	rows, err := database.QueryContext(t.Context(), `SELECT id::text, customer_name, updated_at FROM orders.orders`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	byKey := map[string]*steadyOrder{}
	for _, o := range orders {
		byKey[o.key] = o
	}
	for rows.Next() {
		var id, key string
		var at time.Time
		if err := rows.Scan(&id, &key, &at); err != nil {
			t.Fatal(err)
		}
		o := byKey[key]
		switch {
		case o == nil: // of another row
		case !o.decided.IsZero() || o.location != "/v1/orders/"+id:
			doubled++
		default:
			o.decided = at
		}
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	for _, o := range orders {
		if o.decided.IsZero() {
			lost++
		}
	}
	return lost, doubled
}

// audit waits until nothing is on its way and says what is wrong.
func (c *clusterShop) audit(t *testing.T) string {
	t.Helper()
	report, err := auditor(t, &c.shop).RunWhenQuiet(t.Context(), resendLimit)
	if err != nil {
		t.Fatalf("the audit: %v", err)
	}
	if report.Count() > 0 || report.InFlight() > 0 {
		t.Errorf("%d violations, %d on their way: %v", report.Count(), report.InFlight(), report.Violations)
		return fmt.Sprintf("%d violations", report.Count())
	}
	return "clean"
}

// comparesStream waits until the stream has shown what was logged, in the log's order and once, and returns for how long it was
// silent between two moments at which orders were placed.
func (c *clusterShop) comparesStream(t *testing.T, begin, end time.Time) (silent time.Duration) {
	t.Helper()
	ids := texts(t, c.openDatabase(t), `SELECT e.id::text FROM logging.event_log e WHERE e.id > $1 ORDER BY e.id`, c.lastLogged)
	if len(ids) == 0 {
		t.Fatal("nothing was logged")
	}
	c.lastLogged, _ = strconv.ParseInt(ids[len(ids)-1], 10, 64)
	deadline := time.Now().Add(testTimeout)
	for len(c.stream.seen())-c.streamed < len(ids) && time.Now().Before(deadline) {
		time.Sleep(50 * time.Millisecond)
	}
	seen := c.stream.seen()[c.streamed:]
	c.streamed += len(seen)
	if !slices.Equal(seen, ids) {
		times := map[string]int{}
		for _, id := range seen {
			times[id]++
		}
		missing := slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return times[id] > 0 })
		t.Errorf("the stream has shown %d events of %d, %d of them different ones, %d are missing: %v", len(seen), len(ids), len(times),
			len(missing), missing[:min(20, len(missing))])
	}
	last := begin
	for _, at := range c.stream.arrivals() {
		if at.After(begin) && at.Before(end) {
			silent, last = max(silent, at.Sub(last)), at
		}
	}
	return silent
}

// arrivals are when events came.
func (f *follower) arrivals() []time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.at)
}

// steadyOrder is an order of a steady load.
type steadyOrder struct {
	key, location            string
	begun, accepted, decided time.Time
	refusals                 int
}

func (o *steadyOrder) acceptedAfter() time.Duration { return o.accepted.Sub(o.begun) }
func (o *steadyOrder) decidedAfter() time.Duration  { return o.decided.Sub(o.begun) }

// refusals are the longest time for which an order was refused, and how many orders were.
func refusals(orders []*steadyOrder) (longest time.Duration, n int) {
	for _, o := range orders {
		if o.refusals > 0 {
			longest, n = max(longest, o.acceptedAfter()), n+1
		}
	}
	return longest, n
}

func percentile(orders []*steadyOrder, p float64, of func(*steadyOrder) time.Duration) time.Duration {
	if len(orders) == 0 {
		return 0
	}
	all := make([]time.Duration, 0, len(orders))
	for _, o := range orders {
		all = append(all, of(o))
	}
	slices.Sort(all)
	return all[min(len(all)-1, int(p*float64(len(all))))]
}

// steadyLoad begins orders at a fixed rate, whatever becomes of those before, and sends each until it is accepted.
type steadyLoad struct {
	client   *http.Client
	products [2]int
	closed   chan struct{}
	running  sync.WaitGroup

	mu     sync.Mutex
	orders []*steadyOrder
	failed []error
}

var steadyKeys atomic.Int64

func (c *clusterShop) placeOrders(t *testing.T) *steadyLoad {
	t.Helper()
	l := &steadyLoad{products: c.products, closed: make(chan struct{}), client: &http.Client{Timeout: answerLimit, Transport: &http.Transport{MaxIdleConnsPerHost: 200}}}
	url := c.balancer.url
	l.running.Go(func() {
		tick := time.NewTicker(time.Second / time.Duration(c.rate))
		defer tick.Stop()
		for {
			select {
			case <-l.closed:
				return
			case <-tick.C:
			}
			o := &steadyOrder{key: fmt.Sprintf("order-%d", steadyKeys.Add(1)), begun: time.Now()}
			l.running.Go(func() { l.send(t.Context(), url, o) })
		}
	})
	return l
}

// body is the request of an order.
func (l *steadyLoad) body(o *steadyOrder) string {
	return fmt.Sprintf(`{"customer_name":%q,"customer_email":"ada@example.org","order_items":[{"product_id":%d,"quantity":1},{"product_id":%d,"quantity":2}]}`,
		o.key, l.products[0], l.products[1])
}

func (l *steadyLoad) send(ctx context.Context, url string, o *steadyOrder) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	for {
		location, err := l.once(ctx, url, l.body(o), o.key)
		if err == nil {
			o.location, o.accepted = location, time.Now()
			break
		}
		o.refusals++
		if ctx.Err() != nil {
			l.mu.Lock()
			l.failed = append(l.failed, fmt.Errorf("%s: %w", o.key, err))
			l.mu.Unlock()
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.orders = append(l.orders, o)
}

func (l *steadyLoad) once(ctx context.Context, url, body, key string) (location string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/v1/orders", strings.NewReader(body))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Idempotency-Key", key)
	res, err := l.client.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusAccepted && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", res.Status, text)
	}
	return res.Header.Get("Location"), err
}

// firstAccepted is when the first order was accepted after at.
func (l *steadyLoad) firstAccepted(at time.Time) (first time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, o := range l.orders {
		if o.accepted.After(at) && (first.IsZero() || o.accepted.Before(first)) {
			first = o.accepted
		}
	}
	return first
}

func (l *steadyLoad) unsent() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.failed)
}

// end stops the load once all its orders are accepted.
func (l *steadyLoad) end(t *testing.T) []*steadyOrder {
	t.Helper()
	close(l.closed)
	l.running.Wait()
	l.client.CloseIdleConnections()
	for _, err := range l.failed {
		t.Errorf("an order was not accepted: %v", err)
	}
	return l.orders
}

// names is a name server for the services, as Kubernetes has one for headless services: each name has the addresses of the
// replicas that are ready. It also says which gateways are.
type names struct {
	addr string // of the name server

	mu    sync.Mutex
	ready map[string][]string // addresses by service
}

// newNames gives all replicas of a service one port, on addresses of their own, and has services call each other by names.
func newNames(t *testing.T, f *deployment) *names {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := &names{addr: conn.LocalAddr().String(), ready: map[string][]string{}}
	var all []*replica
	service := map[*replica]string{}
	for k, name := range services {
		_, port, _ := net.SplitHostPort(freeAddr(t))
		for i, r := range f.replicas[name] {
			r.addr = fmt.Sprintf("127.90.%d.%d:%s", k+1, i+1, port)
			r.env = append(r.env, "GRPC_ADDR="+r.addr, "HTTP_ADDR="+r.addr, "SHUTDOWN_DELAY="+clusterStopDelay.String())
			all, service[r] = append(all, r), name
		}
		for _, caller := range services {
			for _, r := range f.replicas[caller] {
				r.env = append(r.env, fmt.Sprintf("%s_ADDR=dns://%s/%s.shop:%s", strings.ToUpper(name), n.addr, name, port))
			}
		}
	}
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { n.serve(conn) })
	running.Go(func() {
		for ctx.Err() == nil {
			n.look(ctx, all, service)
			time.Sleep(clusterNotice)
		}
	})
	t.Cleanup(func() { stop(); _ = conn.Close(); running.Wait() })
	return n
}

func (n *names) look(ctx context.Context, all []*replica, of map[*replica]string) {
	ready := map[string][]string{}
	var mu sync.Mutex
	var looking sync.WaitGroup
	for _, r := range all {
		looking.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			if service.Probe(ctx, r.admin) == nil {
				mu.Lock()
				defer mu.Unlock()
				ready[of[r]] = append(ready[of[r]], r.addr)
			}
		})
	}
	looking.Wait()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ready = ready
}

func (n *names) of(service string) []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.ready[service])
}

// serve answers questions for addresses of IPv4; there are no others.
func (n *names) serve(conn net.PacketConn) {
	buf := make([]byte, 1500)
	for {
		size, from, err := conn.ReadFrom(buf)
		if err != nil {
			return
		}
		var m dnsmessage.Message
		if m.Unpack(buf[:size]) != nil || len(m.Questions) != 1 {
			continue
		}
		q := m.Questions[0]
		name, _, _ := strings.Cut(q.Name.String(), ".")
		reply := dnsmessage.Message{Header: dnsmessage.Header{ID: m.ID, Response: true, Authoritative: true}, Questions: m.Questions}
		if q.Type == dnsmessage.TypeA {
			for _, addr := range n.of(name) {
				host, _, _ := net.SplitHostPort(addr)
				reply.Answers = append(reply.Answers, dnsmessage.Resource{
					Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 1},
					Body:   &dnsmessage.AResource{A: [4]byte(net.ParseIP(host).To4())},
				})
			}
		}
		if packed, err := reply.Pack(); err == nil {
			_, _ = conn.WriteTo(packed, from)
		}
	}
}

// tcpBalancer passes connections on to the gateways that are ready, in turns.
type tcpBalancer struct {
	url     string
	names   *names
	turn    atomic.Int64
	refused atomic.Int64 // connections, by gateways that were said to be ready
}

func newTCPBalancer(t *testing.T, n *names) *tcpBalancer {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &tcpBalancer{url: (&url.URL{Scheme: "http", Host: listener.Addr().String()}).String(), names: n}
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			go b.pass(client)
		}
	}()
	t.Cleanup(func() { _ = listener.Close() })
	return b
}

func (b *tcpBalancer) pass(client net.Conn) {
	defer func() { _ = client.Close() }()
	ready := b.names.of("gateway")
	turn := int(b.turn.Add(1))
	for i := range ready {
		gateway, err := net.DialTimeout("tcp", ready[(turn+i)%len(ready)], time.Second)
		if err != nil {
			b.refused.Add(1)
			continue
		}
		defer func() { _ = gateway.Close() }()
		both := make(chan struct{}, 2)
		for from, to := range map[net.Conn]net.Conn{client: gateway, gateway: client} {
			go func() { _, _ = io.Copy(to, from); both <- struct{}{} }()
		}
		<-both
		return
	}
}
