// Package stock is the inventory service: the catalogue, and the stock that is held for orders and sold to them.
//
// Orders come as CheckStock calls over the broker (calls.go). decide decides for each order of a batch whether there is
// stock (decide.go); the store holds the stock and stores the decisions, in one transaction (store.go). Messages settle or
// release the holds (messages.go). Messages and gRPC calls change the catalogue (messages.go, calls.go, items.go). Changes
// of the stock are published through the outbox. The sweeper asks the order service about holds that nobody has settled
// (sweeper.go), and the logging service asks which events have not been handled yet (settlement.go).
package stock

import (
	"context"
	"errors"
	"fmt"
	"time"

	"shop.example/db"
	"shop.example/domain/money"
	"shop.example/domain/report"
	inventoryv1 "shop.example/gen/shop/inventory/v1"
	orderv1 "shop.example/gen/shop/order/v1"
	"shop.example/platform/apierror"
	"shop.example/platform/messaging"
	"shop.example/platform/mtls"
	"shop.example/platform/outbox"
	"shop.example/platform/postgres"
	"shop.example/platform/service"
	"shop.example/platform/telemetry"
	"shop.example/topology"
)

const (
	name   = topology.Inventory
	schema = "inventory"
	// checkWorkers is how many CheckStock calls are handled at a time. Calls about the same products wait for each other in
	// the database, so more would only occupy connections.
	checkWorkers = 4
)

// linger is how long a batch of messages, and of events to publish, waits for more. It delays no client: the stock is held
// already.
const linger = 20 * time.Millisecond

// Config is the configuration of the service. The tags are those of github.com/caarlos0/env.
type Config struct {
	AMQPURL     string `env:"AMQP_URL,required"`
	DatabaseURL string `env:"DATABASE_URL,required"`
	GRPCAddr    string `env:"GRPC_ADDR"     envDefault:"127.0.0.1:3002"`
	// TLS is the certificate that GRPCAddr is served with, and with which the order service is called. Without it both must
	// be on this machine.
	TLS       mtls.Config
	AdminAddr string `env:"ADMIN_ADDR"    envDefault:":3102"`
	// PprofAddr is the address to serve Go's profiles on, a loopback address.
	PprofAddr string `env:"PPROF_ADDR" envDefault:"127.0.0.1:0"`
	// StopDelay is how long a replica goes on serving, but not ready, before it stops.
	StopDelay time.Duration `env:"SHUTDOWN_DELAY"`
	// OrderAddr is the address of the order service's gRPC, which is asked about old holds.
	OrderAddr string `env:"ORDER_ADDR"    envDefault:"localhost:3001"`
	// HoldLimit is the age from which a hold counts as old, 15 min if it is 0. Less than 5 min is an error.
	HoldLimit time.Duration `env:"HOLD_LIMIT"`
	// Currency is the ISO 4217 code of the catalogue's only currency.
	Currency  string `env:"SHOP_CURRENCY" envDefault:"USD"`
	Retention outbox.Retention
	Telemetry telemetry.Config
}

// Service is one replica of the inventory service.
type Service struct{ *service.Service }

// New migrates the schema, opens the listeners and returns a service that works while Run runs. It waits for the database; the
// broker need not be available. A service that is not run must be closed.
func New(ctx context.Context, cfg Config, t *telemetry.Telemetry) (_ *Service, err error) {
	if cfg.Retention, err = cfg.Retention.Validate(); err != nil {
		return nil, err
	}
	if cfg.HoldLimit == 0 {
		cfg.HoldLimit = defaultHoldLimit
	}
	if cfg.HoldLimit < minHoldLimit {
		return nil, fmt.Errorf("HOLD_LIMIT is %s, but an order may still be on its way to being stored: set it to %s or more", cfg.HoldLimit, minHoldLimit)
	}
	if !money.Valid(cfg.Currency) {
		return nil, fmt.Errorf("SHOP_CURRENCY is %q: give a currency by its code in ISO 4217, USD for example", cfg.Currency)
	}
	base, err := service.New(ctx, service.Config{
		GRPCAddr: cfg.GRPCAddr, TLS: cfg.TLS, AdminAddr: cfg.AdminAddr, PprofAddr: cfg.PprofAddr, StopDelay: cfg.StopDelay, Transient: postgres.Transient,
		Prepare: func(ctx context.Context) error { return db.Prepare(ctx, cfg.DatabaseURL, schema, t.Logger) },
	}, t)
	if err != nil {
		return nil, err
	}
	s := &Service{base}
	if err := s.build(ctx, cfg, t); err != nil {
		return nil, errors.Join(err, base.Close())
	}
	return s, nil
}

// build adds the parts of the service in the order in which they need each other.
func (s *Service) build(ctx context.Context, cfg Config, t *telemetry.Telemetry) error {
	pool, err := postgres.Open(ctx, cfg.DatabaseURL, schema, postgres.Options{Application: name, Tracer: t.Tracer, Meter: t.Meter})
	if err != nil {
		return err
	}
	s.OnStop("database", postgres.Close(pool))
	s.Check("database", postgres.Ready(pool))
	if err := checkCurrency(ctx, pool, cfg.Currency); err != nil {
		return err
	}

	publisher, consume, err := s.Broker(cfg.AMQPURL, topology.Broker(), name, t)
	if err != nil {
		return err
	}

	relay, err := outbox.NewRelay(pool, publisher, outbox.Options{Linger: linger, InboxRetention: cfg.Retention.Inbox, Logger: t.Logger, Meter: t.Meter})
	if err != nil {
		return err
	}
	s.Go("relay", relay.Run)
	s.Check("outbox", relay.Ready)
	s.Sample("outbox", relay.Sample)

	repeats, err := outbox.NewDuplicates(t.Meter)
	if err != nil {
		return err
	}
	st := &store{db: pool, log: t.Logger, currency: cfg.Currency, wake: relay.Wake, repeats: repeats}
	consumer := messaging.NewConsumer(consume, publisher, name,
		messaging.ConsumerOptions{Linger: linger}, st.handlers(publisher)...)
	s.Go("consumer", consumer.Run)
	s.Check("consumer", consumer.Ready)

	calls := messaging.NewRPCServer(consume, publisher, checkWorkers, apierror.NewInterceptor(t.Logger, postgres.Transient...).Unary)
	inventoryv1.RegisterStockServiceServer(calls, stockServer{store: st})
	s.Go("stock checks", calls.Run)
	s.Check("stock checks", calls.Ready)

	inventoryv1.RegisterInventoryServiceServer(s.GRPC(), inventoryServer{store: st})
	inventoryv1.RegisterSettlementServiceServer(s.GRPC(), settlementServer{store: st})
	report.Serve(s.Service, report.Outbox(relay))

	orders, err := s.DialService("ORDER_ADDR", cfg.OrderAddr, cfg.TLS)
	if err != nil {
		return err
	}
	sweeper, err := newSweeper(st, orderv1.NewOrderServiceClient(orders), cfg.HoldLimit, t.Meter)
	if err != nil {
		return err
	}
	s.Go("sweeper", sweeper.run)
	s.Sample("holds", sweeper.sample)
	s.Go("old idempotency keys", func(ctx context.Context) error {
		return postgres.KeepDeletingOlder(ctx, pool, "idempotency_key", "claimed_at", cfg.Retention.Inbox, t.Logger)
	})
	return nil
}
