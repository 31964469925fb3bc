// Package command is the command line of shopbench.
package command

import (
	"cmp"
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

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
		Long: `Starts a private PostgreSQL and RabbitMQ and the shop on them, in a process of its own, places orders
over HTTP/1.1 or gRPC and prints what came of it. All data is thrown away at the end.

Closed loop (the default): --clients connections place --orders orders, each the next one when its last was
accepted. Open loop: --rate orders a second are due for --duration, and a latency counts from the moment the
order was due, so that nothing is hidden where the shop stands still.

  accepted   answered with 202, which the shop says when the broker has confirmed the order
  settled    CONFIRMED in the database, its stock out of the warehouse and its movements written; the rate
             counts from the first request until all orders are settled
  logged     the same until all events of all orders are in the event log
  accept to CONFIRMED  in open loop from the answer until the event OrderConfirmed reaches a consumer of its own;
             in closed loop, where that consumer would slow down what is measured, from the times in the row:
             from being placed to being decided
  CPU        of all orders, from the first request until nothing is left to be done; PostgreSQL and RabbitMQ
             with all their processes
  memory     the peak of our process; of the servers the most that was seen, once a second

A thousand orders (at most) are placed before each run to warm up, but not with --backlog. In the end it is
counted that every order is confirmed, settled and logged exactly once; otherwise the command fails.

--floor compares with a bare-minimum pipeline in each run: same queues, messages, tables and durability, one
call and one statement a batch, over HTTP, but no framework, protobuf, tracing, validation, outbox or inbox.`,
		Example: `  shopbench --floor --runs 5 --json >before.json
  shopbench --floor --runs 5 --compare before.json
  shopbench --rate 1000 --duration 30s
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
	flags.IntVar(&o.Clients, "clients", 64, "how many connections place orders")
	flags.IntVar(&o.Rate, "rate", 0, "open loop: how many orders a second are due")
	flags.DurationVar(&duration, "duration", 30*time.Second, "how long orders are due, with --rate")
	flags.IntVar(&o.Lines, "lines", 2, "how many lines an order has")
	flags.IntVar(&o.Products, "products", 8, "how many products there are; with 1 all orders want the same")
	flags.BoolVar(&o.GRPC, "grpc", false, "place orders over gRPC (the floor has HTTP alone)")
	flags.IntVar(&o.Runs, "runs", 1, "how many runs; the table has their median, least and most")
	flags.BoolVar(&o.Floor, "floor", false, "measure the bare minimum too, in turns with the shop")
	flags.IntVar(&o.Preload, "preload", 0, "how many orders are stored before each run")
	flags.IntVar(&backlog, "backlog", 0, "have so many orders accepted before the order service starts, and measure from there")
	flags.IntVar(&o.Replicas, "replicas", 1, "how many processes the shop has on the same servers")
	flags.StringVar(&o.Profile, "profile", "", "write a CPU profile of the shop's last run to this file (of the floor's to FILE.floor)")
	flags.BoolVar(&asJSON, "json", false, "print all figures as JSON")
	flags.StringVar(&compare, "compare", "", "print the ratios to the report in this file, which --json has written")
	cmd.MarkFlagsMutuallyExclusive("rate", "orders")
	cmd.MarkFlagsMutuallyExclusive("backlog", "orders")
	cmd.MarkFlagsMutuallyExclusive("compare", "json")
	cmd.AddCommand(serveCommand())
	cmd.CompletionOptions.HiddenDefaultCmd = true
	cli.Strict(cmd)
	return cmd
}

// serveCommand is how shopbench starts what it measures.
func serveCommand() *cobra.Command {
	var (
		pipeline, profile string
		held              bool
	)
	cmd := &cobra.Command{
		Use:    "serve",
		Hidden: true,
		Args:   cli.Args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return measure.Serve(cmd.Context(), measure.Pipeline(pipeline), held, profile, cmd.InOrStdin(), cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVar(&pipeline, "pipeline", "", "shop or floor")
	cmd.Flags().StringVar(&profile, "profile", "", "where the CPU profile goes")
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
	program, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("finding this program: %w", err)
	}
	o.Program = []string{program, "serve"}
	o.Logs = cmd.ErrOrStderr()
	progress, endProgress := progressBar(cmd.ErrOrStderr())
	defer endProgress()
	o.Progress = progress
	base, err := workspace.Dir()
	if err != nil {
		return nil, err
	}
	err = stack.WithTemporary(cmd.Context(), base, stack.Options{Progress: cmd.ErrOrStderr()}, func(servers *stack.Stack) (err error) {
		o.Servers = measure.Servers{
			DatabaseURL: servers.DatabaseURL, AMQPURL: servers.AMQPURL, ManagementURL: servers.ManagementURL,
			PostgresPID: servers.PostgresPID, RabbitMQPID: servers.RabbitMQPID,
		}
		report, err = measure.Run(cmd.Context(), o)
		return err
	})
	return report, err
}

// barWidth is how many characters the bar itself has.
const barWidth = 30

// progressBar shows how far a run is on one line of a terminal, until end is called; where out is none it shows nothing.
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
