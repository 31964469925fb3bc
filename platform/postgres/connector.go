package postgres

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/lib/pq"
)

// Connector makes connections to PostgreSQL. It sets the run-time parameters of its configuration with a statement instead
// of at the login, because PgBouncer refuses parameters that it does not know at the login, or drops them silently.
type Connector struct {
	*pq.Connector
	set string // the statement, "" for none
}

// NewConnector returns a connector for config.
func NewConnector(config pq.Config) (*Connector, error) {
	var set []string
	for _, name := range slices.Sorted(maps.Keys(config.Runtime)) {
		set = append(set, fmt.Sprintf("set_config(%s, %s, false)", pq.QuoteLiteral(name), pq.QuoteLiteral(config.Runtime[name])))
	}
	config.Runtime = nil
	connector, err := pq.NewConnectorConfig(config)
	if err != nil {
		return nil, err
	}
	c := &Connector{Connector: connector}
	if len(set) > 0 {
		c.set = "SELECT " + strings.Join(set, ", ")
	}
	return c, nil
}

// Connect implements driver.Connector.
func (c *Connector) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := c.Connector.Connect(ctx)
	if err != nil || c.set == "" {
		return conn, err
	}
	if _, err := conn.(driver.ExecerContext).ExecContext(ctx, c.set, nil); err != nil {
		return nil, errors.Join(fmt.Errorf("setting the parameters of the connection: %w", err), conn.Close())
	}
	return conn, nil
}

// poolingTimeout bounds looking for a pooler: one that has a single connection to give makes the second one wait.
const poolingTimeout = 10 * time.Second

// RefuseTransactionPooling returns an error if pool connects through a pooler that gives each transaction another server
// connection (PgBouncer's transaction mode): parameters, prepared statements and advisory locks would silently be another
// client's. It finds out with two connections: behind such a pooler the second one gets the server process that the first
// one has just used. Other clients of the pooler can hide that, so it tries several times.
func RefuseTransactionPooling(ctx context.Context, pool *sql.DB) error {
	ctx, cancel := context.WithTimeoutCause(ctx, poolingTimeout, fmt.Errorf("no second connection within %s", poolingTimeout))
	defer cancel()
	for range 5 {
		shared, err := sharesProcess(ctx, pool)
		if err != nil {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			return fmt.Errorf("looking for a pooler before the database: %w", err)
		}
		if shared {
			return errors.New("DATABASE_URL leads to a pooler that gives each transaction another connection, which cannot be used here: " +
				"set PgBouncer's pool_mode to session, or name the server itself")
		}
	}
	return nil
}

// sharesProcess reports whether a second connection got the server process that a first one had used before.
func sharesProcess(ctx context.Context, pool *sql.DB) (bool, error) {
	first, err := pool.Conn(ctx)
	if err != nil {
		return false, err
	}
	defer first.Close()
	second, err := pool.Conn(ctx)
	if err != nil {
		return false, err
	}
	defer second.Close()
	const process = "SELECT pg_backend_pid()"
	var before, other, after int
	if err := first.QueryRowContext(ctx, process).Scan(&before); err != nil {
		return false, err
	}
	tx, err := second.BeginTx(ctx, &sql.TxOptions{ReadOnly: true}) // which a standby takes too
	if err != nil {
		return false, err
	}
	defer func() { _ = tx.Rollback() }()
	if err := tx.QueryRowContext(ctx, process).Scan(&other); err != nil || other == before {
		return other == before, err
	}
	err = first.QueryRowContext(ctx, process).Scan(&after)
	return after != before, err
}
