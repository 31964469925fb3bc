// Package db holds the migrations of every service's schema and applies them: Bootstrap, as an administrator, creates the
// database, the roles and the schemas; Migrate brings one schema up to date; MigrateAll every schema that the user may migrate.
package db

import (
	"cmp"
	"context"
	"crypto/sha256"
	"database/sql"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"log/slog"
	"net/url"
	"slices"
	"time"

	"github.com/lib/pq"
	"github.com/lib/pq/pqerror"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"

	"shop.example/platform/postgres"
)

// Name is the name of the database that Bootstrap creates.
const Name = "shopdb"

//go:embed */*.sql
var migrations embed.FS

//go:embed bootstrap.sql
var bootstrapSQL string

// Schemas returns the names of the schemas, one for each service that has a database. A folder of that name holds the
// migrations, and the login role of the service has the same name.
func Schemas() []string {
	folders, _ := fs.Glob(migrations, "*") // fails for a malformed pattern alone
	return folders
}

// Fingerprint returns 16 hexadecimal digits that change with every change of a migration.
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

// MigrateAll migrates every schema if url is an administrator's, after it has created missing roles and schemas as Bootstrap
// does, and given roles the passwords that its session has (see bootstrap.sql); if url is the role of a service it migrates that
// service's schema alone. applied is called after each schema, with the
// names of the files that were applied to it. It stops at the first error.
func MigrateAll(ctx context.Context, url string, applied func(schema string, files []string)) error {
	database, user, unprepared, err := inspect(ctx, url)
	if err != nil {
		return err
	}
	schemas := Schemas()
	switch {
	case slices.Contains(schemas, user):
		schemas = []string{user}
	case unprepared:
		if err := bootstrap(ctx, url, database, nil); err != nil {
			return fmt.Errorf("preparing roles and schemas as %s (the role of a service migrates its own schema alone): %w", user, err)
		}
	}
	for _, schema := range schemas {
		files, err := Migrate(ctx, url, schema)
		if err != nil {
			return err
		}
		applied(schema, files)
	}
	return nil
}

// inspect returns the database and the user of url, and whether a schema is missing or the session has a password for a role.
func inspect(ctx context.Context, url string) (database, user string, unprepared bool, err error) {
	config, err := postgres.Config(url, "")
	if err != nil {
		return "", "", false, err
	}
	pool, err := connect(ctx, config)
	if err != nil {
		return "", "", false, err
	}
	defer pool.Close()
	err = pool.QueryRowContext(ctx, `
		SELECT current_database(), current_user, bool_or(nspname IS NULL OR coalesce(current_setting('shop.' || service || '_password', true), '') <> '')
		FROM unnest($1::text[]) service LEFT JOIN pg_namespace ON nspname = service`, pq.Array(Schemas())).Scan(&database, &user, &unprepared)
	return database, user, unprepared, err
}

// Migrate applies the migrations of a schema that the database at url does not have yet, and returns their file names, also
// those that were applied before an error. It creates the schema if it is missing and the user may. Tables belong to the
// schema's owner, so the user must be that role or a member of it. Replicas that start at the same time may all call it: one
// works, the others wait for it, up to five minutes. It fails if the connection goes through a pooler in transaction mode, or
// if the database's encoding is not UTF8.
func Migrate(ctx context.Context, url, schema string) (applied []string, err error) {
	files, err := migrationsOf(schema)
	if err != nil {
		return nil, err
	}
	config, err := postgres.Config(url, schema)
	if err != nil {
		return nil, err
	}
	// A migration that waits for a lock makes every query behind it wait too: better to give up and be run again.
	config.Runtime["lock_timeout"] = "30s"
	if config.Runtime["role"], err = prepare(ctx, config, schema); err != nil {
		return nil, err
	}
	pool, err := connect(ctx, config)
	if err != nil {
		return nil, err
	}
	defer pool.Close()
	applied, err = migrate(ctx, pool, schema, files)
	if err != nil {
		return applied, fmt.Errorf("migrating schema %s: %w", schema, err)
	}
	return applied, nil
}

// Prepare migrates a schema for a service that starts, and logs what was applied. The error is postgres.ErrUnavailable if no server
// takes connections now: then it is worth waiting.
func Prepare(ctx context.Context, url, schema string, log *slog.Logger) error {
	applied, err := Migrate(ctx, url, schema)
	if len(applied) > 0 {
		log.InfoContext(ctx, "database migrated", "applied", applied)
	}
	if postgres.IsAway(err) {
		return fmt.Errorf("%w: %w", postgres.ErrUnavailable, err)
	}
	return err
}

// connectTimeout bounds connecting to a server that accepts connections and says nothing.
const connectTimeout = 5 * time.Second

