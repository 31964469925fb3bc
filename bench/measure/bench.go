// Package measure measures how fast the shop is, and compares it with a baseline: a bare-minimum pipeline that does
// only what has to be done, on the same servers (baseline.go).
//
// Each run has a database and a virtual host of its own (environment.go). What is measured runs in a process of its own
// (process.go), so that its processor time and memory are told apart from those of the load (load.go), which comes over
// HTTP or gRPC. A run ends when everything is done and what is stored has been counted (progress.go). The figures
// of all runs make the report (report.go).
package measure

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// Options say what is measured. 0 means none for each number, unless its field says otherwise.
type Options struct {
	Orders  int // how many orders a run places; in open loop that is Rate times its duration
	Clients int // how many place orders, one at a time each
	// Connections is how many connections the clients share over gRPC; 0 is one for each client, as over HTTP/1.1.
	Connections int
	// Idle is how many more connections are open and place no order.
	Idle int
	// Rate is how many orders a second are due in open loop. 0 is closed loop: a client places its next order when the
	// last one is accepted.
	Rate int
	// Lines is how many lines an order has, Products how many products there are. The lines of an order name different products,
	// unless there are fewer products than lines.
	Lines, Products int
	// GRPC places the shop's orders over gRPC instead of REST. The baseline has HTTP only.
	GRPC bool
	Runs int
	// Baseline measures the baseline, too: in each run first the baseline, then the shop.
	Baseline bool
	// Preload is how many settled orders are stored before a run, as if they had been placed in the last hour.
	Preload int
	// Backlog lets all orders be accepted while the order service is not running, and measures from its start on.
	Backlog bool
	// Replicas is how many processes the shop has. Clients are spread over their gateways.
	Replicas int
	// Contention measures locks and fairness, too: with Rate.
	Contention bool
	// Profile is the file to write the CPU profile of the last run to, "" for none. The baseline's profile has ".baseline"
	// added to the name.
	Profile string
	// Separate runs each service of the shop in a process of its own, as compose does. Otherwise the shop is one process, as
	// with make up.
	Separate bool

	// Program is the command line of a program that calls Serve; the flags of a run are appended.
	Program []string
	Servers Servers
	// Logs receives the log of the measured processes, at LogLevel and above.
	Logs     io.Writer
	LogLevel slog.Level
	// Progress is called a few times a second, from one goroutine at a time. It may be nil.
	Progress func(Progress)
}

// Servers are the database and the broker that are used.
type Servers struct {
	// DatabaseURL is an administrator's of PostgreSQL, ManagementURL that of RabbitMQ's HTTP API with an administrator's login.
	DatabaseURL, AMQPURL, ManagementURL string
	// PostgresPID and RabbitMQPID are 0 if these servers run on another machine: what they use is not measured then.
	PostgresPID, RabbitMQPID int
}

// Progress says how far a run has got.
type Progress struct {
	Pipeline  Pipeline
	Run, Runs int
	Doing     string
	Done, Of  int
}

// Pipeline is one of the two systems that are measured.
type Pipeline string

// The shop, and the bare minimum that it is compared with.
const (
	Shop     Pipeline = "shop"
	Baseline Pipeline = "baseline"
)

// Check returns what is wrong with the options. Run checks them too; calling Check before starting servers saves the wait.
func (o *Options) Check() error {
	switch {
	case o.Orders < 1 || o.Clients < 1 || o.Lines < 1 || o.Products < 1 || o.Runs < 1 || o.Replicas < 1:
		return errors.New("orders, clients, lines, products, runs and replicas must be at least 1")
	case o.Lines > 100:
		return errors.New("an order has at most 100 lines: give --lines from 1 to 100")
	case o.Rate < 0 || o.Preload < 0 || o.Connections < 0 || o.Idle < 0:
		return errors.New("rate, preload, connections and idle must not be negative")
	case o.Connections > 0 && !o.GRPC:
		return errors.New("over HTTP/1.1 each client has its own connection: leave out --connections, or give --grpc, too")
	case o.Backlog && o.Rate > 0:
		return errors.New("a backlog is accepted in closed loop: leave out --rate or --backlog")
	case o.Contention && o.Rate == 0:
		return errors.New("who overtakes whom is seen in open loop only: add --rate, or leave out --contention")
	case o.Separate && o.Replicas > 1:
		return errors.New("replicas are processes with all services: leave out --replicas or --separate")
	case o.Backlog && o.Replicas > 1:
		return errors.New("a backlog is measured with one process: leave out --replicas or --backlog")
	}
	return nil
}

