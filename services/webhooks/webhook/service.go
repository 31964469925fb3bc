// Package webhook is the webhooks service: it sends events to the URLs that customers and operators have registered.
//
// One replica at a time follows the log of events and writes a delivery for each webhook that wants an event (follow.go).
// All replicas share the deliveries: each leases webhooks and sends the deliveries of those (deliver.go). Requests are
// signed as Standard Webhooks defines it (send.go), and go only to permitted addresses (network.go). Clients create, change
// and read webhooks over gRPC (grpc.go, store.go). Personal data are exported and erased on request (personal.go).
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

// Config is the service's configuration. The tags are those of github.com/caarlos0/env. Numbers and durations that are 0
// have defaults.
type Config struct {
	AMQPURL     string `env:"AMQP_URL,required,notEmpty"`
	DatabaseURL string `env:"DATABASE_URL,required,notEmpty"`
	GRPCAddr    string `env:"GRPC_ADDR" envDefault:"127.0.0.1:3004"`
	// TLS is the certificate that GRPCAddr is served with, and with which the logging service is called. Without it both
	// must be on this machine.
	TLS       mtls.Config
	AdminAddr string `env:"ADMIN_ADDR" envDefault:":3104"`
	// PprofAddr is the address to serve Go's profiles on, a loopback address.
	PprofAddr string `env:"PPROF_ADDR" envDefault:"127.0.0.1:0"`
	// StopDelay is how long a replica goes on serving, but not ready, before it stops.
	StopDelay time.Duration `env:"SHUTDOWN_DELAY"`
	// LoggingAddr is the address of the logging service's gRPC, from which events are read.
	LoggingAddr string `env:"LOGGING_ADDR" envDefault:"localhost:3003"`
	Delivery    Delivery
	Telemetry   telemetry.Config
}

// Delivery configures how events are delivered. Each value that is 0 has the default that its field names.
type Delivery struct {
	// Timeout bounds one attempt, from connecting to the end of the response; 15 s by default.
	Timeout time.Duration `env:"WEBHOOK_TIMEOUT"`
	// FirstRetry is the wait after the first failure, 5 s by default. Each further wait is three times as long, up to an
	// hour.
	FirstRetry time.Duration `env:"WEBHOOK_FIRST_RETRY"`
	// RetryFor is how long a delivery is retried, and how long a webhook may fail before it is disabled; two days by
	// default.
	RetryFor time.Duration `env:"WEBHOOK_RETRY_FOR"`
	// Concurrency is how many requests one replica sends to one webhook at a time (8 by default), MaxRequests how many to
	// all webhooks (256 by default). Webhooks that fail or respond slowly share a quarter of MaxRequests.
	Concurrency int `env:"WEBHOOK_CONCURRENCY"`
	MaxRequests int `env:"WEBHOOK_MAX_REQUESTS"`
	// AllowedNetworks are networks, in CIDR notation, to which requests may go although they are not public; also over
	// plain http.
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

// validate returns d with the defaults filled in, or an error that names the wrong value.
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

// New migrates the schema, opens the listeners and returns a service that works while Run runs. It waits for the database; the
// broker and the logging service need not be available. A service that is not run must be closed.
func New(ctx context.Context, cfg Config, t *telemetry.Telemetry) (_ *Service, err error) {
	if cfg.Delivery, err = cfg.Delivery.validate(); err != nil {
		return nil, err
	}
	sender, err := newSender(cfg.Delivery)
	if err != nil {
		return nil, err
	}
	base, err := service.New(ctx, service.Config{
		GRPCAddr: cfg.GRPCAddr, TLS: cfg.TLS, AdminAddr: cfg.AdminAddr, PprofAddr: cfg.PprofAddr, StopDelay: cfg.StopDelay, Transient: postgres.Transient,
		Prepare: func(ctx context.Context) error { return db.Prepare(ctx, cfg.DatabaseURL, schema, t.Logger) },
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
	s.OnStop("database", postgres.Close(s.db))
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
	s.Sample("outbox", relay.Sample)

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
	s.follower = newFollower(s.db, s.events, replica, s.deliverer.notify, metrics, t.Logger)
	s.Go("follower of the log", s.follower.run)
	s.Go("old events", func(ctx context.Context) error { // with their deliveries
		return postgres.KeepDeletingOlder(ctx, s.db, "event", "created_at", cfg.Delivery.Retention, t.Logger)
	})

	webhooksv1.RegisterWebhookServiceServer(s.GRPC(), webhookServer{Service: s})
	customerv1.RegisterPersonalDataServiceServer(s.GRPC(), personalDataServer{Service: s})
	report.Serve(s.Service, report.Outbox(relay))
	return nil
}
