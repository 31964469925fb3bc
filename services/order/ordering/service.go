// Package ordering is the order service: it decides placed orders with the help of inventory, stores them, and answers
// queries about them.
//
// OrderPlaced comes in batches from the queue (placed.go). Clients read and cancel orders over gRPC (grpc.go). Both use the
// states and totals of an order (order.go) and the database (store.go). The events of an order are added to the outbox in
// the transaction that stores it, and published by the relay. Other services ask which orders exist (intake.go). Personal
// data are exported and erased on request (personal.go).
package ordering

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/jmoiron/sqlx"

	"shop.example/db"
	"shop.example/domain/report"
	customerv1 "shop.example/gen/shop/customer/v1"
	inventoryv1 "shop.example/gen/shop/inventory/v1"
	orderv1 "shop.example/gen/shop/order/v1"
	"shop.example/platform/messaging"
	"shop.example/platform/mtls"
	"shop.example/platform/outbox"
	"shop.example/platform/postgres"
	"shop.example/platform/service"
	"shop.example/platform/telemetry"
	"shop.example/topology"
)

// Config is the service's configuration. The tags are those of github.com/caarlos0/env.
type Config struct {
	AMQPURL     string `env:"AMQP_URL,required,notEmpty"`
	DatabaseURL string `env:"DATABASE_URL,required,notEmpty"`
	GRPCAddr    string `env:"GRPC_ADDR" envDefault:"127.0.0.1:3001"`
	// TLS is the certificate that GRPCAddr is served with. Without it GRPCAddr must be a loopback address.
	TLS       mtls.Config
	AdminAddr string `env:"ADMIN_ADDR" envDefault:":3101"`
	// PprofAddr is the address to serve Go's profiles on, a loopback address.
	PprofAddr string `env:"PPROF_ADDR" envDefault:"127.0.0.1:0"`
	// StopDelay is how long a replica goes on serving, but not ready, before it stops.
	StopDelay time.Duration `env:"SHUTDOWN_DELAY"`
	// KeyRetention is how long an idempotency key belongs to its order, 30 days if it is 0. It must be longer than the time
	// within which the order's message can be delivered again: RedriveHorizon, plus the retries, plus a day in the queue.
	KeyRetention time.Duration `env:"IDEMPOTENCY_KEY_RETENTION"`
	// RedriveHorizon is how long a dead letter can be redriven, a week if it is 0. The logging service must have the same
	// value.
	RedriveHorizon time.Duration `env:"REDRIVE_HORIZON"`
	Telemetry      telemetry.Config
}

const (
	name   = topology.Order
	schema = "orders"
	// batch is how many placed orders are decided and stored together, at most. A transaction costs about the same for one
	// order as for many; larger batches gain little and make orders wait longer.
	batch = 500
	// linger is how long a batch waits for more orders. It adds to the time in which every order is decided, so it is
	// short.
	linger = 10 * time.Millisecond
)

// Service is one replica of the order service.
type Service struct {
	orderv1.UnimplementedOrderServiceServer
	*service.Service

	db         *sqlx.DB
	stock      inventoryv1.StockServiceClient
	wake       func() // tells the relay that the outbox has something new
	duplicates *outbox.Duplicates
	metrics    *metrics
	log        *slog.Logger
}

// New migrates the schema, opens the listeners and returns a service that works while Run runs. It waits for the database; the
// broker need not be available. A service that is not run must be closed.
func New(ctx context.Context, cfg Config, t *telemetry.Telemetry) (_ *Service, err error) {
	if cfg.KeyRetention, err = cfg.checkKeyRetention(); err != nil {
		return nil, err
	}
	base, err := service.New(ctx, service.Config{
		GRPCAddr: cfg.GRPCAddr, TLS: cfg.TLS, AdminAddr: cfg.AdminAddr, PprofAddr: cfg.PprofAddr, StopDelay: cfg.StopDelay, Transient: postgres.Transient,
		Prepare: func(ctx context.Context) error { return db.Prepare(ctx, cfg.DatabaseURL, schema, t.Logger) },
	}, t)
	if err != nil {
		return nil, err
	}
	s := &Service{Service: base, log: t.Logger}
	if err := s.build(ctx, cfg, t); err != nil {
		return nil, errors.Join(err, base.Close())
	}
	return s, nil
}

// build adds the parts of the service in the order in which they need each other.
func (s *Service) build(ctx context.Context, cfg Config, t *telemetry.Telemetry) (err error) {
	if s.db, err = postgres.Open(ctx, cfg.DatabaseURL, schema, postgres.Options{Application: name, Tracer: t.Tracer, Meter: t.Meter}); err != nil {
		return err
	}
	s.OnStop("database", postgres.Close(s.db))
	s.Check("database", postgres.Ready(s.db))

	publisher, consume, err := s.Broker(cfg.AMQPURL, topology.Broker(), name, t)
	if err != nil {
		return err
	}

	relay, err := outbox.NewRelay(s.db, publisher, outbox.Options{Logger: t.Logger, Meter: t.Meter})
	if err != nil {
		return err
	}
	s.wake = relay.Wake
	s.Go("relay", relay.Run)
	s.Check("outbox", relay.Ready)
	s.Sample("outbox", relay.Sample)

	if s.duplicates, err = outbox.NewDuplicates(t.Meter); err != nil {
		return err
	}
	if s.metrics, err = newMetrics(t.Meter); err != nil {
		return err
	}
	calls := messaging.NewRPCClient(consume, publisher)
	s.stock = inventoryv1.NewStockServiceClient(calls)
	s.Go("replies", calls.Run)
	s.Check("replies", calls.Ready)

	consumer := messaging.NewConsumer(consume, publisher, name,
		messaging.ConsumerOptions{Batch: batch, Linger: linger}, messaging.HandleWeighed(decisionSize, s.handleOrderPlaced))
	s.Go("consumer", consumer.Run)
	s.Check("consumer", consumer.Ready)

	s.Go("old idempotency keys", func(ctx context.Context) error {
		return postgres.KeepDeletingOlder(ctx, s.db, "idempotency_key", "claimed_at", cfg.KeyRetention, t.Logger)
	})

	orderv1.RegisterOrderServiceServer(s.GRPC(), s)
	orderv1.RegisterIntakeServiceServer(s.GRPC(), intakeServer{Service: s})
	customerv1.RegisterPersonalDataServiceServer(s.GRPC(), personalDataServer{Service: s})
	report.Serve(s.Service, report.Outbox(relay), s.reportRate)
	return nil
}
