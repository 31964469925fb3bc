package measure

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/lib/pq"

	"shop.example/platform/messaging/provision"
	"shop.example/platform/postgres"
	"shop.example/topology"
)

// environment is what one run has in the servers: a database and a virtual host that nobody else uses.
type environment struct {
	servers Servers
	name    string
	admin   *sql.DB // of the server
	db      *sql.DB // of the run
	// databaseURL belongs to the administrator: its schemas are made by the process that is measured.
	databaseURL, amqpURL string
	products             []int64
}

// prepare makes the environment. If it fails nothing stays behind.
func prepare(ctx context.Context, servers Servers) (e *environment, err error) {
	if servers.ManagementURL == "" {
		return nil, errors.New("AMQP_MANAGEMENT_URL is not set: each run has a virtual host of its own, which is made through RabbitMQ's HTTP API")
	}
	e = &environment{servers: servers, name: "bench_" + strings.ToLower(rand.Text())}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.remove())
		}
	}()
	if e.admin, err = openDatabase(servers.DatabaseURL); err != nil {
		return e, err
	}
	if _, err := e.admin.ExecContext(ctx, "CREATE DATABASE "+e.name+" TEMPLATE template0"); err != nil {
		return e, fmt.Errorf("making a database: %w", err)
	}
	if e.databaseURL, err = withPath(servers.DatabaseURL, e.name); err != nil {
		return e, err
	}
	if e.db, err = openDatabase(e.databaseURL); err != nil {
		return e, err
	}
	// The user that makes a virtual host may use it.
	if err := e.host(ctx, http.MethodPut); err != nil {
		return e, fmt.Errorf("making a virtual host: %w", err)
	}
	if e.amqpURL, err = withPath(servers.AMQPURL, e.name); err != nil {
		return e, err
	}
	return e, provision.Topology(ctx, topology.Broker(), servers.ManagementURL, e.name)
}

func openDatabase(databaseURL string) (*sql.DB, error) {
	config, err := postgres.Config(databaseURL, "")
	if err != nil {
		return nil, err
	}
	config.ApplicationName = "bench"
	connector, err := pq.NewConnectorConfig(config)
	if err != nil {
		return nil, err
	}
	pool := sql.OpenDB(connector)
	pool.SetMaxOpenConns(2)
	return pool, nil
}

func withPath(address, path string) (string, error) {
	u, err := url.Parse(address)
	if err != nil {
		return "", fmt.Errorf("the address of a server is no URL: %w", err)
	}
	u.Path = "/" + path
	return u.String(), nil
}

// host makes or removes the run's virtual host.
func (e *environment) host(ctx context.Context, method string) error {
	_, err := provision.Call(ctx, method, e.servers.ManagementURL+"/api/vhosts/"+e.name, nil)
	return err
}

// remove takes half a minute at most, even if the run was cancelled.
func (e *environment) remove() (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if e.db != nil {
		err = errors.Join(err, e.db.Close())
	}
	if e.admin != nil {
		_, dropErr := e.admin.ExecContext(ctx, "DROP DATABASE IF EXISTS "+e.name+" WITH (FORCE)")
		err = errors.Join(err, dropErr, e.admin.Close())
	}
	if e.amqpURL != "" { // there is a virtual host
		err = errors.Join(err, e.host(ctx, http.MethodDelete))
	}
	return err
}

// unlimitedStock is more than any run sells of a product.
const unlimitedStock = 1_000_000_000

// makeProducts adds products to the catalogue, whose tables are there already.
func (e *environment) makeProducts(ctx context.Context, n int) error {
	rows, err := e.db.QueryContext(ctx, `
		WITH made AS (
			INSERT INTO inventory.product (name, on_hand, unit_price, currency)
			SELECT 'Product ' || n, $2, 1000 + n, 'USD' FROM generate_series(1, $1) AS n
			RETURNING id, on_hand
		), written AS (
			INSERT INTO inventory.stock_movement (product_id, quantity, reason) SELECT id, on_hand, 'CREATED' FROM made
		)
		SELECT id FROM made ORDER BY id`, n, unlimitedStock)
	if err != nil {
		return fmt.Errorf("making products: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var id int64
		if err := rows.Scan(&id); err != nil {
			return fmt.Errorf("making products: %w", err)
		}
		e.products = append(e.products, id)
	}
	return rows.Err()
}
