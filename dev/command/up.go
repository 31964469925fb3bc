package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"time"

	"github.com/caarlos0/env/v11"
	"github.com/spf13/cobra"

	"shop.example/db"
	"shop.example/dev/local"
	"shop.example/dev/stack"
	"shop.example/platform/messaging/provision"
	"shop.example/platform/service"
	"shop.example/platform/telemetry"
	"shop.example/shop/cli"
	"shop.example/shop/workspace"
	"shop.example/topology"
)

func upCommand() *cobra.Command {
	var demo, observe, verbose bool
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Run the whole shop on this machine until Ctrl-C",
		Long: "Runs all services in one process (" + strings.Join(topology.Names(), ", ") + `), on localhost:3000, on a
PostgreSQL and a RabbitMQ of their own unless DATABASE_URL and AMQP_URL name others. The data stays under
.shop/up. Other machines reach it where HTTP_ADDR says so: HTTP_ADDR=:3000.

It is configured by these variables; docs/configuration.md says what each of them means:
` + variables(),
		Example: "  shopdev up\n  shopdev up --demo\n  shopdev up --observe\n  HTTP_ADDR=127.0.0.1:8080 LOG_LEVEL=debug shopdev up",
		Args:    cli.Args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			here, err := workspace.Up()
			if err != nil {
				return err
			}
			var prometheus *observer
			if observe {
				if prometheus, err = newObserver(); err != nil {
					return err
				}
			}
			out, broker := cmd.ErrOrStderr(), ""
			return withShop(cmd.Context(), here, false, out, func(cfg *local.Config, servers *stack.Stack) {
				broker = servers.MetricsAddr
				setVerbosity(cfg, verbose)
				if demo {
					addDemoFeatures(cfg)
				}
			}, func(ctx context.Context, s *running) error {
				fmt.Fprintf(out, "\n%s\n", s.greeting())
				if prometheus != nil {
					err := prometheus.run(ctx, s.AdminAddrs(), broker, out, func(url string) {
						fmt.Fprintf(out, "\n  Metrics and alerts:              %s\n", url)
					})
					if err != nil {
						return err
					}
				}
				<-ctx.Done()
				fmt.Fprintln(out, "stopping …")
				return nil
			})
		},
	}
	cmd.Flags().BoolVar(&demo, "demo", false, "add calls for operators that break the shop to show that it holds (GET /demo)")
	addVerbose(cmd, &verbose)
	cmd.Flags().BoolVar(&observe, "observe", false, "start Prometheus with the shop's alerts, and the audit, beside it")
	return cmd
}

func addVerbose(cmd *cobra.Command, verbose *bool) {
	cmd.Flags().BoolVarP(verbose, "verbose", "v", false, "show what the services log; else only warnings and errors, unless LOG_LEVEL is set")
}

// setVerbosity lowers the services' log level to warnings, unless verbose is set.
func setVerbosity(cfg *local.Config, verbose bool) {
	if !verbose && os.Getenv("LOG_LEVEL") == "" {
		cfg.Telemetry.LogLevel = slog.LevelWarn
	}
}

// variables returns a list of the environment variables of shopdev up, with their defaults.
func variables() string {
	fields, err := env.GetFieldParams(&local.Config{})
	if err != nil {
		return "  " + err.Error()
	}
	var list strings.Builder
	for _, name := range []string{"AMQP_URL", "DATABASE_URL"} { // the stack's
		fmt.Fprintf(&list, "\n  %s", name)
	}
	for _, field := range fields {
		if field.Key == "" {
			continue
		}
		fmt.Fprintf(&list, "\n  %s", strings.TrimSpace(fmt.Sprintf("%-22s%s", field.Key, field.DefaultValue)))
	}
	fmt.Fprintf(&list, "\n  %s", "OTEL_EXPORTER_OTLP_ENDPOINT")
	return list.String()
}

// running is a shop that is ready.
type running struct {
	*local.Shop
	cfg local.Config
	url string // of the gateway
}

func (s *running) greeting() string {
	return fmt.Sprintf(`The shop is open at %s until Ctrl-C. Operator token: %s

  The front page, as a customer:   %[1]s
  and as an operator:              %[1]s/#token=%[2]s

  curl -s %[1]s/v1/inventory
  grpcurl -plaintext %[3]s list`, s.url, s.cfg.OperatorToken, strings.TrimPrefix(s.url, "http://"))
}

