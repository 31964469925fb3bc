// Command webhooks runs the webhooks service. It is configured by the environment variables of webhook.Config.
// `webhooks healthcheck` asks the running one whether it is ready.
package main

import (
	"context"
	"os"

	"github.com/caarlos0/env/v11"

	"shop.example/platform/service"
	"shop.example/platform/telemetry"
	"shop.example/services/webhooks/webhook"
)

func main() { service.Main("webhooks", run) }

func run(ctx context.Context) error {
	cfg, err := env.ParseAs[webhook.Config]()
	if err != nil {
		return err
	}
	if len(os.Args) > 1 && os.Args[1] == "healthcheck" {
		return service.Probe(ctx, cfg.AdminAddr)
	}
	cfg.Telemetry.Service = "webhooks"
	t, err := telemetry.New(ctx, cfg.Telemetry)
	if err != nil {
		return err
	}
	defer t.Shutdown(ctx)
	s, err := webhook.New(ctx, cfg, t)
	if err != nil {
		return err
	}
	return s.Run(ctx)
}
