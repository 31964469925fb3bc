package stock

import (
	"context"
	"fmt"
	"strings"

	"github.com/jmoiron/sqlx"

	"shop.example/domain/money"
	"shop.example/platform/postgres"
)

// seedCurrency is the currency of the products that the migrations create.
const seedCurrency = "USD"

// checkCurrency returns an error if the catalogue has prices in another currency than the service's: an order could have
// lines in both, and would have no total. A catalogue that is as the migrations made it adopts the service's currency, with
// the same numbers as prices. Replicas that start at the same time may all call it.
func checkCurrency(ctx context.Context, db *sqlx.DB, currency string) error {
	others, err := otherCurrencies(ctx, db, currency) // asked without a transaction, for which a standby is no good
	if err != nil || len(others) == 0 {
		return err
	}
	return postgres.InTx(ctx, db, func(tx *sqlx.Tx) error {
		if _, err := tx.ExecContext(ctx, `SELECT pg_advisory_xact_lock(hashtext('inventory.currency'))`); err != nil {
			return fmt.Errorf("waiting to look at the catalogue's currency: %w", err)
		}
		others, err := otherCurrencies(ctx, tx, currency)
		if err != nil || len(others) == 0 {
			return err
		}
		adopted, err := adoptCurrency(ctx, tx, currency)
		if err != nil || adopted {
			return err
		}
		return fmt.Errorf("SHOP_CURRENCY is %s, but the catalogue is priced in %s: start with that currency, or delete these products first",
			currency, strings.Join(others, " and "))
	})
}

// otherCurrencies returns the currencies of products' prices, except currency.
func otherCurrencies(ctx context.Context, q sqlx.QueryerContext, currency string) (others []string, err error) {
	err = sqlx.SelectContext(ctx, q, &others, `SELECT DISTINCT currency FROM product WHERE deleted_at IS NULL AND currency <> $1`, currency)
	if err != nil {
		return nil, fmt.Errorf("reading the catalogue's currency: %w", postgres.Classify(err))
	}
	return others, nil
}

// adoptCurrency changes the prices of the seeded products to currency, if the catalogue has not been used or changed yet.
func adoptCurrency(ctx context.Context, tx *sqlx.Tx, currency string) (adopted bool, err error) {
	result, err := tx.ExecContext(ctx, `
		UPDATE product SET currency = $1, unit_price = unit_price / $2 * $3
		WHERE NOT EXISTS (SELECT FROM decision) AND NOT EXISTS (SELECT FROM product WHERE version > 1 OR id > 8 OR currency <> $4)`,
		currency, money.MinorPerUnit(seedCurrency), money.MinorPerUnit(currency), seedCurrency)
	if err != nil {
		return false, fmt.Errorf("pricing the first products in %s: %w", currency, err)
	}
	n, err := result.RowsAffected()
	return n > 0, err
}
