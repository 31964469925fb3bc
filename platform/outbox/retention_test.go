package outbox

import (
	"strings"
	"testing"
	"time"

	"shop.example/platform/messaging"
)

func TestRetention_TheInboxRemembersLongerThanAMessageCanComeBack(t *testing.T) {
	t.Parallel()
	r, err := Retention{}.Validate()
	if err != nil {
		t.Fatal(err)
	}
	if r.RedriveHorizon != 7*24*time.Hour || r.Inbox <= r.RedriveHorizon+messaging.MaxRetryTime() {
		t.Errorf("the defaults are %+v", r)
	}
	const day = 24 * time.Hour
	for what, c := range map[string]struct {
		set   Retention
		wrong string // what the error names, "" if there is none
	}{
		"a horizon that the default inbox covers":  {Retention{RedriveHorizon: 2 * day}, ""},
		"a horizon set alone, too long":            {Retention{RedriveHorizon: 30 * day}, "INBOX_RETENTION to 744h1m11s or more"},
		"an inbox set alone, too short":            {Retention{Inbox: 7 * day}, "INBOX_RETENTION to 192h1m11s or more"},
		"both, with nothing left for the way":      {Retention{RedriveHorizon: day, Inbox: 2 * day}, "INBOX_RETENTION"},
		"both, with the longest way":               {Retention{RedriveHorizon: day, Inbox: 2*day + messaging.MaxRetryTime()}, ""},
		"a horizon in the past":                    {Retention{RedriveHorizon: -day}, "REDRIVE_HORIZON is -24h"},
		"an inbox that forgets before it is asked": {Retention{Inbox: -day}, "INBOX_RETENTION is -24h"},
	} {
		_, err := c.set.Validate()
		if (err != nil) != (c.wrong != "") || err != nil && !strings.Contains(err.Error(), c.wrong) {
			t.Errorf("%s: %v, want an error with %q", what, err, c.wrong)
		}
	}
}

func TestLongestRetry_IsThatOfTheRetryQueues(t *testing.T) {
	t.Parallel()
	if got := messaging.MaxRetryTime(); got != 71*time.Second {
		t.Errorf("%s, want 1 s + 10 s + 60 s", got)
	}
}
