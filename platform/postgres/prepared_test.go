package postgres_test

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"shop.example/platform/postgres"
)

func TestPrepared_StaysOnItsConnectionAndOthersDoNot(t *testing.T) {
	t.Parallel()
	pool := open(t, database.New(t), postgres.Options{MaxConns: 1})
	var n int
	for i := range 3 {
		for _, query := range []string{postgres.Prepared + "SELECT $1::integer + 1", "SELECT $1::integer + 2"} {
			if err := pool.Get(&n, query, i); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := pool.Exec(postgres.Prepared+"INSERT INTO handled (message_id) VALUES ($1)", uuid.New()); err != nil {
			t.Fatal(err)
		}
	}
	if n != 4 {
		t.Errorf("the last answer is %d, want 4", n)
	}
	var kept []string
	if err := pool.Select(&kept, "SELECT statement FROM pg_prepared_statements ORDER BY statement"); err != nil {
		t.Fatal(err)
	}
	want := []string{postgres.Prepared + "INSERT INTO handled (message_id) VALUES ($1)", postgres.Prepared + "SELECT $1::integer + 1"}
	if diff := cmp.Diff(want, kept); diff != "" {
		t.Errorf("prepared statements (-want +got):\n%s", diff)
	}
}

func TestPrepared_AfterAMigrationOrAnErrorItWorksAgain(t *testing.T) {
	t.Parallel()
	pool := open(t, database.New(t), postgres.Options{MaxConns: 1})
	read := func(id uuid.UUID) error {
		var row struct {
			ID   uuid.UUID `db:"message_id"`
			Note string    `db:"note"`
		}
		return pool.Unsafe().Get(&row, postgres.Prepared+"SELECT * FROM handled WHERE message_id = $1", id)
	}
	id := uuid.New()
	if _, err := pool.Exec("INSERT INTO handled (message_id) VALUES ($1)", id); err != nil {
		t.Fatal(err)
	}
	if err := read(id); err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec("ALTER TABLE handled ADD note text NOT NULL DEFAULT ''"); err != nil {
		t.Fatal(err)
	}
	if err := postgres.Classify(read(id)); !errors.Is(err, postgres.ErrRetry) {
		t.Errorf("of a table that a migration has changed: %v, want ErrRetry", err)
	}
	if err := read(id); err != nil {
		t.Errorf("after the error: %v", err)
	}
}

// The plan is made when the table is known to be empty, and used when it is full.
func TestPrepared_IsPlannedByIndexOnAnEmptyTable(t *testing.T) {
	t.Parallel()
	pool := open(t, database.New(t), postgres.Options{MaxConns: 1})
	const query = postgres.Prepared + "SELECT count(*) FROM handled WHERE message_id = ANY($1::uuid[])"
	read := func(ids ...uuid.UUID) (n int) {
		if err := pool.Get(&n, query, postgres.ArrayOf(ids)); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if _, err := pool.Exec("VACUUM handled"); err != nil {
		t.Fatal(err)
	}
	for range 6 { // the server keeps the plan from the sixth time on
		read(uuid.New())
	}
	id := uuid.New()
	if _, err := pool.Exec(`
		INSERT INTO handled (message_id) SELECT gen_random_uuid() FROM generate_series(1, 10000) UNION SELECT $1::uuid`, id); err != nil {
		t.Fatal(err)
	}
	if n := read(id, uuid.New()); n != 1 {
		t.Errorf("%d rows, want 1", n)
	}
	// What the connection has read is counted when its transaction is over and it has flushed its figures.
	if _, err := pool.Exec("SELECT pg_stat_force_next_flush()"); err != nil {
		t.Fatal(err)
	}
	var scanned int
	if err := pool.Get(&scanned, "SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = 'handled' AND schemaname = 'app'"); err != nil {
		t.Fatal(err)
	}
	if scanned > 0 {
		t.Errorf("%d rows were read by scanning the table", scanned)
	}
}
