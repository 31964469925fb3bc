// Package command is the command line of shopbench.
package command

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"shop.example/bench/gate"
	"shop.example/bench/measure"
	"shop.example/dev/stack"
	"shop.example/shop/cli"
	"shop.example/shop/workspace"
)

// Root returns the command.
func Root() *cobra.Command {
	var (
		o        measure.Options
		duration time.Duration
		backlog  int
		asJSON   bool
		compare  string
	)
	cmd := &cobra.Command{
		Use:   "shopbench",
		Short: "Measure how fast the shop is",
		Long: `Starts a private PostgreSQL and RabbitMQ and the shop, places orders over HTTP/1.1 or gRPC and prints
throughput, latency, CPU time and memory. All data is deleted at the end.

Closed loop (the default): --clients connections place --orders orders, each the next one when its last was
accepted. Open loop: --rate orders a second are due for --duration, and a latency counts from the moment the
order was due, so that a pause of the shop shows in the figures.

  accepted   the shop has answered 202: the broker has confirmed the order
  settled    the order is CONFIRMED in the database and its stock is deducted; the rate counts from the first
             request until all orders are settled
  logged     the same until all events of all orders are in the event log
  accept to CONFIRMED  in open loop from the answer until the event OrderConfirmed reaches another consumer; in
             closed loop, in which that consumer would slow down the shop, from created_at to updated_at of the
             order
  CPU        of all orders, from the first request until everything is done; PostgreSQL and RabbitMQ with all
             their processes
  memory     the peak of the shop's processes, added up; of the servers the maximum of one sample a second

The load comes from this process, the shop and the baseline are processes of their own. "Everything else" is what other
programs and the kernel used meanwhile: if it is not small, compare ratios of runs in turns only.

Up to a thousand orders are placed before each run to warm up, except with --backlog. At the end the command
checks that every order is confirmed, settled and logged exactly once, and fails otherwise.

--baseline compares with a bare-minimum pipeline in each run: same queues, messages, tables and durability, one
call and one prepared statement a batch, its orders over HTTP from the same clients, but no framework, protobuf, tracing, validation, outbox or inbox.`,
		Example: `  shopbench --baseline --runs 5 --json >before.json
  shopbench --baseline --runs 5 --compare before.json
  shopbench --rate 1000 --duration 30s
  shopbench --rate 10000 --duration 1s --clients 500 --products 1 --replicas 2 --contention
  shopbench --preload 1000000
  shopbench --backlog 50000`,
		Args:          cli.Args(),
		SilenceUsage:  true,
		SilenceErrors: true, // cli.Main prints them
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.Rate > 0 {
				o.Orders = int(math.Round(float64(o.Rate) * duration.Seconds()))
			}
			if backlog > 0 {
				o.Backlog, o.Orders = true, backlog
			}
			if err := o.Check(); err != nil {
				return err
			}
			var earlier *measure.Report
			if compare != "" {
				var err error
				if earlier, err = readReport(compare); err != nil {
					return err
				}
			}
			report, err := runBench(cmd, o)
			if err != nil {
				return err
			}
			if asJSON {
				return report.WriteJSON(cmd.OutOrStdout())
			}
			return report.Write(cmd.OutOrStdout(), earlier)
		},
	}
	flags := cmd.Flags()
	flags.IntVar(&o.Orders, "orders", 30000, "how many orders a run places")
	flags.IntVar(&o.Clients, "clients", 64, "how many clients place orders, each with a connection of its own")
	flags.IntVar(&o.Connections, "connections", 0, "how many connections the clients share, with --grpc (0: one each)")
	flags.IntVar(&o.Idle, "idle", 0, "how many more connections are open and place no order")
	flags.IntVar(&o.Rate, "rate", 0, "open loop: how many orders a second are due")
	flags.DurationVar(&duration, "duration", 30*time.Second, "how long orders are due, with --rate")
	flags.IntVar(&o.Lines, "lines", 2, "how many lines an order has")
	flags.IntVar(&o.Products, "products", 8, "how many products there are; with 1 all orders are for the same one")
	flags.BoolVar(&o.GRPC, "grpc", false, "place orders over gRPC (the baseline has HTTP only)")
	flags.IntVar(&o.Runs, "runs", 1, "how many runs; the table has median, minimum and maximum")
	flags.BoolVar(&o.Baseline, "baseline", false, "measure the baseline, too, in turns with the shop (also: --floor)")
	flags.IntVar(&o.Preload, "preload", 0, "how many orders of the past are stored before each run")
	flags.IntVar(&backlog, "backlog", 0, "accept so many orders before the order service starts, and measure from its start")
	flags.IntVar(&o.Replicas, "replicas", 1, "how many processes the shop has on the same servers")
	flags.BoolVar(&o.Contention, "contention", false, "measure who waits for locks, and which orders are overtaken by later ones, too (with --rate)")
	flags.BoolVar(&o.Separate, "separate", false, "run each service of the shop in a process of its own, as compose does (else one process, as make up)")
	flags.StringVar(&o.Profile, "profile", "", "write a CPU profile of the shop's last run to this file (of the baseline's to FILE.baseline, of --separate to FILE.SERVICE)")
	flags.TextVar(&o.LogLevel, "log-level", slog.LevelInfo, "the shop's LOG_LEVEL; its log goes to .shop/bench.log")
	flags.BoolVar(&asJSON, "json", false, "print all figures as JSON")
	flags.StringVar(&compare, "compare", "", "print the ratios to an earlier report, a file that --json has written")
	flags.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		if name == "floor" { // its former name, in scripts
			name = "baseline"
		}
		return pflag.NormalizedName(name)
	})
	cmd.MarkFlagsMutuallyExclusive("rate", "orders")
	cmd.MarkFlagsMutuallyExclusive("backlog", "orders")
	cmd.MarkFlagsMutuallyExclusive("compare", "json")
	cmd.AddCommand(gateCommand(), growthCommand(), serveCommand())
	cmd.CompletionOptions.HiddenDefaultCmd = true
	cli.Strict(cmd)
	return cmd
}

