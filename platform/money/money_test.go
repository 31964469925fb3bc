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

func TestMinor_AndFromMinorAreInverse(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		minor int64
		m     *moneyv1.Money
	}{
		{0, &moneyv1.Money{CurrencyCode: "USD"}},
		{1, &moneyv1.Money{CurrencyCode: "USD", Nanos: 10_000_000}},
		{99, &moneyv1.Money{CurrencyCode: "USD", Nanos: 990_000_000}},
		{20500, &moneyv1.Money{CurrencyCode: "USD", Units: 205}},
		{1_000_000_000_099, &moneyv1.Money{CurrencyCode: "USD", Units: 10_000_000_000, Nanos: 990_000_000}},
	} {
		if got := money.Minor(c.m); got != c.minor {
			t.Errorf("Minor(%v) = %d, want %d", c.m, got, c.minor)
		}
		got := money.FromMinor(c.minor, "USD")
		if diff := cmp.Diff(c.m, got, protocmp.Transform()); diff != "" {
			t.Errorf("FromMinor(%d) (-want +got):\n%s", c.minor, diff)
		}
		if err := contract.Validate(got); err != nil {
			t.Errorf("FromMinor(%d) is not valid: %v", c.minor, err)
		}
	}
	if got := money.Minor(nil); got != 0 {
		t.Errorf("Minor(nil) = %d", got)
	}
}

func TestFromFloat_EveryPriceWithTwoDecimalsIsExact(t *testing.T) {
	t.Parallel()
	for minor := int64(0); minor <= 1_000_000_000_099; minor += 1 + minor/1000 {
		price, err := strconv.ParseFloat(strconv.FormatInt(minor/100, 10)+"."+strconv.FormatInt(100+minor%100, 10)[1:], 64)
		if err != nil {
			t.Fatal(err)
		}
		got, err := money.FromFloat(price)
		if err != nil || got != minor {
			t.Fatalf("FromFloat(%v) = %d, %v; want %d", price, got, err, minor)
		}
		if back := money.Float(minor); back != price {
			t.Fatalf("Float(%d) = %v, want %v", minor, back, price)
		}
	}
}

func TestFromFloat_WhatIsNoPriceIsRefused(t *testing.T) {
	t.Parallel()
	for _, price := range []float64{-1, -0.01, 0.001, 35.123, 34.999999, 19.990000000001, 1e10 + 1, 1e300, math.NaN(), math.Inf(1), math.Inf(-1)} {
		if minor, err := money.FromFloat(price); err == nil {
			t.Errorf("FromFloat(%v) = %d, want an error", price, minor)
		}
	}
}

func TestFormat_HasTwoDecimalsAndTheCurrency(t *testing.T) {
	t.Parallel()
	for minor, want := range map[int64]string{20500: "205.00 USD", 5: "0.05 USD", 351: "3.51 USD", 1_000_000_000_099: "10000000000.99 USD"} {
		if got := money.Format(minor, "USD"); got != want {
			t.Errorf("Format(%d) = %q, want %q", minor, got, want)
		}
	}
}
