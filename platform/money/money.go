// Package money converts amounts between their forms: minor units in the database and in sums, Money in contracts, text
// for people. A minor unit is a hundredth, whatever the currency; amounts are not negative.
package money

import (
	"fmt"
	"math"
	"strconv"

	moneyv1 "shop.example/gen/shop/money/v1"
)

const (
	minorPerUnit  = 100
	nanosPerMinor = 10_000_000
)

// Minor returns m in minor units. What a valid Money cannot have, parts of a minor unit, is dropped.
func Minor(m *moneyv1.Money) int64 {
	return m.GetUnits()*minorPerUnit + int64(m.GetNanos())/nanosPerMinor
}

// FromMinor returns minor units of currency as Money.
func FromMinor(minor int64, currency string) *moneyv1.Money {
	return &moneyv1.Money{
		CurrencyCode: currency,
		Units:        minor / minorPerUnit,
		Nanos:        int32(minor%minorPerUnit) * nanosPerMinor,
	}
}

// FromFloat returns the amount of units that JSON gave as a plain number. It is an error where that has more than two
// decimals, is negative, or is too large to be told to the minor unit.
func FromFloat(units float64, currency string) (*moneyv1.Money, error) {
	minor := math.Round(units * minorPerUnit)
	if !(minor >= 0 && minor < 1<<53) {
		return nil, fmt.Errorf("%v is not an amount of money", units)
	}
	// The number that has two decimals is the one nearest to them: anything else was written with more.
	if minor/minorPerUnit != units {
		return nil, fmt.Errorf("%v has more than two decimals", units)
	}
	return FromMinor(int64(minor), currency), nil
}

// Format returns an amount for people: "205.00 USD".
func Format(minor int64, currency string) string {
	return fmt.Sprintf("%d.%02d %s", minor/minorPerUnit, minor%minorPerUnit, currency)
}

// Decimal returns m as a number without its currency, and with decimals only where it has any: "1000", "19.90".
func Decimal(m *moneyv1.Money) string {
	minor := Minor(m)
	if minor%minorPerUnit == 0 {
		return strconv.FormatInt(minor/minorPerUnit, 10)
	}
	return fmt.Sprintf("%d.%02d", minor/minorPerUnit, minor%minorPerUnit)
}
