package postgres

import (
	"context"
	"database/sql/driver"
	"strings"
	"sync/atomic"

	"github.com/lib/pq"
	"github.com/lib/pq/pqerror"
)

// Prepared is put at the beginning of a statement that each connection is to prepare once, keeping its plan. It pays for
// statements that run with every batch. The one plan must suit all parameters, and full tables even if it was made when
// they were empty, so Open sets the planner to use an index whenever there is one. Other statements are planned each time.
const Prepared = "/* prepared */ "

// preparing makes connections that keep their prepared statements. If one of them reaches a server that accepts no writes,
// none of the existing ones is used again: new ones find the new primary.
type preparing struct {
	driver.Connector
	generation atomic.Int64 // of the connections that may be used
}

func (p *preparing) Connect(ctx context.Context) (driver.Conn, error) {
	generation := p.generation.Load()
	conn, err := p.Connector.Connect(ctx)
	if err != nil {
		return nil, unavailable(ctx, err)
	}
	return &preparedConn{pqConn: conn.(pqConn), statements: map[string]preparedStatement{}, pool: p, generation: generation}, nil
}

// pqConn has the methods of lib/pq's connections that are needed here.
type pqConn interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.ExecerContext
	driver.NamedValueChecker
	driver.Pinger
	driver.QueryerContext
	driver.SessionResetter
	driver.Validator
}

type preparedStatement interface {
	driver.Stmt
	driver.StmtExecContext
	driver.StmtQueryContext
}

// preparedConn is a connection with prepared statements. database/sql uses it from one goroutine at a time.
type preparedConn struct {
	pqConn
	statements map[string]preparedStatement // by their text
	pool       *preparing
	generation int64
}

// ResetSession implements driver.SessionResetter.
func (c *preparedConn) ResetSession(ctx context.Context) error {
	if !c.IsValid() {
		return driver.ErrBadConn
	}
	return c.pqConn.ResetSession(ctx)
}

// IsValid implements driver.Validator.
func (c *preparedConn) IsValid() bool {
	return c.generation == c.pool.generation.Load() && c.pqConn.IsValid()
}

// BeginTx implements driver.ConnBeginTx.
func (c *preparedConn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	tx, err := c.pqConn.BeginTx(ctx, opts)
	if err == nil {
		return tx, nil
	}
	if pq.As(err, pqerror.FeatureNotSupported) != nil { // BEGIN READ WRITE on a standby
		c.retire()
	}
	return nil, unavailable(ctx, err)
}

// retire makes the pool drop its connections, unless that has happened since this one was made.
func (c *preparedConn) retire() { c.pool.generation.CompareAndSwap(c.generation, c.generation+1) }

// QueryContext implements driver.QueryerContext.
func (c *preparedConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	return run(ctx, c, query, args, c.pqConn.QueryContext, preparedStatement.QueryContext)
}

// ExecContext implements driver.ExecerContext.
func (c *preparedConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	return run(ctx, c, query, args, c.pqConn.ExecContext, preparedStatement.ExecContext)
}

// run executes query as it is, or through the statement that is prepared for it. After an error it is prepared anew the
// next time, because a migration may have changed a table.
func run[R any](ctx context.Context, c *preparedConn, query string, args []driver.NamedValue,
	asItIs func(context.Context, string, []driver.NamedValue) (R, error),
	prepared func(preparedStatement, context.Context, []driver.NamedValue) (R, error),
) (result R, err error) {
	defer func() {
		if isReadOnly(err) {
			c.retire()
		}
	}()
	if !strings.HasPrefix(query, Prepared) {
		return asItIs(ctx, query, args)
	}
	s := c.statements[query]
	if s == nil {
		stmt, err := c.PrepareContext(ctx, query)
		if err != nil {
			return result, err
		}
		s = stmt.(preparedStatement)
		c.statements[query] = s
	}
	result, err = prepared(s, ctx, args)
	if err != nil {
		_ = s.Close() // the connection may be gone
		delete(c.statements, query)
	}
	return result, err
}
