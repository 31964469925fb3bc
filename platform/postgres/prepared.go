package postgres

import (
	"context"
	"database/sql/driver"
	"strings"
	"sync/atomic"

	"github.com/lib/pq"
	"github.com/lib/pq/pqerror"
)

// Prepared begins statements that are prepared once on each connection and planned for good, which is worth it for what
// runs with every batch. One plan has to be right for all parameters, and for full tables though it may be made when they
// are empty: pools plan by index wherever there is one. Others are planned each time.
const Prepared = "/* prepared */ "

// preparing connects like its Connector; the connections keep the statements that they have prepared. If one of them
// meets a server that takes no writes, none of those that exist is used again: their successors find the new primary.
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

// pqConn is what a connection of lib/pq can do.
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

// preparedConn is used by one goroutine at a time, as database/sql promises.
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

// retire makes the pool give up its connections, if that has not happened since this one was made.
func (c *preparedConn) retire() { c.pool.generation.CompareAndSwap(c.generation, c.generation+1) }

// QueryContext implements driver.QueryerContext.
func (c *preparedConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	return run(ctx, c, query, args, c.pqConn.QueryContext, preparedStatement.QueryContext)
}

// ExecContext implements driver.ExecerContext.
func (c *preparedConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	return run(ctx, c, query, args, c.pqConn.ExecContext, preparedStatement.ExecContext)
}

// run runs query as it is, or as the statement that is prepared for it. After an error that is prepared anew: it may be
// that a migration has changed what it is about.
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
