package postgres

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/lib/pq"
	"github.com/lib/pq/pqerror"
)

// What an error of the database means to whoever asked. errors.Is tells them apart.
var (
	// ErrUnavailable: the server cannot be reached, is overloaded, or does not let us in. The same call can succeed
	// later. Of a COMMIT nobody knows whether it was done.
	ErrUnavailable = errors.New("database unavailable")
	// ErrRetry: the transaction lost against another one (deadlock, serialization, lock timeout) and left nothing
	// behind. The same call can succeed at once.
	ErrRetry = errors.New("transaction conflict")
	// ErrUnique: there is a row with that key already. Constraint names it.
	ErrUnique = errors.New("already exists")
	// ErrCheck: a row would break a rule of the schema. Constraint names it.
	ErrCheck = errors.New("check violated")
)

// Classify wraps an error of database/sql or lib/pq in the one above that it means. Any other error is returned as it
// is, that of a context too. It may be called again on what it returned.
func Classify(err error) error {
	if err == nil {
		return nil
	}
	for _, known := range []error{ErrUnavailable, ErrRetry, ErrUnique, ErrCheck} {
		if errors.Is(err, known) {
			return err
		}
	}
	if kind := kindOf(err); kind != nil {
		return fmt.Errorf("%w: %w", kind, err)
	}
	return err
}

func kindOf(err error) error {
	if e := pq.As(err); e != nil {
		return kindOfCode(e.Code)
	}
	// A deadline of the caller looks like a network error that timed out.
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return nil
	}
	for _, lost := range []error{driver.ErrBadConn, sql.ErrConnDone, io.EOF, io.ErrUnexpectedEOF, net.ErrClosed} {
		if errors.Is(err, lost) {
			return ErrUnavailable
		}
	}
	if _, ok := errors.AsType[net.Error](err); ok {
		return ErrUnavailable
	}
	return nil
}

func kindOfCode(code pqerror.Code) error {
	switch code {
	case pqerror.UniqueViolation:
		return ErrUnique
	case pqerror.CheckViolation:
		return ErrCheck
	case pqerror.TRSerializationFailure, pqerror.TRDeadlockDetected, pqerror.LockNotAvailable:
		return ErrRetry
	case pqerror.QueryCanceled, // statement_timeout
		pqerror.AdminShutdown, pqerror.CrashShutdown, pqerror.CannotConnectNow, pqerror.DatabaseDropped, pqerror.IdleSessionTimeout,
		pqerror.IdleInTransactionSessionTimeout,
		pqerror.ReadOnlySQLTransaction: // a standby, after a failover
		return ErrUnavailable
	}
	switch code.Class() {
	case pqerror.ClassConnectionException, pqerror.ClassInsufficientResources, pqerror.ClassSystemError,
		pqerror.ClassInvalidAuthorizationSpecification, pqerror.ClassInvalidCatalogName:
		return ErrUnavailable
	}
	return nil
}

// Constraint returns the name of the constraint or unique index that refused a row, "" where err is not about one.
func Constraint(err error) string {
	if e := pq.As(err); e != nil {
		return e.Constraint
	}
	return ""
}
