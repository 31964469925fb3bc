package command

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	statusv1 "shop.example/gen/shop/status/v1"
)

func statusCommand() *cobra.Command {
	var (
		shop   gateway
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show which services are ready, what waits in queues and outboxes, and the rate of orders",
		Long: `Asks a running shop how it is. Messages that a service has in hand do not count as waiting, and nobody
consumes a retry queue: the broker moves its messages back in time.

Exit code 0 means that every service is ready, 1 that one is not.`,
		Example: "  shop status\n  watch shop status\n  shop status --json | jq '.queues[] | select(.messages > 0)'",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			conn, err := shop.dial()
			if err != nil {
				return err
			}
			defer conn.Close()
			s, err := statusv1.NewStatusServiceClient(conn).GetStatus(cmd.Context(), &statusv1.GetStatusRequest{})
			if err != nil {
				return err
			}
			print := printStatus
			if asJSON {
				print = func(out io.Writer, s *statusv1.GetStatusResponse) error { return printMessage(out, s) }
			}
			if err := print(cmd.OutOrStdout(), s); err != nil {
				return err
			}
			for _, service := range s.GetServices() {
				if !service.GetReady() {
					return ExitCode(1)
				}
			}
			return nil
		},
	}
	shop.flags(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the JSON of GET /v1/status")
	return cmd
}

// printStatus writes a status for people.
func printStatus(out io.Writer, s *statusv1.GetStatusResponse) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	outboxes := map[string]*statusv1.Outbox{}
	for _, o := range s.GetOutboxes() {
		outboxes[o.GetService()] = o
	}
	fmt.Fprintln(w, "SERVICE\tREADY\tOUTBOX\tDETAIL")
	for _, service := range s.GetServices() {
		ready := "yes"
		if !service.GetReady() {
			ready = "no"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", service.GetName(), ready, waiting(outboxes[service.GetName()]), or(service.GetDetail(), "-"))
	}
	fmt.Fprintln(w, "\nQUEUE\tMESSAGES\tCONSUMERS\t")
	for _, q := range s.GetQueues() {
		fmt.Fprintf(w, "%s\t%d\t%d\t\n", q.GetName(), q.GetMessages(), q.GetConsumers())
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if s.OrdersPerSecond == nil {
		fmt.Fprintln(out, "\nThe order service does not say how many orders it decides.")
		return nil
	}
	fmt.Fprintf(out, "\n%.1f orders/s decided in the last 10 s\n", s.GetOrdersPerSecond())
	return nil
}

// waiting is what an outbox holds, for people.
func waiting(o *statusv1.Outbox) string {
	switch {
	case o == nil:
		return "-"
	case o.GetPending() == 0:
		return "empty"
	}
	age := time.Duration(o.GetOldestAgeMs()) * time.Millisecond
	return fmt.Sprintf("%s, oldest %s", plural(int(o.GetPending()), "message"), age.Round(100*time.Millisecond))
}
