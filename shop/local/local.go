// Package local runs the four services of the shop in one process: for development, demonstrations and tests.
package local

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"shop.example/gateway/edge"
	"shop.example/platform/outbox"
	"shop.example/platform/service"
	"shop.example/platform/telemetry"
	"shop.example/platform/transport"
	"shop.example/services/inventory/stock"
	"shop.example/services/logging/eventlog"
	"shop.example/services/order/ordering"
)

// stopTimeout bounds the stop of all services together.
const stopTimeout = 9 * time.Second

// Config says where the shop finds its servers and where it listens. The tags are those of github.com/caarlos0/env.
type Config struct {
	AMQPURL string
	// DatabaseURLs are by schema: each service has a role of its own.
	DatabaseURLs map[string]string

	HTTPAddr      string `env:"HTTP_ADDR"      envDefault:":3000"`
	OrderAddr     string `env:"ORDER_ADDR"     envDefault:"127.0.0.1:3001"`
	InventoryAddr string `env:"INVENTORY_ADDR" envDefault:"127.0.0.1:3002"`
	LoggingAddr   string `env:"LOGGING_ADDR"   envDefault:"127.0.0.1:3003"`
	// AdminAddr is the gateway's; order, inventory and logging take the three ports that follow it. With port 0 each
	// takes a free one.
	AdminAddr string `env:"ADMIN_ADDR" envDefault:"127.0.0.1:3100"`

	// Door is the gateway's.
	Door edge.DoorConfig

	// TLS is for the services' addresses to be open to other machines.
	TLS transport.MutualTLS

	OperatorToken     string        `env:"SHOP_OPERATOR_TOKEN"`
	IDSecret          string        `env:"SHOP_ID_SECRET"`
	Currency          string        `env:"SHOP_CURRENCY" envDefault:"USD"`
	MaxStreams        int           `env:"SHOP_MAX_STREAMS"`
	HoldLimit         time.Duration `env:"HOLD_LIMIT"`
	EventLogRetention time.Duration `env:"EVENT_LOG_RETENTION"`
	Retention         outbox.Retention
	Telemetry         telemetry.Config
}

// Shop is the four services, listening.
type Shop struct {
	Gateway   *edge.Service
	Order     *ordering.Service
	Inventory *stock.Service
	Logging   *eventlog.Service

	telemetry []*telemetry.Telemetry
}

// New brings the schemas to their newest form and opens every listener. A shop that is not run must be closed.
func New(ctx context.Context, cfg Config) (_ *Shop, err error) {
	admin, err := adminAddrs(cfg.AdminAddr)
	if err != nil {
		return nil, err
	}
	if err := free(map[string]string{
		"HTTP_ADDR": cfg.HTTPAddr, "ORDER_ADDR": cfg.OrderAddr, "INVENTORY_ADDR": cfg.InventoryAddr,
		"LOGGING_ADDR": cfg.LoggingAddr, "ADMIN_ADDR": admin[0],
	}); err != nil {
		return nil, err
	}
	s := &Shop{}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	var order, inventory, logging, gateway *telemetry.Telemetry
	for name, t := range map[string]**telemetry.Telemetry{"order": &order, "inventory": &inventory, "logging": &logging, "gateway": &gateway} {
		report := cfg.Telemetry
		report.Service = name
		if *t, err = telemetry.New(ctx, report); err != nil {
			return nil, err
		}
		s.telemetry = append(s.telemetry, *t)
	}
	// First, because inventory has to know its address.
	s.Order, err = ordering.New(ctx, ordering.Config{
		AMQPURL: cfg.AMQPURL, DatabaseURL: cfg.DatabaseURLs["orders"], GRPCAddr: cfg.OrderAddr, TLS: cfg.TLS, AdminAddr: admin[1],
		Retention: cfg.Retention,
	}, order)
	if err != nil {
		return nil, err
	}
	g, services := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		s.Inventory, err = stock.New(services, stock.Config{
			AMQPURL: cfg.AMQPURL, DatabaseURL: cfg.DatabaseURLs["inventory"], GRPCAddr: cfg.InventoryAddr, TLS: cfg.TLS, AdminAddr: admin[2],
			OrderAddr: s.Order.GRPCAddr(), HoldLimit: cfg.HoldLimit, Currency: cfg.Currency, Retention: cfg.Retention,
		}, inventory)
		return err
	})
	g.Go(func() (err error) {
		s.Logging, err = eventlog.New(services, eventlog.Config{
			AMQPURL: cfg.AMQPURL, DatabaseURL: cfg.DatabaseURLs["logging"], GRPCAddr: cfg.LoggingAddr, TLS: cfg.TLS, AdminAddr: admin[3],
			Retention: cfg.EventLogRetention, Messages: cfg.Retention,
		}, logging)
		return err
	})
	if err := g.Wait(); err != nil {
		return nil, err
	}
	s.Gateway, err = edge.New(ctx, edge.Config{
		AMQPURL: cfg.AMQPURL, HTTPAddr: cfg.HTTPAddr, AdminAddr: admin[0],
		OrderAddr: s.Order.GRPCAddr(), InventoryAddr: s.Inventory.GRPCAddr(), LoggingAddr: s.Logging.GRPCAddr(), TLS: cfg.TLS,
		OperatorToken: cfg.OperatorToken, IDSecret: cfg.IDSecret, Currency: cfg.Currency, MaxStreams: cfg.MaxStreams, Door: cfg.Door,
	}, gateway)
	return s, err
}

