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
		Short: "Runs the shop on this machine",
		Long: `Runs the shop, an event-driven ordering system, on this machine.

PostgreSQL and RabbitMQ are those of DATABASE_URL and AMQP_URL where these are set. Otherwise
private instances are started, on ports of their own and with their data under .shop in the
workspace: from the installed servers, else with Docker, else from Debian's packages, which are
then installed.`,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true, // main prints them
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(upCommand(), demoCommand(), migrateCommand(), execCommand(), downCommand(), auditCommand(), dlqCommand(), statusCommand(), certsCommand(),
		benchCommand())
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
