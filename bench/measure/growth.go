package measure

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/lib/pq"

	"shop.example/db"
	"shop.example/shop/audit"
)

// GrowthOptions say how far a shop grows while it is measured.
type GrowthOptions struct {
	// Orders is how many orders it has in the end. The rest grows with them, see sizesOf.
	Orders int
	// Load is how many orders a run places, Runs how many runs there are at each size, and Rate how many orders a second are due
	// in another run of so many Seconds.
	Load, Runs, Rate, Seconds int
	// Calls is how often each page of a list is read.
	Calls int

	Program  []string
	Servers  Servers
	Logs     io.Writer
	LogLevel slog.Level
	// Progress is called with what happens now. It may be nil.
	Progress func(string)
}

// Check returns what is wrong with the options.
func (o *GrowthOptions) Check() error {
	if o.Orders < 1000 {
		return errors.New("a shop grows to 1,000 orders at least: give more --orders")
	}
	if o.Load < 1 || o.Runs < 1 || o.Rate < 1 || o.Seconds < 1 || o.Calls < 1 {
		return errors.New("load, runs, rate, seconds and calls must be at least 1")
	}
	return nil
}

// sizes are how many rows of each kind a shop has.
type sizes struct {
	Orders    int `json:"orders"`
	LogRows   int `json:"log_rows"`
	Products  int `json:"products"`
	OpenHolds int `json:"open_holds"`
	Keys      int `json:"idempotency_keys"`
	Closed    int `json:"closed_dead_letters"` // and as many operators' actions
}

// sizesOf keeps the proportions of a shop with 10,000,000 orders: 50,000,000 rows in the log, 100,000 products, 1,000,000 open
// holds and 10,000,000 keys; with more products and holds for each order if it is smaller.
func sizesOf(orders int) sizes {
	return sizes{
		Orders: orders, LogRows: logRowsOfAnOrder * orders, Products: min(orders/20, 100_000), OpenHolds: min(orders/2, 1_000_000),
		Keys: orders, Closed: orders / 100,
	}
}

// GrowthReport is what was measured at each size.
type GrowthReport struct {
	At      time.Time     `json:"at"`
	Machine Machine       `json:"machine"`
	Options growthRuns    `json:"options"`
	Steps   []*GrowthStep `json:"steps"`
	// Retention is what happened to orders while old partitions of the log were dropped, at the largest size.
	Retention *RetentionFigures `json:"retention"`
}

type growthRuns struct {
	Load    int `json:"load"`
	Runs    int `json:"runs"`
	Rate    int `json:"rate"`
	Seconds int `json:"seconds"`
}

// GrowthStep is a shop of one size.
type GrowthStep struct {
	Sizes sizes `json:"sizes"`
	// Closed are the figures of the runs with 64 clients, medians, and Open those of the run in which orders are due.
	Closed Figures `json:"closed_loop"`
	Open   Figures `json:"open_loop"`
	// Seconds are how long things took, by what they are.
	Seconds map[string]float64 `json:"seconds"`
	Calls   []CallFigures      `json:"calls"`
	Tables  []tableSize        `json:"tables"`
}

const (
	secondsFill    = "fill"
	secondsReady   = "start to ready"
	secondsMigrate = "migrations"
	secondsAudit   = "audit"
)

// grower is a measurement of growth under way.
type grower struct {
	*run
	growth GrowthOptions
	token  string // of an operator
	has    sizes  // what is there
	// began is when the oldest order was placed.
	began time.Time
}

