package stack

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"shop.example/platform/messaging"
	"shop.example/platform/mtls"
	database "shop.example/platform/postgres"
	"shop.example/topology"
)

// startWithTLS starts both servers so that they serve TLS too, with certificates of the name localhost. The broker does
// so on the port that is returned, to clients with a certificate of the same CA.
func startWithTLS(t *testing.T, certs string) (s *Stack, amqpsPort int) {
	t.Helper()
	needsServers(t)
	if err := mtls.GenerateDevCerts(certs, time.Hour, "server", "order"); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	port, err := ours().freePort(0)
	if err != nil {
		t.Fatal(err)
	}
	server := mtls.CertPaths(certs, "server")
	// The file is not ours to write otherwise; see environment.
	advanced := filepath.Join(dir, rabbitKind.folder, advancedConfig)
	if err := os.MkdirAll(filepath.Dir(advanced), 0o700); err != nil {
		t.Fatal(err)
	}
	config := fmt.Sprintf(`[{rabbit, [{ssl_listeners, [{"127.0.0.1", %d}]},
		{ssl_options, [{cacertfile, %q}, {certfile, %q}, {keyfile, %q}, {verify, verify_peer}, {fail_if_no_peer_cert, true}]}]}].`,
		port, server.CAFile, server.CertFile, server.KeyFile)
	if err := os.WriteFile(advanced, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	s, _ = startHere(t, dir, ours())

	// PostgreSQL takes certificates up while it runs. It reads them as its own user, from where that user can.
	home := filepath.Join(dir, postgresKind.folder, "data")
	for _, file := range []string{server.CertFile, server.KeyFile} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		copied := filepath.Join(home, filepath.Base(file))
		if err := os.WriteFile(copied, text, 0o600); err != nil {
			t.Fatal(err)
		}
		if owner, err := user.Lookup("postgres"); os.Getuid() == 0 && err == nil {
			uid, _ := strconv.Atoi(owner.Uid)
			if err := os.Chown(copied, uid, -1); err != nil {
				t.Fatal(err)
			}
		}
	}
	query(t, s, "ALTER SYSTEM SET ssl_cert_file = 'cert.pem'")
	query(t, s, "ALTER SYSTEM SET ssl_key_file = 'key.pem'")
	query(t, s, "ALTER SYSTEM SET ssl = on")
	query(t, s, "SELECT pg_reload_conf()")
	waitUntil(t, "PostgreSQL serves TLS", func() bool { return query(t, s, "SHOW ssl") == "on" })
	return s, port
}

func TestTLS_BrokerAndDatabaseByURL(t *testing.T) {
	t.Parallel()
	certs, others := t.TempDir(), t.TempDir()
	s, amqpsPort := startWithTLS(t, certs)
	if err := mtls.GenerateDevCerts(others, time.Hour, "order"); err != nil {
		t.Fatal(err)
	}
	ours, strangers := mtls.CertPaths(certs, "order"), mtls.CertPaths(others, "order")

	t.Run("the database", func(t *testing.T) {
		for _, c := range []struct{ host, mode, ca, want string }{
			{"localhost", "verify-full", ours.CAFile, ""},
			{"localhost", "verify-full", strangers.CAFile, "certificate signed by unknown authority"},
			{"localhost", "require", "", ""},
		} {
			u, err := url.Parse(s.DatabaseURL)
			if err != nil {
				t.Fatal(err)
			}
			u.Host = c.host + ":" + u.Port()
			u.RawQuery = url.Values{"sslmode": {c.mode}, "sslrootcert": {c.ca}}.Encode()
			pool, err := database.Open(t.Context(), u.String(), "", database.Options{Application: "tls"})
			if err != nil {
				if c.want == "" || !strings.Contains(err.Error(), c.want) {
					t.Errorf("%+v: got %v", c, err)
				}
				continue
			}
			var encrypted bool
			if err := pool.Get(&encrypted, "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"); err != nil || !encrypted || c.want != "" {
				t.Errorf("%+v: encrypted %v, %v", c, encrypted, err)
			}
			_ = pool.Close()
		}
	})
	t.Run("the broker", func(t *testing.T) {
		for _, c := range []struct {
			files mtls.Config
			want  string
		}{
			{ours, ""},
			{mtls.Config{CAFile: ours.CAFile}, "certificate"}, // the broker asks for one
			{mtls.Config{CertFile: ours.CertFile, KeyFile: ours.KeyFile, CAFile: strangers.CAFile}, "certificate signed by unknown authority"},
		} {
			if err := connect(t, amqps(t, s.AMQPURL, amqpsPort, c.files)); c.want == "" && err != nil ||
				c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%+v: got %v", c, err)
			}
		}
	})
}

func amqps(t *testing.T, amqp string, port int, files mtls.Config) string {
	t.Helper()
	u, err := url.Parse(amqp)
	if err != nil {
		t.Fatal(err)
	}
	u.Scheme, u.Host = "amqps", fmt.Sprintf("localhost:%d", port)
	query := url.Values{"cacertfile": {files.CAFile}}
	if files.CertFile != "" {
		query.Set("certfile", files.CertFile)
		query.Set("keyfile", files.KeyFile)
	}
	u.RawQuery = query.Encode()
	return u.String()
}

// connect returns nil once the broker at url has taken the shop's topology, or why it is not connected.
func connect(t *testing.T, url string) error {
	t.Helper()
	conn, err := messaging.Dial(url, messaging.Options{Topology: topology.Broker(), Service: "order", Role: "publish", Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = conn.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	deadline := time.Now().Add(10 * time.Second)
	for {
		err := conn.Ready(ctx)
		if err == nil || !strings.Contains(err.Error(), "not connected yet") || time.Now().After(deadline) {
			return err
		}
		if pause(ctx, 10*time.Millisecond) != nil {
			return err
		}
	}
}
