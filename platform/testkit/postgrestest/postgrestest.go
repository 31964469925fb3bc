// Package postgrestest gives each test a PostgreSQL database of its own: a copy of a template database that is built once
// for all tests on a server.
package postgrestest

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"fmt"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/lib/pq"

	"shop.example/platform/postgres"
)

// Template is a database that tests get copies of.
type Template struct {
	name string
	make func() error // once in this process
}

// NewTemplate returns a template that build fills when it is first used, at the URL of a new database. The server keeps
// templates by their fingerprint, so fingerprint must change whenever build does something else.
func NewTemplate(fingerprint string, build func(ctx context.Context, url string) error) *Template {
	sum := sha256.Sum256([]byte(fingerprint))
	t := &Template{name: "test_template_" + hex.EncodeToString(sum[:8])}
	t.make = sync.OnceValue(func() error { return makeTemplate(t.name, build) })
	return t
}

// Statements returns a template that is filled with these SQL statements.
func Statements(statements string) *Template {
	return NewTemplate(statements, func(_ context.Context, url string) error {
		s, err := connect(url)
		if err != nil {
			return err
		}
		defer s.Close()
		return s.run(statements)
	})
}

// New returns the URL of a new copy on the server at DATABASE_URL, with the user of that URL. The copy is dropped when the
// test ends, even if somebody is still connected. It may be called concurrently. With -short it skips the test.
func (template *Template) New(t testing.TB) string {
	t.Helper()
	admin := AdminURL(t)
	if err := template.make(); err != nil {
		t.Fatalf("making the template of the test databases: %v", err)
	}
	return create(t, admin, template.name)
}

// NewEmpty returns the URL of a new, empty database, as Template.New does. options are appended to CREATE DATABASE.
func NewEmpty(t testing.TB, options ...string) string {
	t.Helper()
	// template1 may have been changed, and whoever is connected to it is in the way.
	return create(t, AdminURL(t), strings.Join(append([]string{"template0"}, options...), " "))
}

// AdminURL returns DATABASE_URL, for tests of the server itself. With -short it skips the test, because there is no server
// then.
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
	name := "test_" + strings.ToLower(rand.Text())
	if err := s.run("CREATE DATABASE " + name + " TEMPLATE " + template); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.run("DROP DATABASE " + name + " WITH (FORCE)"); err != nil {
			t.Error(err)
		}
	})
	return s.database(name)
}

// makeTemplate makes the template if it is missing, once for all test binaries that use the server.
func makeTemplate(name string, build func(ctx context.Context, url string) error) error {
	s, err := connect(os.Getenv("DATABASE_URL"))
	if err != nil {
		return err
	}
	defer s.Close()
	// The lock ends with the one connection that the pool has.
	if _, err := s.Exec("SELECT pg_advisory_lock(hashtext($1))", name); err != nil {
		return err
	}
	var exists bool
	err = s.QueryRow("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", name).Scan(&exists)
	if err != nil || exists {
		return err
	}
	// Built under another name: one that was left half done is never copied.
	building := name + "_building"
	if err := s.run("DROP DATABASE IF EXISTS "+building+" WITH (FORCE)", "CREATE DATABASE "+building+" TEMPLATE template0"); err != nil {
		return err
	}
	if err := build(context.Background(), s.database(building)); err != nil {
		return err
	}
	// A database that someone is connected to cannot be copied.
	return s.run("ALTER DATABASE "+building+" ALLOW_CONNECTIONS false", "ALTER DATABASE "+building+" RENAME TO "+name)
}

// server is one connection as the administrator.
type server struct {
	*sql.DB
	url *url.URL
}

func connect(adminURL string) (*server, error) {
	u, err := postgres.ParseURL(adminURL)
	if err != nil {
		return nil, err
	}
	config, err := postgres.Config(adminURL, "")
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
