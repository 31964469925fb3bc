package db_test

import (
	"context"
	"database/sql"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/lib/pq"
	"github.com/lib/pq/pqerror"
	"github.com/pressly/goose/v3"

	"shop.example/db"
	"shop.example/db/dbtest"
	"shop.example/platform/postgres"
	"shop.example/platform/testkit/postgrestest"
)

func TestMigrate_ReplicasThatStartAtOnceApplyEachMigrationOnce(t *testing.T) {
	t.Parallel()
	url := postgrestest.NewEmpty(t)
	for _, schema := range db.Schemas() {
		var (
			mu      sync.Mutex
			applied []string
			wg      sync.WaitGroup
		)
		for range 4 {
			wg.Go(func() {
				names, err := db.Migrate(t.Context(), url, schema)
				if err != nil {
					t.Errorf("Migrate(%s): %v", schema, err)
				}
				mu.Lock()
				defer mu.Unlock()
				applied = append(applied, names...)
			})
		}
		wg.Wait()
		if diff := cmp.Diff(migrationNames(t, schema), applied); diff != "" {
			t.Errorf("applied to %s (-want +got):\n%s", schema, diff)
		}
	}
}

func TestMigrate_ADatabaseThatIsNotInUTF8IsRefusedBeforeItIsChanged(t *testing.T) {
	t.Parallel()
	url := postgrestest.NewEmpty(t, "ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'")
	for name, migrate := range map[string]func() error{
		"Migrate": func() error {
			_, err := db.Migrate(t.Context(), url, "orders")
			return err
		},
		"MigrateAll": func() error { return db.MigrateAll(t.Context(), url, func(string, []string) {}) },
	} {
		if err := migrate(); err == nil || !strings.Contains(err.Error(), "ENCODING 'UTF8'") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s = %v, want one line that says how to make the database", name, err)
		}
	}
	if made := queryStrings(t, open(t, url), "SELECT nspname FROM pg_namespace WHERE nspname IN ('orders', 'inventory', 'logging')"); made != nil {
		t.Errorf("schemas %q were made all the same", made)
	}
}

func TestMigrate_KeepsItsRecordInTheSchemaAndNothingElsewhere(t *testing.T) {
	t.Parallel()
	pool := open(t, dbtest.New(t))
	rows := queryStrings(t, pool, `SELECT table_schema FROM information_schema.tables WHERE table_name = 'goose_db_version' ORDER BY 1`)
	if diff := cmp.Diff(slices.Sorted(slices.Values(db.Schemas())), rows); diff != "" {
		t.Errorf("schemas with a version table (-want +got):\n%s", diff)
	}
	if rows := queryStrings(t, pool, `SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'`); rows != nil {
		t.Errorf("tables in public: %v", rows)
	}
}

func TestMigrate_AnOlderBinaryAcceptsANewerSchema(t *testing.T) {
	t.Parallel()
	url := dbtest.New(t)
	exec(t, open(t, url), `INSERT INTO orders.goose_db_version (version_id, is_applied) VALUES (99999, true)`)
	applied, err := db.Migrate(t.Context(), url, "orders")
	if err != nil || len(applied) != 0 {
		t.Errorf("Migrate = %v, %v; want nothing to do", applied, err)
	}
}

// The platform works on tables of its own making; the migrations, which are never edited, write them out.
func TestMigrations_TheTablesOfThePlatformAreAsItWantsThem(t *testing.T) {
	t.Parallel()
	pool := open(t, dbtest.New(t))
	schema, err := os.ReadFile("../platform/outbox/schema.sql")
	if err != nil {
		t.Fatal(err)
	}
	exec(t, pool, "CREATE SCHEMA wanted; SET search_path = wanted; "+string(schema))
	columns := func(schema, table string) []string {
		return queryStrings(t, pool, fmt.Sprintf(`
			SELECT concat_ws(' ', column_name, data_type, is_nullable, replace(column_default, '%[1]s.', ''), identity_generation)
			FROM information_schema.columns WHERE table_schema = '%[1]s' AND table_name = '%[2]s' ORDER BY ordinal_position`, schema, table))
	}
	found := 0
	for _, schema := range db.Schemas() {
		for _, table := range []string{"inbox", "outbox", "outbox_parked"} {
			got := columns(schema, table)
			if got == nil {
				continue // a service that publishes nothing, or whose rows say what it has handled
			}
			found++
			if diff := cmp.Diff(columns("wanted", table), got); diff != "" {
				t.Errorf("%s.%s (-want +got):\n%s", schema, table, diff)
			}
		}
	}
	if found < 5 {
		t.Errorf("found %d tables of the platform", found)
	}
}

