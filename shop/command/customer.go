package command

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	customerv1 "shop.example/gen/shop/customer/v1"
	"shop.example/shop/cli"
)

// customers has what the subcommands of shop customer share.
type customers struct {
	gateway                gateway
	email, subject, issuer string
}

func customerCommand() *cobra.Command {
	c := &customers{gateway: gateway{names: map[string]string{
		"customer_email": "--email", "subject": "--subject", "issuer": "--issuer", "": "--email, --subject",
	}}}
	cmd := &cobra.Command{
		Use:   "customer",
		Short: "Export or erase what the shop knows about a person",
		Long: `What the shop knows about a person: orders, events and dead letters that name them, by their e-mail address
in capital or small letters, or by the subject of their token; and by that the webhooks of their own. It is
for operators, and both are recorded (shop actions). A message that is still in a queue is found once it has
been handled.`,
		Example: "  shop customer export --email ada@example.org > ada.json\n  shop customer erase --email ada@example.org",
	}
	c.gateway.flags(cmd)
	cmd.PersistentFlags().StringVar(&c.email, "email", "", "whose e-mail address this is")
	cmd.PersistentFlags().StringVar(&c.subject, "subject", "", "whose token has this subject")
	cmd.PersistentFlags().StringVar(&c.issuer, "issuer", "", "the issuer of that token (default the one that the shop knows)")
	for _, flag := range []string{"email", "subject", "issuer"} {
		completeFlag(cmd, flag, cobra.NoFileCompletions)
	}
	cmd.AddCommand(c.exportCommand(), c.eraseCommand())
	return cmd
}

// with calls f with a client of the shop, if a flag says which customer is meant.
func (c *customers) with(f func(customerv1.CustomerServiceClient) error) error {
	if c.email == "" && c.subject == "" {
		return cli.WrongUsage("say whose data are meant: --email or --subject, or both")
	}
	return c.gateway.with(func(conn *grpc.ClientConn) error { return f(customerv1.NewCustomerServiceClient(conn)) })
}

func (c *customers) exportCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "export",
		Short: "Print everything that names a person as JSON",
		Long: `Prints everything that names a person as JSON: {"records": [...]}, each record an order, an event, a
dead letter or a webhook.`,
		Example: "  shop customer export --email ada@example.org > ada.json\n  shop customer export --subject 4711 --issuer https://login.example.org | jq '.records | length'",
		Args:    cli.Args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.with(func(client customerv1.CustomerServiceClient) error {
				all := &customerv1.ExportCustomerResponse{}
				for token := ""; ; {
					page, err := client.ExportCustomer(cmd.Context(), &customerv1.ExportCustomerRequest{
						CustomerEmail: c.email, Subject: c.subject, Issuer: c.issuer, PageToken: token,
					})
					if err != nil {
						return err
					}
					all.Records = append(all.Records, page.GetRecords()...)
					if token = page.GetNextPageToken(); token == "" {
						return printMessage(cmd.OutOrStdout(), all)
					}
				}
			})
		},
	}
}

func (c *customers) eraseCommand() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "erase",
		Short: "Erase the personal data of a person, for good",
		Long: `Erases name, e-mail address and subject in everything that names a person. Orders, their lines and states
stay. Dead letters that name the person are discarded: an order in one of them is not decided any more.
Webhooks of the person's own are deleted, and events that name the person are not sent to those of others any
more. It is no error if everything is erased already.`,
		Example: "  shop customer erase --email ada@example.org\n  shop customer erase --email ada@example.org --subject 4711 --yes",
		Args:    cli.Args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.with(func(client customerv1.CustomerServiceClient) error {
				if !yes {
					if err := cli.Confirm(cmd, fmt.Sprintf("Erase the personal data of %s, for good?", c.person())); err != nil {
						return err
					}
				}
				erased, err := c.erase(cmd.Context(), client)
				if erased.GetOrders()+erased.GetEvents()+erased.GetDeadLetters() > 0 || err == nil {
					fmt.Fprintf(cmd.OutOrStdout(), "Erased in %d orders, %d events and %d dead letters.\n", erased.GetOrders(), erased.GetEvents(), erased.GetDeadLetters())
					if erased.GetWebhooks()+erased.GetWebhookEvents() > 0 {
						fmt.Fprintf(cmd.OutOrStdout(), "Deleted %d webhooks, and erased in %d events for webhooks.\n", erased.GetWebhooks(), erased.GetWebhookEvents())
					}
				}
				return err
			})
		},
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return cmd
}

// person describes, for a question, the customer that the flags name.
func (c *customers) person() string {
	var named []string
	for _, name := range []string{c.email, c.subject} {
		if name != "" {
			named = append(named, cli.Printable(name))
		}
	}
	return strings.Join(named, " or ")
}

// erase returns how much was erased, also if it fails halfway.
func (c *customers) erase(ctx context.Context, client customerv1.CustomerServiceClient) (*customerv1.EraseCustomerResponse, error) {
	all := &customerv1.EraseCustomerResponse{}
	for token := ""; ; {
		part, err := client.EraseCustomer(ctx, &customerv1.EraseCustomerRequest{
			CustomerEmail: c.email, Subject: c.subject, Issuer: c.issuer, PageToken: token,
		})
		if err != nil {
			return all, err
		}
		all.Orders += part.GetOrders()
		all.Events += part.GetEvents()
		all.DeadLetters += part.GetDeadLetters()
		all.Webhooks += part.GetWebhooks()
		all.WebhookEvents += part.GetWebhookEvents()
		if token = part.GetNextPageToken(); token == "" {
			return all, nil
		}
	}
}
