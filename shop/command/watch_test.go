package command

import (
	"testing"
	"time"
)

func TestSinceLast_IsAsShortAsItCanBeRead(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{
		0: "+0 ms", 14 * time.Millisecond: "+14 ms", -3 * time.Millisecond: "-3 ms", 14065 * time.Millisecond: "+14.1 s",
		-1500 * time.Millisecond: "-1.5 s", 130 * time.Second: "+2m10s", -time.Hour: "-1h0m0s",
	} {
		if got := sinceLast(d); got != want {
			t.Errorf("%s is %q, want %q", d, got, want)
		}
	}
}

func TestEvents_ARoutingKeyThatNoEventHasIsNamed(t *testing.T) {
	t.Parallel()
	for pattern, known := range map[string]bool{
		"": true, "shop.order.placed": true, "shop.stock.#": true, "shop.*.placed": true, "#": true,
		"shop.ordr.placed": false, "shop.order": false, "shop.order..placed": false, "shop.order.placed.": false, "order.#": false,
	} {
		if err := knownKey(pattern); (err == nil) != known {
			t.Errorf("%q: %v", pattern, err)
		}
	}
}
