// Package command has the commands of shopdev, one file each.
package command

import (
	"github.com/spf13/cobra"

	"shop.example/shop/cli"
)

// Root returns the command with all its subcommands.
func Root() *cobra.Command {
	root := &cobra.Command{
		Use:   "shopdev",
		Short: "Runs the shop and its servers on this machine",
		Long: `Runs the shop, an event-driven ordering system, on this machine: for development, demonstrations and tests.
It is no part of a shop in production.

PostgreSQL and RabbitMQ are those of DATABASE_URL and AMQP_URL if these are set. Otherwise private instances are
started, on ports of their own and with their data under .shop in the workspace: from the installed servers, else
with Docker, else from Debian's packages, which are then installed.

Exit code 0: it is done. 1: it failed. 2: the command line is wrong.`,
		Example:       "  shopdev up\n  shopdev exec --fast -- go test ./...",
		SilenceUsage:  true,
		SilenceErrors: true, // cli.Main prints them
	}
	root.AddCommand(upCommand(), demoCommand(), downCommand(), execCommand())
	cli.Strict(root)
	return root
}
