// Command gateway serves the shop's API, REST and gRPC on one port. Its configuration is in the environment; see
// server.Config. `gateway healthcheck` asks the running one whether it is ready.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/caarlos0/env/v11"

	"shop.example/gateway/server"
	"shop.example/platform/service"
	"shop.example/platform/telemetry"
)

func main() { service.Main("gateway", run) }

func run(ctx context.Context) error {
	cfg := server.Config{Telemetry: telemetry.Config{Service: "gateway"}}
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
	s, err := server.New(ctx, cfg, t)
	if err != nil {
		return err
	}
	return s.Run(ctx)
}
