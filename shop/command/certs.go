package command

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"shop.example/platform/mtls"
	"shop.example/shop/cli"
	"shop.example/topology"
)

func certsCommand() *cobra.Command {
	var (
		dir   string
		valid time.Duration
		force bool
	)
	cmd := &cobra.Command{
		Use:   "certs [NAME...]",
		Short: "Create certificates for mutual TLS between the services",
		Long: `Makes a CA and certificates of it, by default one for each service, for mutual TLS between them. Each NAME has a folder, which is all that the service of that name has to be given:
GRPC_TLS_CERT_FILE is NAME/cert.pem, GRPC_TLS_KEY_FILE is NAME/key.pem, GRPC_TLS_CA_FILE is
NAME/ca.pem. A certificate is for its name as a host, and for localhost; broker and database can
have one, too.

The CA's key is not kept. If a third of the validity or more is left, nothing is changed; otherwise all
certificates are replaced, and running services reload them. The previous CA stays accepted until the next
replacement: on several machines replace each ca.pem first, then the rest.`,
		Example: "  shop certs --dir /etc/shop/certs\n  shop certs --dir certs --force gateway order inventory logging webhooks db rabbitmq",
		Args:    func(_ *cobra.Command, names []string) error { return mtls.CheckNames(names...) },
		RunE: func(cmd *cobra.Command, names []string) error {
			if valid <= 0 {
				return cli.WrongUsage("--valid %s: certificates would be good for no time; give how long, 8760h for example", valid)
			}
			if len(names) == 0 {
				names = topology.Names()
			}
			if !force && mtls.VerifyCerts(dir, time.Now().Add(valid/3), names...) == nil {
				fmt.Fprintf(cmd.OutOrStdout(), "The certificates in %s are good.\n", dir)
				return nil
			}
			if err := mtls.GenerateDevCerts(dir, valid, names...); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "Made %d certificates in %s, good until %s.\n", len(names), dir, time.Now().Add(valid).Format(time.DateOnly))
			return nil
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "certs", "the folder to put them in")
	cmd.Flags().DurationVar(&valid, "valid", 365*24*time.Hour, "how long they are good")
	cmd.Flags().BoolVar(&force, "force", false, "make new ones although the old ones are good")
	return cmd
}
