// Package dbtest gives each test a database of its own, with all schemas of the shop migrated and seeded.
package dbtest

import (
	"context"
	"testing"

	"shop.example/db"
	"shop.example/platform/testkit/postgrestest"
)

// migrated changes with every migration, so a copy is never stale.
var migrated = postgrestest.NewTemplate("shop "+db.Fingerprint(), func(ctx context.Context, url string) error {
	for _, schema := range db.Schemas() {
		if _, err := db.Migrate(ctx, url, schema); err != nil {
			return err
		}
	}
	return nil
})

// New returns the URL of a new database on the server that DATABASE_URL names, for the administrator that it names. It is
// dropped when the test ends. Tests that run at once may call it.
func New(t testing.TB) string {
	t.Helper()
	return migrated.New(t)
}
