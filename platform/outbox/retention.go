package outbox

import (
	"fmt"
	"time"

	"shop.example/platform/messaging"
)

const (
	defaultRedriveHorizon = 7 * 24 * time.Hour
	defaultInboxRetention = 9 * 24 * time.Hour
	// maxRedeliveryWait is how long a redriven message may wait for its consumer while the inbox is being cleaned.
	maxRedeliveryWait = 24 * time.Hour
)

// Retention says how long a message can come back, and how long an inbox remembers that it was handled. Inventory and
// logging read it from the same two variables, because logging must not redrive what inventory has forgotten.
type Retention struct {
	// RedriveHorizon is how long a message can be redriven, counted from when it first became a dead letter; a week if it
	// is 0.
	RedriveHorizon time.Duration `env:"REDRIVE_HORIZON"`
	// Inbox is how long an inbox remembers a handled message; nine days if it is 0.
	Inbox time.Duration `env:"INBOX_RETENTION"`
}

// Validate returns r with the defaults filled in, or an error if a message could come back after the inbox has forgotten
// it.
func (r Retention) Validate() (Retention, error) {
	if r.RedriveHorizon == 0 {
		r.RedriveHorizon = defaultRedriveHorizon
	}
	if r.Inbox == 0 {
		r.Inbox = defaultInboxRetention
	}
	least, err := MinRetention(r.RedriveHorizon)
	if err != nil {
		return r, err
	}
	if r.Inbox < least {
		return r, fmt.Errorf("INBOX_RETENTION is %s and REDRIVE_HORIZON %s: a dead letter could be redriven when nobody remembers that it was handled; "+
			"set INBOX_RETENTION to %s or more, on inventory and logging alike", r.Inbox, r.RedriveHorizon, least)
	}
	return r, nil
}

// MinRetention returns how long a handled message must be remembered if dead letters can be redriven for horizon, the value
// of REDRIVE_HORIZON (a week if it is 0). It fails if horizon is negative.
func MinRetention(horizon time.Duration) (time.Duration, error) {
	if horizon == 0 {
		horizon = defaultRedriveHorizon
	}
	if horizon < 0 {
		return 0, fmt.Errorf("REDRIVE_HORIZON is %s: give how long a dead letter can be redriven, 168h for example", horizon)
	}
	return horizon + messaging.MaxRetryTime() + maxRedeliveryWait, nil
}
