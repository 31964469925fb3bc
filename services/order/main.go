// Command order runs the order service. It is configured by the environment variables of ordering.Config.
package main

import (
	"context"

	"github.com/caarlos0/env/v11"

	"shop.example/platform/service"
	"shop.example/platform/telemetry"
	"shop.example/services/order/ordering"
)

func main() { service.Main("order", run) }

func run(ctx context.Context) error {
	cfg, err := env.ParseAs[ordering.Config]()
	if err != nil {
		return err
	}
	cfg.Telemetry.Service = "order"
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
