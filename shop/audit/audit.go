// Package audit compares what the services have stored, and finds inconsistencies.
//
// It reads the schemas of the services, which may be in databases of their own, and changes nothing. Services commit one after the
// other, so at any moment some orders are halfway. An inconsistency that is younger than Config.Late is in flight, not a
// violation; an older one is read again after a pause before it counts. A healthy shop has no violations.
//
// The stock is compared product by product (stock.go). Orders are read in pages: which there are (orders.go), what each service
// knows of them (view.go), and what contradicts itself there (compare.go). Deliveries of webhooks are compared with the log
// (webhooks.go).
package audit

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"shop.example/platform/postgres"
)

// Check is the name of one comparison.
type Check string

// The checks, in the order of a report.
const (
	OnHand      Check = "on_hand"
	Reserved    Check = "reserved"
	Sold        Check = "sold"
	Undecided   Check = "undecided"
	States      Check = "states"
	Decisions   Check = "decisions"
	Holds       Check = "holds"
	Lines       Check = "lines"
	Events      Check = "events"
	Duplicates  Check = "duplicates"
	DeadLetters Check = "dead_letters"
	Outbox      Check = "outbox"

	Deliveries    Check = "deliveries"
	DeliveryOrder Check = "delivery_order"
)

var checks = []struct {
	name  Check
	about string
}{
	{OnHand, "a product's pieces on hand are the sum of its movements"},
	{Reserved, "its reserved pieces are the sum of its open holds"},
	{Sold, "the pieces that moved for orders are those of settled holds"},
	{Undecided, "what was placed or decided is stored as an order"},
	{States, "an order is in a state that the audit knows"},
	{Decisions, "an order is what inventory decided about it"},
	{Holds, "confirmed: settled; cancelled: released; rejected: nothing held"},
	{Lines, "order, decision and holds agree on pieces and prices"},
	{Events, "the log has the events of each order, and no others"},
	{Duplicates, "the log has them once"},
	{DeadLetters, "no message waits for a person"},
	{Outbox, "no message waits for the broker"},
	{Deliveries, "each event that a webhook wants is sent to it, and no others"},
	{DeliveryOrder, "those of one order are sent in the order of the log"},
}

// Violation is an inconsistency that is not explained by an order in flight.
type Violation struct {
	Check Check `json:"check"`
	// OrderID and Product name the order or the product that it is about, if there is one.
	OrderID string `json:"order_id,omitempty"`
	Product string `json:"product,omitempty"`
	Detail  string `json:"detail"`
}

// String returns the violation on one line.
func (v Violation) String() string {
	switch {
	case v.OrderID != "":
		return fmt.Sprintf("order %s: %s", v.OrderID, v.Detail)
	case v.Product != "":
		return fmt.Sprintf("product %s: %s", v.Product, v.Detail)
	}
	return v.Detail
}

// Result is the result of one check.
type Result struct {
	Check      Check  `json:"check"`
	About      string `json:"about"` // what is true without a violation
	Violations int    `json:"violations"`
	// Overdue is how many of the violations only take too long: nothing contradicts, and they can still resolve themselves.
	Overdue int `json:"overdue"`
	// InFlight counts inconsistencies that are too young to be violations.
	InFlight int `json:"in_flight"`
}

// MaxListed is how many violations of one check a report lists; it counts all.
const MaxListed = 100

// Report is the outcome of an audit.
type Report struct {
	At         time.Time     `json:"at"`
	Took       time.Duration `json:"took_ns"`
	Orders     int           `json:"orders"` // how many were looked at
	Checks     []Result      `json:"checks"`
	Violations []Violation   `json:"violations"`
	// Resent are the events that were lost on their way to a service and sent again, the newest first; at most some, see
	// ResentCount.
	Resent []Resent `json:"resent"`
	// ResentCount counts all of them.
	ResentCount int `json:"resent_count"`

	lost []string
}

// Resent is an event that was lost on its way to a service, because its queue or a binding was deleted, and was sent again.
type Resent struct {
	OrderID    string    `json:"order_id"`
	RoutingKey string    `json:"routing_key"`
	Times      int       `json:"times"` // how often it was sent
	At         time.Time `json:"at"`    // when last
	// Outcome is "handled", or what became of it instead; "" while it is on its way.
	Outcome string `json:"outcome"`
}

