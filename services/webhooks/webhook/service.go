// Package webhook is the webhooks service: it sends events to the URLs of whoever wants to know of them.
//
// One replica follows the log of events and writes a delivery for each webhook that wants an event (follow.go). All replicas
// share the deliveries: each leases webhooks, and sends to those it has leased (deliver.go) what is signed as Standard
// Webhooks has it (send.go), to addresses that it may call (network.go). Webhooks are created, changed and read over gRPC
// (grpc.go, store.go), and what names a person is exported and erased (personal.go).
package webhook

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"

	"shop.example/db"
	"shop.example/domain/report"
	customerv1 "shop.example/gen/shop/customer/v1"
	loggingv1 "shop.example/gen/shop/logging/v1"
	webhooksv1 "shop.example/gen/shop/webhooks/v1"
	"shop.example/platform/mtls"
	"shop.example/platform/outbox"
	"shop.example/platform/postgres"
	"shop.example/platform/service"
	"shop.example/platform/telemetry"
	"shop.example/topology"
)

// Config is the service's configuration. The tags are those of github.com/caarlos0/env. Of the numbers and times, 0 is the
// default.
type Config struct {
	AMQPURL     string `env:"AMQP_URL,required,notEmpty"`
	DatabaseURL string `env:"DATABASE_URL,required,notEmpty"`
	GRPCAddr    string `env:"GRPC_ADDR" envDefault:"127.0.0.1:3004"`
	// TLS is for GRPCAddr to be open to other machines, and for LoggingAddr to be on another.
	TLS       mtls.Config
	AdminAddr string `env:"ADMIN_ADDR" envDefault:":3104"`
	// PprofAddr is where Go's profiles are served, for this machine alone.
	PprofAddr string `env:"PPROF_ADDR" envDefault:"127.0.0.1:0"`
	// StopDelay is how long the service goes on working after it was told to stop, not ready.
	StopDelay time.Duration `env:"SHUTDOWN_DELAY"`
	// LoggingAddr is where the log of events is read.
	LoggingAddr string `env:"LOGGING_ADDR" envDefault:"localhost:3003"`
	Delivery    Delivery
	Telemetry   telemetry.Config
}

// Delivery says how events are delivered.
type Delivery struct {
	// Timeout bounds one attempt, from connecting to the end of the answer; 15 s by default.
	Timeout time.Duration `env:"WEBHOOK_TIMEOUT"`
	// FirstRetry is the wait after the first failure, 5 s by default. Each wait is three times the one before, an hour at most.
	FirstRetry time.Duration `env:"WEBHOOK_FIRST_RETRY"`
	// RetryFor is how long a delivery is tried, and how long a webhook may fail before it is disabled; two days by default.
	RetryFor time.Duration `env:"WEBHOOK_RETRY_FOR"`
	// Concurrency is how many requests one webhook gets at once, MaxRequests how many all of them get from one replica; 8 and
	// 256 by default. Webhooks that fail or answer late share a quarter of MaxRequests.
	Concurrency int `env:"WEBHOOK_CONCURRENCY"`
	MaxRequests int `env:"WEBHOOK_MAX_REQUESTS"`
	// AllowedNetworks are networks in CIDR notation that requests may go to although they are not public, also by http://.
	AllowedNetworks []string `env:"WEBHOOK_ALLOWED_NETWORKS"`
	// Retention is how long events and their deliveries are kept, 30 days by default.
	Retention time.Duration `env:"WEBHOOK_RETENTION"`
}

const (
	name   = topology.Webhooks
	schema = "webhooks"

	defaultTimeout     = 15 * time.Second
	defaultFirstRetry  = 5 * time.Second
	defaultRetryFor    = 48 * time.Hour
	defaultConcurrency = 8
	defaultMaxRequests = 256
	defaultRetention   = 30 * 24 * time.Hour
)

