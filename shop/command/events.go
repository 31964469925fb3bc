package command

import (
	"cmp"
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	loggingv1 "shop.example/gen/shop/logging/v1"
	"shop.example/platform/contract"
	"shop.example/platform/messaging"
	"shop.example/shop/cli"
)

// events has what the subcommands of shop events share.
type events struct {
	gateway gateway
	asJSON  bool
}

func eventsCommand() *cobra.Command {
	e := &events{gateway: gateway{names: map[string]string{
		"order_id": "--order", "routing_key": "--routing-key", "status": "--status", "after_id": "--after", "page_size": "--limit",
		"published_after": "--since",
	}}}
	cmd := &cobra.Command{
		Use:   "events",
		Short: "List or follow events",
		Long: `The log of all events. It is for operators; everybody who has the id of an order can see its events.

A routing key is matched as in a binding of the broker: * stands for one word, # for any number.`,
		Example: "  shop events list --since 10m --status error\n  shop events tail --routing-key 'shop.order.*'",
	}
	e.gateway.flags(cmd)
	cmd.PersistentFlags().BoolVar(&e.asJSON, "json", false, "print the JSON of the REST API")
	cmd.AddCommand(e.listCommand(), e.tailCommand())
	return cmd
}

// filterFlags gives a command the flags that select events.
func (e *events) filterFlags(cmd *cobra.Command, order, key *string) {
	cmd.Flags().StringVar(order, "order", "", "only the events of this order")
	cmd.Flags().StringVar(key, "routing-key", "", "only events whose routing key matches, 'shop.order.*' for example")
	completeFlag(cmd, "order", e.gateway.complete(orderIDs))
	var keys []cobra.Completion
	for _, event := range contract.Events() {
		keys = append(keys, event.RoutingKey)
	}
	completeFlag(cmd, "routing-key", cobra.FixedCompletions(keys, cobra.ShellCompDirectiveNoFileComp))
}

