// Package command has the commands of shop, one file each.
package command

import (
	"github.com/spf13/cobra"

	"shop.example/shop/cli"
)

// Root returns the command with all its subcommands.
func Root() *cobra.Command {
	root := &cobra.Command{
		Use:   "shop",
		Short: "Uses and operates a shop",
		Long: `Uses and operates a shop, an event-driven ordering system.

order, inventory, events, dlq, webhooks, actions, customer, status and open call a shop that runs: at localhost:3000, or at
the address of --server or SHOP_SERVER. Operators show SHOP_OPERATOR_TOKEN, or the token that make up keeps
on this machine. audit and migrate work on its databases. certs and secrets prepare one for production.

Exit code 0: it is done. 1: it failed, or was refused. 2: the command line is wrong.`,
		Example: `  shop status
  shop order place --name Ada --email ada@example.org --item Laptop=2 --item "Mouse Pad"
  shop events tail`,
		SilenceUsage:  true,
		SilenceErrors: true, // cli.Main prints them
	}
	const use, operate, install = "use", "operate", "install"
	root.AddGroup(&cobra.Group{ID: use, Title: "Use:"}, &cobra.Group{ID: operate, Title: "Operate:"}, &cobra.Group{ID: install, Title: "Install and upgrade:"})
	for group, commands := range map[string][]*cobra.Command{
		use:     {orderCommand(), inventoryCommand(), eventsCommand()},
		operate: {statusCommand(), openCommand(), auditCommand(), dlqCommand(), outboxCommand(), webhooksCommand(), actionsCommand(), customerCommand(), versionCommand(), manCommand()},
		install: {secretsCommand(), certsCommand(), provisionCommand(), migrateCommand()},
	} {
		for _, cmd := range commands {
			cmd.GroupID = group
			root.AddCommand(cmd)
		}
	}
	versionFlag(root)
	cli.Strict(root)
	return root
}
