package command

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"shop.example/bench/measure"
	"shop.example/shop/cli"
)

// growthCommand measures a shop that grows.
func growthCommand() *cobra.Command {
	o := measure.GrowthOptions{}
	var to string
	cmd := &cobra.Command{
		Use:   "growth",
		Short: "Measure whether the shop stays as fast when it has many orders",
		Long: `Starts a private PostgreSQL and RabbitMQ, and measures the shop when it is empty, with a tenth of --orders and with all of
them: orders per second and latency, memory, sizes of tables, time to start, to migrate and to audit, and every list and search at its first,
middle and last page. In the end a month of the event log is dropped while orders come in. The orders of the past, of 390 days,
are stored by SQL, with everything that the services would have left behind; the audit checks that. All data is deleted at the end.

Takes about 6 GB on disk and eight minutes for each million orders.`,
		Example: "  shopbench growth --orders 200000",
		Args:    cli.Args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.Check(); err != nil {
				return err
			}
			report, err := runGrowth(cmd, o)
			if err != nil {
				return err
			}
			if to != "" {
				if err := writeGrowth(to, report); err != nil {
					return err
				}
			}
			return report.Write(cmd.OutOrStdout())
		},
	}
	flags := cmd.Flags()
	flags.IntVar(&o.Orders, "orders", 1_000_000, "how many orders the shop has in the end")
	flags.IntVar(&o.Load, "load", 15000, "how many orders a run places, with 64 clients")
	flags.IntVar(&o.Runs, "runs", 3, "how many runs at each size")
	flags.IntVar(&o.Rate, "rate", 500, "how many orders a second are due in another run")
	flags.IntVar(&o.Seconds, "seconds", 10, "how long they are due")
	flags.IntVar(&o.Calls, "calls", 50, "how often each page is read")
	flags.TextVar(&o.LogLevel, "log-level", o.LogLevel, "the shop's LOG_LEVEL; its log goes to .shop/bench.log")
	flags.StringVar(&to, "json", "", "write all figures to this file as JSON")
	return cmd
}

func runGrowth(cmd *cobra.Command, o measure.GrowthOptions) (report *measure.GrowthReport, err error) {
	begin := time.Now()
	o.Progress = func(now string) {
		fmt.Fprintf(cmd.ErrOrStderr(), "%6.0f s  %s\n", time.Since(begin).Seconds(), now)
	}
	err = onServers(cmd, func(program []string, servers measure.Servers, logs io.Writer) (err error) {
		o.Program, o.Servers, o.Logs = program, servers, logs
		report, err = measure.Growth(cmd.Context(), o)
		return err
	})
	return report, err
}

func writeGrowth(path string, report *measure.GrowthReport) error {
	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("creating the report: %w", err)
	}
	return errors.Join(report.WriteJSON(f), f.Close())
}
