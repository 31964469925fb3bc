package service_test

import (
	"context"
	"database/sql"
	"os"

	"github.com/caarlos0/env/v11"

	orderv1 "shop.example/gen/shop/order/v1"
	"shop.example/platform/mtls"
	"shop.example/platform/service"
	"shop.example/platform/telemetry"
)

// Config is a service's configuration; the fields of telemetry.Config have tags of their own.
type Config struct {
	GRPCAddr string `env:"GRPC_ADDR" envDefault:"127.0.0.1:3001"`
	// TLS is for GRPCAddr to be open to other machines.
	TLS         mtls.Config
	AdminAddr   string `env:"ADMIN_ADDR" envDefault:":3101"`
	DatabaseURL string `env:"DATABASE_URL,required"`
	Telemetry   telemetry.Config
}

// New adds the parts in the order in which they need each other.
func New(ctx context.Context, cfg Config, t *telemetry.Telemetry) (*service.Service, error) {
	s, err := service.New(ctx, service.Config{
		GRPCAddr: cfg.GRPCAddr, TLS: cfg.TLS, AdminAddr: cfg.AdminAddr, Transient: []error{sql.ErrConnDone},
	}, t)
	if err != nil {
		return nil, err
	}
	db, err := sql.Open("postgres", cfg.DatabaseURL)
	if err != nil {
		_ = s.Close()
		return nil, err
	}
	s.OnStop("database", db.Close)
	s.Check("database", db.PingContext)
	s.Go("expiry", func(ctx context.Context) error {
		<-ctx.Done() // or work until then
		return nil
	})
	orderv1.RegisterOrderServiceServer(s.GRPC(), &orders{})
	return s, nil
}

// A service's main reads its configuration, builds the service and runs it.
func Example() {
	service.Main("order", func(ctx context.Context) error {
		cfg, err := env.ParseAs[Config]()
		if err != nil {
			return err
		}
		if len(os.Args) == 2 && os.Args[1] == "healthcheck" {
			return service.Probe(ctx, cfg.AdminAddr)
		}
		cfg.Telemetry.Service = "order"
		t, err := telemetry.New(ctx, cfg.Telemetry)
		if err != nil {
			return err
		}
		defer t.Shutdown(ctx)
		s, err := New(ctx, cfg, t)
		if err != nil {
			return err
		}
		return s.Run(ctx)
	})
}