// Growth measures a shop that is empty, one that has a tenth of the orders, and one that has all of them. What it has created on
// the servers is removed in any case.
func Growth(ctx context.Context, o GrowthOptions) (_ *GrowthReport, err error) {
	if err := o.Check(); err != nil {
		return nil, err
	}
	runs := &Options{
		Orders: o.Load, Clients: 64, Lines: 2, Products: 8, Runs: o.Runs, Replicas: 1,
		Program: o.Program, Servers: o.Servers, Logs: o.Logs, LogLevel: o.LogLevel,
	}
	g := &grower{growth: o, run: &run{Options: runs, pipeline: Shop}, token: rand.Text(), began: time.Now().Add(-pastDays * day)}
	report := &GrowthReport{At: time.Now().UTC().Truncate(time.Second), Machine: newReport(ctx, runs).Machine, Options: growthRuns{o.Load, o.Runs, o.Rate, o.Seconds}}
	if g.env, err = prepare(ctx, o.Servers); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, g.env.remove()) }()
	defer func() { err = errors.Join(err, g.stop()) }()
	for i, orders := range []int{0, o.Orders / 10, o.Orders} {
		step, err := g.step(ctx, sizesOf(orders))
		if err != nil {
			return nil, fmt.Errorf("with %d orders: %w", orders, err)
		}
		report.Steps = append(report.Steps, step)
		if i == 2 {
			if report.Retention, err = g.retention(ctx); err != nil {
				return nil, fmt.Errorf("dropping old partitions: %w", err)
			}
		}
		if err := g.stop(); err != nil {
			return nil, err
		}
		g.processes = nil
	}
	return report, nil
}

func (g *grower) tell(format string, args ...any) {
	if g.growth.Progress != nil {
		g.growth.Progress(fmt.Sprintf(format, args...))
	}
}

// step lets the shop grow and measures it. It still runs afterwards.
func (g *grower) step(ctx context.Context, to sizes) (*GrowthStep, error) {
	s := &GrowthStep{Sizes: to, Seconds: map[string]float64{}}
	timed := func(what string, f func() error) error {
		g.tell("%d orders: %s", to.Orders, what)
		begin := time.Now()
		err := f()
		s.Seconds[what] = time.Since(begin).Seconds()
		return err
	}
	if to.Orders == 0 {
		if err := g.migrate(ctx); err != nil {
			return nil, err
		}
		if err := g.env.makeProducts(ctx, g.Products); err != nil {
			return nil, err
		}
	}
	if err := timed(secondsFill, func() error { return g.fill(ctx, to) }); err != nil {
		return nil, fmt.Errorf("filling the database: %w", err)
	}
	if err := g.execute(ctx, undoMigrations...); err != nil {
		return nil, fmt.Errorf("undoing migrations: %w", err)
	}
	if err := timed(secondsMigrate, func() error { return g.migrate(ctx) }); err != nil {
		return nil, err
	}
	if err := timed(secondsReady, func() error { return g.startShop(ctx) }); err != nil {
		return nil, err
	}
	if err := g.rates(ctx, s); err != nil {
		return nil, err
	}
	g.tell("%d orders: reading lists", to.Orders)
	var err error
	if s.Calls, err = g.calls(ctx); err != nil {
		return nil, err
	}
	if err := timed(secondsAudit, func() error { return g.audit(ctx) }); err != nil {
		return nil, err
	}
	s.Tables, err = tableSizes(ctx, g.env.db)
	return s, err
}

// undoMigrations undoes the last migrations of the schemas, as far back as nothing is lost that is stored: what an upgrade from
// an earlier release has to do is measured then.
var undoMigrations = []string{
	`DELETE FROM orders.goose_db_version WHERE version_id IN (4, 6)`,
	`DROP TABLE orders.outbox_parked`,
	`DELETE FROM logging.goose_db_version WHERE version_id >= 5`,
	`DROP TABLE logging.audit_report`,
	`DROP INDEX logging.dead_letter_closed`,
	`ALTER TABLE logging.dead_letter DROP COLUMN sent_message_id`,
	`DELETE FROM webhooks.goose_db_version WHERE version_id >= 2`,
	`ALTER TABLE webhooks.webhook DROP COLUMN since, DROP COLUMN older_secrets, DROP COLUMN older_until`,
	`ALTER TABLE webhooks.delivery DROP COLUMN failures`,
	`DROP INDEX webhooks.event_order, webhooks.delivery_failed, webhooks.delivery_tried`,
}

func (g *grower) migrate(ctx context.Context) error {
	return db.MigrateAll(ctx, g.env.databaseURL, func(string, []string) {})
}

// holdLimit is longer than any measurement: the holds that are open stay so.
const holdLimit = 24 * time.Hour

func (g *grower) environ() []string {
	return []string{"SHOP_OPERATOR_TOKEN=" + g.token, "HOLD_LIMIT=" + holdLimit.String(), "EVENT_LOG_RETENTION=0"}
}

