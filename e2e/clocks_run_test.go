//go:build clocks

package e2e

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
)

const (
	// clocksJump is how far a clock jumps.
	clocksJump = time.Hour
	// clocksRefused is for how long orders may be refused while clocks are wrong.
	clocksRefused = 2 * time.Second
	// clocksDecided is within which time 99 % of the orders are decided, and how long the stream may show nothing. PostgreSQL cuts
	// its standby off if its clock jumps ahead by a minute; that is back after 5 s, if it was away shortly before, and commits wait for it.
	clocksDecided = 10 * time.Second
	// clocksReplayed is how many orders of each row are placed again, under the same idempotency keys.
	clocksReplayed = 20
	// clocksSwept is within which time inventory gives stock back that was held for no order, once clocks are right: it trusts none
	// for five minutes after a jump, and looks every minute.
	clocksSwept = 7 * time.Minute
)

// TestClocks_ThatJumpOrDifferDecideNothingWrong places orders in a cluster of which one clock after the other jumps by an hour, ahead
// and back, and of which no two clocks agree; then a day passes for all, hour by hour. PostgreSQL and RabbitMQ run with libfaketime,
// our services with a changed time.Now; monotonic clocks stay right, as on a real machine. CLOCKS_ONLY names rows.
func TestClocks_ThatJumpOrDifferDecideNothingWrong(t *testing.T) {
	library, err := filepath.Glob("/usr/lib/*/faketime/libfaketime.so.1")
	if err != nil || len(library) == 0 {
		t.Fatal("libfaketime is not installed: apt-get install libfaketime")
	}
	t.Setenv("GOFLAGS", strings.TrimSpace(os.Getenv("GOFLAGS")+" -overlay="+clockOverlay(t)))
	dir := t.TempDir()
	own := stoppedServers(t, filepath.Join(dir, "servers"), "LD_PRELOAD="+library[0], "FAKETIME_NO_CACHE=1", "FAKETIME_DONT_FAKE_MONOTONIC=1", "HOLD_LIMIT=5m")
	clocks := map[string][]wallClock{}
	c := newClusterShop(t, own, 1, 0, 30, func(f *deployment) {
		for name, replicas := range f.replicas {
			for _, r := range replicas {
				k := serviceClock{filepath.Join(dir, strings.ReplaceAll(r.name, " ", "-")+".clock"), r}
				k.set(t, 0)
				r.env = append(r.env, "SHOP_CLOCK="+k.path, "HOLD_LIMIT=5m")
				clocks[name] = append(clocks[name], k)
			}
		}
	})
	for node := range clusterBrokers {
		clocks["broker"] = append(clocks["broker"], brokerClock{c, node})
	}
	clocks["database"] = []wallClock{databaseClock{c.own}, databaseClock{c.standby}}
	c.suffersAll(t, "| clock | refused for | refused | accepted, p99 | decided, p99 | decided, longest | stream silent | lost | doubled | audit |",
		os.Getenv("CLOCKS_ONLY"), clockFaults(clocks), c.clockRow)
	c.givesBack(t, clocks)
	c.comesToRest(t, c.placed)
}

// clockFaults are what happens to clocks, which are right again afterwards but for the last ones.
func clockFaults(clocks map[string][]wallClock) (faults []clusterFault) {
	faults = append(faults, clusterFaults[0])
	for _, name := range append([]string{"database", "broker"}, services[:len(services)-1]...) { // webhooks has nobody to deliver to
		faults = append(faults, clusterFault{name: name + ", an hour ahead, back, an hour behind, back", do: func(t *testing.T, c *clusterShop) string {
			jumps(t, clocks[name]...)
			return ""
		}})
	}
	return append(faults,
		clusterFault{name: "broker, one node of three, likewise", do: func(t *testing.T, c *clusterShop) string {
			jumps(t, clocks["broker"][1])
			return ""
		}},
		clusterFault{name: "order, one replica of two, likewise", do: func(t *testing.T, c *clusterShop) string {
			jumps(t, clocks["order"][0])
			return ""
		}},
		clusterFault{name: "all, a minute apart from the next", do: func(t *testing.T, c *clusterShop) string {
			ahead := -4 * time.Minute
			for _, name := range slices.Sorted(maps.Keys(clocks)) {
				for _, k := range clocks[name] {
					k.set(t, ahead)
					ahead += time.Minute
				}
			}
			time.Sleep(3 * clusterCalm)
			for _, name := range services {
				c.replicas[name][0].kill()
				c.replicas[name][0].start(t)
			}
			time.Sleep(3 * clusterCalm)
			for _, k := range clocks {
				set(t, k, 0)
			}
			return fmt.Sprintf("%s between the first and the last", ahead-time.Minute+4*time.Minute)
		}},
		clusterFault{name: "all, a day, hour by hour", do: func(t *testing.T, c *clusterShop) string {
			for hour := range 24 {
				for _, k := range clocks {
					set(t, k, time.Duration(hour+1)*time.Hour)
				}
				time.Sleep(clusterCalm / 2)
			}
			return ""
		}},
	)
}