// Lost returns the ids of orders whose violations should go away when their lost events are sent again.
func (r *Report) Lost() []string { return r.lost }

// Count returns how many violations there are.
func (r *Report) Count() (n int) {
	for _, c := range r.Checks {
		n += c.Violations
	}
	return n
}

// InFlight returns how many inconsistencies are too young to be violations.
func (r *Report) InFlight() (n int) {
	for _, c := range r.Checks {
		n += c.InFlight
	}
	return n
}

// Config configures an audit.
type Config struct {
	// DatabaseURLs are by schema, with roles that may read it. They may all be the same.
	DatabaseURLs map[string]string
	// Since leaves out orders that are older than this; 0 leaves out none. The stock is always compared as a whole.
	Since time.Duration
	// Late is the age from which an inconsistency is a violation; 1 min if it is 0.
	Late time.Duration
	// Pause is the time before an inconsistency is read again; 1 s if it is 0.
	Pause time.Duration
	// HoldLimit is inventory's HOLD_LIMIT: how long stock stays held for an order that is never stored; 15 min if it is 0.
	HoldLimit time.Duration
}

// Auditor reads the databases of a shop. Only one audit at a time may run on it.
type Auditor struct {
	orders, inventory, logging, webhooks *sql.DB

	since, late, pause, holdLimit time.Duration
	opened                        time.Time // RunWhenQuiet looks at what was not too old then
}

// Open connects to the databases, which must be available, in read-only sessions. Close the Auditor in the end.
func Open(ctx context.Context, cfg Config) (*Auditor, error) {
	a := &Auditor{
		since: cfg.Since, late: cmp.Or(cfg.Late, time.Minute), pause: cmp.Or(cfg.Pause, time.Second),
		holdLimit: cmp.Or(cfg.HoldLimit, 15*time.Minute), opened: time.Now(),
	}
	for schema, pool := range map[string]**sql.DB{
		"orders": &a.orders, "inventory": &a.inventory, "logging": &a.logging, "webhooks": &a.webhooks,
	} {
		var err error
		if *pool, err = open(ctx, cfg.DatabaseURLs[schema], schema); err != nil {
			return nil, errors.Join(err, a.Close())
		}
	}
	return a, nil
}

func open(ctx context.Context, url, schema string) (*sql.DB, error) {
	config, err := postgres.Config(url, schema)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", schema, err)
	}
	config.ApplicationName = "shop audit"
	config.ConnectTimeout = cmp.Or(config.ConnectTimeout, 5*time.Second)
	config.Runtime["default_transaction_read_only"] = "on"
	config.Runtime["lock_timeout"] = "5s"
	// The sums of the stock read everything that ever moved.
	config.Runtime["statement_timeout"] = "5min"
	// A page of orders lies together in tables and indexes, which the planner does not know: at its own price of a random
	// read it goes through the whole table for each page, with all processors, which the services need.
	config.Runtime["random_page_cost"] = "1.1"
	config.Runtime["max_parallel_workers_per_gather"] = "0"
	connector, err := postgres.NewConnector(config)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", schema, err)
	}
	pool := sql.OpenDB(connector)
	pool.SetMaxOpenConns(2)
	var ready bool
	err = pool.QueryRowContext(ctx, `SELECT to_regclass($1) IS NOT NULL`, schema+"."+landmark[schema]).Scan(&ready)
	if err == nil && !ready {
		err = errors.New("it has no tables of the shop that this role may read: run shop migrate, or use another role")
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("database of %s: %w", schema, err), pool.Close())
	}
	return pool, nil
}

// Schemas returns the schemas that an audit reads.
func Schemas() []string { return slices.Sorted(maps.Keys(landmark)) }

// landmark is a table of each schema by which it is known.
var landmark = map[string]string{"orders": "orders", "inventory": "decision", "logging": "event_log", "webhooks": "delivery"}

// Close closes the connections.
func (a *Auditor) Close() error {
	var errs []error
	for _, pool := range []*sql.DB{a.orders, a.inventory, a.logging, a.webhooks} {
		if pool != nil {
			errs = append(errs, pool.Close())
		}
	}
	return errors.Join(errs...)
}

// finding is an inconsistency: a violation if it is late, otherwise in flight.
type finding struct {
	Violation
	late bool
	lost bool // an event of the order is missing that the log has
	slow bool // if it is late: nothing contradicts, it only takes too long

	delivery delivery // what it is about, if it is about webhooks
}

