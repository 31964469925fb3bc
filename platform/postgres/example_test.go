package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"shop.example/platform/postgres"
)

func ExampleConfig() {
	config, err := postgres.Config("postgres://app:secret@db.internal:5432/shop", "orders")
	fmt.Println(config.Host, config.SSLMode, config.Runtime["search_path"], err)
	_, err = postgres.Config("mysql://app:secret@db.internal/shop", "orders")
	fmt.Println(err)
	// Output:
	// db.internal require orders <nil>
	// reading the database URL: it must begin with postgres://
}

func ExampleClassify() {
	err := postgres.Classify(&pq.Error{Code: "23505", Message: "duplicate key", Constraint: "product_name"})
	fmt.Println(errors.Is(err, postgres.ErrUnique), postgres.Constraint(err), postgres.IsTransient(err))
	err = postgres.Classify(&pq.Error{Code: "40P01", Message: "deadlock detected"})
	fmt.Println(errors.Is(err, postgres.ErrRetry), postgres.IsTransient(err))
	// Output:
	// true product_name false
	// true true
}

// store is what an application does with the database: one transaction for all or none.
func store(ctx context.Context, pool *sqlx.DB, ids []uuid.UUID) error {
	return postgres.InTx(ctx, pool, func(tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, "INSERT INTO handled (message_id) SELECT unnest($1::uuid[])", postgres.ArrayOf(ids))
		return err
	})
}

func TestExample_ABatchIsStoredWholeOrNotAtAll(t *testing.T) {
	t.Parallel()
	pool := open(t, database.New(t), postgres.Options{})
	first, second := uuid.New(), uuid.New()
	if err := store(t.Context(), pool, []uuid.UUID{first}); err != nil {
		t.Fatal(err)
	}
	if err := store(t.Context(), pool, []uuid.UUID{second, first}); !errors.Is(err, postgres.ErrUnique) {
		t.Errorf("store = %v, want ErrUnique", err)
	}
	if n := claimed(t, pool); n != 1 {
		t.Errorf("%d rows, want one", n)
	}
}
