package postgres

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"slices"
	"strings"

	"github.com/lib/pq"
	"github.com/lib/pq/pqerror"
)

// What an error of the database means to whoever asked. errors.Is tells them apart.
var (
	// ErrUnavailable means that the server cannot be reached, is overloaded, refuses the login, accepts no writes because
	// it is a standby, or lacks a table or a right that we need. It says nothing against the data, and the same call can
	// succeed later. If COMMIT fails with it, the transaction may have been committed.
	ErrUnavailable = errors.New("database unavailable")
	// ErrRetry means that the transaction lost against another one (deadlock, serialization, lock timeout), or that a table
	// was changed under a prepared statement. It had no effect. The same call can succeed at once.
	ErrRetry = errors.New("transaction conflict")
	// ErrExhausted means that the server aborted the statement because it took too long or too much memory. It had no
	// effect. With less data the call can succeed; the same call can succeed later, if the server was busy with others.
	ErrExhausted = errors.New("statement given up by the database")
	// ErrUnique means that a row with that key exists already. Constraint returns the name of the index.
	ErrUnique = errors.New("already exists")
	// ErrCheck means that a row would violate a constraint of the schema. Constraint returns its name.
	ErrCheck = errors.New("check violated")
)

// Transient are the errors after which the same call can succeed later.
var Transient = []error{ErrUnavailable, ErrRetry, ErrExhausted}

// IsTransient reports whether err is one of Transient.
func IsTransient(err error) bool {
	return slices.ContainsFunc(Transient, func(kind error) bool { return errors.Is(err, kind) })
}

// Classify wraps an error of database/sql or lib/pq in one of the errors above. Any other error, also that of a context, is
// returned unchanged, and so is one that is classified already.
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
	if isLost(err) {
		return ErrUnavailable
	}
	return nil
}

// isLost reports whether err is that of a connection which was lost, or could not be made.
func isLost(err error) bool {
	for _, lost := range []error{driver.ErrBadConn, sql.ErrConnDone, io.EOF, io.ErrUnexpectedEOF, net.ErrClosed} {
		if errors.Is(err, lost) {
			return true
		}
	}
	_, ok := errors.AsType[net.Error](err)
	return ok
}

// IsAway reports whether err, of a caller that still waits, says that no server takes connections and writes now: none answers, it
// starts or stops, it is a standby, or it has no connection left. ErrUnavailable means more than that: after a refused login, or
// without the database or a right, waiting does not help a service that starts.
func IsAway(err error) bool {
	e := pq.As(err)
	if e == nil {
		_, file := errors.AsType[*fs.PathError](err) // a certificate that is not there: its cause looks like that of a connection
		return !file && (isLost(err) || isStandby(err))
	}
	switch e.Code {
	case pqerror.AdminShutdown, pqerror.CrashShutdown, pqerror.CannotConnectNow, pqerror.TooManyConnections, pqerror.ReadOnlySQLTransaction:
		return true
	case pqerror.ProtocolViolation: // a pooler says so of everything: that its server is away, and that it cannot be used
		return !strings.HasPrefix(e.Message, "unsupported startup parameter")
	}
	return e.Code.Class() == pqerror.ClassConnectionException
}

// isStandby reports whether err is what the driver says of servers without a primary among them. It has no type.
func isStandby(err error) bool {
	return err != nil && (strings.Contains(err.Error(), "session is read-only") || strings.Contains(err.Error(), "server is in hot standby mode"))
}

// kindOfServers returns the class of an error that the server sent.
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

// isReadOnly reports whether the server refused a statement because it accepts no writes: it is a standby, or a primary
// that was demoted.
func isReadOnly(err error) bool { return pq.As(err, pqerror.ReadOnlySQLTransaction) != nil }

// Constraint returns the name of the constraint or unique index that a row violated, "" if err is about none.
func Constraint(err error) string {
	if e := pq.As(err); e != nil {
		return e.Constraint
	}
	return ""
}
