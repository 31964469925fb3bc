package outbox

import "time"

// SetGrace says how long a message that a complete topology would route is waited for. It is called before Run.
func (r *Relay) SetGrace(grace time.Duration) { r.grace = grace }

// SetRefusalKept says after how long without another refusal the grace begins anew. It is called before Run.
func (r *Relay) SetRefusalKept(kept time.Duration) { r.kept = kept }
