package e2e

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"shop.example/dev/stack"
	"shop.example/platform/testkit/brokertest"
)

const (
	// rpcLimit is how long the order service waits for inventory's answer.
	rpcLimit = 5 * time.Second
	// answerLimit bounds a call to the gateway, whatever is broken.
	answerLimit = 15 * time.Second
)

func TestDatabase_SlowOrAwayDelaysOrdersAndCostsNone(t *testing.T) {
	t.Parallel()
	f := newDeployment(t, deploymentOptions{})
	_, database := f.proxies(t)
	f.up(t)
	tr := f.traffic(t, f.unlimitedStock(t), answerLimit, f.gateways()...)
	tr.flows(t, 20)

	database.Delay(300 * time.Millisecond)
	tr.flows(t, 100)
	database.Up(t)

	database.Down()
	tr.flows(t, 100)
	f.replicas["order"][0].says(t, "a dependency is down")
	for _, name := range services[1:] {
		f.replicas[name][0].notReady(t, "database: ")
	}
	tr.flows(t, 100)
	database.Up(t)
	f.ready(t)
	tr.flows(t, 20)

	if refused, _ := tr.figures(); len(refused) > 0 {
		t.Errorf("orders were refused though the broker was there: %v", refused)
	}
	f.usedUpNoAttempt(t)
	f.comesToRest(t, tr.end(t))
	tr.isDecided(t, &f.shop)
}

func TestInventory_AbsentForLongerThanTheCallLastsOrAnsweringTooLateCostsNoOrder(t *testing.T) {
	t.Parallel()
	f := newDeployment(t, deploymentOptions{})
	f.up(t)
	order, inventory := f.replicas["order"][0], f.replicas["inventory"][0]
	products := f.unlimitedStock(t)

	inventory.signal(t, syscall.SIGSTOP) // before it has begun a call: it will answer what it then finds waiting
	tr := f.traffic(t, products, answerLimit, f.gateways()...)
	order.says(t, "DeadlineExceeded")
	inventory.signal(t, syscall.SIGCONT)
	f.ready(t)
	eventually(t, func() error {
		if order.metric(t, "messaging_rpc_unknown_replies_total") == 0 {
			return errors.New("no answer came too late")
		}
		return nil
	})
	tr.flows(t, 20)

	inventory.kill()
	order.says(t, "nobody answers")
	<-time.After(rpcLimit + time.Second)
	order.notReady(t, "consumer: ")
	inventory.start(t)
	f.ready(t)
	tr.flows(t, 20)
	tr.flows(t, 20)

	if refused, _ := tr.figures(); len(refused) > 0 {
		t.Errorf("orders were refused though the broker was there: %v", refused)
	}
	f.usedUpNoAttempt(t)
	f.comesToRest(t, tr.end(t))
	tr.isDecided(t, &f.shop)
}

// A replica that freezes holds what the queue has given it, which is all that comes if it is the one that is given messages first.
// The broker misses its heartbeats and gives that to others, while it is frozen still; how soon, follows from the heartbeat.
func TestReplicas_WhatFrozenOnesOfOrderAndLoggingHoldGoesToOthers(t *testing.T) {
	t.Parallel()
	f := newDeployment(t, deploymentOptions{replicas: map[string]int{"order": 2, "logging": 2}})
	f.up(t)
	tr := f.traffic(t, f.unlimitedStock(t), answerLimit, f.gateways()...)
	tr.flows(t, 50)
	pool := f.openDatabase(t)
	decided := func() int { return countRows(t, pool, `SELECT count(*) FROM orders.orders`) }
	logged := func() int {
		return countRows(t, pool, `SELECT count(DISTINCT order_id) FROM logging.event_log WHERE routing_key = 'shop.order.placed'`)
	}

	frozen := []*replica{busiest(t, f.replicas["order"]), busiest(t, f.replicas["logging"])}
	for _, r := range frozen {
		r.signal(t, syscall.SIGSTOP)
	}
	tr.flows(t, 50)
	orders := tr.orders()
	eventually(t, func() error { // the broker reports connections late
		connected := f.heartbeats(t)
		if n := len(connected["order consume"]) + len(connected["logging consume"]); n != len(frozen) {
			return fmt.Errorf("%d replicas are connected, want those %d that are not frozen", n, len(frozen))
		}
		if d, l := decided(), logged(); d < orders || l < orders {
			return fmt.Errorf("of %d orders %d are decided, and %d are logged", orders, d, l)
		}
		return nil
	})
	for _, r := range frozen {
		r.signal(t, syscall.SIGCONT)
	}
	f.ready(t)
	f.usedUpNoAttempt(t)
	f.comesToRest(t, tr.end(t))
	tr.isDecided(t, &f.shop)
}

