package command

import (
	"fmt"
	"os"
	"runtime/debug"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"shop.example/shop/cli"
)

func manCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "man FOLDER",
		Short: "Write the manual pages",
		Long: `Writes a manual page for each command into a folder, which is made if it is not there. They say what --help
says.`,
		Example: "  shop man ~/.local/share/man/man1 && man shop-order-place",
		Args:    cli.Args("FOLDER"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return fmt.Errorf("making the folder of the manual pages: %w", err)
			}
			root := cmd.Root()
			root.DisableAutoGenTag = true
			info, _ := debug.ReadBuildInfo()
			if err := doc.GenManTree(root, &doc.GenManHeader{Section: "1", Source: "shop " + versionOf(info).Version, Manual: "The shop"}, args[0]); err != nil {
				return fmt.Errorf("writing the manual pages: %w", err)
			}
			return nil
		},
	}
}
