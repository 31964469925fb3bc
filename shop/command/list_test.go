package command

import (
	"encoding/json"
	"strings"
	"testing"

	loggingv1 "shop.example/gen/shop/logging/v1"
)

// Programs that read the JSON took the first fifty orders for all there are.
func TestLists_SayThatTheyAreCutOffInJSONToo(t *testing.T) {
	t.Parallel()
	for _, list := range []string{"order list", "events list", "dlq list", "actions", "inventory history 5", "webhooks deliveries 0b2cfd8e-7e1a-4b7c-9d0a-5d2f3a4b5c6d"} {
		for _, flags := range []string{"", " --json"} {
			for next, want := range map[string]string{"behind": "There are more than 1: --limit 0 lists all.\n", "": ""} {
				f := &fakeShop{next: next, events: []*loggingv1.Event{{}}, letters: []*loggingv1.DeadLetter{{}}}
				got := f.run(t.Context(), t, strings.Fields(list+flags+" --limit 1")...)
				if got.status != 0 || got.errs != want {
					t.Errorf("shop %s%s with next_page_token %q: %s", list, flags, next, got)
				}
				var reply struct {
					NextPageToken *string `json:"next_page_token"`
				}
				if flags == "" {
					continue
				}
				if err := json.Unmarshal([]byte(got.out), &reply); err != nil || reply.NextPageToken == nil || *reply.NextPageToken != next {
					t.Errorf("shop %s%s with next_page_token %q: %v, %s", list, flags, next, err, got)
				}
			}
		}
	}
}
