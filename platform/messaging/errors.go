package messaging

import (
	"errors"

	"shop.example/platform/postgres"
)

var (
	// ErrNotConnected means that there is no connection to the broker.
	ErrNotConnected = errors.New("no connection to the broker")
	// ErrBlocked means that the broker takes no messages because it is short of memory or disk.
	ErrBlocked = errors.New("the broker takes no messages at present: it is short of memory or disk")
	// ErrUnconfirmed means that the broker did not say in time that it has the message. It may have it.
	ErrUnconfirmed = errors.New("the broker has not confirmed the message")
	// ErrNoAnswer means that the broker is connected and answers no question.
	ErrNoAnswer = errors.New("the broker does not answer")
	// ErrUnroutable means that no queue takes messages of this kind.
	ErrUnroutable = errors.New("no queue takes this message")
	// ErrTooLarge means that a message is larger than MaxEvent or MaxCall, or than the broker takes.
	ErrTooLarge = errors.New("the message is too large")
)

// RefusedError says which of the messages given to Send the broker refuses for what it is: no queue takes it, its exchange
// is none of the topology's, or it is too large. Those before it are confirmed, those after it may not be. A topology that
// is incomplete for the moment can be the reason, see Permanent.
type RefusedError struct {
	Index int
	// Permanent says that no repair of the broker's topology helps: the message is too large, or the topology has no binding
	// for it.
	Permanent bool
	Cause     error // an ErrUnroutable or ErrTooLarge
}

func (e *RefusedError) Error() string { return e.Cause.Error() }

// Unwrap returns the cause.
func (e *RefusedError) Unwrap() error { return e.Cause }

// classifiedError is what a handler says about its error: whether a retry can help.
type classifiedError struct {
	error
	permanent bool
}

func (v classifiedError) Unwrap() error { return v.error }

// Permanent marks an error of a handler as one that no retry can mend: the message becomes a dead letter at once.
func Permanent(err error) error { return classifiedError{err, true} }

// Unavailable marks an error of a handler as the failure of something the handler depends on. The batch is held and tried
// again until the dependency is back; no attempt of the messages is used up.
func Unavailable(err error) error { return classifiedError{err, false} }

// isPermanent also knows that a message does not shrink.
func isPermanent(err error) bool {
	var v classifiedError
	return errors.As(err, &v) && v.permanent || errors.Is(err, ErrTooLarge)
}

// isUnavailable also knows the database's own words for it, so that no handler can forget to mark them. A transaction that
// lost against another one is no fault of the messages either.
func isUnavailable(err error) bool {
	var v classifiedError
	if errors.As(err, &v) {
		return !v.permanent
	}
	return errors.Is(err, postgres.ErrUnavailable) || errors.Is(err, postgres.ErrRetry)
}
