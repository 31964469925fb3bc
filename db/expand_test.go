package db_test

import (
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/pressly/goose/v3"

	"shop.example/db"
	"shop.example/platform/postgres"
	"shop.example/platform/testkit/postgrestest"
)

// contract marks a migration that takes something away, and says why no release that can still be at work needs it.
var contract = regexp.MustCompile(`(?m)^-- contract: \S+`)

// While a release is rolled out, replicas of the one before it work on the new schema. docs/operations.md says what a
// migration may do.
func TestMigrations_LeaveWhatTheReleaseBeforeUses(t *testing.T) {
	t.Parallel()
	url := postgrestest.NewEmpty(t)
	pool := open(t, url)
	for _, schema := range db.Schemas() {
		exec(t, pool, "CREATE SCHEMA "+schema)
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
		for before := read(t, pool, schema); ; {
			result, err := provider.UpByOne(t.Context())
			if errors.Is(err, goose.ErrNoNextVersion) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			after := read(t, pool, schema)
			problems := takenAway(before, after)
			before = after
			text, err := fs.ReadFile(files, result.Source.Path)
			if err != nil {
				t.Fatal(err)
			}
			switch marked := contract.Match(text); {
			case len(problems) > 0 && !marked:
				t.Errorf("%s/%s breaks replicas of the release before:\n  %s\nMake it two releases: docs/operations.md says how. "+
					"If no release that can be at work needs this, say why in a line \"-- contract: …\".", schema, result.Source.Path, strings.Join(problems, "\n  "))
			case len(problems) == 0 && marked:
				t.Errorf("%s/%s is marked as a contract step and takes nothing away", schema, result.Source.Path)
			}
		}
	}
}

func TestTakenAway_FindsWhatAnOlderReplicaWouldMiss(t *testing.T) {
	t.Parallel()
	pool := open(t, postgrestest.NewEmpty(t))
	const was = `
		CREATE TABLE other (id int PRIMARY KEY);
		CREATE TABLE orders (
			id int PRIMARY KEY, name text NOT NULL DEFAULT '', note text, amount int,
			reason text CHECK (reason IN ('OUT_OF_STOCK', 'UNKNOWN_PRODUCT')), other int REFERENCES other, UNIQUE (name, note)
		);
		CREATE INDEX orders_amount ON orders (amount);`
	for i, c := range []struct {
		change string
		want   []string
	}{
		{"CREATE TABLE new (id int NOT NULL, UNIQUE (id), CHECK (id > 0))", nil},
		{"ALTER TABLE orders ADD a int, ADD b int NOT NULL DEFAULT 0, ADD c int GENERATED ALWAYS AS IDENTITY, ADD CHECK (a > 0), ADD UNIQUE (a)", nil},
		{"ALTER TABLE orders DROP CONSTRAINT orders_reason_check, ADD CONSTRAINT orders_reason_check CHECK (reason IN ('OUT_OF_STOCK', 'UNKNOWN_PRODUCT', 'NEW'))", nil},
		{"ALTER TABLE orders DROP CONSTRAINT orders_reason_check, DROP CONSTRAINT orders_other_fkey; DROP INDEX orders_amount; CREATE INDEX ON orders (note)", nil},
		{"ALTER TABLE orders ALTER name DROP NOT NULL, ALTER note SET DEFAULT ''", nil},
		{"DROP TABLE orders", []string{"table orders is gone"}},
		{"ALTER TABLE orders RENAME TO purchases", []string{"table orders is gone"}},
		{"ALTER TABLE orders DROP amount", []string{"column orders.amount is gone"}},
		{"ALTER TABLE orders RENAME amount TO value", []string{"column orders.amount is gone"}},
		{"ALTER TABLE orders ALTER amount TYPE bigint", []string{"column orders.amount was integer and is bigint"}},
		{"ALTER TABLE orders ALTER amount SET NOT NULL", []string{"column orders.amount must not be NULL any more"}},
		{"ALTER TABLE orders ALTER name DROP DEFAULT", []string{"column orders.name needs a value now"}},
		{"ALTER TABLE orders ADD a int NOT NULL", []string{"column orders.a needs a value now"}},
		{"ALTER TABLE orders DROP CONSTRAINT orders_name_note_key", []string{"orders is no longer UNIQUE (name, note), on which ON CONFLICT may rely"}},
		{"ALTER TABLE orders ADD UNIQUE (amount)", []string{"orders has to be UNIQUE (amount) now"}},
		{"ALTER TABLE orders ADD a int, ADD CHECK (a > amount)", []string{"orders has to meet CHECK ((a > amount)) now"}},
		{"ALTER TABLE orders DROP CONSTRAINT orders_reason_check, ADD CONSTRAINT orders_reason_check CHECK (reason IN ('OUT_OF_STOCK', 'NEW'))",
			[]string{"orders has to meet CHECK ((reason = ANY (ARRAY['OUT_OF_STOCK'::text, 'NEW'::text]))) now"}},
		{"ALTER TABLE orders ADD FOREIGN KEY (amount) REFERENCES other", []string{"orders has to meet FOREIGN KEY (amount) REFERENCES other(id) now"}},
	} {
		schema := fmt.Sprintf("case_%d", i)
		run := func(statements string) {
			exec(t, pool, "CREATE SCHEMA IF NOT EXISTS "+schema+"; SET search_path = "+schema+"; "+statements)
		}
		pool.SetMaxOpenConns(1)
		run(was)
		before := read(t, pool, schema)
		run(c.change)
		if diff := cmp.Diff(c.want, takenAway(before, read(t, pool, schema))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.change, diff)
		}
	}
}