func TestMigrate_UnknownSchemaIsRefused(t *testing.T) {
	t.Parallel()
	if _, err := db.Migrate(t.Context(), "postgres://localhost/shopdb", "payments"); err == nil || !strings.Contains(err.Error(), `no schema "payments"`) {
		t.Errorf("Migrate = %v, want it to name the schema", err)
	}
}

func TestMigrations_GoDownAndUpAgain(t *testing.T) {
	t.Parallel()
	url := dbtest.New(t)
	for _, schema := range db.Schemas() {
		files, err := db.MigrationsOf(schema)
		if err != nil {
			t.Fatal(err)
		}
		config, err := postgres.Config(url, schema)
		if err != nil {
			t.Fatal(err)
		}
		provider, err := goose.NewProvider(goose.DialectPostgres, openConfig(t, config), files)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := provider.DownTo(t.Context(), 0); err != nil {
			t.Fatalf("taking back %s: %v", schema, err)
		}
		applied, err := db.Migrate(t.Context(), url, schema)
		if err != nil {
			t.Fatalf("Migrate after all was taken back: %v", err)
		}
		if diff := cmp.Diff(migrationNames(t, schema), applied); diff != "" {
			t.Errorf("applied to %s (-want +got):\n%s", schema, diff)
		}
	}
}