// busiest is the replica of a service that has settled the most messages: the one that its queue prefers.
func busiest(t *testing.T, replicas []*replica) *replica {
	t.Helper()
	settled := func(r *replica) float64 { return r.metric(t, "messaging_consumed_total") }
	return slices.MaxFunc(replicas, func(a, b *replica) int { return cmp.Compare(settled(a), settled(b)) })
}

// Calls that inventory answers, and what gateways are told, are lost with their connection.
func TestHeartbeats_AreShortOnConnectionsAloneWhoseMessagesGoToOthers(t *testing.T) {
	t.Parallel()
	f := newDeployment(t, deploymentOptions{})
	f.up(t)
	want := map[string][]int{}
	for _, name := range services {
		want[name+" publish"], want[name+" consume"] = []int{5}, []int{5}
	}
	want["order consume"], want["logging consume"] = []int{1}, []int{1}
	eventually(t, func() error { // the broker reports connections late
		got := f.heartbeats(t)
		for name := range got {
			if want[name] == nil {
				delete(got, name) // the test's own
			}
		}
		if !maps.EqualFunc(got, want, slices.Equal) {
			return fmt.Errorf("heartbeats are %v, want %v", got, want)
		}
		return nil
	})
}

// heartbeats returns those of the connections that the broker has, in seconds, by the connection's name.
func (f *deployment) heartbeats(t *testing.T) map[string][]int {
	t.Helper()
	connections, err := f.broker.Manage.ListVhostConnections(f.broker.Vhost)
	if err != nil {
		t.Fatalf("listing connections: %v", err)
	}
	byName := map[string][]int{}
	for _, c := range connections {
		name, _ := c.ClientProperties["connection_name"].(string)
		byName[name] = append(byName[name], c.Timeout)
	}
	return byName
}

func TestOrders_AreAcceptedWhileAllServicesAndTheDatabaseAreDown(t *testing.T) {
	t.Parallel()
	f := newDeployment(t, deploymentOptions{})
	_, database := f.proxies(t)
	f.up(t)
	tr := f.traffic(t, f.unlimitedStock(t), answerLimit, f.gateways()...)
	tr.flows(t, 20)

	for _, name := range services[1:] {
		f.replicas[name][0].kill()
	}
	database.Down()
	tr.flows(t, 200)
	f.replicas["gateway"][0].waitReady(t)
	database.Up(t)
	f.up(t)

	if refused, _ := tr.figures(); len(refused) > 0 {
		t.Errorf("orders were refused: %v", refused)
	}
	f.usedUpNoAttempt(t)
	f.comesToRest(t, tr.end(t))
	tr.isDecided(t, &f.shop)
}

