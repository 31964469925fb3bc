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

// ground is what one run has in the servers: a database and a virtual host that nobody else uses.
type ground struct {
	servers Servers
	name    string
	admin   *sql.DB // of the server
	db      *sql.DB // of the run
	// databaseURL belongs to the administrator: its schemas are made by whoever is measured.
	databaseURL, amqpURL string
	products             []int64
}

// prepare makes the ground. Where it fails nothing stays behind.
func prepare(ctx context.Context, servers Servers) (g *ground, err error) {
	if servers.ManagementURL == "" {
		return nil, errors.New("AMQP_MANAGEMENT_URL is not set: each run has a virtual host of its own, which is made through RabbitMQ's HTTP API")
	}
	g = &ground{servers: servers, name: "bench_" + strings.ToLower(rand.Text())}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.remove())
		}
	}()
	if g.admin, err = openDatabase(servers.DatabaseURL); err != nil {
		return g, err
	}
	if _, err := g.admin.ExecContext(ctx, "CREATE DATABASE "+g.name+" TEMPLATE template0"); err != nil {
		return g, fmt.Errorf("making a database: %w", err)
	}
	if g.databaseURL, err = withPath(servers.DatabaseURL, g.name); err != nil {
		return g, err
	}
	if g.db, err = openDatabase(g.databaseURL); err != nil {
		return g, err
	}
	// Whoever makes a virtual host may use it.
	if err := g.host(ctx, http.MethodPut); err != nil {
		return g, fmt.Errorf("making a virtual host: %w", err)
	}
	if g.amqpURL, err = withPath(servers.AMQPURL, g.name); err != nil {
		return g, err
	}
	return g, provision.Topology(ctx, topology.Broker(), servers.ManagementURL, g.name)
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
func (g *ground) host(ctx context.Context, method string) error {
	_, err := provision.Call(ctx, method, g.servers.ManagementURL+"/api/vhosts/"+g.name, nil)
	return err
}

// remove takes half a minute at most, also where the run was cancelled.
func (g *ground) remove() (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if g.db != nil {
		err = errors.Join(err, g.db.Close())
	}
	if g.admin != nil {
		_, dropErr := g.admin.ExecContext(ctx, "DROP DATABASE IF EXISTS "+g.name+" WITH (FORCE)")
		err = errors.Join(err, dropErr, g.admin.Close())
	}
	if g.amqpURL != "" { // there is a virtual host
		err = errors.Join(err, g.host(ctx, http.MethodDelete))
	}
	return err
}

// plenty is more than any run sells of a product.
const plenty = 1_000_000_000

// makeProducts adds products to the catalogue, whose tables are there already.
func (g *ground) makeProducts(ctx context.Context, n int) error {
	rows, err := g.db.QueryContext(ctx, `
		WITH made AS (
			INSERT INTO inventory.product (name, on_hand, unit_price, currency)
			SELECT 'Product ' || n, $2, 1000 + n, 'USD' FROM generate_series(1, $1) AS n
			RETURNING id, on_hand
		), written AS (
			INSERT INTO inventory.stock_movement (product_id, quantity, reason) SELECT id, on_hand, 'CREATED' FROM made
		)
		SELECT id FROM made ORDER BY id`, n, plenty)
	if err != nil {
		return fmt.Errorf("making products: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var id int64
		if err := rows.Scan(&id); err != nil {
			return fmt.Errorf("making products: %w", err)
		}
		g.products = append(g.products, id)
	}
	return rows.Err()
}
