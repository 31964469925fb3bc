package messaging

import "time"

// SetLinger says how long a subscription stays bound when nobody wants it any more. It is called before Run.
func SetLinger(s *Subscription, linger time.Duration) { s.linger = linger }
