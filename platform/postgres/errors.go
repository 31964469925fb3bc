package postgres

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"

	"github.com/lib/pq"
	"github.com/lib/pq/pqerror"
)

// What an error of the database means to whoever asked. errors.Is tells them apart.
var (
	// ErrUnavailable: the server cannot be reached, is overloaded, does not let us in, takes no writes because it is a
	// standby, or has no such table or no right to it for us. It is not about what was to be stored, and the same call can
	// succeed later. Of a COMMIT nobody knows whether it was done.
	ErrUnavailable = errors.New("database unavailable")
	// ErrRetry: the transaction lost against another one (deadlock, serialization, lock timeout), or a table has changed
	// under a prepared statement, and it left nothing behind. The same call can succeed at once.
	ErrRetry = errors.New("transaction conflict")
	// ErrExhausted: the server gave up the statement because it took too long or too much memory. It left nothing behind.
	// Less at once can succeed; the same can succeed later, if others had the server busy.
	ErrExhausted = errors.New("statement given up by the database")
	// ErrUnique: there is a row with that key already. Constraint names it.
	ErrUnique = errors.New("already exists")
	// ErrCheck: a row would break a rule of the schema. Constraint names it.
	ErrCheck = errors.New("check violated")
)

// Transient are the errors after which the same call can succeed.
var Transient = []error{ErrUnavailable, ErrRetry, ErrExhausted}

// IsTransient says whether err is one of Transient.
func IsTransient(err error) bool {
	return slices.ContainsFunc(Transient, func(kind error) bool { return errors.Is(err, kind) })
}

// Classify wraps an error of database/sql or lib/pq in the one above that it means. Any other error is returned as it
// is, that of a context too. It may be called again on what it returned.
func Classify(err error) error {
	if err == nil {
		return nil
	}
	for _, known := range []error{ErrUnavailable, ErrRetry, ErrExhausted, ErrUnique, ErrCheck} {
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
		return kindOfServers(e)
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

// kindOfServers is the kind of an error that the server answered with.
func kindOfServers(e *pq.Error) error {
	switch e.Code {
	case pqerror.UniqueViolation:
		return ErrUnique
	case pqerror.CheckViolation:
		return ErrCheck
	case pqerror.TRSerializationFailure, pqerror.TRDeadlockDetected, pqerror.LockNotAvailable:
		return ErrRetry
	case pqerror.QueryCanceled, // statement_timeout
		pqerror.TransactionTimeout, pqerror.OutOfMemory:
		return ErrExhausted
	case pqerror.ReadOnlySQLTransaction, // a standby
		pqerror.IdleInTransactionSessionTimeout:
		return ErrUnavailable
	case pqerror.FeatureNotSupported:
		// "cached plan must not change result type": a migration has changed what a prepared statement returns.
		if e.Routine == "RevalidateCachedQuery" {
			return ErrRetry
		}
	}
	switch e.Code.Class() {
	case pqerror.ClassConnectionException, pqerror.ClassInsufficientResources, pqerror.ClassSystemError,
		pqerror.ClassOperatorIntervention, // it stops, starts, or somebody has ended the session
		pqerror.ClassInvalidAuthorizationSpecification, pqerror.ClassInvalidCatalogName,
		// Our statements are the same for every message: the schema is of another version, or its rights are missing.
		pqerror.ClassSyntaxErrorOrAccessRuleViolation, pqerror.ClassInvalidSchemaName,
		pqerror.ClassInvalidSQLStatementName: // a pooler has given us another connection
		return ErrUnavailable
	}
	return nil
}

// unavailable is err as ErrUnavailable, unless ctx has ended: before a transaction has begun no error is about what was to
// be stored, also one that Classify does not know, that of a certificate for example. (A dial that timed out says that it
// is context.DeadlineExceeded.)
func unavailable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return err
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// isReadOnly says whether the server has refused a statement because it takes no writes: a standby, or a primary that
// was demoted.
func isReadOnly(err error) bool { return pq.As(err, pqerror.ReadOnlySQLTransaction) != nil }

// Constraint returns the name of the constraint or unique index that refused a row, "" if err is not about one.
func Constraint(err error) string {
	if e := pq.As(err); e != nil {
		return e.Constraint
	}
	return ""
}