// jumps has clocks jump ahead and behind, and be right in between and afterwards.
func jumps(t *testing.T, clocks ...wallClock) {
	t.Helper()
	for _, ahead := range []time.Duration{clocksJump, 0, -clocksJump, 0} {
		set(t, clocks, ahead)
		for _, k := range clocks { // otherwise nothing would be shown
			eventually(t, func() error {
				if says, want := k.says(t), time.Now().Add(ahead); says.Sub(want).Abs() > 10*time.Second {
					return fmt.Errorf("a clock says %s, and was set to %s", says, want)
				}
				return nil
			})
		}
		time.Sleep(clusterCalm)
	}
}

// clockRow is a row of the table.
func (c *clusterShop) clockRow(t *testing.T, fault clusterFault) string {
	t.Helper()
	o := c.suffers(t, fault)
	c.stream.mu.Lock()
	for _, order := range o.hit { // by the clock of this test, which is right
		order.decided = c.stream.decided[strings.TrimPrefix(order.location, "/v1/orders/")]
	}
	c.stream.mu.Unlock()
	decided := percentile(o.hit, 0.99, (*steadyOrder).decidedAfter)
	if o.refusedFor > clocksRefused || decided > clocksDecided || o.silent > clocksDecided {
		t.Errorf("%s: refused for %s, decided within %s, stream silent for %s; want at most %s, %s, %[6]s", fault.name, o.refusedFor, decided, o.silent,
			clocksRefused, clocksDecided)
	}
	for _, order := range o.hit[:min(len(o.hit), clocksReplayed)] {
		if again, err := c.load.once(t.Context(), c.url, c.load.body(order), order.key); err != nil || again != order.location {
			t.Errorf("order %s was %s, and placed again it is %q, %v", order.key, order.location, again, err)
		}
	}
	return fmt.Sprintf("| %s | %s | %d of %d | %s | %s | %s | %s | %d | %d | %s |", fault.name, seconds(o.refusedFor), o.refused, len(o.hit),
		seconds(percentile(o.hit, 0.99, (*steadyOrder).acceptedAfter)), seconds(decided), seconds(percentile(o.hit, 1, (*steadyOrder).decidedAfter)),
		seconds(o.silent), o.lost, o.doubled, o.audit)
}

// givesBack holds a piece for an order that is never placed, has another hour pass, and waits until the piece is not held any more.
func (c *clusterShop) givesBack(t *testing.T, clocks map[string][]wallClock) {
	t.Helper()
	database, order := c.openDatabase(t), uuid.NewString()
	c.exec(t, fmt.Sprintf(`INSERT INTO inventory.decision (order_id, lines_hash, answer) VALUES ('%s', '', '')`, order))
	c.exec(t, fmt.Sprintf(`INSERT INTO inventory.hold (order_id, product_id, quantity) VALUES ('%s', 1, 1)`, order))
	c.exec(t, `UPDATE inventory.product SET reserved = reserved + 1 WHERE id = 1`)
	for _, k := range clocks {
		set(t, k, 25*time.Hour)
	}
	eventuallyWithin(t, clocksSwept, func() error {
		if n := countRows(t, database, `SELECT count(*) FROM inventory.hold WHERE state = 'HELD'`); n > 0 {
			return fmt.Errorf("%d holds are left, one of them of order %s, which was never placed", n, order)
		}
		return nil
	})
}

