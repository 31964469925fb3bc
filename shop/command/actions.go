package command

import (
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	loggingv1 "shop.example/gen/shop/logging/v1"
	"shop.example/shop/cli"
)

func actionsCommand() *cobra.Command {
	var (
		g      = gateway{names: map[string]string{"operator": "--operator", "target": "--target", "acted_after": "--since", "page_size": "--limit"}}
		req    loggingv1.ListOperatorActionsRequest
		since  time.Duration
		limit  int
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "actions",
		Short: "List what operators have done",
		Long: `Lists actions of operators, the newest first: changes of the catalogue, cancelled orders, redriven and
discarded dead letters, exports and erasures of personal data. Nobody can change this record.`,
		Example: "  shop actions --since 24h\n  shop actions --operator ada --limit 0 --json | jq -r '.operator_actions[].target'\n  shop actions --target 'item 5'",
		Args:    cli.Args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if limit < 0 {
				return cli.WrongUsage("--limit %d: give how many to list, 0 for all", limit)
			}
			if since < 0 {
				return cli.WrongUsage("--since %s: give how far to look back, 24h for example", since)
			}
			if since > 0 {
				req.ActedAfter = timestamppb.New(time.Now().Add(-since))
			}
			return g.with(func(conn *grpc.ClientConn) error {
				client := loggingv1.NewOperatorActionServiceClient(conn)
				list, next, err := pages(limit, func(size int32, token string) ([]*loggingv1.OperatorAction, string, error) {
					req.PageSize, req.PageToken = size, token
					page, err := client.ListOperatorActions(cmd.Context(), &req)
					return page.GetOperatorActions(), page.GetNextPageToken(), err
				})
				if err != nil {
					return err
				}
				reply := &loggingv1.ListOperatorActionsResponse{OperatorActions: list, NextPageToken: next}
				return printList(cmd, asJSON, reply, actionsTable(list), "Nothing of the kind was done.", limit)
			})
		},
	}
	g.flags(cmd)
	cmd.Flags().StringVar(&req.Operator, "operator", "", "only what this operator did")
	cmd.Flags().StringVar(&req.Target, "target", "", "only what was done to this, 'item 5' for example")
	cmd.Flags().DurationVar(&since, "since", 0, "only what was done so long ago, 24h for example")
	cmd.Flags().IntVar(&limit, "limit", 50, "list at most so many; 0 lists all")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the JSON of GET /v1/operator-actions")
	for _, flag := range []string{"operator", "target"} {
		completeFlag(cmd, flag, cobra.NoFileCompletions)
	}
	return cmd
}

// actionsTable is the list as a table. On a narrow terminal the column of changes is cut.
func actionsTable(list []*loggingv1.OperatorAction) *table {
	t := &table{header: []string{"WHEN", "OPERATOR", "CALL", "TO", "WHAT"}, flexible: 4, minWidth: minReason, wraps: true}
	for _, a := range list {
		call := a.GetMethod()[strings.LastIndexAny(a.GetMethod(), "/.")+1:]
		t.add(text(localTime(a.GetActedAt().AsTime())), text(or(a.GetOperator(), "?")), text(or(call, "?")), text(or(a.GetTarget(), "-")), text(or(a.GetDetail(), "-")))
	}
	return t
}
