package money_test

import (
	"errors"
	"math"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	"shop.example/domain/money"
	moneyv1 "shop.example/gen/shop/money/v1"
	"shop.example/platform/contract"
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
		{20500, &moneyv1.Money{CurrencyCode: "JPY", Units: 20500}, "20500 JPY", "20500"},
		{20500, &moneyv1.Money{CurrencyCode: "KWD", Units: 20, Nanos: 500_000_000}, "20.500 KWD", "20.500"},
		{1, &moneyv1.Money{CurrencyCode: "UYW", Nanos: 100_000}, "0.0001 UYW", "0.0001"},
		{25_000_000_000, &moneyv1.Money{CurrencyCode: "VND", Units: 25_000_000_000}, "25000000000 VND", "25000000000"},
		{money.Max, &moneyv1.Money{CurrencyCode: "EUR", Units: 9_999_999_999_999, Nanos: 990_000_000}, "9999999999999.99 EUR", "9999999999999.99"},
		{money.Max, &moneyv1.Money{CurrencyCode: "VND", Units: 999_999_999_999_999}, "999999999999999 VND", "999999999999999"},
	} {
		got := money.FromMinor(c.minor, c.m.GetCurrencyCode())
		if diff := cmp.Diff(c.m, got, protocmp.Transform()); diff != "" {
			t.Errorf("FromMinor(%d) (-want +got):\n%s", c.minor, diff)
		}
		if err := errors.Join(contract.Validate(got), money.Check(got)); err != nil {
			t.Errorf("FromMinor(%d) is not valid: %v", c.minor, err)
		}
		if money.Minor(c.m) != c.minor || money.Format(c.minor, c.m.GetCurrencyCode()) != c.format || money.Decimal(c.m) != c.decimal {
			t.Errorf("%v: Minor %d, Format %s, Decimal %s; want %d, %s, %s",
				c.m, money.Minor(c.m), money.Format(c.minor, c.m.GetCurrencyCode()), money.Decimal(c.m), c.minor, c.format, c.decimal)
		}
	}
	if got := money.Minor(nil); got != 0 {
		t.Errorf("Minor(nil) = %d", got)
	}
}

func TestCheck_SaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	for want, m := range map[string]*moneyv1.Money{
		`must be in a currency of ISO 4217, "XYZ" is none`: {CurrencyCode: "XYZ", Units: 1},
		`must be in a currency of ISO 4217, "DEM" is none`: {CurrencyCode: "DEM", Units: 1}, // no more
		"must be a whole number of JPY":                    {CurrencyCode: "JPY", Units: 1, Nanos: 500_000_000},
		"must have at most 2 decimals":                     {CurrencyCode: "USD", Units: 1, Nanos: 5_000_000},
		"must have at most 3 decimals":                     {CurrencyCode: "KWD", Units: 1, Nanos: 500_000},
		"must be at most 9999999999999.99 USD":             {CurrencyCode: "USD", Units: 10_000_000_000_000},
		"must be at most 999999999999999 VND":              {CurrencyCode: "VND", Units: 1_000_000_000_000_000},
	} {
		if err := money.Check(m); err == nil || err.Error() != want {
			t.Errorf("%v: %v, want %s", m, err, want)
		}
	}
}

func TestFromFloat_EveryAmountOfACurrencyIsExact(t *testing.T) {
	t.Parallel()
	for _, currency := range []string{"EUR", "JPY", "KWD", "UYW"} {
		for minor := int64(0); minor <= money.Max; minor += 1 + minor/1000 {
			units, err := strconv.ParseFloat(money.Decimal(money.FromMinor(minor, currency)), 64)
			if err != nil {
				t.Fatal(err)
			}
			m, err := money.FromFloat(units, currency)
			if err != nil || money.Minor(m) != minor {
				t.Fatalf("FromFloat(%v, %s) = %v, %v; want %d minor units", units, currency, m, err, minor)
			}
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
	if m, err := money.FromFloat(35.5, "JPY"); err == nil || err.Error() != "must be a whole number of JPY" {
		t.Errorf("half a yen: %v, %v", m, err)
	}
}

func TestDecimal_HasDecimalsOnlyIfThereAreAny(t *testing.T) {
	t.Parallel()
	for minor, want := range map[int64]string{0: "0", 5: "0.05", 1990: "19.90", 100_000: "1000"} {
		if got := money.Decimal(money.FromMinor(minor, "USD")); got != want {
			t.Errorf("Decimal(%d) = %s, want %s", minor, got, want)
		}
	}
}