// Run measures as often as the options say and returns the report. It fails if a server or a measured process fails, an order
// is refused, or not every order is confirmed, settled and logged in the end. What a run has created on the servers is
// removed in any case.
func Run(ctx context.Context, o Options) (*Report, error) {
	if err := o.Check(); err != nil {
		return nil, err
	}
	pipelines := []Pipeline{Shop}
	if o.Baseline {
		pipelines = []Pipeline{Baseline, Shop}
	}
	report := newReport(ctx, &o)
	for n := 1; n <= o.Runs; n++ {
		for _, pipeline := range pipelines {
			figures, err := measure(ctx, &o, pipeline, n)
			if err != nil {
				return nil, fmt.Errorf("run %d of %s: %w", n, pipeline, err)
			}
			report.add(pipeline, figures)
		}
	}
	report.finish()
	return report, nil
}

// run is one measurement under way.
type run struct {
	*Options
	pipeline  Pipeline
	number    int
	env       *environment
	processes []*process
	load      *load
	progress  *progressReader
}

func measure(ctx context.Context, o *Options, pipeline Pipeline, number int) (f Figures, err error) {
	r := &run{Options: o, pipeline: pipeline, number: number}
	r.say(0, r.Orders, "preparing")
	r.env, err = prepare(ctx, o.Servers)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.env.remove()) }()
	defer func() { err = errors.Join(err, r.stop()) }()
	if err := r.start(ctx); err != nil {
		return nil, err
	}
	if err := r.stock(ctx); err != nil {
		return nil, err
	}
	r.load, err = dial(ctx, r)
	if err != nil {
		return nil, err
	}
	defer r.load.close()
	if r.progress, err = newProgressReader(ctx, r.env); err != nil {
		return nil, err
	}
	if !o.Backlog {
		if err := r.warmUp(ctx); err != nil {
			return nil, fmt.Errorf("warming up: %w", err)
		}
	}
	// Otherwise the server writes its checkpoint whenever it likes, in some runs and not in others.
	if _, err := r.env.db.ExecContext(ctx, "CHECKPOINT"); err != nil {
		return nil, fmt.Errorf("writing a checkpoint: %w", err)
	}
	return r.measure(ctx)
}

// start starts the processes, and returns when they are ready. The baseline has only one.
func (r *run) start(ctx context.Context) (err error) {
	profile := ""
	if r.number == r.Runs && r.Profile != "" {
		profile = r.Profile
		if r.pipeline == Baseline {
			profile += ".baseline"
		}
	}
	if r.pipeline == Shop && r.Separate {
		if r.processes, err = startServices(ctx, r.Options, r.env, profile); err != nil {
			return err
		}
		return waitReady(ctx, r.processes)
	}
	n := r.Replicas
	if r.pipeline == Baseline {
		n = 1
	}
	for range n {
		p, err := startProcess(ctx, r.Options, r.pipeline, "", r.env, profile, nil)
		if err != nil {
			return err
		}
		r.processes = append(r.processes, p)
		profile = "" // of the first alone
	}
	return waitReady(ctx, r.processes)
}

// front returns the addresses that take orders.
func (r *run) front() (addrs []string) {
	for _, p := range r.processes {
		if p.addrs.HTTP != "" {
			addrs = append(addrs, p.addrs.HTTP)
		}
	}
	return addrs
}

func (r *run) stop() (err error) {
	for _, p := range r.processes {
		err = errors.Join(err, p.stop())
	}
	return err
}

// stock creates the products, and the orders of Preload.
func (r *run) stock(ctx context.Context) error {
	if err := r.env.makeProducts(ctx, r.Products); err != nil {
		return err
	}
	return r.env.preload(ctx, r.Preload, r.Lines, func(done int) {
		r.say(done, r.Preload, fmt.Sprintf("%d of %d earlier orders stored", done, r.Preload))
	})
}

