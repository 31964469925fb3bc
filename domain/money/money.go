// Package money converts amounts between their forms: minor units in the database and in sums, Money in contracts, text
// for people. A minor unit is the smallest unit that ISO 4217 defines for a currency: a cent of USD, a yen of JPY, a
// thousandth of a KWD. Amounts are not negative.
package money

import (
	"fmt"
	"math"
	"strconv"

	iso4217 "github.com/bojanz/currency"

	moneyv1 "shop.example/gen/shop/money/v1"
)

// Max is the highest amount, in minor units. JSON's numbers and spreadsheets carry 15 digits exactly.
const Max = 999_999_999_999_999

const nanosPerUnit = 1_000_000_000

// Valid reports whether currency is the code of a currency in ISO 4217: "USD".
func Valid(currency string) bool { return iso4217.IsValid(currency) }

// Decimals returns how many decimals ISO 4217 gives amounts of a currency, 2 if the currency is not known.
func Decimals(currency string) int {
	digits, known := iso4217.GetDigits(currency)
	if !known {
		return 2
	}
	return int(digits)
}

// MinorPerUnit returns how many minor units make one unit of a currency: 100 for USD.
func MinorPerUnit(currency string) int64 {
	switch Decimals(currency) {
	case 0:
		return 1
	case 3:
		return 1000
	case 4:
		return 10_000
	}
	return 100
}

// Check returns an error if the currency of m is not in ISO 4217, or its amount has more decimals than the currency or is more
// than Max. The error completes a sentence that begins with the field's name: "must be at most …".
func Check(m *moneyv1.Money) error {
	currency := m.GetCurrencyCode()
	if !Valid(currency) {
		return fmt.Errorf("must be in a currency of ISO 4217, %q is none", currency)
	}
	per := MinorPerUnit(currency)
	switch {
	case int64(m.GetNanos())%(nanosPerUnit/per) != 0:
		return tooManyDecimals(currency)
	case m.GetUnits() > Max/per || Minor(m) > Max:
		return fmt.Errorf("must be at most %s", Format(Max, currency))
	}
	return nil
}

func tooManyDecimals(currency string) error {
	if Decimals(currency) == 0 {
		return fmt.Errorf("must be a whole number of %s", currency)
	}
	return fmt.Errorf("must have at most %d decimals", Decimals(currency))
}

// Minor returns m in minor units. Fractions of a minor unit, which Check refuses, are dropped.
func Minor(m *moneyv1.Money) int64 {
	per := MinorPerUnit(m.GetCurrencyCode())
	return m.GetUnits()*per + int64(m.GetNanos())/(nanosPerUnit/per)
}

// FromMinor returns minor units of currency as Money.
func FromMinor(minor int64, currency string) *moneyv1.Money {
	per := MinorPerUnit(currency)
	return &moneyv1.Money{
		CurrencyCode: currency,
		Units:        minor / per,
		Nanos:        int32(minor % per * (nanosPerUnit / per)), //nolint:gosec // less than a unit
	}
}

// FromFloat returns an amount that JSON has as a plain number of units of currency. It fails, with an error worded as Check's,
// if the number has too many decimals, is negative, or is more than Max.
func FromFloat(units float64, currency string) (*moneyv1.Money, error) {
	per := float64(MinorPerUnit(currency))
	minor := math.Round(units * per)
	switch {
	case math.IsNaN(units) || units < 0:
		return nil, fmt.Errorf("must be an amount of %s", currency)
	case minor > Max:
		return nil, fmt.Errorf("must be at most %s", Format(Max, currency))
	// A number that was written with no more decimals is the float nearest to them, so dividing gives the same float.
	case minor/per != units:
		return nil, tooManyDecimals(currency)
	}
	return FromMinor(int64(minor), currency), nil
}

// Format returns an amount for people: "205.00 USD", "20500 JPY".
func Format(minor int64, currency string) string { return decimal(minor, currency) + " " + currency }

// Decimal returns m as a number without its currency, and with decimals only if it has any: "1000", "19.90".
func Decimal(m *moneyv1.Money) string {
	if m.GetNanos() == 0 {
		return strconv.FormatInt(m.GetUnits(), 10)
	}
	return decimal(Minor(m), m.GetCurrencyCode())
}

func decimal(minor int64, currency string) string {
	if decimals := Decimals(currency); decimals > 0 {
		per := MinorPerUnit(currency)
		return fmt.Sprintf("%d.%0*d", minor/per, decimals, minor%per)
	}
	return strconv.FormatInt(minor, 10)
}
