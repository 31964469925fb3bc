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

const (
	name   = "inventory"
	schema = "inventory"
	// callers is how many CheckStock calls are answered at the same time. Calls that name the same products wait for
	// each other in the database, so more would only hold connections.
	callers = 4
)

// Config is the configuration of the service. The tags are those of github.com/caarlos0/env.
type Config struct {
	AMQPURL     string `env:"AMQP_URL,required"`
	DatabaseURL string `env:"DATABASE_URL,required"`
	GRPCAddr    string `env:"GRPC_ADDR"     envDefault:":3002"`
	AdminAddr   string `env:"ADMIN_ADDR"    envDefault:":3102"`
	// Currency is the ISO 4217 code of the one currency that the catalogue has.
	Currency  string `env:"SHOP_CURRENCY" envDefault:"USD"`
	Telemetry telemetry.Config
}

// Service is one replica of the inventory service.
type Service struct{ *service.Service }

// New migrates the schema, opens the listeners and returns a service that does nothing until Run. A service that is not
// run must be closed. The database has to be there; the broker may come later.
func New(ctx context.Context, cfg Config, t *telemetry.Telemetry) (*Service, error) {
	applied, err := db.Migrate(ctx, cfg.DatabaseURL, schema)
	if err != nil {
		return nil, err
	}
	if len(applied) > 0 {
		t.Logger.InfoContext(ctx, "database migrated", "applied", applied)
	}
	base, err := service.New(service.Config{GRPCAddr: cfg.GRPCAddr, AdminAddr: cfg.AdminAddr, Transient: transient}, t)
	if err != nil {
		return nil, err
	}
	s := &Service{base}
	if err := s.build(ctx, cfg, t); err != nil {
		return nil, errors.Join(err, base.Close())
	}
	return s, nil
}

// transient are the errors after which the same call can succeed.
var transient = []error{postgres.ErrUnavailable, postgres.ErrRetry}

// build adds the parts of the service in the order in which they need each other.
func (s *Service) build(ctx context.Context, cfg Config, t *telemetry.Telemetry) error {
	pool, err := postgres.Open(ctx, cfg.DatabaseURL, schema, postgres.Options{Application: name, Tracer: t.Tracer, Meter: t.Meter})
	if err != nil {
		return err
	}
	s.OnStop("database", pool.Close)
	s.Check("database", pool.PingContext)

	broker := messaging.Options{Service: name, Role: "publish", Logger: t.Logger, Meter: t.Meter, Tracer: t.Tracer}
	publish, err := messaging.Dial(cfg.AMQPURL, broker)
	if err != nil {
		return err
	}
	broker.Role = "consume"
	consume, err := messaging.Dial(cfg.AMQPURL, broker)
	if err != nil {
		return err
	}
	publisher := messaging.NewPublisher(publish)
	s.Go("broker, publishing", publish.Run)
	s.Go("broker, consuming", consume.Run)
	s.Go("publisher", publisher.Run)
	s.Check("broker", publish.Ready)

	relay, err := outbox.NewRelay(pool, publisher, outbox.Options{Logger: t.Logger, Meter: t.Meter})
	if err != nil {
		return err
	}
	s.Go("relay", relay.Run)
	s.Check("outbox", relay.Ready)

	w := &warehouse{db: pool, log: t.Logger, currency: cfg.Currency, wake: relay.Wake}
	consumer := messaging.NewConsumer(consume, publisher, messaging.InventoryQueue, messaging.ConsumerOptions{}, w.handlers(publisher)...)
	s.Go("consumer", consumer.Run)
	s.Check("consumer", consumer.Ready)

	calls := messaging.NewRPCServer(consume, publisher, callers, apierror.NewInterceptor(t.Logger, transient...).Unary)
	inventoryv1.RegisterStockServiceServer(calls, checker{warehouse: w})
	s.Go("stock checks", calls.Run)
	s.Check("stock checks", calls.Ready)

	inventoryv1.RegisterInventoryServiceServer(s.GRPC(), catalogue{warehouse: w})
	return nil
}
