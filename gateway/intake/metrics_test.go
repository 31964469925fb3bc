package intake

import (
	"context"
	"errors"
	"testing"
	"time"

	"shop.example/platform/messaging"
)

// Clients with a deadline of a millisecond made the shop seem to refuse orders, which pages operators.
func TestMetrics_AClientThatGivesTheBrokerNoTimeHasAbandonedItsOrder(t *testing.T) {
	t.Parallel()
	expired, cancel := context.WithDeadline(t.Context(), time.Now())
	defer cancel()
	cancelled, leave := context.WithCancel(t.Context())
	leave()
	unconfirmed := publishError(messaging.ErrUnconfirmed)
	for _, c := range []struct {
		name            string
		ctx             context.Context
		took            time.Duration
		err             error
		outcome, reason string
	}{
		{"its deadline was short", expired, time.Millisecond, unconfirmed, outcomeAbandoned, ""},
		{"it disconnected", cancelled, time.Millisecond, unconfirmed, outcomeAbandoned, ""},
		{"it waited for as long as one should", expired, minPatience, unconfirmed, outcomeRefused, reasonBroker},
		{"the broker is away", t.Context(), time.Millisecond, unconfirmed, outcomeRefused, reasonBroker},
		{"a fault", t.Context(), time.Millisecond, errors.New("a fault"), outcomeRefused, reasonOther},
		{"the broker has it", expired, time.Millisecond, nil, outcomeAccepted, ""},
	} {
		if outcome, reason := outcomeOf(c.ctx, c.took, c.err); outcome != c.outcome || reason != c.reason {
			t.Errorf("%s: %s %s, want %s %s", c.name, outcome, reason, c.outcome, c.reason)
		}
	}
}