// gateCommand compares the benchmarks of two trees.
func gateCommand() *cobra.Command {
	o := gate.Options{Benchmarks: gate.HotParts()}
	cmd := &cobra.Command{
		Use:   "gate",
		Short: "Fail if the hot parts cost more than in another tree of the project",
		Long: `Runs the benchmarks of an order's way that need no server, of another tree and of the current one, in turns. Prints
the median of the rounds' ratios, and fails if allocations or time of one are above --limit. A time above it is measured
again with twice the rounds first. For what fails it prints the difference of the profiles.`,
		Example: "  shopbench gate --base ../shop-main",
		Args:    cli.Args(),
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if o.This, err = os.Getwd(); err != nil {
				return fmt.Errorf("finding the current folder: %w", err)
			}
			o.Out = cmd.OutOrStdout()
			return gate.Run(cmd.Context(), o)
		},
	}
	cmd.Flags().StringVar(&o.Base, "base", "", "the root of the tree to compare with")
	cmd.Flags().IntVar(&o.Rounds, "rounds", 5, "how often each benchmark runs in each tree")
	cmd.Flags().DurationVar(&o.Time, "time", 200*time.Millisecond, "how long a benchmark runs in one round")
	cmd.Flags().Float64Var(&o.Limit, "limit", 1.1, "the ratio above which a benchmark fails")
	_ = cmd.MarkFlagRequired("base") // it is there
	return cmd
}

// serveCommand is how shopbench starts what it measures.
func serveCommand() *cobra.Command {
	var (
		pipeline, service, profile string
		held                       bool
	)
	cmd := &cobra.Command{
		Use:    "serve",
		Hidden: true,
		Args:   cli.Args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return measure.Serve(cmd.Context(), measure.Pipeline(pipeline), service, held, profile, cmd.InOrStdin(), cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVar(&pipeline, "pipeline", "", "shop or baseline")
	cmd.Flags().StringVar(&service, "service", "", "one service of the shop, \"\" for all")
	cmd.Flags().StringVar(&profile, "profile", "", "file for the CPU profile")
	cmd.Flags().BoolVar(&held, "held", false, "decide no order before a byte is read")
	return cmd
}

func readReport(path string) (*measure.Report, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("reading the report to compare with: %w", err)
	}
	defer f.Close()
	return measure.Read(f)
}

func runBench(cmd *cobra.Command, o measure.Options) (report *measure.Report, err error) {
	progress, endProgress := progressBar(cmd.ErrOrStderr())
	defer endProgress()
	o.Progress = progress
	err = onServers(cmd, func(program []string, servers measure.Servers, logs io.Writer) (err error) {
		o.Program, o.Servers, o.Logs = program, servers, logs
		report, err = measure.Run(cmd.Context(), o)
		return err
	})
	return report, err
}

// onServers calls run with the command that serves what is measured, servers of its own and the file for what is logged, whose name
// is in the error.
func onServers(cmd *cobra.Command, run func(program []string, servers measure.Servers, logs io.Writer) error) (err error) {
	program, err := os.Executable()
	if err != nil {
		return fmt.Errorf("finding this program: %w", err)
	}
	base, err := workspace.Dir()
	if err != nil {
		return err
	}
	logs, err := createLog(base)
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, logs.Close()); err != nil {
			err = fmt.Errorf("%w (the shop's log is in %s)", err, logs.Name())
		}
	}()
	return stack.WithTemporary(cmd.Context(), base, stack.Options{Progress: cmd.ErrOrStderr()}, func(s *stack.Stack) error {
		return run([]string{program, "serve"}, serversOf(s), logs)
	})
}

func serversOf(s *stack.Stack) measure.Servers {
	return measure.Servers{
		DatabaseURL: s.DatabaseURL, AMQPURL: s.AMQPURL, ManagementURL: s.ManagementURL,
		PostgresPID: s.PostgresPID, RabbitMQPID: s.RabbitMQPID,
	}
}

// barWidth is how many characters the bar itself has.
const barWidth = 30

// progressBar shows how far a run is on one line of a terminal, until end is called; if out is no terminal it shows nothing.
func progressBar(out io.Writer) (show func(measure.Progress), end func()) {
	columns, isTerminal := cli.TerminalWidth(out)
	if !isTerminal {
		return nil, func() {}
	}
	const clear = "\r\x1b[K"
	show = func(p measure.Progress) { fmt.Fprint(out, clear, cli.Truncate(progressLine(p), columns-1)) }
	return show, func() { fmt.Fprint(out, clear) }
}

func progressLine(p measure.Progress) string {
	full := min(barWidth*p.Done/cmp.Or(p.Of, 1), barWidth)
	return fmt.Sprintf("%s %d/%d  [%s%s]  %s", p.Pipeline, p.Run, p.Runs,
		strings.Repeat("=", full), strings.Repeat(" ", barWidth-full), p.Doing)
}

// createLog creates the file for what the measured processes say: at info that is too much for a terminal.
func createLog(base string) (*os.File, error) {
	if err := os.MkdirAll(base, 0o750); err != nil {
		return nil, fmt.Errorf("creating the folder for the shop's log: %w", err)
	}
	logs, err := os.Create(filepath.Join(base, "bench.log"))
	if err != nil {
		return nil, fmt.Errorf("creating the file for the shop's log: %w", err)
	}
	return logs, nil
}
