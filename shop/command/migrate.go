package command

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"shop.example/db"
	"shop.example/shop/cli"
)

func migrateCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "migrate",
		Short: "Apply pending migrations to the database of DATABASE_URL",
		Long: `Applies the migrations that the database at DATABASE_URL does not have yet. Every service does this for
its own schema when it starts; with this command it is done before.

As an administrator it migrates all schemas. Roles and schemas that are missing are created before, as
db/bootstrap.sql says, and everything belongs to the service's role. PGOPTIONS gives roles their passwords,
new ones and those of before. As the role of a service it migrates only the schema of that service.`,
		Example: "  DATABASE_URL=postgres://postgres@localhost/shopdb shop migrate",
		Args:    cli.Args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			url := os.Getenv("DATABASE_URL")
			if url == "" {
				return errors.New("DATABASE_URL is not set: it names the database to migrate, postgres://user:password@host/shopdb")
			}
			return db.MigrateAll(cmd.Context(), url, func(schema string, files []string) {
				if len(files) == 0 {
					fmt.Fprintf(cmd.OutOrStdout(), "%s: up to date\n", schema)
					return
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s: applied %s\n", schema, strings.Join(files, ", "))
			})
		},
	}
}
