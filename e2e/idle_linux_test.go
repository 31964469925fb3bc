package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

const (
	// idleSettle is how long a service is left alone before it is measured: what it does once, it has done by then, and its statistics
	// have reached the database.
	idleSettle = 3 * time.Second
	// idleWakeups is how often a second the threads of a service may wait for something.
	idleWakeups = 300
	// idleCPU is how much of a core all services together may take then. On a machine that is busy with other tests, with cold caches,
	// the same work takes several times as long as measured alone (docs/performance.md).
	idleCPU = 0.15
	// idleMemory is what each service may have in memory then, in bytes.
	idleMemory = 60 << 20
)

// What nobody uses must cost next to nothing: a service that waits is told when there is something to do, or looks rarely.
func TestIdle_ServicesThatHaveNothingToDoCostLittle(t *testing.T) {
	t.Parallel()
	f := newDeployment(t, deploymentOptions{})
	f.up(t)
	u := f.idle(t, 5*time.Second)
	cpu := 0.0
	for _, name := range services {
		s := u.services[name]
		t.Logf("%s: %s", name, s)
		cpu += s.cpu
		if s.memory > idleMemory {
			t.Errorf("%s has %s in memory while it is idle", name, mebibytes(s.memory))
		}
		if s.wakeups > idleWakeups {
			t.Errorf("%s wakes up %.0f times a second while it is idle", name, s.wakeups)
		}
	}
	if cpu > idleCPU {
		t.Errorf("idle services take %.1f %% of a core, more than %.0f", 100*cpu, 100*idleCPU)
	}
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
