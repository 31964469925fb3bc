package command

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"shop.example/db"
)

func migrateCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "migrate",
		Short: "Bring the schemas of DATABASE_URL to their newest form",
		Long: `Applies the migrations that the database at DATABASE_URL does not have yet, schema by schema. Every
service does this for its own schema when it starts; this is for those who want it done before.`,
		Example: "  DATABASE_URL=postgres://postgres@localhost/shopdb shop migrate",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			url := os.Getenv("DATABASE_URL")
			if url == "" {
				return errors.New("DATABASE_URL is not set: it names the database to migrate, postgres://user:password@host/shopdb")
			}
			for _, schema := range db.Schemas() {
				applied, err := db.Migrate(cmd.Context(), url, schema)
				for _, name := range applied {
					fmt.Fprintf(cmd.OutOrStdout(), "%s: applied %s\n", schema, name)
				}
				if err != nil {
					return err
				}
				if len(applied) == 0 {
					fmt.Fprintf(cmd.OutOrStdout(), "%s: nothing to do\n", schema)
				}
			}
			return nil
		},
	}
}
