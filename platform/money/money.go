// Package money converts amounts between their forms: minor units, which are hundredths of the currency, in Go and in the
// database; Money in the contracts; a floating-point number on the routes that came from the demo.
package money

import (
	"fmt"
	"math"

	moneyv1 "shop.example/gen/shop/money/v1"
)

const (
	minorPerUnit  = 100
	nanosPerMinor = 1e9 / minorPerUnit
	// maxMinor is the largest amount that a valid Money holds.
	maxMinor = 1e10*minorPerUnit + 99
)

// Minor returns the amount of a valid m in minor units, and 0 for nil.
func Minor(m *moneyv1.Money) int64 {
	return m.GetUnits()*minorPerUnit + int64(m.GetNanos()/nanosPerMinor)
}

// FromMinor returns an amount of minor units as Money.
func FromMinor(minor int64, currency string) *moneyv1.Money {
	return &moneyv1.Money{
		CurrencyCode: currency,
		Units:        minor / minorPerUnit,
		Nanos:        int32(minor % minorPerUnit * nanosPerMinor),
	}
}

// FromFloat returns in minor units the price that a person wrote as a decimal number with at most two decimals. Any
// other number is an error, whose text is for that person.
func FromFloat(price float64) (minor int64, err error) {
	rounded := math.Round(price * minorPerUnit)
	switch {
	case !(price >= 0 && rounded <= maxMinor): // also what is no number
		return 0, fmt.Errorf("must be a number from 0 to %.2f", maxMinor/float64(minorPerUnit))
	case rounded/minorPerUnit != price: // the nearest number with two decimals is another one
		return 0, fmt.Errorf("must have at most two decimals")
	}
	return int64(rounded), nil
}

// Float returns an amount of minor units as the number nearest to its decimal form.
func Float(minor int64) float64 { return float64(minor) / minorPerUnit }

// Format returns an amount as people read it: "205.00 USD".
func Format(minor int64, currency string) string {
	return fmt.Sprintf("%.2f %s", Float(minor), currency)
}