// Run runs the services until ctx ends or one of them fails, and stops them in the order of the way of an order:
// first who takes orders, last who logs them.
func (s *Shop) Run(ctx context.Context) error {
	failed, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	stages := []*stage{
		start("gateway", s.Gateway.Run, fail),
		start("order", s.Order.Run, fail),
		start("inventory", s.Inventory.Run, fail),
		start("logging", s.Logging.Run, fail),
	}
	<-failed.Done()
	var errs []error
	if ctx.Err() == nil {
		errs = append(errs, context.Cause(failed))
	}
	deadline := time.After(stopTimeout)
	for _, stage := range stages {
		stage.stop()
		select {
		case <-stage.done:
		case <-deadline:
			return errors.Join(append(errs, fmt.Errorf("%s has not stopped within %s", stage.name, stopTimeout))...)
		}
	}
	s.shutdownTelemetry()
	return errors.Join(errs...)
}

// stage is one running service.
type stage struct {
	name string
	stop context.CancelFunc
	done chan struct{}
}

func start(name string, run func(context.Context) error, fail context.CancelCauseFunc) *stage {
	ctx, stop := context.WithCancel(context.Background())
	s := &stage{name: name, stop: stop, done: make(chan struct{})}
	go func() {
		defer close(s.done)
		if err := run(ctx); err != nil {
			fail(fmt.Errorf("%s: %w", name, err))
		}
	}()
	return s
}

// Close releases a shop that was never run.
func (s *Shop) Close() error {
	var errs []error
	if s.Gateway != nil {
		errs = append(errs, s.Gateway.Close())
	}
	if s.Order != nil {
		errs = append(errs, s.Order.Close())
	}
	if s.Inventory != nil {
		errs = append(errs, s.Inventory.Close())
	}
	if s.Logging != nil {
		errs = append(errs, s.Logging.Close())
	}
	s.shutdownTelemetry()
	return errors.Join(errs...)
}

func (s *Shop) shutdownTelemetry() {
	var wg sync.WaitGroup
	for _, t := range s.telemetry {
		wg.Go(func() { t.Shutdown(context.Background()) })
	}
	wg.Wait()
}

// adminAddrs returns the admin addresses of gateway, order, inventory and logging.
func adminAddrs(first string) ([4]string, error) {
	var addrs [4]string
	host, port, err := net.SplitHostPort(first)
	if err != nil {
		return addrs, fmt.Errorf("ADMIN_ADDR: %w (it has the form host:port)", err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		return addrs, fmt.Errorf("ADMIN_ADDR: %q is not a port number", port)
	}
	for i := range addrs {
		p := n
		if n != 0 {
			p += i
		}
		addrs[i] = net.JoinHostPort(host, strconv.Itoa(p))
	}
	return addrs, nil
}

// free says which port is taken before anything is started, by the variable that moves it in this process.
func free(addrs map[string]string) error {
	for variable, addr := range addrs {
		lis, err := net.Listen("tcp", addr)
		if err != nil {
			return fmt.Errorf("cannot listen on %s: %w (stop what listens there, or set %s to another address)", addr, cause(err), variable)
		}
		if err := lis.Close(); err != nil {
			return fmt.Errorf("closing the listener on %s: %w", addr, err)
		}
	}
	return nil
}

// cause is the system's own word, without what the message says already.
func cause(err error) error {
	for next := err; next != nil; next = errors.Unwrap(next) {
		err = next
	}
	return err
}

// WaitReady returns when every service is ready, or with what is not when ctx ends.
func (s *Shop) WaitReady(ctx context.Context) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := s.ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-tick.C:
		}
	}
}

func (s *Shop) ready(ctx context.Context) error {
	for _, admin := range []string{s.Gateway.AdminAddr(), s.Order.AdminAddr(), s.Inventory.AdminAddr(), s.Logging.AdminAddr()} {
		if err := service.Probe(ctx, admin); err != nil {
			return err
		}
	}
	return nil
}
