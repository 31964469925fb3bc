package command

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"shop.example/dev/stack"
	"shop.example/shop/cli"
	"shop.example/shop/workspace"
)

func downCommand() *cobra.Command {
	var (
		dir string
		yes bool
	)
	cmd := &cobra.Command{
		Use:   "down",
		Short: "Stop and remove everything that was started here",
		Long: `Stops the servers that shopdev started under .shop in this workspace, also those that a crash left
behind, and deletes their data. Before it ends a shop, or a command, that runs on them it asks, and
before it deletes the data of make up; a script says --yes. Servers that DATABASE_URL and AMQP_URL name are left alone, and so are installed
packages.`,
		Example: "  shopdev down\n  shopdev down --yes",
		Args:    cli.Args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			dirs := []string{dir}
			if dir == "" {
				base, err := workspace.Dir()
				if err != nil {
					return err
				}
				locks, err := filepath.Glob(filepath.Join(base, "*", "lock"))
				if err != nil {
					return fmt.Errorf("looking for what was started: %w", err)
				}
				dirs = nil
				for _, lock := range locks {
					dirs = append(dirs, filepath.Dir(lock))
				}
			}
			if len(dirs) == 0 {
				fmt.Fprintln(cmd.ErrOrStderr(), "nothing to remove")
			}
			var errs []error
			for _, dir := range dirs {
				errs = append(errs, takeDown(cmd, dir, yes))
			}
			return errors.Join(errs...)
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "remove the stack in this folder only")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "end what runs on them without asking")
	return cmd
}

// takeDown removes the stack in dir. If a shop runs on it, it asks whether to end that.
func takeDown(cmd *cobra.Command, dir string, yes bool) error {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		fmt.Fprintf(cmd.ErrOrStderr(), "there is no %s: nothing to remove\n", dir)
		return nil
	}
	ran, err := workspace.Shop(dir).OperatorToken()
	if err != nil {
		return err
	}
	if ran != "" && !yes && cli.CanAsk(cmd) { // a script means it
		if err := cli.Confirm(cmd, fmt.Sprintf("%s has what make up keeps: orders, stock and event log. End and delete it?", dir)); err != nil {
			return err
		}
		yes = true
	}
	err = stack.Down(dir)
	var used stack.InUseError
	if errors.As(err, &used) {
		if !yes {
			if err := cli.Confirm(cmd, fmt.Sprintf("Process %d runs on the servers in %s. End it, and delete their data?", used.PID, dir)); err != nil {
				return err
			}
		}
		if err = stack.EndAndDown(dir); err == nil {
			fmt.Fprintf(cmd.ErrOrStderr(), "process %d has ended\n", used.PID)
		}
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "removed %s\n", dir)
	return nil
}
