package command

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"shop.example/platform/messaging/provision"
	"shop.example/shop/cli"
	"shop.example/topology"
)

func provisionCommand() *cobra.Command {
	var (
		prefix string
		dryRun bool
		at     provision.Target
	)
	cmd := &cobra.Command{
		Use:   "provision",
		Short: "Prepare the broker of AMQP_MANAGEMENT_URL for this release",
		Long: `Makes what the services of this release need on the broker and it does not have yet: exchanges, queues, bindings,
policies, and each service's rights. Bindings of the shop's queues that this release does not have are removed. What
could cost messages is left to a person: it is named, and the exit code is 1.

The services' users have the services' names, after --user-prefix. A user whose password is in the environment
(GATEWAY_AMQP_PASSWORD, …) is created, or gets that password; any other one has to be there.

An upgrade does this first, then migrates, then replaces the services. --dry-run says what would change.`,
		Example: "  AMQP_MANAGEMENT_URL=http://shop:password@localhost:15672 shop provision --dry-run",
		Args:    cli.Args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			at.ManagementURL = os.Getenv("AMQP_MANAGEMENT_URL")
			if at.ManagementURL == "" {
				return errors.New("AMQP_MANAGEMENT_URL is not set: it names the broker's management API, http://user:password@host:15672")
			}
			at.Logins = map[string]provision.Login{}
			for _, service := range topology.Names() {
				at.Logins[service] = provision.Login{User: prefix + service, Password: os.Getenv(amqpPassword(service))}
			}
			run, done := provision.Apply, "done"
			if dryRun {
				run, done = provision.Plan, "to do"
			}
			changes, err := run(cmd.Context(), topology.Broker(), at)
			if err != nil {
				return err
			}
			left := 0
			for _, c := range changes {
				what := done
				if c.ByHand {
					what = "by hand"
					left++
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", what, c.Text)
			}
			if len(changes) == 0 {
				fmt.Fprintln(cmd.OutOrStdout(), "The broker has all that this release needs.")
			}
			if left > 0 {
				return fmt.Errorf("%s left to be done by hand", cli.Plural(left, "change"))
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&at.Vhost, "vhost", "/", "the virtual host of the shop")
	cmd.Flags().StringVar(&prefix, "user-prefix", "", "what the names of the services' users begin with, shop2- for example")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "say what would change, and change nothing")
	return cmd
}