// withShop starts servers with the data in here, and the shop on them; calls use when the shop is ready; and stops both
// when use returns, ctx ends or a service fails. throwAway deletes the servers' data in the end.
func withShop(ctx context.Context, here workspace.Shop, throwAway bool, progress io.Writer, configure func(*local.Config, *stack.Stack), use func(context.Context, *running) error) (err error) {
	service.TuneGC()
	cfg := local.Config{}
	if err := env.Parse(&cfg); err != nil {
		return fmt.Errorf("reading the environment: %w", err)
	}
	report := cfg.Telemetry
	report.Service = "shop"
	log := slog.New(telemetry.NewHandler(report))
	telemetry.LogLibraries(log)
	stopProfiles, err := service.StartProfiles(log)
	if err != nil {
		return err
	}
	defer stopProfiles()
	servers, err := stack.Start(ctx, stack.Options{Dir: string(here), Progress: progress})
	if err != nil {
		return err
	}
	defer func() {
		end := servers.Stop
		if throwAway {
			end = servers.Remove
		}
		err = errors.Join(err, here.ForgetURLs(), end())
	}()
	start := time.Now()
	if err := secrets(here, &cfg); err != nil {
		return err
	}
	if cfg.AMQPURLs, err = brokers(ctx, here, servers); err != nil {
		return err
	}
	if cfg.DatabaseURLs, err = databases(ctx, here, servers); err != nil {
		return err
	}
	configure(&cfg, servers)
	shop, err := local.New(ctx, cfg)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() {
		err := shop.Run(ctx)
		cancel()
		ended <- err
	}()
	err = shop.WaitReady(ctx)
	if err == nil {
		fmt.Fprintf(progress, "shop ready (%.1f s)\n", time.Since(start).Seconds())
		err = use(ctx, &running{Shop: shop, cfg: cfg, url: "http://" + localhost(shop.Gateway.HTTPAddr())})
	}
	cancel()
	if runErr := <-ended; runErr != nil {
		return runErr // it is the cause of what use met
	}
	return err
}

// brokers returns the broker's URL for each service. On a broker of our own each service has its user; on one that AMQP_URL
// names all use that URL's user, because we do not create users there.
func brokers(ctx context.Context, here workspace.Shop, servers *stack.Stack) (map[string]string, error) {
	if os.Getenv("AMQP_URL") != "" {
		return local.OneBroker(servers.AMQPURL), nil
	}
	urls, logins := map[string]string{}, map[string]provision.Login{}
	for _, service := range topology.Names() {
		password, err := here.Secret(service + "-amqp-password")
		if err != nil {
			return nil, err
		}
		logins[service] = provision.Login{User: service, Password: password}
		if urls[service], err = logins[service].URL(servers.AMQPURL); err != nil {
			return nil, err
		}
	}
	if err := provision.Users(ctx, topology.Broker(), servers.ManagementURL, "/", logins); err != nil {
		return nil, err
	}
	if err := provision.Compare(ctx, topology.Broker(), servers.ManagementURL, "/"); err != nil {
		return nil, err
	}
	return urls, here.KeepAMQPURL(servers.AMQPURL)
}

// databases creates and migrates the shop's database on the server and returns its URL for each schema. On a server of our
// own each service has its role; on one that DATABASE_URL names all use that URL's role, because we do not create roles
// there.
func databases(ctx context.Context, here workspace.Shop, servers *stack.Stack) (map[string]string, error) {
	if os.Getenv("DATABASE_URL") != "" {
		urls := map[string]string{}
		for _, schema := range db.Schemas() {
			urls[schema] = servers.DatabaseURL
		}
		return urls, nil
	}
	urls, passwords := map[string]string{}, map[string]string{}
	for _, role := range db.Schemas() {
		var err error
		if passwords[role], err = here.Secret(role + "-password"); err != nil {
			return nil, err
		}
		if urls[role], err = db.URL(servers.DatabaseURL, role, passwords[role]); err != nil {
			return nil, err
		}
	}
	if err := db.Bootstrap(ctx, servers.DatabaseURL, passwords); err != nil {
		return nil, err
	}
	return urls, here.KeepDatabaseURLs(urls)
}

// secrets sets the secrets that the environment does not set.
func secrets(here workspace.Shop, cfg *local.Config) (err error) {
	if cfg.OperatorToken == "" {
		if cfg.OperatorToken, err = here.NewOperatorToken(); err != nil {
			return err
		}
	}
	if cfg.IDSecret == "" {
		cfg.IDSecret, err = here.Secret("id-secret")
	}
	return err
}

// localhost turns a listener's address into one that can be called from this machine.
func localhost(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	if ip := net.ParseIP(host); host == "" || ip.IsUnspecified() || host == "127.0.0.1" || host == "::1" {
		host = "localhost"
	}
	return net.JoinHostPort(host, port)
}
