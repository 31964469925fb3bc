// Package postgres opens a service's connections to its schema, runs its transactions, and reduces the errors of server and
// driver to a few that callers can act on.
package postgres

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/XSAM/otelsql"
	"github.com/jmoiron/sqlx"
	"go.opentelemetry.io/otel/metric"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/trace"
	tracenoop "go.opentelemetry.io/otel/trace/noop"
)

const (
	// connectTimeout bounds connecting: name, TCP, TLS and login.
	connectTimeout = 5 * time.Second
	// lockTimeout bounds the wait for one lock. Shorter than statementTimeout, so that the error says it was a lock.
	lockTimeout = 5 * time.Second
	// statementTimeout bounds one statement on the server. Not the wait of a COMMIT for a synchronous standby: that ends with
	// answerTimeout, and whether it was stored is not known then.
	statementTimeout = 10 * time.Second
	// answerTimeout bounds the wait for the server's next byte: a server that vanished without a word is noticed.
	answerTimeout = statementTimeout + 5*time.Second
	// IdleInTransactionTimeout is how long a transaction may pause between two statements before the server ends it
	// and lets go of its locks: those of a process that is frozen, or whose machine is cut off.
	IdleInTransactionTimeout = 6 * time.Second
	// maxLifetime is how long a connection is used. New ones resolve the host's name and read the credentials again.
	maxLifetime = 30 * time.Minute
)

// Options configure a pool. The zero value works.
type Options struct {
	// Application is the name that pg_stat_activity shows.
	Application string
	// MaxConns bounds the connections of this pool, 8 if it is 0.
	MaxConns int
	// Tracer and Meter receive spans and metrics; nothing is recorded if they are nil.
	Tracer trace.TracerProvider
	Meter  metric.MeterProvider
}

// Open returns a pool of connections to the database at url that use schema, once one of them works; otherwise the error is
// ErrUnavailable. The server bounds every statement: 10 s, of which 5 s may be a wait for a lock. Parameters are sent in
// the same round trip as the query. With that, a []byte parameter is sent in PostgreSQL's binary form, which is what Array
// returns; a single JSON text must be passed as a string.
func Open(ctx context.Context, url, schema string, o Options) (*sqlx.DB, error) {
	config, err := Config(url, schema)
	if err != nil {
		return nil, err
	}
	config.ApplicationName = o.Application
	config.BinaryParameters = true
	if config.ConnectTimeout == 0 {
		config.ConnectTimeout = connectTimeout
	}
	config.Runtime["lock_timeout"] = milliseconds(lockTimeout)
	config.Runtime["statement_timeout"] = milliseconds(statementTimeout)
	config.Runtime["idle_in_transaction_session_timeout"] = milliseconds(IdleInTransactionTimeout)
	// See Prepared. Without an index the penalty of a scan would look like work that is worth compiling.
	config.Runtime["enable_seqscan"], config.Runtime["jit"] = "off", "off"
	connector, err := NewConnector(config)
	if err != nil {
		return nil, err
	}
	connector.Dialer(dialer{answer: answerTimeout})

	pool, err := instrumented(&preparing{Connector: connector}, o)
	if err != nil {
		return nil, err
	}
	maxConns := o.MaxConns
	if maxConns == 0 {
		maxConns = 8
	}
	pool.SetMaxOpenConns(maxConns)
	pool.SetMaxIdleConns(maxConns)
	pool.SetConnMaxIdleTime(5 * time.Minute)
	pool.SetConnMaxLifetime(maxLifetime)
	if err := pool.PingContext(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("connecting to database %s at %s:%d: %w", config.Database, config.Host, config.Port, Classify(err)), pool.Close())
	}
	return pool, nil
}

// Close returns a function that closes a pool. It returns no error: what goes wrong when nobody uses the pool any more is that a
// connection cannot take its leave, because the server has ended it, and nothing is lost by that.
func Close(pool *sqlx.DB) func() error {
	return func() error {
		_ = pool.Close()
		return nil
	}
}

// Ready returns a check of readiness, which fails if the server does not answer or is a standby. In the latter case the
// connection is dropped, so that the next call may reach another server.
func Ready(pool *sqlx.DB) func(context.Context) error {
	return func(ctx context.Context) error {
		conn, err := pool.Connx(ctx)
		if err != nil {
			return Classify(err)
		}
		defer conn.Close()
		var standby bool
		if err := conn.GetContext(ctx, &standby, "SELECT pg_is_in_recovery()"); err != nil {
			return Classify(err)
		}
		if standby {
			_ = conn.Raw(func(any) error { return driver.ErrBadConn }) // the pool drops it
			return fmt.Errorf("%w: the server is a standby, which takes no writes until it is promoted", ErrUnavailable)
		}
		return nil
	}
}

func instrumented(connector driver.Connector, o Options) (*sqlx.DB, error) {
	if o.Tracer == nil {
		o.Tracer = tracenoop.NewTracerProvider()
	}
	if o.Meter == nil {
		o.Meter = metricnoop.NewMeterProvider()
	}
	options := []otelsql.Option{
		otelsql.WithTracerProvider(o.Tracer),
		otelsql.WithMeterProvider(o.Meter),
		otelsql.WithSpanOptions(otelsql.SpanOptions{
			OmitConnResetSession: true,
			OmitConnectorConnect: true,
			OmitRows:             true,
			// What a poll does in the background belongs to no request.
			SpanFilter: func(ctx context.Context, _ otelsql.Method, _ string, _ []driver.NamedValue) bool {
				return trace.SpanContextFromContext(ctx).IsValid()
			},
		}),
	}
	pool := otelsql.OpenDB(connector, options...)
	if err := observePool(pool, o.Meter); err != nil {
		return nil, errors.Join(err, pool.Close())
	}
	return sqlx.NewDb(pool, "postgres"), nil
}

// InTx runs fn in a transaction, which is committed if fn returns nil and rolled back if it returns an error or panics. The
// error is classified (see Classify); if that of a COMMIT is ErrUnavailable, the transaction may have been committed. ctx
// bounds the wait for a connection. Once begun, the transaction is not cancelled with ctx, because that could hit the
// COMMIT; the server's timeouts bound it. A statement that fn runs with an ended context fails, and the transaction with
// it.
func InTx(ctx context.Context, pool *sqlx.DB, fn func(tx *sqlx.Tx) error) error {
	tx, done, err := begin(ctx, pool)
	if err != nil {
		return fmt.Errorf("beginning a transaction: %w", Classify(err))
	}
	defer done()
	// After a commit it does nothing. If it fails the connection is lost, and the transaction with it.
	defer func() { _ = tx.Rollback() }()
	if err := fn(tx); err != nil {
		return Classify(err)
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("committing: %w", Classify(err))
	}
	return nil
}

// begin gives up waiting for a connection when ctx ends; once the transaction has begun it no longer looks at ctx. done
// frees what is left.
func begin(ctx context.Context, pool *sqlx.DB) (tx *sqlx.Tx, done context.CancelFunc, err error) {
	txCtx, done := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, done)
	tx, err = pool.BeginTxx(txCtx, nil)
	if !stop() { // ctx has ended, and with it the transaction that may have begun
		err = ctx.Err()
	}
	if err != nil {
		done()
		return nil, nil, err
	}
	return tx, done, nil
}

func milliseconds(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }
