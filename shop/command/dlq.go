package command

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	loggingv1 "shop.example/gen/shop/logging/v1"
	"shop.example/shop/cli"
)

const (
	// minReason is how much of a reason is shown, in characters, even on a narrow terminal.
	minReason = 30
	// maxDump is how much of an undecodable body is shown, in bytes.
	maxDump = 4 << 10
)

func dlqCommand() *cobra.Command {
	d := &dlq{}
	cmd := &cobra.Command{
		Use:   "dlq",
		Short: "List, show, redrive and discard messages that could not be handled",
		Long: `Dead letters are messages that a service could not handle. They are kept with the reason until an operator
decides: redrive sends a message to the queue it came from once more, as a first attempt under the
same id; discard closes it. Both stay in the list. docs/dead-letters.md says what to do when.

Exit code 0 means that everything was done, 1 that something was not.`,
		Example: "  shop dlq list\n  shop dlq show 12\n  shop dlq redrive --all",
	}
	d.gateway.flags(cmd)
	cmd.AddCommand(d.listCommand(), d.showCommand(),
		d.decideCommand(decision{
			name: "redrive", did: "redriven", short: "Send dead letters to the queues they came from once more", call: redrive,
			long: "Sends dead letters to the queues they came from, under the same message id and as a first attempt. One that\n" +
				"was redriven before is left alone. What fails again becomes a new dead letter.",
		}),
		d.decideCommand(decision{
			name: "discard", did: "discarded", short: "Give dead letters up", call: discard,
			long: "Gives dead letters up for good. They stay in the list, and in the log of events they stay errors. An order that\n" +
				"could not be decided is rejected, with the reason DISCARDED.",
		}))
	return cmd
}

// dlq has what the subcommands of shop dlq share.
type dlq struct{ gateway gateway }

// with calls f with a client of the shop.
func (d *dlq) with(f func(loggingv1.DeadLetterServiceClient) error) error {
	return d.gateway.with(func(conn *grpc.ClientConn) error { return f(loggingv1.NewDeadLetterServiceClient(conn)) })
}

func (d *dlq) listCommand() *cobra.Command {
	var (
		state     string
		messageID string
		limit     int
		asJSON    bool
	)
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List dead letters, the newest first",
		Long:    "Lists dead letters with the reason, without their messages. What was decided stays in the list: see --state.",
		Example: "  shop dlq list\n  shop dlq list --state all --limit 0 --json | jq -r '.dead_letters[] | select(.source_queue == \"order\") | .id'",
		Args:    cli.Args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			wanted, err := parseState(state)
			if err != nil {
				return err
			}
			if limit < 0 {
				return cli.WrongUsage("--limit %d: give how many to list, 0 for all", limit)
			}
			return d.with(func(c loggingv1.DeadLetterServiceClient) error {
				letters, next, err := listDeadLetters(cmd.Context(), c, &loggingv1.ListDeadLettersRequest{State: wanted, MessageId: messageID}, limit)
				if err != nil {
					return err
				}
				reply := &loggingv1.ListDeadLettersResponse{DeadLetters: letters, NextPageToken: next}
				return printList(cmd, asJSON, reply, deadLettersTable(letters), fmt.Sprintf("No dead letters (--state %s).", state), limit)
			})
		},
	}
	cmd.Flags().StringVar(&state, "state", "open", "which ones: open, redriven, discarded or all")
	completeFlag(cmd, "state", cobra.FixedCompletions([]cobra.Completion{"open", "redriven", "discarded", "all"}, cobra.ShellCompDirectiveNoFileComp))
	cmd.Flags().StringVar(&messageID, "message-id", "", "only those that their publisher gave this message_id")
	cmd.Flags().IntVar(&limit, "limit", 100, "list at most so many; 0 lists all")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the JSON of GET /v1/dead-letters")
	return cmd
}

func parseState(s string) (loggingv1.DeadLetter_State, error) {
	if s == "all" {
		return loggingv1.DeadLetter_STATE_UNSPECIFIED, nil
	}
	state, ok := loggingv1.DeadLetter_State_value[strings.ToUpper(s)]
	if !ok || state == 0 {
		return 0, cli.WrongUsage("--state %s: there are open, redriven, discarded and all", s)
	}
	return loggingv1.DeadLetter_State(state), nil
}

// listDeadLetters reads dead letters that match filter, without their bodies, the newest first: up to limit, or all if limit is
// 0.
func listDeadLetters(ctx context.Context, c loggingv1.DeadLetterServiceClient, filter *loggingv1.ListDeadLettersRequest, limit int) (letters []*loggingv1.DeadLetter, next string, err error) {
	return pages(limit, func(size int32, token string) ([]*loggingv1.DeadLetter, string, error) {
		filter.PageSize, filter.PageToken = size, token
		page, err := c.ListDeadLetters(ctx, filter)
		return page.GetDeadLetters(), page.GetNextPageToken(), err
	})
}

// deadLettersTable is the list as a table. On a narrow terminal the reasons are cut.
func deadLettersTable(letters []*loggingv1.DeadLetter) *table {
	t := &table{header: []string{"ID", "STATE", "WHEN", "QUEUE", "ROUTING KEY", "ORDER", "ATTEMPTS", "REASON"}, flexible: 7, minWidth: minReason, wraps: true}
	for _, l := range letters {
		t.add(number(strconv.FormatInt(l.GetId(), 10)), text(l.GetState().String()), text(localTime(l.GetCreatedAt().AsTime())), text(or(l.GetSourceQueue(), "?")),
			text(or(l.GetRoutingKey(), "?")), text(or(l.GetOrderId(), "-")), number(strconv.Itoa(int(l.GetAttempts()))), text(l.GetReason()))
	}
	return t
}

func localTime(t time.Time) string { return t.Local().Format(time.DateTime) }

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return cli.Printable(s)
}

func (d *dlq) showCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "show ID",
		Short: "Show a dead letter with its message",
		Long: "Shows a dead letter: its queue, why it could not be handled, and the message itself, as JSON if it can be\n" +
			"decoded and otherwise as bytes.",
		Example:           "  shop dlq show 12\n  shop dlq show 12 --json | jq -r .body | base64 -d",
		Args:              cli.Args("ID"),
		ValidArgsFunction: d.gateway.complete(deadLetterIDs),
		RunE: func(cmd *cobra.Command, args []string) error {
			ids, err := parseIDs(args)
			if err != nil {
				return err
			}
			return d.with(func(c loggingv1.DeadLetterServiceClient) error {
				reply, err := c.GetDeadLetter(cmd.Context(), &loggingv1.GetDeadLetterRequest{Id: ids[0]})
				if err != nil {
					return err
				}
				if asJSON {
					return printMessage(cmd.OutOrStdout(), reply.GetDeadLetter())
				}
				return describe(cmd.OutOrStdout(), reply.GetDeadLetter())
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the JSON of GET /v1/dead-letters/{id}")
	return cmd
}

func parseIDs(args []string) ([]int64, error) {
	ids := make([]int64, len(args))
	for i, arg := range args {
		id, err := strconv.ParseInt(arg, 10, 64)
		if err != nil || id <= 0 {
			return nil, cli.WrongUsage("%q is no id of a dead letter: shop dlq list shows them", arg)
		}
		ids[i] = id
	}
	return ids, nil
}

// describe writes everything there is about a dead letter.
func describe(out io.Writer, l *loggingv1.DeadLetter) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	field := func(name, value string) { fmt.Fprintf(w, "%s\t%s\n", name, or(value, "-")) }
	field("id", strconv.FormatInt(l.GetId(), 10))
	field("state", l.GetState().String())
	field("reason", l.GetReason())
	field("source queue", l.GetSourceQueue())
	field("exchange", l.GetExchange())
	field("routing key", l.GetRoutingKey())
	field("type", l.GetType())
	field("message id", l.GetMessageId())
	field("order id", l.GetOrderId())
	field("trace id", l.GetTraceId())
	field("attempts", strconv.Itoa(int(l.GetAttempts())))
	field("created at", localTime(l.GetCreatedAt().AsTime()))
	field("updated at", localTime(l.GetUpdatedAt().AsTime()))
	if l.GetState() == loggingv1.DeadLetter_OPEN {
		field("redrivable until", localTime(l.GetRedrivableUntil().AsTime()))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	body := l.GetBody()
	if l.GetPayload() != nil {
		text, err := l.GetPayload().MarshalJSON()
		if err != nil {
			return fmt.Errorf("writing the message: %w", err)
		}
		var pretty bytes.Buffer
		if err := json.Indent(&pretty, text, "", "  "); err != nil {
			return fmt.Errorf("writing the message: %w", err)
		}
		fmt.Fprintf(out, "\nmessage, %d bytes:\n%s\n", len(body), pretty.String())
		return nil
	}
	fmt.Fprintf(out, "\nbody, %d bytes, shown as they are:\n%s", len(body), hex.Dump(body[:min(len(body), maxDump)]))
	if len(body) > maxDump {
		fmt.Fprintf(out, "… and %d more: --json has all of them, in base64\n", len(body)-maxDump)
	}
	return nil
}

// decision is one of the two decisions about a dead letter: redrive or discard.
type decision struct {
	name, did   string // "redrive", "redriven"
	short, long string
	call        func(context.Context, loggingv1.DeadLetterServiceClient, int64) (*loggingv1.DeadLetter, error)
}

func redrive(ctx context.Context, c loggingv1.DeadLetterServiceClient, id int64) (*loggingv1.DeadLetter, error) {
	reply, err := c.RedriveDeadLetter(ctx, &loggingv1.RedriveDeadLetterRequest{Id: id})
	return reply.GetDeadLetter(), err
}

func discard(ctx context.Context, c loggingv1.DeadLetterServiceClient, id int64) (*loggingv1.DeadLetter, error) {
	reply, err := c.DiscardDeadLetter(ctx, &loggingv1.DiscardDeadLetterRequest{Id: id})
	return reply.GetDeadLetter(), err
}

func (d *dlq) decideCommand(what decision) *cobra.Command {
	var all, yes, asJSON bool
	cmd := &cobra.Command{
		Use:               what.name + " ID... | --all",
		Short:             what.short,
		Long:              what.long,
		Example:           fmt.Sprintf("  shop dlq %[1]s 12 13\n  shop dlq %[1]s --all --yes", what.name),
		ValidArgsFunction: d.gateway.complete(deadLetterIDs),
		Args: func(_ *cobra.Command, args []string) error {
			if all != (len(args) == 0) {
				return fmt.Errorf("say which: shop dlq %s ID..., or --all for those that are open", what.name)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			ids, err := parseIDs(args)
			if err != nil {
				return err
			}
			if all && !yes && !cli.CanAsk(cmd) { // before it depends on what is open
				return cli.WrongUsage("--all decides about every dead letter that is open, and nobody can be asked here: add --yes (see %s --help)", cmd.CommandPath())
			}
			return d.with(func(c loggingv1.DeadLetterServiceClient) error {
				if all {
					if ids, err = openIDs(cmd.Context(), c); err != nil {
						return err
					}
				}
				if len(ids) == 0 {
					fmt.Fprintln(cmd.ErrOrStderr(), "No dead letter is open.")
					return nil
				}
				if !yes && cli.CanAsk(cmd) { // else the script says which ones it means
					if err := cli.Confirm(cmd, fmt.Sprintf("%s%s %s?", strings.ToUpper(what.name[:1]), what.name[1:], amount(len(ids)))); err != nil {
						return err
					}
				}
				return decide(cmd, c, what, ids, asJSON)
			})
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "all that are open now, the oldest first; without a terminal to ask on it needs --yes")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print each as a line of JSON, as POST /v1/dead-letters/{id}:"+what.name+" answers")
	return cmd
}

func amount(n int) string {
	if n == 1 {
		return "1 dead letter"
	}
	return fmt.Sprintf("%d dead letters", n)
}

// openIDs returns the ids of the open dead letters, the oldest first.
func openIDs(ctx context.Context, c loggingv1.DeadLetterServiceClient) ([]int64, error) {
	letters, _, err := listDeadLetters(ctx, c, &loggingv1.ListDeadLettersRequest{State: loggingv1.DeadLetter_OPEN}, 0)
	if err != nil {
		return nil, err
	}
	ids := make([]int64, len(letters))
	for i, l := range letters {
		ids[i] = l.GetId()
	}
	slices.Reverse(ids)
	return ids, nil
}

// decide goes through all ids. What is wrong with one of them does not keep the others from their end; what is wrong
// with the shop or the token does.
func decide(cmd *cobra.Command, c loggingv1.DeadLetterServiceClient, what decision, ids []int64, asJSON bool) error {
	done, failed := 0, 0
	for _, id := range ids {
		letter, err := what.call(cmd.Context(), c, id)
		switch status.Code(err) {
		case codes.OK:
			done++
			if asJSON {
				if err := printLine(cmd.OutOrStdout(), letter); err != nil {
					return err
				}
				continue
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%d %s (%s of queue %s)\n", id, what.did, or(letter.GetRoutingKey(), "message"), or(letter.GetSourceQueue(), "?"))
		case codes.NotFound, codes.FailedPrecondition:
			failed++
			fmt.Fprintf(cmd.ErrOrStderr(), "shop: %v\n", err)
		default:
			err = fmt.Errorf("dead letter %d: %w", id, err)
			if done > 0 {
				err = fmt.Errorf("%w; %d of %s %s", err, done, amount(len(ids)), what.did)
			}
			return err
		}
	}
	if failed > 0 {
		fmt.Fprintf(cmd.ErrOrStderr(), "shop: %d of %s not %s\n", failed, amount(len(ids)), what.did)
		return cli.ExitCode(1)
	}
	return nil
}