// startShop starts the shop and waits until it is ready.
func (g *grower) startShop(ctx context.Context) error {
	p, err := startProcess(ctx, g.Options, Shop, "", g.env, "", g.environ())
	if err != nil {
		return err
	}
	g.processes = []*process{p}
	return waitReady(ctx, g.processes)
}

// rates places orders in closed loop as often as Runs says, and once in open loop.
func (g *grower) rates(ctx context.Context, s *GrowthStep) (err error) {
	if g.load, err = dial(ctx, g.run); err != nil {
		return err
	}
	defer g.load.close()
	if g.progress, err = newProgressReader(ctx, g.env); err != nil {
		return err
	}
	if err := g.warmUp(ctx); err != nil {
		return fmt.Errorf("warming up: %w", err)
	}
	closed := &Result{}
	for n := range g.growth.Runs {
		g.tell("%d orders: run %d of %d", s.Sizes.Orders, n+1, g.growth.Runs)
		f, err := g.measureOnce(ctx, 0, g.growth.Load)
		if err != nil {
			return err
		}
		closed.Runs = append(closed.Runs, f)
	}
	closed.summarize()
	s.Closed = closed.Median
	g.tell("%d orders: %d orders/s due", s.Sizes.Orders, g.growth.Rate)
	s.Open, err = g.measureOnce(ctx, g.growth.Rate, g.growth.Seconds*g.growth.Rate)
	return err
}

func (g *grower) measureOnce(ctx context.Context, rate, orders int) (Figures, error) {
	if _, err := g.env.db.ExecContext(ctx, "CHECKPOINT"); err != nil {
		return nil, fmt.Errorf("writing a checkpoint: %w", err)
	}
	g.Options.Rate, g.Options.Orders = rate, orders
	return g.measure(ctx)
}

// audit fails if the shop has a violation. Nothing is late for it, so that the open holds, whose orders are not stored, are in
// flight.
func (g *grower) audit(ctx context.Context) (err error) {
	urls := map[string]string{}
	for _, schema := range db.Schemas() {
		urls[schema] = g.env.databaseURL
	}
	a, err := audit.Open(ctx, audit.Config{DatabaseURLs: urls, Late: holdLimit, HoldLimit: holdLimit})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.Close()) }()
	report, err := a.Run(ctx)
	if err != nil {
		return err
	}
	if n := report.Count(); n > 0 {
		return fmt.Errorf("the audit found %d violations, the first: %s", n, report.Violations[0])
	}
	if report.Orders < g.has.Orders {
		return fmt.Errorf("the audit looked at %d orders of %d", report.Orders, g.has.Orders)
	}
	return nil
}

// RetentionFigures are of a run in which orders were due while the log's old partitions were dropped.
type RetentionFigures struct {
	Partitions int     `json:"partitions_dropped"`
	Rows       int64   `json:"rows_dropped"`
	Bytes      int64   `json:"bytes_dropped"`
	Seconds    float64 `json:"seconds"` // from the start of the service that drops them until they are gone
	// Open are the figures of the run.
	Open Figures `json:"open_loop"`
}

// keptDays is how old events become in the measurement of retention: a month of the partitions is dropped.
const keptDays = pastDays - 30

// retention starts another replica of the logging service, which drops the partitions of a month, while orders are due.
func (g *grower) retention(ctx context.Context) (_ *RetentionFigures, err error) {
	g.tell("dropping a month of the log while %d orders/s are due", g.growth.Rate)
	f := &RetentionFigures{}
	oldest := time.Now().Add(-keptDays * day)
	before, err := partitionsOf(ctx, g.env.db, oldest)
	if err != nil {
		return nil, err
	}
	f.Partitions, f.Rows, f.Bytes = before.Partitions, before.Rows, before.Bytes
	if g.load, err = dial(ctx, g.run); err != nil {
		return nil, err
	}
	defer g.load.close()
	dropped := make(chan error, 1)
	var replica *process
	go func() {
		begin := time.Now()
		var err error
		replica, err = startProcess(ctx, g.Options, Shop, "logging", g.env, "", []string{fmt.Sprintf("EVENT_LOG_RETENTION=%dh", keptDays*24)})
		if err == nil {
			err = poll(ctx, func() (int, bool, error) {
				left, err := partitionsOf(ctx, g.env.db, oldest)
				return left.Partitions, left.Partitions == 0, err
			})
		}
		f.Seconds = time.Since(begin).Seconds()
		dropped <- err
	}()
	defer func() {
		err = errors.Join(err, <-dropped)
		if replica != nil {
			err = errors.Join(err, replica.stop())
		}
	}()
	g.Options.Rate, g.Options.Orders = g.growth.Rate, g.growth.Seconds*g.growth.Rate
	f.Open, err = g.placeWithoutCount(ctx)
	return f, err
}

