//go:build idle && linux

package e2e

import (
	"path/filepath"
	"slices"
	"testing"
	"time"

	"shop.example/platform/service"
)

// idleDuration is how long a shop is measured.
const idleDuration = 30 * time.Second

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
