// Package db holds the migrations of every service's schema and brings a database to them: Bootstrap makes database,
// roles and schemas as an administrator, Migrate the tables of one schema as the service that owns it.
package db

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"net/netip"
	"net/url"
	"slices"

	"github.com/lib/pq"
	"github.com/lib/pq/pqerror"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

// Name is the database that Bootstrap makes.
const Name = "shopdb"

//go:embed orders/*.sql inventory/*.sql logging/*.sql
var migrations embed.FS

//go:embed bootstrap.sql
var bootstrapSQL string

// Schemas lists the schemas, one a service. Each has a login role of the same name.
func Schemas() []string { return []string{"orders", "inventory", "logging"} }

// Fingerprint is 16 hexadecimal digits that change with every change of a migration.
func Fingerprint() string {
	h := sha256.New()
	for _, schema := range Schemas() {
		names, _ := fs.Glob(migrations, schema+"/*.sql") // fails for a malformed pattern alone
		for _, name := range names {
			body, _ := migrations.ReadFile(name)
			fmt.Fprintf(h, "%s\n%s\n", name, body)
		}
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// Migrate applies the migrations of the schema that the database at url does not have yet, and returns their file
// names. It makes the schema where it is missing and the user may make it. Replicas that start at once may all call
// it: one works, the others wait for it.
func Migrate(ctx context.Context, url, schema string) (applied []string, err error) {
	files, err := migrationsOf(schema)
	if err != nil {
		return nil, err
	}
	config, err := Config(url, schema)
	if err != nil {
		return nil, err
	}
	// A migration that waits for a lock makes every query behind it wait too: better to give up and be run again.
	config.Runtime["lock_timeout"] = "30s"
	pool, err := open(config)
	if err != nil {
		return nil, err
	}
	defer pool.Close()

	if err := pool.PingContext(ctx); err != nil {
		return nil, fmt.Errorf("cannot use the database that DATABASE_URL names, start it or correct the URL: %w", err)
	}
	if err := createSchema(ctx, pool, schema); err != nil {
		return nil, fmt.Errorf("creating schema %s: %w", schema, err)
	}
	applied, err = migrate(ctx, pool, schema, files)
	if err != nil {
		return applied, fmt.Errorf("migrating schema %s: %w", schema, err)
	}
	return applied, nil
}

func migrationsOf(schema string) (fs.FS, error) {
	if !slices.Contains(Schemas(), schema) {
		return nil, fmt.Errorf("no schema %q: it is one of %v", schema, Schemas())
	}
	return fs.Sub(migrations, schema)
}

// createSchema asks first: CREATE SCHEMA IF NOT EXISTS is refused to a role that may not create schemas even where
// the schema is there.
func createSchema(ctx context.Context, pool *sql.DB, schema string) error {
	var exists bool
	err := pool.QueryRowContext(ctx, "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)", schema).Scan(&exists)
	if err != nil || exists {
		return err
	}
	_, err = pool.ExecContext(ctx, "CREATE SCHEMA "+pq.QuoteIdentifier(schema))
	if pq.As(err, pqerror.DuplicateSchema, pqerror.UniqueViolation) != nil {
		return nil // another replica was faster
	}
	return err
}

func migrate(ctx context.Context, pool *sql.DB, schema string, files fs.FS) ([]string, error) {
	// A lock of each schema's own, asked for every second, for five minutes.
	locker, err := lock.NewPostgresSessionLocker(
		lock.WithLockID(int64(crc32.ChecksumIEEE([]byte("migrate "+schema)))), lock.WithLockTimeout(1, 300))
	if err != nil {
		return nil, err
	}
	provider, err := goose.NewProvider(goose.DialectPostgres, pool, files,
		goose.WithSessionLocker(locker), goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return nil, err
	}
	// Asks without the lock, so that a start with nothing to do waits for nobody.
	if pending, err := provider.HasPending(ctx); err != nil || !pending {
		return nil, err
	}
	results, err := provider.Up(ctx)
	if partial, ok := errors.AsType[*goose.PartialError](err); ok {
		results = partial.Applied
	}
	applied := make([]string, len(results))
	for i, r := range results {
		applied[i] = r.Source.Path
	}
	return applied, err
}

// Bootstrap makes, on the server at adminURL, what is missing of: the database shopdb, a login role for each service,
// and its schema, which no other role can enter. passwords are by role; a role without one keeps what it has, which on
// a new server is none. It may be called any number of times, by several at once.
func Bootstrap(ctx context.Context, adminURL string, passwords map[string]string) error {
	if err := bootstrap(ctx, adminURL, Name, passwords); err != nil {
		return fmt.Errorf("preparing database %s: %w", Name, err)
	}
	return nil
}

func bootstrap(ctx context.Context, adminURL, database string, passwords map[string]string) error {
	config, err := Config(adminURL, "")
	if err != nil {
		return err
	}
	if err := createDatabase(ctx, config, database); err != nil {
		return err
	}
	config.Database = database
	for role, password := range passwords {
		config.Runtime["shop."+role+"_password"] = password
	}
	pool, err := open(config)
	if err != nil {
		return err
	}
	defer pool.Close()
	_, err = pool.ExecContext(ctx, bootstrapSQL)
	return err
}

func createDatabase(ctx context.Context, admin pq.Config, name string) error {
	pool, err := open(admin)
	if err != nil {
		return err
	}
	defer pool.Close()
	var exists bool
	err = pool.QueryRowContext(ctx, "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", name).Scan(&exists)
	if err != nil || exists {
		return err
	}
	_, err = pool.ExecContext(ctx, "CREATE DATABASE "+pq.QuoteIdentifier(name))
	if pq.As(err, pqerror.DuplicateDatabase, pqerror.UniqueViolation) != nil {
		return nil // another one was faster
	}
	return err
}

// URL returns adminURL turned into that of role in the database shopdb. password may be empty, where the server trusts
// the connection.
func URL(adminURL, role, password string) (string, error) {
	u, err := parseURL(adminURL)
	if err != nil {
		return "", err
	}
	u.User = url.User(role)
	if password != "" {
		u.User = url.UserPassword(role, password)
	}
	u.Path = "/" + Name
	return u.String(), nil
}

// Config reads a postgres:// URL for a connection whose names are resolved in schema ("" leaves the server's search
// path). Where neither the URL nor PGSSLMODE says whether to use TLS, it is required, except from this machine itself.
func Config(databaseURL, schema string) (pq.Config, error) {
	if _, err := parseURL(databaseURL); err != nil {
		return pq.Config{}, err
	}
	config, err := pq.NewConfig(databaseURL)
	if err != nil {
		return pq.Config{}, fmt.Errorf("reading the database URL: %w", err)
	}
	if config.SSLMode == "" {
		// Not "prefer": lib/pq 1.12 forgets to close the connection on which the server declined TLS.
		config.SSLMode = pq.SSLModeRequire
		if ip, err := netip.ParseAddr(config.Host); config.Host == "localhost" || err == nil && ip.IsLoopback() {
			config.SSLMode = pq.SSLModeDisable
		}
	}
	if config.Runtime == nil {
		config.Runtime = map[string]string{}
	}
	if schema != "" {
		config.Runtime["search_path"] = schema
	}
	return config, nil
}

// parseURL keeps the URL, which holds a password, out of the error.
func parseURL(databaseURL string) (*url.URL, error) {
	u, err := url.Parse(databaseURL)
	if parse, ok := errors.AsType[*url.Error](err); ok {
		err = parse.Err
	}
	if err == nil && u.Scheme != "postgres" && u.Scheme != "postgresql" {
		err = errors.New("it must begin with postgres://")
	}
	if err != nil {
		return nil, fmt.Errorf("reading the database URL: %w", err)
	}
	return u, nil
}

func open(config pq.Config) (*sql.DB, error) {
	connector, err := pq.NewConnectorConfig(config)
	if err != nil {
		return nil, err
	}
	return sql.OpenDB(connector), nil
}