// This test has servers of its own, because it stops them.
func TestServers_BlockedRestartedOrKilledUnderLoadLoseNothing(t *testing.T) {
	t.Parallel()
	own := newServers(t)
	f := newDeployment(t, deploymentOptions{})
	f.broker, f.amqp = &brokertest.Broker{URL: own.amqp}, nil
	f.database = own.makeDatabase(t)
	f.servers(t, f.broker.URL, f.database)
	f.up(t)
	tr := f.traffic(t, f.unlimitedStock(t), answerLimit, f.gateways()...)
	tr.flows(t, 50)

	t.Run("blocked", func(t *testing.T) { f.blocked(t, own, tr) })
	for name, stop := range map[string]func(*testing.T){
		"both restarted":  own.stop,
		"broker killed":   func(t *testing.T) { own.kill(t, "rabbitmq") },
		"database killed": func(t *testing.T) { own.kill(t, "postgres") },
	} {
		t.Run(name, func(t *testing.T) {
			stop(t)
			own.start(t)
			f.ready(t)
			tr.flows(t, 50)
		})
	}
	refused, longest := tr.figures()
	t.Logf("refused meanwhile: %v; longest time without an accepted order: %s", refused, longest)
	f.usedUpNoAttempt(t)
	f.comesToRest(t, tr.end(t))
	tr.isDecided(t, &f.shop)
}

// blocked makes the broker believe that it is out of memory.
func (f *deployment) blocked(t *testing.T, own *servers, tr *traffic) {
	gateway := f.replicas["gateway"][0]
	own.control(t, "set_vm_memory_high_watermark", "0")
	begin := time.Now()
	tr.isAnswered(t)
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("calls hang for %s when the broker is blocked under them", took)
	}
	gateway.notReady(t, "broker: ")
	for range 10 {
		begin := time.Now()
		a := f.call(t, http.MethodPost, "/v1/orders",
			`{"customer_name":"Ada","customer_email":"ada@example.org","order_items":[{"product_id":1,"quantity":1}]}`)
		if took := time.Since(begin); took > 5*time.Second {
			t.Errorf("the refusal took %s", took)
		}
		var refusal struct {
			Details []struct {
				Type   string `json:"@type"`
				Reason string `json:"reason"`
				Delay  string `json:"retry_delay"`
			} `json:"details"`
		}
		a.json(t, &refusal)
		reasons := map[string]string{}
		for _, d := range refusal.Details {
			reasons[d.Type[strings.LastIndex(d.Type, ".")+1:]] = d.Reason + d.Delay
		}
		if a.code != http.StatusServiceUnavailable || a.header.Get("Retry-After") == "" ||
			reasons["ErrorInfo"] != "BROKER_UNAVAILABLE" || reasons["RetryInfo"] == "" {
			t.Fatalf("an order while the broker takes none: %d %s", a.code, a.body)
		}
	}
	own.control(t, "set_vm_memory_high_watermark", "0.4")
	f.ready(t)
	tr.flows(t, 50)
}

// servers are a broker and a database server that a test can stop. They are started by `shopdev exec`, which keeps them
// until the input of its command ends.
type servers struct {
	program, dir               string
	brokers                    int      // nodes of RabbitMQ; one if it is 0
	env                        []string // of shopdev exec, to be added
	database, amqp, management string
	holder                     *exec.Cmd
	hold                       io.Closer // the command's input
	held                       chan struct{}
}

// newServers starts servers without data. env is added to the environment of shopdev exec, which does not start a server
// whose URL is in it.
func newServers(t *testing.T, env ...string) *servers {
	t.Helper()
	return startServers(t, filepath.Join(t.TempDir(), "servers"), env...)
}

// startServers is newServers with the data in dir, if there is any.
func startServers(t *testing.T, dir string, env ...string) *servers {
	t.Helper()
	s := stoppedServers(t, dir, env...)
	s.start(t)
	return s
}

// stoppedServers are servers that were not started yet. They are removed with the test.
func stoppedServers(t *testing.T, dir string, env ...string) *servers {
	t.Helper()
	bin := mustBinaries(t)
	s := &servers{program: filepath.Join(bin, "shopdev"), dir: dir, env: env}
	t.Cleanup(func() {
		if s.hold != nil {
			s.release(t, syscall.SIGKILL)
		}
		if err := stack.Down(s.dir); err != nil {
			t.Errorf("removing the servers: %v", err)
		}
	})
	return s
}