// catalogue is what statements can rely on in a schema.
type catalogue struct {
	tables  map[string]bool
	columns map[string]column
	rules   map[string]rule // by table and name
}

type column struct {
	table, kind     string
	notNull, filled bool // filled: without a value it gets one
}

// rule is a constraint or a unique index.
type rule struct {
	table, kind, definition string // kind as in pg_constraint; u for primary keys and indexes too
	columns                 []string
}

func read(t *testing.T, pool *sql.DB, schema string) catalogue {
	t.Helper()
	c := catalogue{tables: map[string]bool{}, columns: map[string]column{}, rules: map[string]rule{}}
	const own = ` FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = '%s' AND c.relname <> 'goose_db_version' AND NOT c.relispartition `
	for _, r := range rows(t, pool, fmt.Sprintf(`
		SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.atthasdef OR a.attidentity <> ''`+own+`
		JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped WHERE c.relkind IN ('r', 'p')`, schema)) {
		c.tables[r[0]] = true
		c.columns[r[0]+"."+r[1]] = column{table: r[0], kind: r[2], notNull: r[3] == "true", filled: r[4] == "true"}
	}
	for _, r := range rows(t, pool, fmt.Sprintf(`
		SELECT c.relname, r.conname, r.contype, pg_get_constraintdef(r.oid),
			(SELECT string_agg(attname, ' ') FROM pg_attribute WHERE attrelid = c.oid AND attnum = ANY (r.conkey))`+own+`
		JOIN pg_constraint r ON r.conrelid = c.oid AND r.contype IN ('c', 'f')
		UNION ALL
		SELECT c.relname, i.indexrelid::regclass::text, 'u', 'UNIQUE (' || string_agg(a.attname, ', ' ORDER BY a.attnum) || ')' || coalesce(' WHERE ' || pg_get_expr(i.indpred, i.indrelid), ''),
			(SELECT string_agg(attname, ' ') FROM pg_attribute WHERE attrelid = c.oid AND attnum = ANY (i.indkey))`+own+`
		JOIN pg_index i ON i.indrelid = c.oid AND i.indisunique
		JOIN pg_attribute a ON a.attrelid = i.indexrelid
		GROUP BY c.oid, c.relname, i.indexrelid, i.indpred, i.indrelid, i.indkey`, schema, schema)) {
		key := r[0] + " " + r[1]
		if r[2] == "u" { // whatever its name is
			key = r[0] + " " + r[3]
		}
		c.rules[key] = rule{table: r[0], kind: r[2], definition: r[3], columns: strings.Fields(r[4])}
	}
	return c
}

