package money_test

import (
	"math"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	moneyv1 "shop.example/gen/shop/money/v1"
	"shop.example/platform/contract"
	"shop.example/platform/money"
)

func TestForms_AreOneAmount(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		minor           int64
		m               *moneyv1.Money
		format, decimal string
	}{
		{0, &moneyv1.Money{CurrencyCode: "EUR"}, "0.00 EUR", "0"},
		{1, &moneyv1.Money{CurrencyCode: "EUR", Nanos: 10_000_000}, "0.01 EUR", "0.01"},
		{99, &moneyv1.Money{CurrencyCode: "EUR", Nanos: 990_000_000}, "0.99 EUR", "0.99"},
		{1990, &moneyv1.Money{CurrencyCode: "EUR", Units: 19, Nanos: 900_000_000}, "19.90 EUR", "19.90"},
		{20500, &moneyv1.Money{CurrencyCode: "EUR", Units: 205}, "205.00 EUR", "205"},
		{1_000_000_000_099, &moneyv1.Money{CurrencyCode: "EUR", Units: 10_000_000_000, Nanos: 990_000_000}, "10000000000.99 EUR", "10000000000.99"},
	} {
		got := money.FromMinor(c.minor, "EUR")
		if diff := cmp.Diff(c.m, got, protocmp.Transform()); diff != "" {
			t.Errorf("FromMinor(%d) (-want +got):\n%s", c.minor, diff)
		}
		if err := contract.Validate(got); err != nil {
			t.Errorf("FromMinor(%d) is not valid: %v", c.minor, err)
		}
		if money.Minor(c.m) != c.minor || money.Format(c.minor, "EUR") != c.format || money.Decimal(c.m) != c.decimal {
			t.Errorf("%v: Minor %d, Format %s, Decimal %s; want %d, %s, %s",
				c.m, money.Minor(c.m), money.Format(c.minor, "EUR"), money.Decimal(c.m), c.minor, c.format, c.decimal)
		}
	}
	if got := money.Minor(nil); got != 0 {
		t.Errorf("Minor(nil) = %d", got)
	}
}

func TestFromFloat_EveryAmountWithTwoDecimalsIsExact(t *testing.T) {
	t.Parallel()
	for minor := int64(0); minor <= 1_000_000_000_099; minor += 1 + minor/1000 {
		units, err := strconv.ParseFloat(money.Decimal(money.FromMinor(minor, "EUR")), 64)
		if err != nil {
			t.Fatal(err)
		}
		m, err := money.FromFloat(units, "EUR")
		if err != nil || money.Minor(m) != minor {
			t.Fatalf("FromFloat(%v) = %v, %v; want %d minor units", units, m, err, minor)
		}
	}
}

func TestFromFloat_WhatIsNoAmountIsRefused(t *testing.T) {
	t.Parallel()
	for _, units := range []float64{
		-1, -0.01, -1e-9, 0.001, 0.30000000000000004, 35.123, 34.999999, 19.990000000001, 1e18, 1e300, math.NaN(), math.Inf(1), math.Inf(-1),
	} {
		if m, err := money.FromFloat(units, "EUR"); err == nil {
			t.Errorf("FromFloat(%v) = %v, want an error", units, m)
		}
	}
}

func TestDecimal_HasDecimalsOnlyWhereThereAreAny(t *testing.T) {
	t.Parallel()
	for minor, want := range map[int64]string{0: "0", 5: "0.05", 1990: "19.90", 100_000: "1000"} {
		if got := money.Decimal(money.FromMinor(minor, "USD")); got != want {
			t.Errorf("Decimal(%d) = %s, want %s", minor, got, want)
		}
	}
}