// start starts the servers that do not run, with their data and at the same addresses.
func (s *servers) start(t *testing.T) {
	t.Helper()
	s.holder = exec.Command(s.program, "exec", "--fast", "--dir", s.dir, "--brokers", strconv.Itoa(max(1, s.brokers)), "--",
		"sh", "-c", `echo "$DATABASE_URL" && echo "$AMQP_URL" && echo "$AMQP_MANAGEMENT_URL" && cat`)
	s.holder.Env = append(append(os.Environ(), "DATABASE_URL=", "AMQP_URL=", "AMQP_MANAGEMENT_URL="), s.env...)
	s.holder.Stderr = t.Output()
	out, err := s.holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if s.hold, err = s.holder.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := s.holder.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for _, to := range []*string{&s.database, &s.amqp, &s.management} {
		if !lines.Scan() {
			t.Fatalf("the servers did not start: %v", lines.Err())
		}
		if *to != "" && *to != lines.Text() {
			t.Fatalf("a server has moved to another address")
		}
		*to = lines.Text()
	}
	held := make(chan struct{})
	s.held = held
	go func(holder *exec.Cmd) {
		defer close(held)
		_ = holder.Wait()
	}(s.holder)
}

// release ends the process that keeps the servers; if that is killed, they go on running.
func (s *servers) release(t *testing.T, signal syscall.Signal) {
	t.Helper()
	_ = s.holder.Process.Signal(signal)
	_ = s.hold.Close()
	select {
	case <-s.held:
	case <-time.After(testTimeout):
		t.Fatal("shopdev exec did not end")
	}
}

// stop stops both servers cleanly.
func (s *servers) stop(t *testing.T) { s.release(t, 0) }

// kill kills one server, "postgres", "rabbitmq" or the folder of another node, with SIGKILL; the others go on.
func (s *servers) kill(t *testing.T, name string) {
	t.Helper()
	s.release(t, syscall.SIGKILL)
	if err := syscall.Kill(s.pid(t, name), syscall.SIGKILL); err != nil {
		t.Fatalf("killing %s: %v", name, err)
	}
}