func rows(t *testing.T, pool *sql.DB, query string) (all [][]string) {
	t.Helper()
	result, err := pool.QueryContext(t.Context(), query)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	defer result.Close()
	names, _ := result.Columns()
	for result.Next() {
		row, into := make([]sql.NullString, len(names)), make([]any, len(names))
		for i := range row {
			into[i] = &row[i]
		}
		if err := result.Scan(into...); err != nil {
			t.Fatal(err)
		}
		texts := make([]string, len(row))
		for i := range row {
			texts[i] = row[i].String
		}
		all = append(all, texts)
	}
	if err := result.Err(); err != nil {
		t.Fatal(err)
	}
	return all
}

var literal = regexp.MustCompile(`'[^']*'`)

// takenAway lists what statements that work on before can no longer do on after.
func takenAway(before, after catalogue) (problems []string) {
	for _, table := range slices.Sorted(maps.Keys(before.tables)) {
		if !after.tables[table] {
			problems = append(problems, fmt.Sprintf("table %s is gone", table))
		}
	}
	lives := func(table string) bool { return before.tables[table] && after.tables[table] }
	for _, name := range slices.Sorted(maps.Keys(before.columns)) {
		was, is := before.columns[name], after.columns[name]
		switch {
		case !lives(was.table):
		case is.table == "":
			problems = append(problems, fmt.Sprintf("column %s is gone", name))
		case is.kind != was.kind:
			problems = append(problems, fmt.Sprintf("column %s was %s and is %s", name, was.kind, is.kind))
		case is.notNull && !was.notNull:
			problems = append(problems, fmt.Sprintf("column %s must not be NULL any more", name))
		case is.notNull && was.filled && !is.filled:
			problems = append(problems, fmt.Sprintf("column %s needs a value now", name))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(after.columns)) {
		is := after.columns[name]
		if _, old := before.columns[name]; lives(is.table) && !old && is.notNull && !is.filled {
			problems = append(problems, fmt.Sprintf("column %s needs a value now", name))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(before.rules)) {
		was := before.rules[name]
		_, kept := after.rules[name]
		gone := slices.ContainsFunc(was.columns, func(c string) bool { return after.columns[was.table+"."+c].table == "" })
		if lives(was.table) && was.kind == "u" && !kept && !gone { // what is gone is told already
			problems = append(problems, fmt.Sprintf("%s is no longer %s, on which ON CONFLICT may rely", was.table, was.definition))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(after.rules)) {
		is, was := after.rules[name], before.rules[name]
		oldColumn := func(c string) bool { return before.columns[is.table+"."+c].table != "" }
		// A unique key with a new column is met by rows that leave it NULL; a check may be about the old one alone.
		concerned := slices.ContainsFunc(is.columns, oldColumn)
		if is.kind == "u" {
			concerned = !slices.ContainsFunc(is.columns, func(c string) bool { return !oldColumn(c) })
		}
		if lives(is.table) && concerned && is.definition != was.definition && !wider(was, is) {
			verb := "meet"
			if is.kind == "u" {
				verb = "be"
			}
			problems = append(problems, fmt.Sprintf("%s has to %s %s now", is.table, verb, is.definition))
		}
	}
	return problems
}

// wider says whether a check is a list that has all values of the one before.
func wider(was, is rule) bool {
	values := literal.FindAllString(was.definition, -1)
	missing := slices.ContainsFunc(values, func(v string) bool { return !strings.Contains(is.definition, v) })
	return was.kind == "c" && len(values) > 0 && !missing
}
