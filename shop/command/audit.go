package command

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/caarlos0/env/v11"
	"github.com/spf13/cobra"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"google.golang.org/grpc"

	loggingv1 "shop.example/gen/shop/logging/v1"
	"shop.example/platform/service"
	"shop.example/platform/telemetry"
	"shop.example/shop/audit"
	"shop.example/shop/cli"
	"shop.example/shop/workspace"
)

func auditCommand() *cobra.Command {
	var (
		cfg         audit.Config
		asJSON      bool
		repair      bool
		tell        bool
		wait, every time.Duration
		listen      string
		shop        gateway
	)
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Compare orders, stock, event log and webhooks, and list violations",
		Long: `Reads what the services have stored, changes nothing, and lists inconsistencies as violations. The shop
may be running: what is younger than --late is in flight and counted apart. Exit code 0 means no violation.

With --repair events that were lost on their way to a service, because its queue was deleted for example,
are sent again at once from the event log. The shop does so by itself after a while, when they cannot be in
a queue any more; an event that is delivered twice has one effect. --repair is a call for operators (--server,
--token).

The databases are those of ORDERS_DATABASE_URL, INVENTORY_DATABASE_URL, LOGGING_DATABASE_URL and
WEBHOOKS_DATABASE_URL, else of DATABASE_URL, with a role that may read the schemas; else those of the shop
that make up runs here.

With --report the shop keeps what the audit has found, for operators to see on its page until the next report;
that is a call for operators, too.

With --every it repeats the audit until it is stopped, logs violations, and serves Prometheus metrics on --listen:
shop_audit_violations and shop_audit_in_flight by check, the time and duration of the last run.`,
		Example: "  shop audit --wait 30s\n  shop audit --report\n  shop audit --repair\n  shop audit --every 1m --since 24h --listen :3109",
		Args:    cli.Args(),
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			for flag, d := range map[string]time.Duration{"since": cfg.Since, "late": cfg.Late, "wait": wait, "every": every} {
				if d < 0 {
					return cli.WrongUsage("--%s %s: it is a time, 30s for example, and cannot be less than none", flag, d)
				}
			}
			if cfg.DatabaseURLs, err = databaseURLs(audit.Schemas()); err != nil {
				return err
			}
			if cfg.HoldLimit, err = holdLimit(); err != nil {
				return err
			}
			a, err := audit.Open(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, a.Close()) }()
			report := func(context.Context, *audit.Report) error { return nil }
			if tell {
				report = shop.reportAudit
			}
			if every > 0 {
				return auditEvery(cmd.Context(), a, report, every, listen)
			}
			run := a.RunWhenQuiet
			if repair {
				if err := resendLost(cmd, a, &shop); err != nil {
					return err
				}
				wait, run = max(wait, repairTime), a.RunWhenMended
			}
			found, err := run(cmd.Context(), wait)
			if err != nil {
				return err
			}
			print := printReport
			if asJSON {
				print = printJSON
			}
			if err := print(cmd.OutOrStdout(), found); err != nil {
				return err
			}
			if err := report(cmd.Context(), found); err != nil {
				return err
			}
			if found.Count() > 0 || wait > 0 && found.InFlight() > 0 {
				return cli.ExitCode(1)
			}
			return nil
		},
	}
	flags := cmd.Flags()
	flags.DurationVar(&cfg.Since, "since", 0, "leave out orders that are older (0 leaves out none)")
	flags.DurationVar(&cfg.Late, "late", time.Minute, "the age from which an inconsistency is a violation")
	flags.BoolVar(&asJSON, "json", false, "print the report as JSON")
	flags.BoolVar(&repair, "repair", false, "send lost events again, and wait at least 30 s for their effect")
	flags.BoolVar(&tell, "report", false, "report what was found to the shop, which shows it to operators")
	flags.DurationVar(&wait, "wait", 0, "wait until nothing is in flight, for at most this time, and fail if something still is")
	flags.DurationVar(&every, "every", 0, "repeat the audit in this interval")
	flags.StringVar(&listen, "listen", ":3109", "where health and metrics are served, with --every")
	cmd.MarkFlagsMutuallyExclusive("every", "wait")
	cmd.MarkFlagsMutuallyExclusive("every", "json")
	cmd.MarkFlagsMutuallyExclusive("every", "repair")
	shop.flags(cmd)
	return cmd
}

const (
	// repairTime is how long events that were sent again may take to be handled.
	repairTime = 30 * time.Second
	// resendBatch is how many orders are named in one call.
	resendBatch = 1000
)