func (e *events) listCommand() *cobra.Command {
	var (
		req    loggingv1.ListEventsRequest
		status string
		since  time.Duration
		limit  int
	)
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List events, the newest first",
		Long:    "Lists events, the newest first; those of one order (--order) in the order in which they were logged.",
		Example: "  shop events list --limit 10\n  shop events list --since 1h --status error --limit 0 --json | jq -r '.events[].error_message'",
		Args:    cli.Args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if status != "" {
				value, ok := loggingv1.Event_Status_value[status]
				if !ok || value == 0 {
					return cli.WrongUsage("--status %s: there are success and error", cli.Printable(status))
				}
				req.Status = loggingv1.Event_Status(value)
			}
			if limit < 0 {
				return cli.WrongUsage("--limit %d: give how many to list, 0 for all", limit)
			}
			if since < 0 {
				return cli.WrongUsage("--since %s: give how far to look back, 10m for example", since)
			}
			if since > 0 {
				req.PublishedAfter = timestamppb.New(time.Now().Add(-since))
			}
			return e.gateway.with(func(conn *grpc.ClientConn) error {
				list, next, err := listEvents(cmd.Context(), loggingv1.NewEventLogServiceClient(conn), &req, limit)
				if err != nil {
					return err
				}
				if len(list) == 0 && !e.asJSON {
					if err := knownKey(req.GetRoutingKey()); err != nil {
						return err
					}
				}
				reply := &loggingv1.ListEventsResponse{Events: list, NextPageToken: next}
				return printList(cmd, e.asJSON, reply, eventsTable(list), "No such events.", limit)
			})
		},
	}
	e.filterFlags(cmd, &req.OrderId, &req.RoutingKey)
	cmd.Flags().StringVar(&status, "status", "", "only events with this status: success or error")
	cmd.Flags().DurationVar(&since, "since", 0, "only events of so long ago, 10m for example")
	cmd.Flags().IntVar(&limit, "limit", 50, "list at most so many; 0 lists all")
	completeFlag(cmd, "status", cobra.FixedCompletions([]cobra.Completion{"success", "error"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// knownKey returns an error if the pattern is malformed or matches no routing key of this release. A shop of a newer
// release may have others, so it is asked first.
func knownKey(pattern string) error {
	if pattern == "" {
		return nil
	}
	var keys []string
	for _, event := range contract.Events() {
		if messaging.Matches(pattern, event.RoutingKey) {
			return nil
		}
		keys = append(keys, event.RoutingKey)
	}
	return cli.WrongUsage("--routing-key %s: no event has such a routing key; there are %s, and patterns with * for a word and # for any number of them",
		cli.Printable(pattern), strings.Join(keys, ", "))
}

// listEvents reads events that match a request: up to limit, or all if limit is 0.
func listEvents(ctx context.Context, c loggingv1.EventLogServiceClient, req *loggingv1.ListEventsRequest, limit int) (list []*loggingv1.Event, next string, err error) {
	return pages(limit, func(size int32, token string) ([]*loggingv1.Event, string, error) {
		req.PageSize, req.PageToken = size, token
		page, err := c.ListEvents(ctx, req)
		return page.GetEvents(), page.GetNextPageToken(), err
	})
}

func eventsTable(list []*loggingv1.Event) *table {
	t := &table{header: []string{"ID", "PUBLISHED", "ROUTING KEY", "ORDER", "BY", "PAYLOAD"}, flexible: 5, minWidth: 12}
	for _, event := range list {
		t.add(eventCells(event, time.DateTime)...)
	}
	return t
}

// eventCells returns an event as cells of a table: its payload on one line, or what is wrong with it.
func eventCells(event *loggingv1.Event, layout string) []cell {
	return []cell{number(strconv.FormatInt(event.GetId(), 10)), {text: event.GetPublishedAt().AsTime().Local().Format(layout), colour: dim},
		{text: event.GetRoutingKey(), colour: keyColour(event)}, text(cmp.Or(event.GetOrderId(), "-")), text(cmp.Or(event.GetSource(), "-")), payloadCell(event)}
}

func payloadCell(event *loggingv1.Event) cell {
	if event.GetStatus() == loggingv1.Event_error {
		return cell{text: "error: " + event.GetErrorMessage(), colour: red}
	}
	if event.GetPayload() == nil {
		return text("-")
	}
	line, err := messageJSON(event.GetPayload())
	if err != nil {
		return cell{text: err.Error(), colour: red}
	}
	return text(string(line))
}

func keyColour(event *loggingv1.Event) colour {
	key := event.GetRoutingKey()
	switch {
	case event.GetStatus() == loggingv1.Event_error, strings.HasSuffix(key, ".rejected"):
		return red
	case strings.HasSuffix(key, ".confirmed"):
		return green
	case strings.HasSuffix(key, ".cancelled"), strings.HasSuffix(key, ".depleted"):
		return yellow
	}
	return plain
}

// keyWidth returns the width of the longest routing key, for streams, of which the rest is not known.
func keyWidth() int {
	longest := 0
	for _, event := range contract.Events() {
		longest = max(longest, cli.Columns(event.RoutingKey))
	}
	return longest
}

const (
	orderIDWidth = 36
	sourceWidth  = len("inventory")
	clockLayout  = "15:04:05.000"
)

func (e *events) tailCommand() *cobra.Command {
	var req loggingv1.StreamEventsRequest
	cmd := &cobra.Command{
		Use:   "tail",
		Short: "Show events as they are logged, until Ctrl-C",
		Long: `Shows events as they are logged, one on a line, until Ctrl-C. It begins with the next event; with
--after ID after that event, with --after 0 at the first event of the log, with --order at the first event of
the order.

If the connection is lost the command connects again and resumes: no event is missing, none is shown twice.`,
		Example: `  shop events tail
  shop events tail --routing-key 'shop.stock.#' --json | jq -c .payload
  shop events tail --after 4711`,
		Args: cli.Args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := knownKey(req.GetRoutingKey()); err != nil {
				fmt.Fprintf(cmd.ErrOrStderr(), "shop: %v; still following, until Ctrl-C\n", err)
			}
			req.FromBeginning = cmd.Flags().Changed("after")
			s := screenOf(cmd.OutOrStdout())
			widths := []int{7, len(clockLayout), keyWidth(), orderIDWidth, sourceWidth, 0}
			return e.gateway.with(func(conn *grpc.ClientConn) error {
				f := follower{client: loggingv1.NewEventLogServiceClient(conn), gateway: &e.gateway, notes: cmd.ErrOrStderr(), request: &req}
				return f.run(cmd.Context(), func(event *loggingv1.Event) error {
					if e.asJSON {
						return printLine(cmd.OutOrStdout(), event)
					}
					s.stream(eventCells(event, clockLayout), widths)
					return nil
				})
			})
		},
	}
	e.filterFlags(cmd, &req.OrderId, &req.RoutingKey)
	cmd.Flags().Int64Var(&req.AfterId, "after", 0, "begin behind the event with this id; 0 begins at the first")
	completeFlag(cmd, "after", cobra.NoFileCompletions)
	return cmd
}