// validate returns d with its defaults, or an error that names what is wrong.
func (d Delivery) validate() (Delivery, error) {
	for _, v := range []struct {
		variable string
		value    *time.Duration
		def      time.Duration
	}{
		{"WEBHOOK_TIMEOUT", &d.Timeout, defaultTimeout}, {"WEBHOOK_FIRST_RETRY", &d.FirstRetry, defaultFirstRetry},
		{"WEBHOOK_RETRY_FOR", &d.RetryFor, defaultRetryFor}, {"WEBHOOK_RETENTION", &d.Retention, defaultRetention},
	} {
		if *v.value < 0 {
			return d, fmt.Errorf("%s is negative: give a duration, %s for example, or 0 for the default", v.variable, v.def)
		}
		if *v.value == 0 {
			*v.value = v.def
		}
	}
	if d.Concurrency == 0 {
		d.Concurrency = defaultConcurrency
	}
	if d.MaxRequests == 0 {
		d.MaxRequests = defaultMaxRequests
	}
	if d.Concurrency < 1 || d.MaxRequests < 4 {
		return d, errors.New("WEBHOOK_CONCURRENCY must be 1 or more and WEBHOOK_MAX_REQUESTS 4 or more, or 0 for the default")
	}
	if d.Retention < d.RetryFor {
		return d, fmt.Errorf("WEBHOOK_RETENTION is %s and WEBHOOK_RETRY_FOR %s: events would be deleted while they are still tried; set WEBHOOK_RETENTION to %s or more",
			d.Retention, d.RetryFor, d.RetryFor)
	}
	return d, nil
}

// Service is one replica of the webhooks service.
type Service struct {
	*service.Service

	db        *sqlx.DB
	events    loggingv1.EventLogServiceClient
	sender    *sender
	deliverer *deliverer
	follower  *follower
	wakeRelay func()
	log       *slog.Logger
}

// New brings the database to its newest schema and builds the service, with its listeners open. The broker and the log of
// events may be away; the database may not. A service that is not run must be closed.
func New(ctx context.Context, cfg Config, t *telemetry.Telemetry) (_ *Service, err error) {
	if cfg.Delivery, err = cfg.Delivery.validate(); err != nil {
		return nil, err
	}
	sender, err := newSender(cfg.Delivery)
	if err != nil {
		return nil, err
	}
	applied, err := db.Migrate(ctx, cfg.DatabaseURL, schema)
	if err != nil {
		return nil, err
	}
	if len(applied) > 0 {
		t.Logger.InfoContext(ctx, "database migrated", "applied", applied)
	}
	base, err := service.New(service.Config{
		GRPCAddr: cfg.GRPCAddr, TLS: cfg.TLS, AdminAddr: cfg.AdminAddr, PprofAddr: cfg.PprofAddr, StopDelay: cfg.StopDelay, Transient: postgres.Transient,
	}, t)
	if err != nil {
		return nil, err
	}
	s := &Service{Service: base, sender: sender, log: t.Logger}
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
	s.OnStop("database", s.db.Close)
	s.Check("database", postgres.Ready(s.db))

	publisher, _, err := s.Broker(cfg.AMQPURL, topology.Broker(), name, t)
	if err != nil {
		return err
	}
	relay, err := outbox.NewRelay(s.db, publisher, outbox.Options{Logger: t.Logger, Meter: t.Meter})
	if err != nil {
		return err
	}
	s.wakeRelay = relay.Wake
	s.Go("relay", relay.Run)
	s.Check("outbox", relay.Ready)

	logging, err := s.DialService("LOGGING_ADDR", cfg.LoggingAddr, cfg.TLS)
	if err != nil {
		return err
	}
	s.events = loggingv1.NewEventLogServiceClient(logging)
	replica := uuid.New()
	metrics, err := newMetrics(t.Meter, s.db)
	if err != nil {
		return err
	}
	s.Sample("deliveries", metrics.sample)
	s.deliverer = newDeliverer(cfg.Delivery, s.db, s.sender, replica, relay.Wake, metrics, t.Logger)
	s.Go("deliverer", s.deliverer.run)
	s.follower = newFollower(s.db, s.events, replica, s.deliverer.notify, t.Logger)
	s.Go("follower of the log", s.follower.run)
	s.Go("old events", func(ctx context.Context) error { // with their deliveries
		return postgres.KeepDeletingOlder(ctx, s.db, "event", "created_at", cfg.Delivery.Retention, t.Logger)
	})

	webhooksv1.RegisterWebhookServiceServer(s.GRPC(), webhookServer{Service: s})
	customerv1.RegisterPersonalDataServiceServer(s.GRPC(), personalDataServer{Service: s})
	report.Serve(s.Service, report.Outbox(relay))
	return nil
}