// holdLimit is HOLD_LIMIT, which inventory reads, too; 0 if it is not set.
func holdLimit() (time.Duration, error) {
	cfg, err := env.ParseAs[struct {
		HoldLimit time.Duration `env:"HOLD_LIMIT"`
	}]()
	if err != nil {
		return 0, fmt.Errorf("reading the environment: %w", err)
	}
	return cfg.HoldLimit, nil
}

// resendLost audits once, and asks the shop to send the lost events again.
func resendLost(cmd *cobra.Command, a *audit.Auditor, shop *gateway) error {
	report, err := a.Run(cmd.Context())
	if err != nil {
		return err
	}
	lost := report.Lost()
	if len(lost) == 0 {
		fmt.Fprintln(cmd.ErrOrStderr(), "No events are lost.")
		return nil
	}
	sent := 0
	err = shop.with(func(conn *grpc.ClientConn) error {
		for batch := range slices.Chunk(lost, resendBatch) {
			reply, err := loggingv1.NewEventLogServiceClient(conn).ResendEvents(cmd.Context(), &loggingv1.ResendEventsRequest{OrderIds: batch})
			if err != nil {
				return err
			}
			for _, e := range reply.GetEvents() {
				if e.GetProblem() == "" {
					sent++
					continue
				}
				fmt.Fprintf(cmd.ErrOrStderr(), "shop: %s of order %s is not sent again: %s\n", cli.Printable(e.GetRoutingKey()), cli.Printable(e.GetOrderId()), cli.Printable(e.GetProblem()))
			}
		}
		return nil
	})
	fmt.Fprintf(cmd.ErrOrStderr(), "%s sent again, of %s.\n", cli.Plural(sent, "event"), cli.Plural(len(lost), "order"))
	return err
}

// reportAudit lets the shop keep what an audit has found.
func (g *gateway) reportAudit(ctx context.Context, r *audit.Report) error {
	err := g.with(func(conn *grpc.ClientConn) error {
		_, err := loggingv1.NewAuditServiceClient(conn).ReportAudit(ctx, &loggingv1.ReportAuditRequest{Report: r.Message()})
		return err
	})
	if err != nil {
		return fmt.Errorf("reporting the audit to the shop: %w", err)
	}
	return nil
}

// databaseURLs returns the URL of each of the schemas: from the environment, or of the shop that runs in this workspace.
func databaseURLs(schemas []string) (map[string]string, error) {
	urls := map[string]string{}
	missing := ""
	for _, schema := range schemas {
		variable := strings.ToUpper(schema) + "_DATABASE_URL"
		if urls[schema] = os.Getenv(variable); urls[schema] == "" {
			urls[schema] = os.Getenv("DATABASE_URL")
		}
		if urls[schema] == "" {
			missing = variable
		}
	}
	if missing == "" {
		return urls, nil
	}
	here, err := workspace.Up()
	if err != nil {
		return nil, err
	}
	running, err := here.DatabaseURLs()
	if err != nil {
		return nil, fmt.Errorf("%s and DATABASE_URL are not set, and %w", missing, err)
	}
	for schema, url := range urls {
		if url == "" {
			urls[schema] = running[schema]
		}
	}
	return urls, nil
}

func printJSON(out io.Writer, r *audit.Report) error {
	encoder := json.NewEncoder(out)
	encoder.SetIndent("", "  ")
	return encoder.Encode(r)
}

