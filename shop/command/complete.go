package command

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	inventoryv1 "shop.example/gen/shop/inventory/v1"
	loggingv1 "shop.example/gen/shop/logging/v1"
	orderv1 "shop.example/gen/shop/order/v1"
	"shop.example/shop/cli"
)

const (
	// completionTimeout is how long a shell waits for the shop. Without an answer nothing is offered.
	completionTimeout = time.Second
	// recent is how many of the newest entries are offered.
	recent = 30
)

// offer returns completions for an argument or flag.
type offer func(context.Context, *grpc.ClientConn) ([]cobra.Completion, error)

// complete returns a completion function with what the shop offers.
func (g *gateway) complete(list offer) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, _ string) (found []cobra.Completion, _ cobra.ShellCompDirective) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(cmd.Context()), completionTimeout)
		defer cancel()
		_ = g.with(func(conn *grpc.ClientConn) (err error) { // a shell has no place for an error
			found, err = list(ctx, conn)
			return err
		})
		return found, cobra.ShellCompDirectiveNoFileComp
	}
}

// first restricts a completion to the first argument.
func first(f cobra.CompletionFunc) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return f(cmd, args, begun)
	}
}

// completeFlag gives an existing flag its completion.
func completeFlag(cmd *cobra.Command, name string, f cobra.CompletionFunc) {
	if err := cmd.RegisterFlagCompletionFunc(name, f); err != nil {
		panic(err) //nolint:forbidigo // a flag that is not there is a mistake in the lines above
	}
}

func productNames(ctx context.Context, conn *grpc.ClientConn) ([]cobra.Completion, error) {
	items, err := allItems(ctx, inventoryv1.NewInventoryServiceClient(conn))
	return namesOf(items), err
}

// namesOf offers names without descriptions: bash aligns those with blanks, of which it takes one for what Mouse and Mouse Pad
// have in common, and the second could not be reached.
func namesOf(items []*inventoryv1.Item) (names []cobra.Completion) {
	for _, item := range items {
		names = append(names, cli.Printable(item.GetProductName()))
	}
	return names
}

func orderIDs(ctx context.Context, conn *grpc.ClientConn) ([]cobra.Completion, error) {
	reply, err := orderv1.NewOrderServiceClient(conn).ListOrders(ctx, &orderv1.ListOrdersRequest{PageSize: recent})
	var found []cobra.Completion
	for _, o := range reply.GetOrders() {
		found = append(found, cobra.CompletionWithDesc(o.GetId(), fmt.Sprintf("%s, %s", o.GetState(), localTime(o.GetCreatedAt().AsTime()))))
	}
	return found, err
}

func deadLetterIDs(ctx context.Context, conn *grpc.ClientConn) ([]cobra.Completion, error) {
	letters, _, err := listDeadLetters(ctx, loggingv1.NewDeadLetterServiceClient(conn),
		&loggingv1.ListDeadLettersRequest{State: loggingv1.DeadLetter_OPEN}, recent)
	var found []cobra.Completion
	for _, l := range letters {
		found = append(found, cobra.CompletionWithDesc(strconv.FormatInt(l.GetId(), 10), cli.Truncate(cli.Printable(l.GetReason()), 60)))
	}
	return found, err
}
