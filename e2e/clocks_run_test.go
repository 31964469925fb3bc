//go:build clocks

package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"shop.example/platform/testkit/brokertest"
	"shop.example/topology"
)

// While orders are placed the clock of the database jumps an hour ahead, an hour back and by a minute, each for longer than the
// sweeper of inventory waits between two sweeps.
func TestClocks_ADatabaseWhoseClockJumpsDecidesNothingWrong(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	own := newServers(t, "AMQP_URL="+broker.URL)
	f := newDeployment(t, deploymentOptions{replicas: map[string]int{"order": 2, "inventory": 2}})
	f.broker, f.amqp, f.database = broker, broker.Services(t, topology.Broker()), own.makeDatabase(t)
	f.servers(t, broker.URL, f.database)
	set := own.fakeClock(t)
	f.up(t)
	tr := f.traffic(t, f.unlimitedStock(t), answerLimit, f.gateways()...)
	tr.flows(t, 50)
	pool := f.openDatabase(t)
	for _, jump := range []time.Duration{time.Hour, 0, -time.Hour, 0, time.Minute, -time.Minute, 0} {
		set(t, jump)
		eventually(t, func() error {
			var now time.Time
			if err := pool.QueryRowContext(t.Context(), "SELECT clock_timestamp()").Scan(&now); err != nil {
				return err
			}
			if ahead := time.Until(now); (ahead - jump).Abs() > 10*time.Second {
				return fmt.Errorf("the database is %s ahead, want %s", ahead, jump)
			}
			return nil
		})
		before := tr.orders()
		time.Sleep(70 * time.Second) // sweeps come each minute
		t.Logf("clock at %+v: %d orders were accepted", jump, tr.orders()-before)
		tr.flows(t, 50)
	}
	if refused, _ := tr.figures(); len(refused) > 0 {
		t.Errorf("orders were refused: %v", refused)
	}
	f.usedUpNoAttempt(t)
	f.comesToRest(t, tr.end(t))
	tr.isDecided(t, &f.shop)
}

// fakeClock starts the database server again with a clock that the function which it returns sets, ahead of the true one.
func (s *servers) fakeClock(t *testing.T) (set func(t *testing.T, ahead time.Duration)) {
	t.Helper()
	libraries, _ := filepath.Glob("/usr/lib/*/faketime/libfaketime.so.1")
	if len(libraries) == 0 {
		t.Fatal("libfaketime is missing: install it (Debian, Ubuntu: apt-get install faketime)")
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "clock")
	set = func(t *testing.T, ahead time.Duration) {
		t.Helper()
		next := file + ".next"
		if err := os.WriteFile(next, fmt.Appendf(nil, "%+d\n", int(ahead.Seconds())), 0o644); err != nil { //nolint:gosec // the server reads it as another user
			t.Fatal(err)
		}
		if err := os.Rename(next, file); err != nil {
			t.Fatal(err)
		}
	}
	set(t, 0)
	command, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", s.pid(t, "postgres")))
	if err != nil {
		t.Fatal(err)
	}
	s.stopDatabase(t)
	args := strings.Split(strings.TrimRight(string(command), "\x00"), "\x00")
	var said bytes.Buffer
	server := exec.Command(args[0], args[1:]...)
	server.Dir, server.Stdout, server.Stderr = "/", &said, &said
	server.Env = []string{
		"PATH=" + os.Getenv("PATH"), "LANG=C.UTF-8", "LD_PRELOAD=" + libraries[0],
		"FAKETIME_TIMESTAMP_FILE=" + file, "FAKETIME_NO_CACHE=1", "FAKETIME_DONT_FAKE_MONOTONIC=1",
	}
	server.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGQUIT}
	if owner := ownerOf(t, s.data()); owner.Uid != uint32(os.Getuid()) { //nolint:gosec // it is an id
		server.SysProcAttr.Credential = &syscall.Credential{Uid: owner.Uid, Gid: owner.Gid}
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = server.Process.Signal(syscall.SIGQUIT)
		_ = server.Wait()
		if t.Failed() {
			t.Logf("the database server said:\n%s", said.Bytes())
		}
	})
	admin := shop{database: s.database}
	pool := admin.openDatabase(t)
	eventually(t, func() error { return pool.PingContext(t.Context()) })
	return set
}
