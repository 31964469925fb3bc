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

// statement returns nil where query is not to be prepared.
func (c *preparedConn) statement(ctx context.Context, query string) (preparedStatement, error) {
	if !strings.HasPrefix(query, Prepared) {
		return nil, nil
	}
	if s := c.statements[query]; s != nil {
		return s, nil
	}
	s, err := c.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	c.statements[query] = s.(preparedStatement)
	return c.statements[query], nil
}

// QueryContext implements driver.QueryerContext.
func (c *preparedConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	s, err := c.statement(ctx, query)
	if err != nil {
		return nil, err
	}
	if s == nil {
		return c.pqConn.QueryContext(ctx, query, args)
	}
	rows, err := s.QueryContext(ctx, args)
	c.forgetAfter(err, query)
	return rows, err
}

// ExecContext implements driver.ExecerContext.
func (c *preparedConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	s, err := c.statement(ctx, query)
	if err != nil {
		return nil, err
	}
	if s == nil {
		return c.pqConn.ExecContext(ctx, query, args)
	}
	result, err := s.ExecContext(ctx, args)
	c.forgetAfter(err, query)
	return result, err
}

// forgetAfter prepares a statement anew after an error, which may be that a migration has changed what it is about.
func (c *preparedConn) forgetAfter(err error, query string) {
	if err != nil {
		_ = c.statements[query].Close() // the connection may be gone
		delete(c.statements, query)
	}
}
