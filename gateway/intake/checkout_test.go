package intake

import (
	"testing"
	"time"

	"google.golang.org/grpc/metadata"
)

func TestPreferredWait_IsThePreferenceOfRFC7240(t *testing.T) {
	t.Parallel()
	for header, want := range map[string]time.Duration{
		"":                          0,
		"wait=5":                    5 * time.Second,
		"respond-async, wait=5":     5 * time.Second,
		` WAIT = "2" , return=full`: 2 * time.Second,
		"wait=0":                    0,
		"wait=100000":               maxWait,
		"wait=-1":                   0,
		"wait=soon":                 0,
		"wait":                      0,
		"waiting=5":                 0,
	} {
		ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs("prefer", header))
		if got := preferredWait(ctx); got != want {
			t.Errorf("%q: %s, want %s", header, got, want)
		}
	}
}
