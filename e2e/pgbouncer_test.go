//go:build pgbouncer

package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"shop.example/db"
)

func TestPgBouncer_WithSessionsIsTakenForTheServer(t *testing.T) {
	t.Parallel()
	f := newDeployment(t, deploymentOptions{})
	f.servers(t, f.broker.URL, newPgBouncer(t, f.database, "session"))
	f.up(t)
	tr := f.traffic(t, f.unlimitedStock(t), answerLimit, f.gateways()...)
	tr.flows(t, 400)
	if refused, _ := tr.figures(); len(refused) > 0 {
		t.Errorf("orders were refused: %v", refused)
	}
	f.usedUpNoAttempt(t)
	for _, name := range services {
		if f.replicas[name][0].log.contains("a dependency is down") {
			t.Errorf("%s had to wait for its database", name)
		}
	}
	f.comesToRest(t, tr.end(t))
	tr.isDecided(t, &f.shop)
}

func TestPgBouncer_WithTransactionsIsRefusedAtTheStart(t *testing.T) {
	t.Parallel()
	f := newDeployment(t, deploymentOptions{})
	for _, mode := range []string{"transaction", "statement"} {
		url := newPgBouncer(t, f.database, mode)
		_, err := db.Migrate(t.Context(), url, "orders")
		if err == nil || !strings.Contains(err.Error(), "set PgBouncer's pool_mode to session") && mode == "transaction" {
			t.Errorf("pool_mode=%s: %v", mode, err)
		}
	}
	f.servers(t, f.broker.URL, newPgBouncer(t, f.database, "transaction"))
	order := f.replicas["order"][0]
	order.start(t)
	<-order.exited
	if code := order.cmd.ProcessState.ExitCode(); code != 1 || !order.log.contains("set PgBouncer's pool_mode to session") {
		t.Errorf("the order service ended with exit code %d", code)
	}
}

// newPgBouncer starts a PgBouncer that is configured with no more than it needs, and returns the URL that leads through
// it.
func newPgBouncer(t *testing.T, databaseURL, mode string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "pgbouncer-") // t.TempDir is closed to other users
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	addr := freeAddr(t)
	host, port, _ := net.SplitHostPort(addr)
	u := parseURL(t, databaseURL)
	password, _ := u.User.Password()
	config := fmt.Sprintf(`[databases]
* = host=%s port=%s
[pgbouncer]
listen_addr = %s
listen_port = %s
unix_socket_dir =
auth_type = plain
auth_file = %s
pool_mode = %s
`, u.Hostname(), u.Port(), host, port, filepath.Join(dir, "users"), mode)
	for name, text := range map[string]string{"config": config, "users": fmt.Sprintf("%q %q\n", u.User.Username(), password)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var args []string
	if os.Geteuid() == 0 { // as whom it does not run
		args = []string{"-u", "nobody"}
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("pgbouncer", append(args, filepath.Join(dir, "config"))...)
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin")
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatalf("starting PgBouncer (Debian: apt-get install pgbouncer): %v", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // at once
		_ = cmd.Wait()
	})
	eventually(t, func() error {
		conn, err := net.DialTimeout("tcp", addr, time.Second)
		if err == nil {
			_ = conn.Close()
		}
		return err
	})
	u.Host = addr
	return u.String()
}