// Run audits the shop once. It fails if a database cannot be read; violations are no error.
func (a *Auditor) Run(ctx context.Context) (*Report, error) {
	r := &Report{At: time.Now()}
	var all []finding
	for _, look := range []func(context.Context) ([]finding, error){
		a.stock,
		func(ctx context.Context) (found []finding, err error) {
			found, r.Orders, err = a.allOrders(ctx)
			return found, err
		},
		a.deadLetters,
		a.outboxes,
		a.deliveries,
	} {
		found, err := look(ctx)
		if err != nil {
			return nil, err
		}
		all = append(all, found...)
	}
	if err := a.resent(ctx, r); err != nil {
		return nil, err
	}
	r.Took = time.Since(r.At)
	r.fill(all)
	return r, nil
}

// RunWhenQuiet repeats the audit until nothing is in flight, or until atMost has passed, and returns the last report.
func (a *Auditor) RunWhenQuiet(ctx context.Context, atMost time.Duration) (*Report, error) {
	return a.runUntil(ctx, atMost, func(r *Report) bool { return r.InFlight() == 0 })
}

// RunWhenMended is RunWhenQuiet, but also waits for events that were lost and have just been sent again.
func (a *Auditor) RunWhenMended(ctx context.Context, atMost time.Duration) (*Report, error) {
	return a.runUntil(ctx, atMost, func(r *Report) bool { return r.InFlight() == 0 && len(r.Lost()) == 0 })
}

func (a *Auditor) runUntil(ctx context.Context, atMost time.Duration, done func(*Report) bool) (*Report, error) {
	deadline, since := time.Now().Add(atMost), a.since
	defer func() { a.since = since }()
	for {
		if since > 0 { // else what it is to look at becomes too old while it waits
			a.since = since + time.Since(a.opened)
		}
		r, err := a.Run(ctx)
		if err != nil || done(r) || time.Now().After(deadline) {
			return r, err
		}
		if err := sleep(ctx, 200*time.Millisecond); err != nil {
			return nil, err
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (r *Report) fill(all []finding) {
	seen := map[string]bool{}
	for _, f := range all {
		if f.late && f.lost && !seen[f.OrderID] {
			seen[f.OrderID] = true
			r.lost = append(r.lost, f.OrderID)
		}
	}
	r.Violations = []Violation{} // an empty list in JSON
	for _, c := range checks {
		result := Result{Check: c.name, About: c.about}
		for _, f := range all {
			switch {
			case f.Check != c.name:
			case !f.late:
				result.InFlight++
			default:
				if f.slow {
					result.Overdue++
				}
				if result.Violations++; result.Violations <= MaxListed {
					r.Violations = append(r.Violations, f.Violation)
				}
			}
		}
		r.Checks = append(r.Checks, result)
	}
}

// rows runs a query and gives each row to scan.
func rows(ctx context.Context, pool *sql.DB, what, query string, args []any, scan func(*sql.Rows) error) error {
	result, err := pool.QueryContext(ctx, query, args...)
	if err != nil {
		return fmt.Errorf("reading %s: %w", what, err)
	}
	defer result.Close()
	for result.Next() {
		if err := scan(result); err != nil {
			return fmt.Errorf("reading %s: %w", what, err)
		}
	}
	if err := result.Err(); err != nil {
		return fmt.Errorf("reading %s: %w", what, err)
	}
	return nil
}

// seconds is an age as the database computes it.
type seconds float64

func (s seconds) duration() time.Duration { return time.Duration(float64(s) * float64(time.Second)) }

func (s seconds) ago() time.Time { return time.Now().Add(-s.duration()) }

// String is rounded to minutes, if it is more than one, or seconds.
func (s seconds) String() string {
	d := s.duration()
	if d > time.Minute {
		return d.Truncate(time.Minute).String()
	}
	return d.Truncate(time.Second).String()
}

func (a *Auditor) isLate(age seconds) bool { return float64(age) > a.late.Seconds() }

// sortFindings sorts by order, check and detail.
func sortFindings(found []finding) {
	slices.SortFunc(found, func(a, b finding) int {
		return cmp.Or(cmp.Compare(a.OrderID, b.OrderID), cmp.Compare(a.Check, b.Check), cmp.Compare(a.Detail, b.Detail))
	})
}
