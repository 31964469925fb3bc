// Package db holds the migrations of every service's schema and applies them: Bootstrap makes database, roles and
// schemas as an administrator, Migrate the tables of one schema as the role that owns it, MigrateAll whatever the user
// may migrate.
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
	"net/url"
	"slices"

	"github.com/lib/pq"
	"github.com/lib/pq/pqerror"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"

	"shop.example/platform/postgres"
)

// Name is the database that Bootstrap makes.
const Name = "shopdb"

//go:embed */*.sql
var migrations embed.FS

//go:embed bootstrap.sql
var bootstrapSQL string

// Schemas lists the schemas, one a service: each has a folder here with its migrations. Each has a login role of the same
// name.
func Schemas() []string {
	folders, _ := fs.Glob(migrations, "*") // fails for a malformed pattern alone
	return folders
}

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

// MigrateAll is Migrate of every schema as an administrator, who first gets the roles and schemas that are missing (see
// Bootstrap); as the role of a service it is Migrate of that service's schema. applied is called for each schema, with
// the names of the files.
func MigrateAll(ctx context.Context, url string, applied func(schema string, files []string)) error {
	database, user, missing, err := inspect(ctx, url)
	if err != nil {
		return err
	}
	schemas := Schemas()
	switch {
	case slices.Contains(schemas, user):
		schemas = []string{user}
	case missing:
		if err := bootstrap(ctx, url, database, nil); err != nil {
			return fmt.Errorf("creating roles and schemas as %s (the role of a service migrates its own schema alone): %w", user, err)
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

// inspect returns the database and the user of url, and whether a schema is missing.
func inspect(ctx context.Context, url string) (database, user string, missing bool, err error) {
	config, err := postgres.Config(url, "")
	if err != nil {
		return "", "", false, err
	}
	pool, err := connect(ctx, config)
	if err != nil {
		return "", "", false, err
	}
	defer pool.Close()
	err = pool.QueryRowContext(ctx, "SELECT current_database(), current_user, count(*) < $2 FROM pg_namespace WHERE nspname = ANY ($1)",
		pq.Array(Schemas()), len(Schemas())).Scan(&database, &user, &missing)
	return database, user, missing, err
}

// Migrate applies the migrations of the schema that the database at url does not have yet, and returns their file
// names. It makes the schema if it is missing and the user may make it; what it makes in it belongs to the schema's owner,
// whose role the user has to be allowed to take. Replicas that start at once may all call it: one works, the others wait
// for it. A pooler that gives each transaction another connection is an error, and so is a database that is not in UTF8.
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

// prepare finds out whether the connection is fit for a service, makes the schema if it is missing, and returns its
// owner.
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
		SELECT owner.rolname, current_user, pg_has_role(current_user, owner.oid, 'MEMBER')
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
	config, err := postgres.Config(adminURL, "")
	if err != nil {
		return err
	}
	if err := createDatabase(ctx, config, database); err != nil {
		return err
	}
	config.Database = database
	// As the login's own parameters: statements are written to the server's log.
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

// requireUTF8 is an error if the database keeps text in another encoding: names of products are compared in a normal form
// that PostgreSQL knows of UTF8 alone, and not every name fits into another one. A server that was initialised without a
// locale makes such databases.
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

// URL returns adminURL turned into that of role in the database shopdb. password may be empty if the server trusts
// the connection.
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

// open returns a pool of connections that have config.Runtime as parameters of the login.
func open(config pq.Config) (*sql.DB, error) {
	connector, err := pq.NewConnectorConfig(config)
	if err != nil {
		return nil, err
	}
	return sql.OpenDB(connector), nil
}

// connect returns a pool of a postgres.Connector's connections, of which one has answered.
func connect(ctx context.Context, config pq.Config) (*sql.DB, error) {
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
