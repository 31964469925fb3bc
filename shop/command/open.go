package command

import (
	"context"
	"fmt"
	"net/url"
	"os/exec"
	"runtime"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"shop.example/shop/cli"
)

func openCommand() *cobra.Command {
	var (
		shop    gateway
		browser bool
	)
	cmd := &cobra.Command{
		Use:   "open",
		Short: "Print the link to the shop's page, for operators if there is a token; --browser opens it, too",
		Long: `Prints the link to the page of a shop, once that answers. If there is an operator token the link has it, and the
page shows what operators see: keep it to yourself. Otherwise it is the customers' link.

With --browser it is opened, too. While the browser starts, others who use this machine can see the link in
the list of processes.`,
		Example: "  shop open\n  shop open --browser",
		Args:    cli.Args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			err := shop.with(func(conn *grpc.ClientConn) error {
				_, err := healthv1.NewHealthClient(conn).Check(cmd.Context(), &healthv1.HealthCheckRequest{})
				return err
			})
			if err != nil {
				return err
			}
			link, err := shop.pageLink()
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), link)
			if shop.token == "" {
				fmt.Fprintln(cmd.ErrOrStderr(), "This is the customers' link. For that of operators "+giveToken+".")
			}
			if browser {
				return openBrowser(cmd.Context(), link)
			}
			return nil
		},
	}
	shop.flags(cmd)
	cmd.Flags().BoolVar(&browser, "browser", false, "open it in the browser of this machine")
	return cmd
}

// pageLink is the address of the shop's page. Browsers keep what is behind the # to themselves.
func (g *gateway) pageLink() (string, error) {
	target, secure, err := g.locate()
	if err != nil {
		return "", err
	}
	link := url.URL{Scheme: "http", Host: target, Path: "/"}
	if secure {
		link.Scheme = "https"
	}
	if g.token == "" {
		return link.String(), nil
	}
	return link.String() + "#token=" + url.QueryEscape(g.token), nil
}

// browserCommands open a link, by operating system.
var browserCommands = map[string][]string{
	"darwin":  {"open"},
	"windows": {"rundll32", "url.dll,FileProtocolHandler"},
}

func openBrowser(ctx context.Context, link string) error {
	command, ok := browserCommands[runtime.GOOS]
	if !ok {
		command = []string{"xdg-open"}
	}
	if err := exec.CommandContext(ctx, command[0], append(command[1:], link)...).Run(); err != nil {
		return fmt.Errorf("opening the browser: %w; open the link yourself", err)
	}
	return nil
}