// Orders bring names in normal form, so a product whose name was not could not be ordered by it.
func TestMigrations_NamesOfProductsAreInNormalForm(t *testing.T) {
	t.Parallel()
	url := dbtest.New(t)
	files, err := db.MigrationsOf("inventory")
	if err != nil {
		t.Fatal(err)
	}
	config, err := postgres.Config(url, "inventory")
	if err != nil {
		t.Fatal(err)
	}
	pool := openConfig(t, config)
	provider, err := goose.NewProvider(goose.DialectPostgres, pool, files)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := provider.DownTo(t.Context(), 4); err != nil {
		t.Fatal(err)
	}
	exec(t, pool, `INSERT INTO product (name, unit_price, currency, on_hand) VALUES
		(U&'Cafe\0301', 1, 'USD', 0), (U&'Rene\0301', 1, 'USD', 0), (U&'Ren\00e9', 1, 'USD', 0), (U&'A\030a', 1, 'USD', 0), (U&'\212b', 1, 'USD', 0)`)
	if _, err := provider.Up(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := queryStrings(t, pool, `SELECT name || ' ' || version FROM product WHERE id > 8 ORDER BY id`)
	want := []string{"Caf\u00e9 2", "Rene\u0301 1", "Ren\u00e9 1", "A\u030a 1", "\u212b 1"} // those that would be the same stay
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
}

func TestSeed_IsTheDemosCatalogueWithItsMovements(t *testing.T) {
	t.Parallel()
	pool := open(t, dbtest.New(t))
	got := queryStrings(t, pool, `
		SELECT format('%s %s %s %s %s', p.id, name, on_hand, unit_price / 100, (SELECT sum(quantity) FROM inventory.stock_movement m WHERE m.product_id = p.id))
		FROM inventory.product p ORDER BY id`)
	want := []string{
		"1 Laptop 50 1000 50", "2 Phone 200 500 200", "3 Keyboard 100 50 100", "4 Mouse 100 45 100",
		"5 Laptop Stand 150 35 150", "6 Mouse Pad 200 25 200", "7 Phone Case 175 30 175", "8 KVM Switch 100 175 100",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("catalogue (-want +got):\n%s", diff)
	}
}

func TestMigrateAll_AsAdministratorMakesTablesThatTheServicesRolesCanUse(t *testing.T) {
	t.Parallel()
	url := postgrestest.NewEmpty(t)
	for range 2 { // the second time nothing is missing
		if err := db.MigrateAll(t.Context(), url, func(string, []string) {}); err != nil {
			t.Fatal(err)
		}
	}
	admin := open(t, url)
	foreign := queryStrings(t, admin, `
		SELECT n.nspname || '.' || c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname IN ('orders', 'inventory', 'logging') AND c.relowner::regrole::text <> n.nspname`)
	if foreign != nil {
		t.Errorf("not of the role of their schema: %v", foreign)
	}
	admin.SetMaxOpenConns(1)
	exec(t, admin, "SET ROLE orders")
	exec(t, admin, "SELECT FROM orders.orders")
	exec(t, admin, "DELETE FROM orders.outbox")
	refused(t, admin, "SELECT FROM inventory.product")
}

// On servers that others run the administrator is no superuser. It could make the roles, but no schemas for them.
func TestMigrateAll_AsAnAdministratorWhoIsNoSuperuser(t *testing.T) {
	t.Parallel()
	url := postgrestest.NewEmpty(t)
	admin := open(t, url)
	name := queryStrings(t, admin, "SELECT current_database()")[0]
	exec(t, admin, "CREATE ROLE "+name+"_admin LOGIN CREATEROLE PASSWORD 'administrator'")
	exec(t, admin, "ALTER DATABASE "+name+" OWNER TO "+name+"_admin")
	t.Cleanup(func() {
		exec(t, admin, "ALTER DATABASE "+name+" OWNER TO CURRENT_USER")
		exec(t, admin, "DROP OWNED BY "+name+"_admin")
		exec(t, admin, "DROP ROLE "+name+"_admin")
	})
	for range 2 { // the second time nothing is missing
		if err := db.MigrateAll(t.Context(), asRole(t, url, name+"_admin", "administrator"), func(string, []string) {}); err != nil {
			t.Fatal(err)
		}
	}
	foreign := queryStrings(t, admin, `
		SELECT n.nspname || '.' || c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname IN ('orders', 'inventory', 'logging', 'webhooks') AND c.relowner::regrole::text <> n.nspname`)
	if foreign != nil {
		t.Errorf("not of the role of their schema: %v", foreign)
	}
}

func TestMigrate_ASchemaThatBelongsToAnotherIsAnErrorThatSaysWhatToDo(t *testing.T) {
	t.Parallel()
	url := dbtest.New(t) // all of it is the administrator's
	admin := open(t, url)
	name := queryStrings(t, admin, "SELECT current_database()")[0]
	exec(t, admin, "CREATE ROLE "+name+"_stranger LOGIN PASSWORD 'stranger'")
	t.Cleanup(func() { exec(t, admin, "DROP ROLE "+name+"_stranger") })
	_, err := db.Migrate(t.Context(), asRole(t, url, name+"_stranger", "stranger"), "orders")
	if err == nil || !strings.Contains(err.Error(), "connect as postgres or as an administrator, or GRANT postgres TO "+name+"_stranger") {
		t.Errorf("Migrate = %v", err)
	}
}

// The passwords of roles belong to the whole server, so everything about them is one test.
// Who followed the comment gave one role no password, and its service could not log in.
func TestBootstrap_ItsCommentGivesEachRoleAPassword(t *testing.T) {
	t.Parallel()
	usage, err := os.ReadFile("bootstrap.sql")
	if err != nil {
		t.Fatal(err)
	}
	for _, role := range db.Schemas() {
		if !strings.Contains(string(usage), "-c shop."+role+"_password=…") {
			t.Errorf("the comment of bootstrap.sql sets no password for %s", role)
		}
	}
}

func TestBootstrap_GivesEachServiceARoleThatSeesItsOwnSchemaAlone(t *testing.T) {
	t.Parallel()
	url, adminURL := postgrestest.NewEmpty(t), postgrestest.AdminURL(t)
	admin := open(t, url)
	if queryStrings(t, admin, "SELECT rolname FROM pg_authid WHERE rolname IN ('orders', 'inventory', 'logging') AND rolpassword IS NOT NULL") != nil {
		t.Skip("the server has these roles already, and their passwords are not ours to change")
	}
	name := queryStrings(t, admin, "SELECT current_database()")[0]
	passwords := map[string]string{}
	for _, role := range db.Schemas() {
		passwords[role] = "it's the secret of " + role
	}
	t.Cleanup(func() {
		for role := range passwords {
			exec(t, admin, "ALTER ROLE "+role+" PASSWORD NULL")
		}
	})
	var wg sync.WaitGroup
	for range 4 { // again and at once
		wg.Go(func() {
			if err := db.BootstrapDatabase(t.Context(), adminURL, name, passwords); err != nil {
				t.Errorf("Bootstrap: %v", err)
			}
		})
	}
	wg.Wait()
	if n := len(queryStrings(t, admin, "SELECT rolname FROM pg_authid WHERE rolname IN ('orders', 'inventory', 'logging') AND rolpassword IS NOT NULL")); n != 3 {
		t.Errorf("%d of 3 roles have a password", n)
	}

	roles := map[string]*sql.DB{}
	for role, password := range passwords {
		roleURL := asRole(t, url, role, password)
		if _, err := db.Migrate(t.Context(), roleURL, role); err != nil {
			t.Fatalf("Migrate as %s: %v", role, err)
		}
		roles[role] = open(t, roleURL)
	}
	var migrated []string
	err := db.MigrateAll(t.Context(), asRole(t, url, "inventory", passwords["inventory"]), func(schema string, _ []string) { migrated = append(migrated, schema) })
	if err != nil || !slices.Equal(migrated, []string{"inventory"}) {
		t.Errorf("MigrateAll as inventory: %v, %v, want its own schema alone", migrated, err)
	}
	// Nothing was missing, so a renewed password was not set, and services could not log in with it.
	hashes := func() []string {
		return queryStrings(t, admin, "SELECT rolname || ' ' || rolpassword FROM pg_authid WHERE rolname IN ('orders', 'inventory') ORDER BY rolname")
	}
	before := hashes()
	if err := db.MigrateAll(t.Context(), withOptions(t, url, "-c shop.orders_password=renewed"), func(string, []string) {}); err != nil {
		t.Fatal(err)
	}
	if after := hashes(); len(after) != 2 || after[0] != before[0] || after[1] == before[1] {
		t.Errorf("roles have %v after MigrateAll with a password of orders, and had %v", after, before)
	}
	roles["orders"] = open(t, asRole(t, url, "orders", "renewed"))
	exec(t, roles["orders"], "SELECT FROM orders.orders")
	exec(t, roles["orders"], "SELECT FROM outbox") // a role's search path begins with the schema of its name
	refused(t, roles["orders"], "SELECT FROM inventory.product")
	refused(t, roles["inventory"], "SELECT FROM orders.orders")
	refused(t, roles["inventory"], "CREATE TEMP TABLE mine ()")
	refused(t, roles["logging"], "SELECT FROM orders.outbox")
	refused(t, roles["logging"], "CREATE TABLE public.mine ()")
	refused(t, roles["logging"], "CREATE SCHEMA mine")

	stranger := name + "_stranger"
	exec(t, admin, "CREATE ROLE "+stranger+" LOGIN PASSWORD 'stranger'")
	t.Cleanup(func() { exec(t, admin, "DROP ROLE "+stranger) })
	refused(t, open(t, asRole(t, url, stranger, "stranger")), "SELECT 1")
}

func TestURL_IsTheRolesURLInTheShopsDatabase(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ admin, password, want string }{
		{"postgres://postgres@127.0.0.1:5432/postgres?sslmode=disable", "", "postgres://orders@127.0.0.1:5432/shopdb?sslmode=disable"},
		{"postgresql://admin:secret@db/", "p@ss/word", "postgresql://orders:p%40ss%2Fword@db/shopdb"},
		{"postgres:///postgres?host=/tmp/sockets&port=5433", "", "postgres://orders@/shopdb?host=/tmp/sockets&port=5433"},
	} {
		if got, err := db.URL(c.admin, "orders", c.password); err != nil || got != c.want {
			t.Errorf("URL(%q) = %q, %v; want %q", c.admin, got, err, c.want)
		}
	}
}

