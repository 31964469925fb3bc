package money

import (
	"math"
	"testing"
)

func TestFromFloat_IsExactToTheMinorUnitOrAnError(t *testing.T) {
	t.Parallel()
	for minor := range int64(200_000) {
		units := float64(minor) / 100
		m, err := FromFloat(units, "USD")
		if err != nil || Minor(m) != minor {
			t.Fatalf("%v became %v, %v", units, m, err)
		}
	}
	for units, want := range map[float64]int64{0.30000000000000004: -1, 35.001: -1, -1: -1, 1e18: -1, math.NaN(): -1, math.Inf(1): -1, 10_000_000_000: 1_000_000_000_000, 0.07: 7} {
		m, err := FromFloat(units, "USD")
		switch {
		case want < 0 && err == nil:
			t.Errorf("%v became %v", units, m)
		case want >= 0 && (err != nil || Minor(m) != want):
			t.Errorf("%v became %v, %v", units, m, err)
		}
	}
}

func TestForms_AreOneAmount(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		minor           int64
		format, decimal string
	}{
		{0, "0.00 EUR", "0"},
		{5, "0.05 EUR", "0.05"},
		{1990, "19.90 EUR", "19.90"},
		{100_000, "1000.00 EUR", "1000"},
	} {
		m := FromMinor(c.minor, "EUR")
		if Minor(m) != c.minor || Format(c.minor, "EUR") != c.format || Decimal(m) != c.decimal {
			t.Errorf("%d: %v, %s, %s", c.minor, m, Format(c.minor, "EUR"), Decimal(m))
		}
	}
}
