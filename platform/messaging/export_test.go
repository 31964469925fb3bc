package messaging

import (
	"context"
	"time"
)

// SetLinger says how long a subscription stays bound when nobody wants it any more. It is called before Run.
func SetLinger(s *Subscription, linger time.Duration) { s.linger = linger }

// KeepInterval is how often the binding of a subscription is made again.
const KeepInterval = keepInterval

// SetBlocked is what happens when the broker says that it takes no messages, or that it takes them again. A broker that
// is really short of memory is so for all tests.
func (c *Connection) SetBlocked(blocked bool) { c.setBlocked(blocked) }

// NodeOf is the address of the node that c is connected to.
func NodeOf(ctx context.Context, c *Connection) (string, error) {
	conn, err := c.await(ctx)
	if err != nil {
		return "", err
	}
	return conn.RemoteAddr().String(), nil
}

// TryTimeout bounds connecting to one of several nodes.
const TryTimeout = tryTimeout