// wallClock is one that can be set.
type wallClock interface {
	set(t *testing.T, ahead time.Duration)
	says(t *testing.T) time.Time
}

func set(t *testing.T, clocks []wallClock, ahead time.Duration) {
	t.Helper()
	for _, k := range clocks {
		k.set(t, ahead)
	}
}

// serviceClock is that of a process with a changed time.Now, which adds what a file says.
type serviceClock struct {
	path string
	of   *replica
}

func (k serviceClock) set(t *testing.T, ahead time.Duration) {
	t.Helper()
	file, err := os.OpenFile(k.path, os.O_WRONLY|os.O_CREATE, 0o600)
	if err == nil {
		_, err = file.WriteAt(binary.NativeEndian.AppendUint64(nil, uint64(int64(ahead.Seconds()))), 0) //nolint:gosec // it is read as a signed one
	}
	if err == nil {
		err = file.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (k serviceClock) says(t *testing.T) time.Time {
	t.Helper()
	res, err := http.Get("http://" + k.of.admin + "/livez")
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	at, err := http.ParseTime(res.Header.Get("Date"))
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// databaseClock is that of a database server.
type databaseClock struct{ of *servers }

func (k databaseClock) set(t *testing.T, ahead time.Duration) {
	t.Helper()
	fakeTime(t, filepath.Dir(k.of.data()), ahead)
}

func (k databaseClock) says(t *testing.T) time.Time {
	t.Helper()
	server := shop{database: k.of.database}
	return unixTime(t, texts(t, server.openDatabase(t), `SELECT extract(epoch FROM clock_timestamp())::bigint::text`)[0])
}

// brokerClock is that of a node of the broker.
type brokerClock struct {
	of   *clusterShop
	node int
}

func (k brokerClock) set(t *testing.T, ahead time.Duration) {
	t.Helper()
	fakeTime(t, filepath.Join(k.of.own.dir, brokerName(k.node)), ahead)
}

func (k brokerClock) says(t *testing.T) time.Time {
	t.Helper()
	command := append(k.of.own.brokerTool(t, k.node, "rabbitmqctl"), "eval", "os:system_time(second).")
	out, err := exec.CommandContext(t.Context(), command[0], command[1:]...).Output()
	if err != nil {
		t.Fatalf("asking node %d for its time: %v", k.node+1, err)
	}
	return unixTime(t, string(out))
}

func unixTime(t *testing.T, seconds string) time.Time {
	t.Helper()
	n, err := strconv.ParseInt(strings.TrimSpace(seconds), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return time.Unix(n, 0)
}

// fakeTime tells libfaketime what the time of the server in a folder is.
func fakeTime(t *testing.T, folder string, ahead time.Duration) {
	t.Helper()
	rc := filepath.Join(folder, ".faketimerc")
	err := os.WriteFile(rc+".new", fmt.Appendf(nil, "%+d\n", int64(ahead.Seconds())), 0o644) //nolint:gosec // another user's server reads it
	if err == nil {
		err = os.Rename(rc+".new", rc)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// clockOverlay is a file for `go build -overlay` with which time.Now also adds what testdata/clocks says.
func clockOverlay(t *testing.T) (path string) {
	t.Helper()
	in := func(root, name string) string { return filepath.Join(root, "src", "time", name) }
	goroot, err := exec.CommandContext(t.Context(), "go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	root, dir := strings.TrimSpace(string(goroot)), t.TempDir()
	source, err := os.ReadFile(in(root, "time.go"))
	if err != nil {
		t.Fatal(err)
	}
	const now = "func Now() Time {\n\tsec, nsec, mono := runtimeNow()\n"
	before, after, found := strings.Cut(string(source), now)
	if !found {
		t.Fatalf("time.Now of %s is not as this test knows it: look at what it does now, and how the clock can be changed there", runtime.Version())
	}
	changed := filepath.Join(dir, "time.go")
	if err := os.WriteFile(changed, []byte(before+now+"\tsec += *ahead\n"+after), 0o600); err != nil {
		t.Fatal(err)
	}
	added, err := filepath.Abs("testdata/clocks/clock.go.txt")
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(map[string]any{"Replace": map[string]string{in(root, "time.go"): changed, in(root, "shop_clock.go"): added}})
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
