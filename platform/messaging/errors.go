package messaging

import (
	"errors"

	"shop.example/platform/postgres"
)

var (
	// ErrNotConnected means that there was no connection to the broker before the context ended, or that there is none
	// because something is missing in the broker which this service may not declare.
	ErrNotConnected = errors.New("no connection to the broker")
	// ErrBlocked means that the broker blocks publishers because it is short of memory or disk.
	ErrBlocked = errors.New("the broker takes no messages at present: it is short of memory or disk")
	// ErrUnconfirmed means that the broker did not confirm the message in time. It may have it all the same.
	ErrUnconfirmed = errors.New("the broker has not confirmed the message")
	// ErrNoAnswer means that the broker is connected and answers no question.
	ErrNoAnswer = errors.New("the broker does not answer")
	// ErrUnroutable means that no queue takes messages of this kind.
	ErrUnroutable = errors.New("no queue takes this message")
	// ErrTooLarge means that a message is larger than MaxEvent or MaxCall, or than the broker takes.
	ErrTooLarge = errors.New("the message is too large")
)

// RefusedError says which of the messages given to Send the broker refuses because of what they are: no queue takes them, the
// topology has no such exchange, or they are too large. The reason can be a topology that is incomplete for the moment, see
// Refusal.Permanent.
type RefusedError struct {
	// Refused are those that are known, in their order; at least one.
	Refused []Refusal
	// Done is after how many of the messages nothing is known: those before it are confirmed if they are not refused.
	Done int
}

// Refusal is one message that the broker refuses.
type Refusal struct {
	Index int
	// Permanent means that repairing the broker would not help: the message is too large, or the topology has no binding
	// for it.
	Permanent bool
	Cause     error // an ErrUnroutable or ErrTooLarge
}

func (e *RefusedError) Error() string { return e.Refused[0].Cause.Error() }

// Unwrap returns the cause of the first refusal.
func (e *RefusedError) Unwrap() error { return e.Refused[0].Cause }

// classifiedError is a handler's error with its judgement whether a retry can help.
type classifiedError struct {
	error
	permanent bool
}

func (v classifiedError) Unwrap() error { return v.error }

// Permanent marks an error of a handler as one that no retry can fix: the message becomes a dead letter without retries.
func Permanent(err error) error { return classifiedError{err, true} }

// Unavailable marks an error of a handler as the failure of a dependency. The batch is kept and tried again until the
// dependency is back, and none of its messages' attempts is used up.
func Unavailable(err error) error { return classifiedError{err, false} }

// isPermanent reports whether a retry is useless. A message that is too large stays too large, without being marked.
func isPermanent(err error) bool {
	var v classifiedError
	return errors.As(err, &v) && v.permanent || errors.Is(err, ErrTooLarge)
}

// isUnavailable reports whether a dependency has failed. Errors of package postgres that say so need no mark, so no handler
// can forget it. A transaction that lost against another one is no fault of its messages either.
func isUnavailable(err error) bool {
	var v classifiedError
	if errors.As(err, &v) {
		return !v.permanent
	}
	return errors.Is(err, postgres.ErrUnavailable) || errors.Is(err, postgres.ErrRetry)
}
