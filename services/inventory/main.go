// Command inventory runs the inventory service. Its configuration is in the environment; see stock.Config. `inventory
// healthcheck` asks the running one whether it is ready.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/caarlos0/env/v11"

	"shop.example/platform/service"
	"shop.example/platform/telemetry"
	"shop.example/services/inventory/stock"
)

func main() { service.Main("inventory", run) }

func run(ctx context.Context) error {
	cfg := stock.Config{Telemetry: telemetry.Config{Service: "inventory"}}
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
	s, err := stock.New(ctx, cfg, t)
	if err != nil {
		return err
	}
	return s.Run(ctx)
}
