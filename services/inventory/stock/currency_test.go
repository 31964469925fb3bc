package stock

import (
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

	"shop.example/db/dbtest"
	"shop.example/platform/postgres"
	"shop.example/platform/telemetry"
)

func newWithCurrency(t *testing.T, database, currency string) error {
	t.Helper()
	tel, err := telemetry.New(t.Context(), telemetry.Config{Service: "inventory", Output: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(t.Context(), Config{
		AMQPURL: "amqp://guest:guest@127.0.0.1:1/", DatabaseURL: database, GRPCAddr: "127.0.0.1:0", AdminAddr: "127.0.0.1:0",
		OrderAddr: "127.0.0.1:1", Currency: currency,
	}, tel)
	if err == nil {
		err = s.Close()
	}
	return err
}

// Lines in two currencies became dead letters and held stock, and a code that is none was taken for one.
func TestCurrency_ACatalogueHasOne(t *testing.T) {
	t.Parallel()
	database := dbtest.New(t)
	if err := newWithCurrency(t, database, "XYZ"); err == nil || !strings.Contains(err.Error(), "SHOP_CURRENCY") {
		t.Errorf("a code that is no currency: %v", err)
	}
	var starts errgroup.Group // the catalogue that nobody has used takes the currency of the first start, whoever that is
	for range 3 {
		starts.Go(func() error { return newWithCurrency(t, database, "JPY") })
	}
	if err := starts.Wait(); err != nil {
		t.Fatal(err)
	}
	pool, err := postgres.Open(t.Context(), database, schema, postgres.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = pool.Close() })
	if p, err := readItem(t.Context(), pool, 1); err != nil || p.price().String() != "1000 JPY" {
		t.Errorf("the laptop costs %s, %v", p.price(), err)
	}
	if _, err := pool.ExecContext(t.Context(), `UPDATE product SET version = version + 1 WHERE id = 1`); err != nil {
		t.Fatal(err)
	}
	err = newWithCurrency(t, database, "USD")
	if err == nil || !strings.Contains(err.Error(), "SHOP_CURRENCY is USD, but the catalogue is priced in JPY") {
		t.Errorf("another currency, on a catalogue that is in use: %v", err)
	}
	if err := newWithCurrency(t, database, "JPY"); err != nil {
		t.Errorf("its own currency: %v", err)
	}
}