// placeWithoutCount is measure without its comparison of what is stored with what was stored before, which partitions that are
// dropped meanwhile would spoil.
func (g *grower) placeWithoutCount(ctx context.Context) (Figures, error) {
	before, err := g.progress.state(ctx)
	if err != nil {
		return nil, err
	}
	confirms, err := listen(g.env.amqpURL)
	if err != nil {
		return nil, err
	}
	defer confirms.close()
	g.load.onAccept = confirms.accepted
	result, err := g.load.openLoop(ctx, g.Options.Orders, g.Options.Rate)
	if err != nil {
		return nil, err
	}
	if _, err := g.progress.settled(ctx, before, g.Options.Orders*g.Lines, func(int64) {}); err != nil {
		return nil, err
	}
	if err := g.progress.awaitQuiet(ctx, before, g.Options.Orders); err != nil {
		return nil, err
	}
	f := Figures{}
	f.addLoad(result)
	return f, confirms.read(f, g.Options.Orders)
}

// oldPartitions are the partitions of the log with the weeks that were over some day.
type oldPartitions struct {
	Partitions  int
	Rows, Bytes int64
}

func partitionsOf(ctx context.Context, pool *sql.DB, before time.Time) (p oldPartitions, err error) {
	err = pool.QueryRowContext(ctx, `
		SELECT count(*), coalesce(sum(reltuples), 0)::bigint, coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint
		FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
		WHERE i.inhparent = 'logging.event_log'::regclass AND c.relname ~ '\d{8}$' AND c.relname <= $1`,
		"event_log_"+before.UTC().Add(-week).Format("20060102")).Scan(&p.Partitions, &p.Rows, &p.Bytes)
	if err != nil {
		return p, fmt.Errorf("reading the partitions of the log: %w", err)
	}
	return p, nil
}

// tableSize is how much room a table takes, with its partitions, in bytes.
type tableSize struct {
	Table   string `json:"table"`
	Rows    int64  `json:"rows"` // about
	Bytes   int64  `json:"bytes"`
	Indexes int64  `json:"index_bytes"`
}

// tableSizes reads the sizes of all tables that are not nearly empty, the largest first.
func tableSizes(ctx context.Context, pool *sql.DB) (tables []tableSize, err error) {
	rows, err := pool.QueryContext(ctx, `
		SELECT n.nspname || '.' || coalesce(parent.relname, c.relname), sum(c.reltuples)::bigint, sum(pg_table_size(c.oid))::bigint, sum(pg_indexes_size(c.oid))::bigint
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		LEFT JOIN pg_inherits i ON i.inhrelid = c.oid LEFT JOIN pg_class parent ON parent.oid = i.inhparent
		WHERE c.relkind = 'r' AND n.nspname = ANY ($1)
		GROUP BY 1 HAVING sum(pg_total_relation_size(c.oid)) > 1 << 20 ORDER BY 3 DESC`, pq.Array(db.Schemas()))
	if err != nil {
		return nil, fmt.Errorf("reading the sizes of tables: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var t tableSize
		if err := rows.Scan(&t.Table, &t.Rows, &t.Bytes, &t.Indexes); err != nil {
			return nil, fmt.Errorf("reading the sizes of tables: %w", err)
		}
		tables = append(tables, t)
	}
	return tables, rows.Err()
}

// WriteJSON writes the report.
func (r *GrowthReport) WriteJSON(out io.Writer) error {
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	return e.Encode(r)
}
