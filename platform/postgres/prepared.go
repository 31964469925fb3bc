package postgres

import (
	"context"
	"database/sql/driver"
	"strings"
)

// Prepared begins statements that are prepared once on each connection and planned for good, which is worth it for what
// runs with every batch. One plan has to be right for all parameters, and for full tables though it may be made when they
// are empty: pools plan by index wherever there is one. Others are planned each time.
const Prepared = "/* prepared */ "

// preparing connects like its Connector; the connections keep the statements that they have prepared.
type preparing struct{ driver.Connector }

func (p preparing) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := p.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return &preparedConn{pqConn: conn.(pqConn), statements: map[string]preparedStatement{}}, nil
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
}

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
) (none R, _ error) {
	if !strings.HasPrefix(query, Prepared) {
		return asItIs(ctx, query, args)
	}
	s := c.statements[query]
	if s == nil {
		stmt, err := c.PrepareContext(ctx, query)
		if err != nil {
			return none, err
		}
		s = stmt.(preparedStatement)
		c.statements[query] = s
	}
	result, err := prepared(s, ctx, args)
	if err != nil {
		_ = s.Close() // the connection may be gone
		delete(c.statements, query)
	}
	return result, err
}