func printReport(out io.Writer, r *audit.Report) error {
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	for _, c := range r.Checks {
		result := "ok"
		if c.Violations > 0 {
			result = cli.Plural(c.Violations, "violation")
		}
		if c.InFlight > 0 {
			result += fmt.Sprintf(", %d in flight", c.InFlight)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", c.Check, result, c.About)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, c := range r.Checks {
		if c.Violations == 0 {
			continue
		}
		fmt.Fprintf(out, "\n%s:\n", c.Check)
		for _, v := range r.Violations {
			if v.Check == c.Check {
				fmt.Fprintf(out, "  %s\n", v)
			}
		}
		if more := c.Violations - audit.MaxListed; more > 0 {
			fmt.Fprintf(out, "  and %d more\n", more)
		}
	}
	if r.ResentCount > 0 {
		fmt.Fprintf(out, "\n%s lost on the way to a service and sent again:\n", cli.Plural(r.ResentCount, "event"))
		for _, e := range r.Resent[:min(len(r.Resent), maxResent)] {
			fmt.Fprintf(out, "  order %s: %s, %s, %s\n", e.OrderID, e.RoutingKey, localTime(e.At), cmp.Or(e.Outcome, "on its way"))
		}
		if more := r.ResentCount - maxResent; more > 0 {
			fmt.Fprintf(out, "  and %d more\n", more)
		}
	}
	fmt.Fprintf(out, "\n%s, %s in %.1f s\n", cli.Plural(r.Count(), "violation"), cli.Plural(r.Orders, "order"), r.Took.Seconds())
	return nil
}

// maxResent is how many events that were sent again are listed.
const maxResent = 10

// auditEvery audits repeatedly until ctx ends, and reports each time. A failed audit is logged and counted; the metrics then
// grow old.
func auditEvery(ctx context.Context, a *audit.Auditor, report func(context.Context, *audit.Report) error, every time.Duration, listen string) error {
	cfg := telemetry.Config{}
	if err := env.Parse(&cfg); err != nil {
		return fmt.Errorf("reading the environment: %w", err)
	}
	cfg.Service = "audit"
	t, err := telemetry.New(ctx, cfg)
	if err != nil {
		return err
	}
	defer t.Shutdown(ctx)
	telemetry.LogLibraries(t.Logger)
	s, err := service.New(ctx, service.Config{AdminAddr: listen}, t)
	if err != nil {
		return err
	}
	m, err := newAuditMetrics(t.Meter)
	if err != nil {
		return errors.Join(err, s.Close())
	}
	s.Go("auditor", func(ctx context.Context) error {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			r, err := a.Run(ctx)
			switch {
			case ctx.Err() != nil:
				return nil
			case err != nil:
				m.failures.Add(ctx, 1)
				t.Logger.ErrorContext(ctx, "the audit failed", "error", err)
			default:
				m.record(ctx, r)
				for _, v := range r.Violations {
					t.Logger.ErrorContext(ctx, "violation", "check", v.Check, "what", v.String())
				}
				if err := report(ctx, r); err != nil && ctx.Err() == nil {
					t.Logger.WarnContext(ctx, "the page shows an older audit", "error", err)
				}
				t.Logger.InfoContext(ctx, "audited", "orders", r.Orders, "violations", r.Count(), "in_flight", r.InFlight(), "took", r.Took)
			}
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
		}
	})
	return s.Run(ctx)
}

// auditMetrics exposes the last report to Prometheus.
type auditMetrics struct {
	violations, inFlight metric.Int64Gauge
	lastRun, duration    metric.Float64Gauge
	failures             metric.Int64Counter
}

func newAuditMetrics(meters metric.MeterProvider) (*auditMetrics, error) {
	meter := meters.Meter("shop.example/shop/audit")
	m := &auditMetrics{}
	var errs [5]error
	m.violations, errs[0] = meter.Int64Gauge("shop.audit.violations", metric.WithDescription("Violations that the last audit found."))
	m.inFlight, errs[1] = meter.Int64Gauge("shop.audit.in_flight", metric.WithDescription("What was on its way at the last audit."))
	m.lastRun, errs[2] = meter.Float64Gauge("shop.audit.last_run.timestamp", metric.WithUnit("s"), metric.WithDescription("When the last audit that succeeded began."))
	m.duration, errs[3] = meter.Float64Gauge("shop.audit.duration", metric.WithUnit("s"), metric.WithDescription("How long it took."))
	m.failures, errs[4] = meter.Int64Counter("shop.audit.failures", metric.WithDescription("Audits that failed."))
	if err := errors.Join(errs[:]...); err != nil {
		return nil, fmt.Errorf("registering the metrics of the audit: %w", err)
	}
	m.failures.Add(context.Background(), 0)
	return m, nil
}

// kind labels contradictions (wrong) and things that only take too long (late), as while a service is stopped.
func kind(name string) metric.MeasurementOption {
	return metric.WithAttributes(attribute.String("kind", name))
}

func (m *auditMetrics) record(ctx context.Context, r *audit.Report) {
	for _, c := range r.Checks {
		check := metric.WithAttributes(attribute.String("check", string(c.Check)))
		m.violations.Record(ctx, int64(c.Violations-c.Overdue), check, kind("wrong"))
		m.violations.Record(ctx, int64(c.Overdue), check, kind("late"))
		m.inFlight.Record(ctx, int64(c.InFlight), check)
	}
	m.lastRun.Record(ctx, float64(r.At.UnixMilli())/1000)
	m.duration.Record(ctx, r.Took.Seconds())
}
