// Package dbtest gives each test a database of its own, with all schemas migrated and seeded. The migrations run once,
// into a template that every test copies.
package dbtest

import (
	"context"
	"crypto/rand"
	"database/sql"
	"fmt"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/lib/pq"

	"shop.example/db"
)

// New returns the URL of a new database on the server that DATABASE_URL names, for the administrator that it names. The
// database is dropped when the test ends, whoever is still connected. Tests that run at once may call it.
func New(t testing.TB) string {
	t.Helper()
	admin := AdminURL(t)
	if err := makeTemplate(); err != nil {
		t.Fatalf("making the template of the test databases: %v", err)
	}
	return create(t, admin, templateName())
}

// NewEmpty is New without schemas.
func NewEmpty(t testing.TB) string {
	t.Helper()
	// template1 may have been changed, and whoever is connected to it is in the way.
	return create(t, AdminURL(t), "template0")
}

// AdminURL returns DATABASE_URL, for tests of the server itself. In short mode it skips the test, because there is no
// server then.
func AdminURL(t testing.TB) string {
	t.Helper()
	if testing.Short() {
		t.Skip("needs PostgreSQL")
	}
	admin := os.Getenv("DATABASE_URL")
	if admin == "" {
		t.Fatal("this test needs PostgreSQL, and DATABASE_URL is not set: run `make t PKG=./…` in the root of the repository, or `make unit` for the tests without servers")
	}
	return admin
}

func create(t testing.TB, adminURL, template string) string {
	t.Helper()
	s, err := connect(adminURL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	name := "shop_test_" + strings.ToLower(rand.Text())
	if _, err := s.Exec("CREATE DATABASE " + name + " TEMPLATE " + template); err != nil {
		t.Fatalf("copying %s: %v", template, err)
	}
	t.Cleanup(func() {
		if _, err := s.Exec("DROP DATABASE " + name + " WITH (FORCE)"); err != nil {
			t.Errorf("dropping the test's database: %v", err)
		}
	})
	return s.database(name)
}

// templateName changes with every migration, so a template is never stale.
func templateName() string { return "shop_template_" + db.Fingerprint() }

// makeTemplate makes the template where it is missing, once for all test binaries that use the server.
var makeTemplate = sync.OnceValue(func() error {
	s, err := connect(os.Getenv("DATABASE_URL"))
	if err != nil {
		return err
	}
	defer s.Close()
	// The lock ends with the one connection that the pool has.
	if _, err := s.Exec("SELECT pg_advisory_lock(hashtext('shop.dbtest'))"); err != nil {
		return err
	}
	var exists bool
	err = s.QueryRow("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", templateName()).Scan(&exists)
	if err != nil || exists {
		return err
	}
	// Built under another name: one that was left half done is never copied.
	building := templateName() + "_building"
	if err := s.run("DROP DATABASE IF EXISTS "+building+" WITH (FORCE)", "CREATE DATABASE "+building+" TEMPLATE template0"); err != nil {
		return err
	}
	for _, schema := range db.Schemas() {
		if _, err := db.Migrate(context.Background(), s.database(building), schema); err != nil {
			return err
		}
	}
	// A database that someone is connected to cannot be copied.
	return s.run("ALTER DATABASE "+building+" ALLOW_CONNECTIONS false", "ALTER DATABASE "+building+" RENAME TO "+templateName())
})

// server is one connection as the administrator.
type server struct {
	*sql.DB
	url *url.URL
}

func connect(adminURL string) (*server, error) {
	u, err := url.Parse(adminURL)
	if err != nil {
		return nil, fmt.Errorf("DATABASE_URL is not a URL")
	}
	config, err := db.Config(adminURL, "")
	if err != nil {
		return nil, err
	}
	connector, err := pq.NewConnectorConfig(config)
	if err != nil {
		return nil, err
	}
	pool := sql.OpenDB(connector)
	pool.SetMaxOpenConns(1)
	return &server{DB: pool, url: u}, nil
}

// database returns the URL of another database of the server.
func (s *server) database(name string) string {
	u := *s.url
	u.Path = "/" + name
	return u.String()
}

func (s *server) run(statements ...string) error {
	for _, statement := range statements {
		if _, err := s.Exec(statement); err != nil {
			return fmt.Errorf("%s: %w", statement, err)
		}
	}
	return nil
}
