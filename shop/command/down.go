package command

import (
	"errors"
	"path/filepath"

	"github.com/spf13/cobra"

	"shop.example/shop/stack"
)

func downCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "down",
		Short: "Stop and remove everything that was started here",
		Long: `Stops the servers that shop started under .shop in this workspace, also those that a crash left
behind, and deletes their data. A shop that runs on them is asked to end first. Servers that
DATABASE_URL and AMQP_URL name are left alone, and so are installed packages.`,
		Example: "  shop down",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if dir != "" {
				return stack.Down(dir)
			}
			base, err := dataDir()
			if err != nil {
				return err
			}
			dirs, err := filepath.Glob(filepath.Join(base, "*", "lock"))
			for _, lock := range dirs {
				err = errors.Join(err, stack.Down(filepath.Dir(lock)))
			}
			return err
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "remove the stack in this folder only")
	return cmd
}
