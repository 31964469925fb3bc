//go:build idle

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"shop.example/platform/service"
)

const (
	// idleDuration is how long a shop is measured.
	idleDuration = 30 * time.Second
	// idleSettle is how long it is left alone before that: what it does once, it has done by then, and its statistics have reached the
	// database.
	idleSettle = 3 * time.Second
)

// TestIdle_Table prints what `make up` and each service cost while nobody uses them, and how long they take to be ready.
func TestIdle_Table(t *testing.T) {
	f := newDeployment(t, deploymentOptions{})
	t.Logf("| | CPU, %% of a core | wakeups a second | memory, MiB | start to ready, s |")
	t.Logf("| --- | --- | --- | --- | --- |")
	row := func(name string, u usage, start time.Duration) {
		t.Logf("| %s | %.2f | %.0f | %.0f | %.2f |", name, 100*u.cpu, u.wakeups, u.memory/(1<<20), start.Seconds())
	}
	// First to compile what is shared and fill the caches of the machine, then one after the other, the others running.
	f.up(t)
	starts := map[string][]time.Duration{}
	for range 5 {
		for _, name := range services {
			f.replicas[name][0].term(t)
			starts[name] = append(starts[name], f.replicas[name][0].startsWithin(t))
		}
	}
	u := f.idle(t, idleDuration)
	var together usage
	for _, name := range services {
		slices.Sort(starts[name])
		s := u.services[name]
		row(name, s, starts[name][len(starts[name])/2])
		together = usage{together.cpu + s.cpu, together.wakeups + s.wakeups, together.memory + s.memory}
	}
	t.Logf("| together | %.2f | %.0f | %.0f | |", 100*together.cpu, together.wakeups, together.memory/(1<<20))
	t.Logf("%.1f transactions a second in the database", u.queries)
	for _, name := range services {
		f.replicas[name][0].term(t)
	}

	dir := t.TempDir()
	var all []time.Duration
	var p *program
	for range 5 {
		if p != nil {
			p.stop(t)
		}
		begin := time.Now()
		p = up(t, filepath.Join(mustBinaries(t), "shopdev"), dir, "AMQP_URL="+f.broker.URL, "DATABASE_URL="+f.database,
			"WEBHOOKS_ADDR=127.0.0.1:0", "SHOP_OPERATOR_TOKEN="+operatorToken, "SHOP_ID_SECRET=id-secret-of-the-tests")
		all = append(all, time.Since(begin))
	}
	slices.Sort(all)
	const one = "make up, all in one process"
	u = f.shop.idle(t, map[string]int{one: p.process.Pid}, idleDuration)
	row(one, u.services[one], all[len(all)/2])
	t.Logf("%.1f transactions a second in the database", u.queries)
}

// idleUsage is what a shop uses while nothing happens.
type idleUsage struct {
	services map[string]usage
	queries  float64 // transactions a second of all services
}

// usage is what one process uses.
type usage struct {
	cpu     float64 // cores
	wakeups float64 // how often a second one of its threads waits
	memory  float64 // bytes
}

func (u usage) String() string {
	return fmt.Sprintf("%.2f %% of a core, %.0f wakeups a second, %s", 100*u.cpu, u.wakeups, mebibytes(u.memory))
}

func mebibytes(bytes float64) string { return fmt.Sprintf("%.1f MiB", bytes/(1<<20)) }

// idle measures the first replica of each service for so long.
func (f *deployment) idle(t *testing.T, during time.Duration) idleUsage {
	t.Helper()
	pids := map[string]int{}
	for name, replicas := range f.replicas {
		pids[name] = replicas[0].cmd.Process.Pid
	}
	return f.shop.idle(t, pids, during)
}

func (s *shop) idle(t *testing.T, pids map[string]int, during time.Duration) idleUsage {
	t.Helper()
	db := s.openDatabase(t)
	<-time.After(idleSettle)
	const transactions = `SELECT (xact_commit + xact_rollback)::text FROM pg_stat_database WHERE datname = current_database()`
	begin, queries := time.Now(), asFloat(t, texts(t, db, transactions)[0])
	before := map[string]usage{}
	for name, pid := range pids {
		before[name] = readUsage(t, pid)
	}
	<-time.After(during)
	u := idleUsage{services: map[string]usage{}}
	for name, pid := range pids {
		now, seconds := readUsage(t, pid), time.Since(begin).Seconds()
		u.services[name] = usage{(now.cpu - before[name].cpu) / seconds, (now.wakeups - before[name].wakeups) / seconds, now.memory}
	}
	u.queries = (asFloat(t, texts(t, db, transactions)[0]) - queries) / time.Since(begin).Seconds()
	return u
}

// readUsage returns what a process has used so far: seconds of processor time, and how often its threads have waited.
func readUsage(t *testing.T, pid int) (u usage) {
	t.Helper()
	stat := procFile(t, pid, "stat")
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:]) // from the third on, the state
	const ticks = 100                                                   // a second, on every Linux
	u.cpu = (asFloat(t, fields[11]) + asFloat(t, fields[12])) / ticks
	u.memory = asFloat(t, strings.Fields(procFile(t, pid, "statm"))[1]) * float64(os.Getpagesize())
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, thread := range threads {
		status, err := os.ReadFile(thread)
		if err != nil {
			continue // it has ended
		}
		if _, rest, found := strings.Cut(string(status), "\nvoluntary_ctxt_switches:"); found {
			u.wakeups += asFloat(t, strings.Fields(rest)[0])
		}
	}
	return u
}

func procFile(t *testing.T, pid int, name string) string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func asFloat(t *testing.T, text string) float64 {
	t.Helper()
	n, err := strconv.ParseFloat(text, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// startsWithin starts the replica and returns how long it takes to be ready.
func (r *replica) startsWithin(t *testing.T) time.Duration {
	t.Helper()
	begin := time.Now()
	r.start(t)
	for service.Probe(t.Context(), r.admin) != nil {
		if !r.running() || time.Since(begin) > testTimeout {
			t.Fatalf("%s is not ready after %s", r.name, time.Since(begin))
		}
		<-time.After(2 * time.Millisecond)
	}
	return time.Since(begin)
}
