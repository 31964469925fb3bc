// Package command has the commands of shop, one file each.
package command

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
)

// Root returns the command with all its subcommands.
func Root() *cobra.Command {
	root := &cobra.Command{
		Use:   "shop",
		Short: "Runs the shop, and talks to one that runs",
		Long: `Runs the shop, an event-driven ordering system, on this machine, and talks to one that runs.

To run it takes PostgreSQL and RabbitMQ from DATABASE_URL and AMQP_URL where these are set. Otherwise
private instances are started, on ports of their own and with their data under .shop in the
workspace: from the installed servers, else with Docker, else from Debian's packages, which are
then installed.

To talk to one, order, inventory, events, dlq, actions, customer and status call localhost:3000, or where --server or
SHOP_SERVER says. Operators show SHOP_OPERATOR_TOKEN, or the token that shop up keeps on this machine.

Exit code 0: it is done. 1: it failed, or was refused. 2: the command line is wrong.`,
		Example: `  shop up
  shop order place --name Ada --email ada@example.org --item Laptop=2 --item "Mouse Pad"
  shop events tail`,
		SilenceUsage:  true,
		SilenceErrors: true, // main prints them
	}
	const run, use, maintain = "run", "use", "maintain"
	root.AddGroup(&cobra.Group{ID: run, Title: "Run the shop:"}, &cobra.Group{ID: use, Title: "Use it:"}, &cobra.Group{ID: maintain, Title: "Look after it:"})
	for group, commands := range map[string][]*cobra.Command{
		run:      {upCommand(), demoCommand(), downCommand(), migrateCommand(), execCommand(), certsCommand(), secretsCommand()},
		use:      {orderCommand(), inventoryCommand(), eventsCommand()},
		maintain: {statusCommand(), auditCommand(), dlqCommand(), outboxCommand(), provisionCommand(), actionsCommand(), customerCommand(), benchCommand(), versionCommand()},
	} {
		for _, cmd := range commands {
			cmd.GroupID = group
			root.AddCommand(cmd)
		}
	}
	strict(root)
	return root
}

// ExitCode is the error of a command that has already said what there is to say.
type ExitCode int

func (c ExitCode) Error() string { return fmt.Sprintf("exit status %d", int(c)) }

// dataDir returns the folder .shop of the workspace that the current folder is in, or of the current folder.
func dataDir() (string, error) {
	here, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("finding the current folder: %w", err)
	}
	for dir := here; ; dir = filepath.Dir(dir) {
		_, err := os.Stat(filepath.Join(dir, "go.work"))
		if err == nil {
			return filepath.Join(dir, ".shop"), nil
		}
		if !errors.Is(err, os.ErrNotExist) {
			return "", fmt.Errorf("looking for the workspace: %w", err)
		}
		if dir == filepath.Dir(dir) {
			return filepath.Join(here, ".shop"), nil
		}
	}
}
