package command

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	statusv1 "shop.example/gen/shop/status/v1"
	"shop.example/shop/cli"
)

func statusCommand() *cobra.Command {
	var (
		shop          gateway
		asJSON, watch bool
	)
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show which services are ready, what waits in queues and outboxes, and the rate of orders",
		Long: `Asks a running shop how it is. WAITING is what waits in a queue, IN HAND what a service has taken from it and
not finished. Nobody consumes a retry queue: the broker moves its messages back in time.

With --watch it asks every two seconds until Ctrl-C, also while the shop is away.

Exit code 0 means that every service is ready, 1 that one is not.`,
		Example: "  shop status\n  shop status --watch\n  shop status --json | jq '.queues[] | select(.messages > 0)'",
		Args:    cli.Args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return shop.with(func(conn *grpc.ClientConn) error {
				if watch {
					return watchStatus(cmd, statusv1.NewStatusServiceClient(conn), asJSON)
				}
				return showStatus(cmd, statusv1.NewStatusServiceClient(conn), asJSON, "")
			})
		},
	}
	shop.flags(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the JSON of GET /v1/status")
	cmd.Flags().BoolVar(&watch, "watch", false, "show it again every two seconds, until Ctrl-C")
	return cmd
}

// showStatus prints the status once, after what is to stand before it. It returns ExitCode(1) if a service is not ready.
func showStatus(cmd *cobra.Command, c statusv1.StatusServiceClient, asJSON bool, before string) error {
	s, err := c.GetStatus(cmd.Context(), &statusv1.GetStatusRequest{})
	if err != nil {
		return err
	}
	fmt.Fprint(cmd.OutOrStdout(), before)
	if asJSON {
		if err := printMessage(cmd.OutOrStdout(), s); err != nil {
			return err
		}
	} else {
		printStatus(cmd.OutOrStdout(), s)
	}
	if slices.ContainsFunc(s.GetServices(), func(service *statusv1.GetStatusResponse_Service) bool { return !service.GetReady() }) {
		return cli.ExitCode(1)
	}
	return nil
}

const (
	watchInterval = 2 * time.Second
	// clearScreen moves the cursor to the beginning of a terminal's screen, and clears it.
	clearScreen = "\x1b[H\x1b[2J"
)

// watchStatus prints the status again and again. A shop that is away may come back; what the shop refuses it will go on to.
func watchStatus(cmd *cobra.Command, c statusv1.StatusServiceClient, asJSON bool) error {
	before, between := "", "\n"
	if _, isTerminal := cli.TerminalWidth(cmd.OutOrStdout()); isTerminal {
		before, between = clearScreen, clearScreen
	}
	for tick := time.NewTicker(watchInterval); ; before = between {
		var notReady cli.ExitCode
		switch err := showStatus(cmd, c, asJSON, before); {
		case err == nil, errors.As(err, &notReady):
		case errors.Is(err, context.Canceled) || !retryable(err):
			return err
		default:
			fmt.Fprintf(cmd.ErrOrStderr(), "shop: %v\n", err)
		}
		select {
		case <-tick.C:
		case <-cmd.Context().Done():
			tick.Stop()
			return context.Canceled
		}
	}
}

// printStatus writes a status for people.
func printStatus(out io.Writer, s *statusv1.GetStatusResponse) {
	outboxes := map[string]*statusv1.Outbox{}
	for _, o := range s.GetOutboxes() {
		outboxes[o.GetService()] = o
	}
	services := &table{header: []string{"SERVICE", "READY", "OUTBOX", "DETAIL"}, flexible: 3, minWidth: math.MaxInt, wraps: true} // why a service is not ready is not cut
	for _, service := range s.GetServices() {
		ready := cell{text: "yes", colour: green}
		if !service.GetReady() {
			ready = cell{text: "no", colour: red}
		}
		services.add(text(service.GetName()), ready, text(waiting(outboxes[service.GetName()])), text(cmp.Or(service.GetDetail(), "-")))
	}
	queues := &table{header: []string{"QUEUE", "WAITING", "IN HAND", "CONSUMERS"}}
	for _, q := range s.GetQueues() {
		queues.add(text(q.GetName()), number(strconv.Itoa(int(q.GetMessages()))), number(strconv.Itoa(int(q.GetInHand()))), number(strconv.Itoa(int(q.GetConsumers()))))
	}
	screen := screenOf(out)
	screen.print(services)
	fmt.Fprintln(out)
	screen.print(queues)
	if s.OrdersPerSecond == nil {
		fmt.Fprintln(out, "\nThe order service does not say how many orders it decides.")
		return
	}
	fmt.Fprintf(out, "\n%.1f orders/s decided in the last 10 s\n", s.GetOrdersPerSecond())
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
	return fmt.Sprintf("%s, oldest %s", cli.Plural(int(o.GetPending()), "message"), age.Round(100*time.Millisecond))
}
