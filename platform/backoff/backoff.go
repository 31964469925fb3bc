// Package backoff says how long to wait before the next try at what has just failed: twice as long each time, up to a
// limit, and by chance a little less, so that those who failed together do not try again together (Brooker, "Exponential
// Backoff and Jitter", AWS Architecture Blog, 2015).
//
// A wait is at least half of its step, so that chance never makes a busy loop of it. That is all that the callers need;
// github.com/cenkalti/backoff would take as many lines to be configured so, and would not wait.
package backoff

import (
	"context"
	"math/rand/v2"
	"time"
)

// Backoff is the waits of one thing that is tried again and again. One goroutine uses it.
type Backoff struct{ first, max, next time.Duration }

// New returns a back-off whose steps grow from first to max.
func New(first, max time.Duration) *Backoff { return &Backoff{first: first, max: max, next: first} }

// Reset begins again with the first step, after a success.
func (b *Backoff) Reset() { b.next = b.first }

// Next returns how long to wait this time.
func (b *Backoff) Next() time.Duration {
	wait := b.next/2 + rand.N(b.next/2) //nolint:gosec // jitter needs no secret
	b.next = min(2*b.next, b.max)
	return wait
}

// Sleep waits as long as Next says, or until ctx ends.
func (b *Backoff) Sleep(ctx context.Context) {
	timer := time.NewTimer(b.Next())
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
