package e2e

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"shop.example/platform/testkit/brokertest"
	"shop.example/platform/testkit/netproxy"
	"shop.example/topology"
)

// The database fails over twice. The proxy leads to the standby before that is promoted, as a name or an address does that
// moved too early; who names both servers finds the one that takes writes.
func TestDatabase_AStandbyCostsNoOrderAndWorksOnceItIsPromoted(t *testing.T) {
	t.Parallel()
	broker := brokertest.New(t)
	first := newServers(t, "AMQP_URL="+broker.URL)
	f := newDeployment(t, deploymentOptions{})
	f.broker, f.amqp, f.database = broker, broker.Services(t, topology.Broker()), first.makeDatabase(t)
	second := first.standby(t)
	proxy := netproxy.New(t, f.database)
	f.servers(t, broker.URL, proxy.URL)
	logging := f.replicas["logging"][0]
	logging.env = append(logging.env, "DATABASE_URL="+both(t, f.database, second.database))
	f.up(t)
	tr := f.traffic(t, f.unlimitedStock(t), answerLimit, f.gateways()...)
	tr.flows(t, 50)

	proxy.Retarget(t, second.database)
	for _, name := range []string{"order", "inventory"} {
		f.replicas[name][0].notReady(t, "database: database unavailable: the server is a standby")
	}
	f.replicas["order"][0].says(t, "a dependency is down")
	f.replicas["inventory"][0].term(t) // who starts on a standby waits as well
	f.replicas["inventory"][0].start(t)
	f.replicas["inventory"][0].notReady(t, "database: database unavailable: the server is a standby")
	tr.flows(t, 50)
	first.stopDatabase(t) // the standby has everything then
	second.promote(t)
	f.ready(t)
	tr.flows(t, 50)

	second.demote(t)
	for _, name := range services[1:] {
		f.replicas[name][0].notReady(t, "database: database unavailable: ")
	}
	tr.flows(t, 50)
	second.promote(t)
	f.ready(t)
	tr.flows(t, 50)

	if refused, _ := tr.figures(); len(refused) > 0 {
		t.Errorf("orders were refused though the broker was there: %v", refused)
	}
	f.usedUpNoAttempt(t)
	f.database = atDatabaseOf(t, f.database, second.database)
	f.comesToRest(t, tr.end(t))
	tr.isDecided(t, &f.shop)
}

// standby starts a second database server that streams from this one, with a broker of this one's.
func (s *servers) standby(t *testing.T) *servers {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "standby")
	folder := filepath.Join(dir, "postgres")
	if err := os.MkdirAll(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	backup := exec.CommandContext(t.Context(), postgresProgram(t, "pg_basebackup"),
		"-d", s.database, "-D", filepath.Join(folder, "data"), "-R", "-X", "stream", "-c", "fast", "--no-sync")
	if out, err := backup.CombinedOutput(); err != nil {
		t.Fatalf("pg_basebackup: %v\n%s", err, out)
	}
	handOver(t, folder, ownerOf(t, s.data()))
	password, _ := parseURL(t, s.database).User.Password()
	settings, err := json.Marshal(map[string]any{"password": password, "ports": []int{0}, "fast": true})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(folder, "settings.json"), settings, 0o600); err != nil {
		t.Fatal(err)
	}
	return startServers(t, dir, append(slices.Clone(s.env), "AMQP_URL="+s.amqp)...)
}

// demote restarts the database server as a standby that replicates nothing.
func (s *servers) demote(t *testing.T) {
	t.Helper()
	s.stopDatabase(t)
	signal := filepath.Join(s.data(), "standby.signal")
	if err := os.WriteFile(signal, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	handOver(t, signal, ownerOf(t, s.data()))
	s.start(t)
}

// data is the folder of the database server.
func (s *servers) data() string { return filepath.Join(s.dir, "postgres", "data") }

func ownerOf(t *testing.T, path string) *syscall.Stat_t {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t)
}

// handOver changes the owner of path and everything below it: under root the database server runs as another user.
func handOver(t *testing.T, path string, owner *syscall.Stat_t) {
	t.Helper()
	err := filepath.WalkDir(path, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, int(owner.Uid), int(owner.Gid))
	})
	if err != nil {
		t.Fatal(err)
	}
}

// promote makes a standby a primary.
func (s *servers) promote(t *testing.T) {
	t.Helper()
	// standby starts a second database server that replicates this one, and uses the broker of this one.
	standby := shop{database: s.database}
	var promoted bool
	if err := standby.openDatabase(t).QueryRowContext(t.Context(), "SELECT pg_promote()").Scan(&promoted); err != nil || !promoted {
		t.Fatalf("promoting a standby: %t, %v", promoted, err)
	}
}

// stopDatabase stops the database server cleanly, so that its standby has everything. The broker goes on.
func (s *servers) stopDatabase(t *testing.T) {
	t.Helper()
	s.release(t, syscall.SIGKILL)
	pid := s.pid(t, "postgres")
	if err := syscall.Kill(pid, syscall.SIGINT); err != nil {
		t.Fatalf("stopping the database: %v", err)
	}
	eventually(t, func() error {
		if syscall.Kill(pid, 0) == nil {
			return fmt.Errorf("the database server, process %d, has not ended", pid)
		}
		return nil
	})
}

// pid is the process of a server, "postgres" or "rabbitmq".
func (s *servers) pid(t *testing.T, name string) int {
	t.Helper()
	record, err := os.ReadFile(filepath.Join(s.dir, name, "process"))
	if err != nil {
		t.Fatalf("finding %s: %v", name, err)
	}
	pid, err := strconv.Atoi(strings.Fields(string(record))[0])
	if err != nil {
		t.Fatalf("finding %s: %v", name, err)
	}
	return pid
}

// both returns database as a URL with the servers of both URLs, of which the driver uses the one that accepts writes.
func both(t *testing.T, database, other string) string {
	t.Helper()
	a, b := parseURL(t, database), parseURL(t, other)
	a.Host += "," + b.Host
	query := a.Query()
	query.Set("target_session_attrs", "read-write")
	a.RawQuery = query.Encode()
	return a.String()
}

// atDatabaseOf returns database as a URL on the server of another URL.
func atDatabaseOf(t *testing.T, database, server string) string {
	t.Helper()
	u := parseURL(t, database)
	u.Host = parseURL(t, server).Host
	return u.String()
}

func parseURL(t *testing.T, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// postgresProgram finds a program of PostgreSQL, which Debian does not have on the path.
func postgresProgram(t *testing.T, name string) string {
	t.Helper()
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	all, _ := filepath.Glob("/usr/lib/postgresql/*/bin/" + name)
	if len(all) == 0 {
		t.Fatalf("%s is neither on the path nor in /usr/lib/postgresql: install PostgreSQL's server and client (apt-get install postgresql)", name)
	}
	return slices.MaxFunc(all, func(a, b string) int { return len(a) - len(b) }) // the newest once they have three digits
}