// prepare checks that a service can use the connection and the database, creates the schema if it is missing, and returns
// the schema's owner.
func prepare(ctx context.Context, config pq.Config, schema string) (owner string, err error) {
	pool, err := connect(ctx, config)
	if err != nil {
		return "", err
	}
	defer pool.Close()
	if err := postgres.RefuseTransactionPooling(ctx, pool); err != nil {
		return "", err
	}
	if err := requireUTF8(ctx, pool); err != nil {
		return "", err
	}
	if err := createSchema(ctx, pool, schema); err != nil {
		return "", fmt.Errorf("creating schema %s: %w", schema, err)
	}
	var user string
	var member bool
	err = pool.QueryRowContext(ctx, `
		SELECT owner.rolname, current_user,
		       pg_has_role(owner.oid, CASE WHEN current_setting('server_version_num')::integer < 160000 THEN 'MEMBER' ELSE 'SET' END)
		FROM pg_namespace n JOIN pg_roles owner ON owner.oid = n.nspowner WHERE nspname = $1`, schema).Scan(&owner, &user, &member)
	if err == nil && !member {
		err = fmt.Errorf("it belongs to role %[1]s, and user %[2]s may not take that role: connect as %[1]s or as an administrator, or GRANT %[1]s TO %[2]s", owner, user)
	}
	if err != nil {
		return "", fmt.Errorf("finding the owner of schema %s: %w", schema, err)
	}
	return owner, nil
}

func migrationsOf(schema string) (fs.FS, error) {
	if !slices.Contains(Schemas(), schema) {
		return nil, fmt.Errorf("no schema %q: it is one of %v", schema, Schemas())
	}
	return fs.Sub(migrations, schema)
}

// createSchema asks first: CREATE SCHEMA IF NOT EXISTS is refused to a role that may not create schemas even if
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
	// Each schema has a lock of its own, which is tried every second for five minutes.
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
	// Asked without the lock, so that a start with nothing to migrate does not wait for others.
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

// Bootstrap creates, on the server at adminURL, whatever is missing: the database shopdb, a login role for each service,
// and a schema for each, which no other role can use. passwords are by role and replace earlier ones; a role that is not
// in it keeps its password, and a new role gets none. It may be called again, and concurrently.
func Bootstrap(ctx context.Context, adminURL string, passwords map[string]string) error {
	if err := bootstrap(ctx, adminURL, Name, passwords); err != nil {
		return fmt.Errorf("preparing database %s: %w", Name, err)
	}
	return nil
}

func bootstrap(ctx context.Context, adminURL, database string, passwords map[string]string) error {
	config, err := postgres.Config(adminURL, "")
	if err != nil {
		return err
	}
	if err := createDatabase(ctx, config, database); err != nil {
		return err
	}
	config.Database = database
	// Passwords go as parameters of the login, because the server may write statements to its log.
	for role, password := range passwords {
		config.Runtime["shop."+role+"_password"] = password
	}
	pool, err := open(config)
	if err != nil {
		return err
	}
	defer pool.Close()
	if err := requireUTF8(ctx, pool); err != nil {
		return err
	}
	_, err = pool.ExecContext(ctx, bootstrapSQL)
	return err
}

// requireUTF8 returns an error if the database has another encoding than UTF8. Names of products are compared in a normal
// form that PostgreSQL has for UTF8 only, and other encodings lack characters. Servers that were initialised without a
// locale create such databases by default.
func requireUTF8(ctx context.Context, pool *sql.DB) error {
	var database, encoding string
	err := pool.QueryRowContext(ctx, "SELECT current_database(), current_setting('server_encoding')").Scan(&database, &encoding)
	if err == nil && encoding != "UTF8" {
		err = fmt.Errorf("database %s has the encoding %s, and the shop needs UTF8: make another one with "+
			"CREATE DATABASE name ENCODING 'UTF8' TEMPLATE template0, and name it in DATABASE_URL", database, encoding)
	}
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
	_, err = pool.ExecContext(ctx, "CREATE DATABASE "+pq.QuoteIdentifier(name)+" ENCODING 'UTF8' TEMPLATE template0")
	if pq.As(err, pqerror.DuplicateDatabase, pqerror.UniqueViolation) != nil {
		return nil // another one was faster
	}
	return err
}

// URL returns adminURL with the user replaced by role and password, and the database by shopdb. An empty password is left out,
// for servers that trust the connection. The error does not show adminURL.
func URL(adminURL, role, password string) (string, error) {
	u, err := postgres.ParseURL(adminURL)
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

// open returns a pool of connections that send config.Runtime with the login. It does not connect yet.
func open(config pq.Config) (*sql.DB, error) {
	connector, err := pq.NewConnectorConfig(config)
	if err != nil {
		return nil, err
	}
	return sql.OpenDB(connector), nil
}

// connect returns a pool whose connections set config.Runtime by a statement (see postgres.Connector). It has connected once.
func connect(ctx context.Context, config pq.Config) (*sql.DB, error) {
	config.ConnectTimeout = cmp.Or(config.ConnectTimeout, connectTimeout)
	connector, err := postgres.NewConnector(config)
	if err != nil {
		return nil, err
	}
	pool := sql.OpenDB(connector)
	if err := pool.PingContext(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot use the database that DATABASE_URL names, start it or correct the URL: %w", err), pool.Close())
	}
	return pool, nil
}
