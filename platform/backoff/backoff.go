// Package backoff computes how long to wait between attempts: exponential back-off with jitter. Each wait is up to twice as
// long as the one before, up to a limit, and is shortened at random, so that clients which failed together do not retry
// together (Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog, 2015).
//
// A wait is at least half of its step, so that chance cannot turn retries into a busy loop. Nothing more is needed here:
// github.com/cenkalti/backoff would take as many lines to configure, and does not do the waiting.
package backoff

import (
	"context"
	"math/rand/v2"
	"time"
)

// Backoff yields the waits of one operation that is retried. It is not safe for concurrent use.
type Backoff struct{ first, max, next time.Duration }

// New returns a Backoff whose first wait is at most first and whose longest is at most max.
func New(first, max time.Duration) *Backoff { return &Backoff{first: first, max: max, next: first} }

// Reset starts over with the first wait. Call it after a success.
func (b *Backoff) Reset() { b.next = b.first }

// Next returns how long to wait before the next attempt.
func (b *Backoff) Next() time.Duration {
	wait := b.next/2 + rand.N(b.next/2) //nolint:gosec // jitter needs no secret
	b.next = min(2*b.next, b.max)
	return wait
}

// Sleep waits for the duration that Next returns, or until ctx ends.
func (b *Backoff) Sleep(ctx context.Context) {
	timer := time.NewTimer(b.Next())
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
