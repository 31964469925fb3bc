// Package eventlog is the logging service: it stores every event once, and messages that could not be handled until an
// operator has decided about them.
//
// Messages come in batches from the queue and become rows of event_log (store.go, record.go), which has a partition for
// each day (partition.go). Dead letters come from a queue of their own (dead_letter.go). Clients read both over gRPC
// (grpc.go), and the log as a stream too (stream.go). Events that were logged but never reached the service that handles
// them are found (reconcile.go, unhandled.go) and sent again (resend.go). Operators' actions are recorded
// (operator_action.go), and what the last audit has found (audit.go). All else is deleted after its retention
// (retention.go), and personal data on request (personal.go).
package eventlog

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
	loggingv1 "shop.example/gen/shop/logging/v1"
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
	GRPCAddr    string `env:"GRPC_ADDR" envDefault:"127.0.0.1:3003"`
	// TLS is the certificate that GRPCAddr is served with, and with which order and inventory are called. Without it all
	// must be on this machine.
	TLS       mtls.Config
	AdminAddr string `env:"ADMIN_ADDR" envDefault:":3103"`
	// PprofAddr is the address to serve Go's profiles on, a loopback address.
	PprofAddr string `env:"PPROF_ADDR" envDefault:"127.0.0.1:0"`
	// StopDelay is how long a replica goes on serving, but not ready, before it stops.
	StopDelay time.Duration `env:"SHUTDOWN_DELAY"`
	// OrderAddr and InventoryAddr are the addresses of order's and inventory's gRPC, which are asked which events they have
	// handled.
	OrderAddr     string `env:"ORDER_ADDR" envDefault:"localhost:3001"`
	InventoryAddr string `env:"INVENTORY_ADDR" envDefault:"localhost:3002"`
	// Retention is how long events are kept, and dead letters that were decided about: a whole number of days (720h is 30
	// days), 0 for ever. Records of operators' actions are kept at least for three years, and at least as long as events.
	Retention time.Duration `env:"EVENT_LOG_RETENTION" envDefault:"9600h"`
	// Messages says how long dead letters can be redriven.
	Messages  outbox.Retention
	Telemetry telemetry.Config
}

const (
	name   = topology.Logging
	schema = "logging"
	// batch is how many events are written together, at most. One worker writes them, so that the events of an order
	// are in the log in the order of the queue.
	batch = 500
	// linger is how long a batch waits for more events. It delays what readers of the log see.
	linger = 20 * time.Millisecond
)

// Service is one replica of the logging service.
type Service struct {
	*service.Service

	db         *sqlx.DB
	pub        *messaging.Publisher
	broker     *messaging.Connection // that it consumes over
	orders     orderv1.IntakeServiceClient
	partitions *partitions
	tail       *tail
	reconciler *reconciler
	horizon    time.Duration // for how long a dead letter can be redriven
	log        *slog.Logger
}

// New migrates the schema, opens the listeners and returns a service that works while Run runs. It waits for the database; the
// broker need not be available. A service that is not run must be closed.
func New(ctx context.Context, cfg Config, t *telemetry.Telemetry) (_ *Service, err error) {
	if cfg.Retention < 0 {
		return nil, errors.New("EVENT_LOG_RETENTION is negative: give how long events are kept, 720h for example, or 0 to keep them for ever")
	}
	if cfg.Messages, err = cfg.Messages.Validate(); err != nil {
		return nil, err
	}
	base, err := service.New(ctx, service.Config{
		GRPCAddr: cfg.GRPCAddr, TLS: cfg.TLS, AdminAddr: cfg.AdminAddr, PprofAddr: cfg.PprofAddr, StopDelay: cfg.StopDelay, Transient: postgres.Transient,
		Prepare: func(ctx context.Context) error { return db.Prepare(ctx, cfg.DatabaseURL, schema, t.Logger) },
	}, t)
	if err != nil {
		return nil, err
	}
	s := &Service{Service: base, horizon: cfg.Messages.RedriveHorizon, log: t.Logger}
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

	s.partitions = &partitions{db: s.db, log: t.Logger, retention: cfg.Retention, horizon: s.horizon}
	s.partitions.tryMaintain(ctx)
	s.Go("partitions", s.partitions.run)

	publisher, consume, err := s.Broker(cfg.AMQPURL, topology.Broker(), name, t)
	if err != nil {
		return err
	}
	s.pub, s.broker = publisher, consume

	events := messaging.NewConsumer(consume, s.pub, name,
		messaging.ConsumerOptions{Batch: batch, Linger: linger}, messaging.HandleRaw(s.logEvents))
	s.Go("consumer", events.Run)
	s.Check("consumer", events.Ready)
	deadLetters := messaging.NewConsumer(consume, s.pub, messaging.DeadLetterQueue,
		messaging.ConsumerOptions{Batch: 50}, messaging.HandleRaw(s.storeDeadLetters))
	s.Go("consumer of dead letters", deadLetters.Run)
	s.Check("consumer of dead letters", deadLetters.Ready)

	open, err := newOpenDeadLetters(s.db, t.Meter)
	if err != nil {
		return err
	}
	s.Sample("dead letters", open.sample)

	if err := s.buildReconciler(cfg, t); err != nil {
		return err
	}
	s.tail = newTail(s.db, t.Logger)
	s.Go("tail", s.tail.run)
	loggingv1.RegisterEventLogServiceServer(s.GRPC(), eventLogServer{Service: s})
	loggingv1.RegisterDeadLetterServiceServer(s.GRPC(), deadLetterServer{Service: s})
	loggingv1.RegisterOperatorActionServiceServer(s.GRPC(), operatorActionServer{Service: s})
	loggingv1.RegisterAuditServiceServer(s.GRPC(), auditServer{Service: s})
	customerv1.RegisterPersonalDataServiceServer(s.GRPC(), personalDataServer{Service: s})
	report.Serve(s.Service)
	return nil
}

func (s *Service) buildReconciler(cfg Config, t *telemetry.Telemetry) error {
	order, err := s.DialService("ORDER_ADDR", cfg.OrderAddr, cfg.TLS)
	if err != nil {
		return err
	}
	inventory, err := s.DialService("INVENTORY_ADDR", cfg.InventoryAddr, cfg.TLS)
	if err != nil {
		return err
	}
	s.orders = orderv1.NewIntakeServiceClient(order)
	s.reconciler, err = newReconciler(s.db, s.pub, s.broker, s.orders, inventoryv1.NewSettlementServiceClient(inventory), t.Logger, t.Meter)
	if err != nil {
		return err
	}
	s.reconciler.retention = cfg.Retention
	s.Go("reconciler", s.reconciler.run)
	s.Go("closed events", func(ctx context.Context) error {
		return postgres.KeepDeletingOlder(ctx, s.db, "unhandled_event", "closed_at", closedRetention, t.Logger)
	})
	return nil
}
