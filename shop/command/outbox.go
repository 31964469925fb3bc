package command

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/spf13/cobra"

	"shop.example/domain/enduser"
	"shop.example/platform/contract"
	"shop.example/platform/outbox"
	"shop.example/platform/postgres"
	"shop.example/shop/cli"
	"shop.example/topology"
)

func outboxCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "outbox",
		Short: "List and send again events that the broker refused",
		Long: `An event that the broker will not take, because no queue takes it or because it is too large, is parked: what
follows it is published, and outbox_parked_waiting counts it until it is sent again. docs/operations.md says
what to mend first.

It works on the services' databases: <SCHEMA>_DATABASE_URL (ORDERS_DATABASE_URL), else DATABASE_URL, else those of
the shop that runs in this workspace.`,
		Example: "  shop outbox list\n  shop outbox resend --all",
	}
	cmd.AddCommand(outboxListCommand(), outboxResendCommand())
	return cmd
}

func outboxListCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List the events that are parked, the oldest first",
		Long:    "Lists the events that are parked with the broker's reason, the oldest first, without their messages.",
		Example: "  shop outbox list\n  DATABASE_URL=postgres://postgres@localhost/shopdb shop outbox list",
		Args:    cli.Args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			t := table{
				header: []string{"MESSAGE", "SCHEMA", "ROUTING KEY", "SIZE", "PARKED", "REASON"}, flexible: 5, minWidth: minReason, wraps: true,
			}
			err := eachOutbox(cmd.Context(), func(schema string, pool *sqlx.DB) error {
				parked, err := outbox.ListParked(cmd.Context(), pool)
				for _, p := range parked {
					t.add(text(p.MessageID), text(schema), text(cli.Printable(p.RoutingKey)), number(fmt.Sprint(p.Size)),
						text(p.ParkedAt.Local().Format(time.DateTime)), text(cli.Printable(p.Reason)))
				}
				return err
			})
			if err != nil {
				return err
			}
			screenOf(cmd.OutOrStdout()).print(&t)
			if len(t.rows) == 0 {
				fmt.Fprintln(cmd.ErrOrStderr(), "No event is parked.")
			}
			return nil
		},
	}
}

func outboxResendCommand() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "resend [MESSAGE...]",
		Short: "Put parked events back into the outbox",
		Long: `Puts parked events back into the outbox, from where they are published within a second, under the same message
ids. What the broker refuses again is parked again.`,
		Example: "  shop outbox resend 0192f3a1-5ad9-8e4f-b0a7-6d3c8f5a2b10\n  shop outbox resend --all",
		RunE: func(cmd *cobra.Command, ids []string) error {
			if all == (len(ids) > 0) {
				return cli.WrongUsage("give the message ids of shop outbox list, or --all")
			}
			missing := map[string]bool{}
			for _, id := range ids {
				missing[strings.ToLower(id)] = true
			}
			n := 0
			err := eachOutbox(cmd.Context(), func(_ string, pool *sqlx.DB) error {
				ids := ids
				if all {
					var err error
					if ids, err = parkedIDs(cmd.Context(), pool); err != nil {
						return err
					}
				}
				for some := range slices.Chunk(ids, resentAtOnce) {
					sent, err := resend(cmd.Context(), pool, some)
					if err != nil {
						return err
					}
					for _, id := range sent {
						fmt.Fprintf(cmd.OutOrStdout(), "%s is in the outbox again\n", id)
						delete(missing, id)
						n++
					}
				}
				return nil
			})
			if err != nil {
				return err
			}
			for id := range missing {
				fmt.Fprintf(cmd.ErrOrStderr(), "shop: %s is not parked\n", cli.Printable(id))
			}
			if len(missing) > 0 {
				return cli.ExitCode(1)
			}
			if n == 0 {
				fmt.Fprintln(cmd.ErrOrStderr(), "No event is parked.")
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "all that are parked")
	return cmd
}

// resentAtOnce is how many events are moved in a transaction: the record of that has room for so many ids.
const resentAtOnce = 50

func parkedIDs(ctx context.Context, pool *sqlx.DB) (ids []string, err error) {
	parked, err := outbox.ListParked(ctx, pool)
	for _, p := range parked {
		ids = append(ids, p.MessageID)
	}
	return ids, err
}

// resend moves parked events back into the outbox, followed by one event that records who did that: the broker may refuse it as
// well, and with one for each there would be twice as many after each attempt.
func resend(ctx context.Context, pool *sqlx.DB, ids []string) (sent []string, err error) {
	err = postgres.InTx(ctx, pool, func(tx *sqlx.Tx) error {
		var user string
		if err := tx.GetContext(ctx, &user, "SELECT session_user"); err != nil {
			return err
		}
		if sent, err = outbox.Unpark(ctx, tx, ids); err != nil || len(sent) == 0 {
			return err
		}
		target, detail := "event "+sent[0], "sent again"
		if len(sent) > 1 {
			target, detail = fmt.Sprintf("%d parked events", len(sent)), "sent again: "+strings.Join(sent, ", ")
		}
		return outbox.Add(ctx, tx, []outbox.Entry{{Message: enduser.Acted("user of the database "+user, "shop outbox resend", target, detail)}})
	})
	return sent, err
}

// eachOutbox calls f for each schema with an outbox that the user of its URL may use.
func eachOutbox(ctx context.Context, f func(schema string, pool *sqlx.DB) error) error {
	schemas := outboxSchemas()
	urls, err := databaseURLs(schemas)
	if err != nil {
		return err
	}
	for _, schema := range schemas {
		if err := inOutbox(ctx, urls[schema], schema, f); err != nil {
			return fmt.Errorf("schema %s: %w", schema, err)
		}
	}
	return nil
}

// outboxSchemas returns the schemas of the services that have an outbox.
func outboxSchemas() (schemas []string) {
	for _, s := range topology.Services() {
		publishes := slices.ContainsFunc(contract.Events(), func(e contract.Event) bool { return slices.Contains(e.PublishedBy, s.Name) })
		if publishes && s.Schema != "" {
			schemas = append(schemas, s.Schema)
		}
	}
	return schemas
}

func inOutbox(ctx context.Context, url, schema string, f func(schema string, pool *sqlx.DB) error) error {
	pool, err := postgres.Open(ctx, url, schema, postgres.Options{Application: "shop outbox"})
	if err != nil {
		return err
	}
	defer func() { _ = pool.Close() }()
	var has bool
	err = pool.GetContext(ctx, &has, `
		SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
			WHERE n.nspname = $1 AND c.relname = 'outbox_parked' AND has_schema_privilege(n.oid, 'USAGE'))`, schema)
	if err != nil || !has {
		return postgres.Classify(err)
	}
	return f(schema, pool)
}