// warmUp places a few orders, so that what is done once only is not measured.
func (r *run) warmUp(ctx context.Context) error {
	n := min(r.Orders, 1000)
	before, err := r.progress.state(ctx)
	if err != nil {
		return err
	}
	stored, err := r.progress.count(ctx)
	if err != nil {
		return err
	}
	if _, err := r.load.closedLoop(ctx, n); err != nil {
		return err
	}
	if _, err := r.progress.settled(ctx, before, n*r.Lines, func(int64) {}); err != nil {
		return err
	}
	if err := r.progress.awaitQuiet(ctx, before, n); err != nil {
		return err
	}
	return r.progress.awaitEvents(ctx, stored.events+n*eventsOfAnOrder)
}

// measure is the run itself. Processor time counts from the first request until everything is done; memory is the peak.
func (r *run) measure(ctx context.Context) (Figures, error) {
	before, err := r.progress.state(ctx)
	if err != nil {
		return nil, err
	}
	stored, err := r.progress.count(ctx)
	if err != nil {
		return nil, err
	}
	usage, err := newMeter(r.Servers, r.processes)
	if err != nil {
		return nil, err
	}
	defer usage.close()
	r.load.accepted.Store(0)
	var settledOrders atomic.Int64
	stopProgress := r.showProgress(&settledOrders)
	defer stopProgress()

	var confirms *confirms
	if r.Rate > 0 {
		if confirms, err = listen(r.env.amqpURL); err != nil {
			return nil, err
		}
		defer confirms.close()
		r.load.onAccept = confirms.accepted
	}
	var locks *lockMeter
	if r.Contention {
		if locks, err = newLockMeter(ctx, r.env); err != nil {
			return nil, err
		}
		defer locks.close()
	}
	f := Figures{}
	start := time.Now()
	var result *loadResult
	var loadErr error
	placed := make(chan struct{}) // closed when result and loadErr are there
	failed := make(chan error, 1)
	place := func() {
		defer close(placed)
		if r.Rate > 0 {
			result, loadErr = r.load.openLoop(ctx, r.Orders, r.Rate)
		} else {
			result, loadErr = r.load.closedLoop(ctx, r.Orders)
		}
		failed <- loadErr
	}
	if r.Backlog {
		place()
		if err := <-failed; err != nil {
			return nil, err
		}
		start = time.Now()
		for _, p := range r.processes {
			if err := p.release(); err != nil {
				return nil, err
			}
		}
		failed <- nil
	} else {
		go place()
	}
	settled, err := r.progress.settledUnless(ctx, failed, before, r.Orders*r.Lines, func(pieces int64) {
		settledOrders.Store(pieces / int64(r.Lines))
	})
	if err != nil {
		return nil, err
	}
	f[settledRate] = float64(r.Orders) / settled.Sub(start).Seconds()
	if err := r.progress.awaitQuiet(ctx, before, r.Orders); err != nil {
		return nil, err
	}
	f[loggedRate] = float64(r.Orders) / r.progress.rested.Sub(start).Seconds()
	if err := usage.read(f, r.Orders); err != nil {
		return nil, err
	}
	stopProgress()
	<-placed // the last answer may come after the last order was settled
	if loadErr != nil {
		return nil, loadErr
	}
	f.addLoad(result)
	if err := r.progress.awaitEvents(ctx, stored.events+r.Orders*eventsOfAnOrder); err != nil {
		return nil, err
	}
	if err := r.progress.check(ctx, stored, r.Orders, min(r.Lines, r.Products)); err != nil {
		return nil, err
	}
	if locks != nil {
		if err := locks.read(ctx, f); err != nil {
			return nil, err
		}
		f.addFairness(confirms.spans())
	}
	if confirms != nil {
		return f, confirms.read(f, r.Orders)
	}
	return f, r.progress.decisions(ctx, f, result.begin)
}

func (r *run) say(done, of int, doing string) {
	if r.Progress != nil {
		r.Progress(Progress{Pipeline: r.pipeline, Run: r.number, Runs: r.Runs, Doing: doing, Done: done, Of: of})
	}
}

// showProgress reports how far the run is until the returned function is called, which may be done again.
func (r *run) showProgress(settled *atomic.Int64) (stop func()) {
	if r.Progress == nil {
		return func() {}
	}
	done := make(chan struct{})
	var reporter sync.WaitGroup
	reporter.Go(func() {
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				n := int(settled.Load())
				r.say(n, r.Orders, fmt.Sprintf("%d of %d orders settled, %d accepted", n, r.Orders, r.load.accepted.Load()))
			}
		}
	})
	return sync.OnceFunc(func() {
		close(done)
		reporter.Wait()
	})
}