func migrationNames(t *testing.T, schema string) []string {
	t.Helper()
	files, err := db.MigrationsOf(schema)
	if err != nil {
		t.Fatal(err)
	}
	names, err := fs.Glob(files, "*.sql")
	if err != nil || len(names) == 0 {
		t.Fatalf("migrations of %s: %v, %v", schema, names, err)
	}
	return names
}

func asRole(t *testing.T, databaseURL, role, password string) string {
	t.Helper()
	u, err := url.Parse(databaseURL)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(role, password)
	return u.String()
}

// withOptions gives a session settings, as PGOPTIONS does.
func withOptions(t *testing.T, databaseURL, options string) string {
	t.Helper()
	u, err := url.Parse(databaseURL)
	if err != nil {
		t.Fatal(err)
	}
	query := u.Query()
	query.Set("options", options)
	u.RawQuery = query.Encode()
	return u.String()
}

func open(t *testing.T, url string) *sql.DB {
	t.Helper()
	config, err := postgres.Config(url, "")
	if err != nil {
		t.Fatal(err)
	}
	return openConfig(t, config)
}

func openConfig(t *testing.T, config pq.Config) *sql.DB {
	t.Helper()
	connector, err := pq.NewConnectorConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	pool := sql.OpenDB(connector)
	t.Cleanup(func() { pool.Close() })
	return pool
}

func exec(t *testing.T, pool *sql.DB, statement string) {
	t.Helper()
	if _, err := pool.ExecContext(context.WithoutCancel(t.Context()), statement); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

func refused(t *testing.T, pool *sql.DB, statement string) {
	t.Helper()
	_, err := pool.ExecContext(t.Context(), statement)
	if pq.As(err, pqerror.InsufficientPrivilege) == nil {
		t.Errorf("%s: %v, want it to be refused", statement, err)
	}
}

func queryStrings(t *testing.T, pool *sql.DB, query string) (list []string) {
	t.Helper()
	rows, err := pool.QueryContext(t.Context(), query)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	defer rows.Close()
	for rows.Next() {
		var s string
		if err := rows.Scan(&s); err != nil {
			t.Fatal(err)
		}
		list = append(list, s)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return list
}