// control runs rabbitmqctl on the broker.
func (s *servers) control(t *testing.T, args ...string) {
	t.Helper()
	command := s.brokerTool(t, 0, "rabbitmqctl")
	cmd := exec.CommandContext(t.Context(), command[0], append(command[1:], args...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("rabbitmqctl %v: %v\n%s", args, err, out)
	}
}

// brokerPorts are those of a node: AMQP, management, distribution, epmd.
func (s *servers) brokerPorts(t *testing.T, node int) []int {
	t.Helper()
	var settings struct{ Ports []int }
	data, err := os.ReadFile(filepath.Join(s.dir, brokerName(node), "settings.json"))
	if err == nil {
		err = json.Unmarshal(data, &settings)
	}
	if err != nil || len(settings.Ports) < 4 {
		t.Fatalf("finding the broker: %v in %s", err, data)
	}
	return settings.Ports
}

// brokerName is the folder of a broker's node.
func brokerName(node int) string {
	if node == 0 {
		return "rabbitmq"
	}
	return fmt.Sprintf("rabbitmq-%d", node+1)
}

// brokerTool is how a program of RabbitMQ is run for a node of the broker.
func (s *servers) brokerTool(t *testing.T, node int, name string) []string {
	t.Helper()
	program, err := exec.LookPath(name)
	if inside := "/usr/lib/rabbitmq/bin/" + name; err != nil || exists(inside) { // the one on the path changes to another user
		program = inside
	}
	erlang := "shop@localhost"
	if node > 0 {
		erlang = fmt.Sprintf("shop-%d@localhost", node+1)
	}
	return []string{"env", "HOME=" + filepath.Join(s.dir, brokerName(0)), "LANG=C.UTF-8", fmt.Sprintf("ERL_EPMD_PORT=%d", s.brokerPorts(t, 0)[3]),
		program, "--node", erlang}
}

// brokerTools is a folder with the programs of RabbitMQ, for a node of the broker.
func (s *servers) brokerTools(t *testing.T, node int) (bin string) {
	t.Helper()
	bin = t.TempDir()
	for _, name := range []string{"rabbitmqctl", "rabbitmq-diagnostics", "rabbitmq-queues", "rabbitmq-upgrade"} {
		wrapper := fmt.Sprintf("#!/bin/sh\nexec '%s' \"$@\"\n", strings.Join(s.brokerTool(t, node, name), "' '"))
		if err := os.WriteFile(filepath.Join(bin, name), []byte(wrapper), 0o755); err != nil { //nolint:gosec // a program
			t.Fatal(err)
		}
	}
	return bin
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// makeDatabase creates a database on the server; the services migrate it.
func (s *servers) makeDatabase(t *testing.T) string {
	t.Helper()
	admin := shop{database: s.database}
	if _, err := admin.openDatabase(t).ExecContext(t.Context(), "CREATE DATABASE shopdb"); err != nil {
		t.Fatal(err)
	}
	return strings.Replace(s.database, "/postgres?", "/shopdb?", 1)
}

// ready waits until all replicas are ready.
func (f *deployment) ready(t *testing.T) {
	t.Helper()
	for _, name := range services {
		for _, r := range f.replicas[name] {
			r.waitReady(t)
		}
	}
}

// usedUpNoAttempt checks that no attempt of a message was used up, because a server that is down is not the message's fault.
func (f *deployment) usedUpNoAttempt(t *testing.T) {
	t.Helper()
	for _, name := range services {
		for _, r := range f.replicas[name] {
			for _, line := range []string{"message failed, will be tried again", "message is a dead letter"} {
				if r.log.contains(line) {
					t.Errorf("%s says: %s", r.name, line)
				}
			}
		}
	}
}

func (r *replica) signal(t *testing.T, signal syscall.Signal) {
	t.Helper()
	if err := r.cmd.Process.Signal(signal); err != nil {
		t.Fatalf("%s: %v", r.name, err)
	}
}

// says waits until the replica has logged text.
func (r *replica) says(t *testing.T, text string) {
	t.Helper()
	eventually(t, func() error {
		if !r.log.contains(text) {
			return fmt.Errorf("%s has not said %q", r.name, text)
		}
		return nil
	})
}

// notReady waits until the replica is not ready because of a check whose line begins with name.
func (r *replica) notReady(t *testing.T, name string) {
	t.Helper()
	eventually(t, func() error {
		code, body, err := r.ask("/readyz")
		if err == nil && (code != http.StatusServiceUnavailable || !strings.Contains(body, name) || strings.Contains(body, name+"ok")) {
			err = fmt.Errorf("%s is not expected to say %d %q", r.name, code, body)
		}
		return err
	})
}

// metric returns the sum of a metric's values with all of the labels, each given as name="value".
func (r *replica) metric(t *testing.T, name string, labels ...string) (sum float64) {
	t.Helper()
	_, body, err := r.ask("/metrics")
	if err != nil {
		t.Fatal(err)
	}
metrics:
	for _, m := range regexp.MustCompile(`(?m)^`+name+`(\{.*\})? (\S+)$`).FindAllStringSubmatch(body, -1) {
		for _, label := range labels {
			if !strings.Contains(m[1], label) {
				continue metrics
			}
		}
		value, err := strconv.ParseFloat(m[2], 64)
		if err != nil {
			t.Fatalf("metric %s: %v", m[0], err)
		}
		sum += value
	}
	return sum
}

// ask gets a page of the admin listener.
func (r *replica) ask(path string) (code int, body string, err error) {
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Get("http://" + r.admin + path)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	return res.StatusCode, string(text), err
}
