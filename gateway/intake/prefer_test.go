package intake

import (
	"testing"
	"time"

	"google.golang.org/grpc/metadata"
)

func TestPrefer_WaitIsThePreferenceOfRFC7240(t *testing.T) {
	t.Parallel()
	for header, want := range map[string]time.Duration{
		"":                           0,
		"wait=5":                     5 * time.Second,
		"respond-async, wait=5":      5 * time.Second,
		` WAIT = "2" , return=full`:  2 * time.Second,
		"wait=0":                     0,
		"wait=100000":                maxWait,
		"wait=-1":                    0,
		"wait=soon":                  0,
		"wait":                       0,
		"waiting=5":                  0,
		"wait=3, wait=9":             3 * time.Second, // the first counts
		`foo="a, wait=9"; b, wait=3`: 3 * time.Second,
		`foo="\"", wait=3`:           3 * time.Second,
		"wait=3; foo=bar":            3 * time.Second,
		`wait="3`:                    3 * time.Second,
	} {
		ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs("prefer", header))
		if got := readPreferences(ctx).wait; got != want {
			t.Errorf("%q: %s, want %s", header, got, want)
		}
	}
	md := metadata.MD{"prefer": {"wait=3", "respond-async"}}
	if p := readPreferences(metadata.NewIncomingContext(t.Context(), md)); !p.async || p.wait != 3*time.Second {
		t.Errorf("two headers: %+v", p)
	}
}
