// Command order runs the order service. Its configuration is in the environment; see ordering.Config. `order
// healthcheck` asks the running one whether it is ready.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/caarlos0/env/v11"

	"shop.example/platform/service"
	"shop.example/platform/telemetry"
	"shop.example/services/order/ordering"
)

func main() { service.Main("order", run) }

func run(ctx context.Context) error {
	cfg := ordering.Config{Telemetry: telemetry.Config{Service: "order"}}
	if err := env.Parse(&cfg); err != nil {
		return fmt.Errorf("reading the configuration: %w", err)
	}
	if len(os.Args) > 1 && os.Args[1] == "healthcheck" {
		return service.Probe(ctx, cfg.AdminAddr)
	}
	t, err := telemetry.New(ctx, cfg.Telemetry)
	if err != nil {
		return err
	}
	defer t.Shutdown(ctx)
	s, err := ordering.New(ctx, cfg, t)
	if err != nil {
		return err
	}
	return s.Run(ctx)
}
