// Package stock is the inventory service: the catalogue, and the stock that is held for orders and sold to them.
//
// Orders come as CheckStock calls over the broker: decide answers a batch of them, and the warehouse holds their stock
// and keeps the answers in one transaction. Messages settle the holds, or give them back, and maintain the catalogue, as
// gRPC calls do. What changes is announced through the outbox.
package stock

import (
	"context"
	"errors"

	"shop.example/db"
	inventoryv1 "shop.example/gen/shop/inventory/v1"
	"shop.example/platform/apierror"
	"shop.example/platform/messaging"
	"shop.example/platform/outbox"
	"shop.example/platform/postgres"
	"shop.example/platform/service"
	"shop.example/platform/telemetry"
)

const schema = "inventory"

// checks is how many CheckStock calls are answered at the same time. Calls that name the same products wait for each
// other in the database, so more would only hold connections.
const checks = 4

// Config is the service's configuration. The tags are those of github.com/caarlos0/env.
type Config struct {
	AMQPURL     string `env:"AMQP_URL,required"`
	DatabaseURL string `env:"DATABASE_URL,required"`
	GRPCAddr    string `env:"GRPC_ADDR"     envDefault:":3002"`
	AdminAddr   string `env:"ADMIN_ADDR"    envDefault:":3102"`
	// Currency is the ISO 4217 code of the catalogue's only currency.
	Currency string `env:"SHOP_CURRENCY" envDefault:"USD"`
	// Telemetry says how the service logs.
	Telemetry telemetry.Config
}

// Service is one running replica of the inventory service.
type Service struct{ *service.Service }

// New migrates the service's schema, opens its listeners and returns a service that does nothing until Run. A service
// that is not run must be closed.
func New(ctx context.Context, cfg Config, t *telemetry.Telemetry) (_ *Service, err error) {
	if _, err := db.Migrate(ctx, cfg.DatabaseURL, schema); err != nil {
		return nil, err
	}
	transient := []error{postgres.ErrUnavailable, postgres.ErrRetry}
	s, err := service.New(service.Config{GRPCAddr: cfg.GRPCAddr, AdminAddr: cfg.AdminAddr, Transient: transient}, t)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	pool, err := postgres.Open(ctx, cfg.DatabaseURL, schema, postgres.Options{Application: "inventory", Tracer: t.Tracer, Meter: t.Meter})
	if err != nil {
		return nil, err
	}
	s.OnStop("database", pool.Close)
	s.Check("database", pool.PingContext)

	publishing, err := dial(cfg, t, s, "publish")
	if err != nil {
		return nil, err
	}
	publisher := messaging.NewPublisher(publishing)
	s.Go("publisher", publisher.Run)
	relay, err := outbox.NewRelay(pool, publisher, outbox.Options{Logger: t.Logger, Meter: t.Meter})
	if err != nil {
		return nil, err
	}
	s.Go("relay", relay.Run)
	s.Check("outbox", relay.Ready)
	w := &warehouse{db: pool, log: t.Logger, currency: cfg.Currency, wake: relay.Wake}

	consuming, err := dial(cfg, t, s, "consume")
	if err != nil {
		return nil, err
	}
	consumer := messaging.NewConsumer(consuming, publisher, messaging.InventoryQueue, messaging.ConsumerOptions{}, w.handlers(publisher)...)
	s.Go("consumer", consumer.Run)
	s.Check("consumer", consumer.Ready)
	calls := messaging.NewRPCServer(consuming, publisher, checks, apierror.NewInterceptor(t.Logger, transient...).Unary)
	inventoryv1.RegisterStockServiceServer(calls, checker{warehouse: w})
	s.Go("stock checks", calls.Run)
	s.Check("stock checks", calls.Ready)

	inventoryv1.RegisterInventoryServiceServer(s.GRPC(), catalogue{warehouse: w})
	return &Service{s}, nil
}

// dial adds a connection to the broker to the service.
func dial(cfg Config, t *telemetry.Telemetry, s *service.Service, role string) (*messaging.Connection, error) {
	conn, err := messaging.Dial(cfg.AMQPURL, messaging.Options{
		Service: "inventory", Role: role, Logger: t.Logger, Meter: t.Meter, Tracer: t.Tracer,
	})
	if err != nil {
		return nil, err
	}
	s.Go("broker, "+role, conn.Run)
	s.Check("broker, "+role, conn.Ready)
	return conn, nil
}
