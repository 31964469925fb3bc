// Package local runs the services of the shop in one process: for development, demonstrations and tests.
package local

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"strconv"
	"strings"
	"syscall"
	"time"

	"shop.example/gateway/ingress"
	"shop.example/gateway/rest"
	"shop.example/gateway/server"
	"shop.example/platform/mtls"
	"shop.example/platform/outbox"
	"shop.example/platform/service"
	"shop.example/platform/telemetry"
	"shop.example/services/inventory/stock"
	"shop.example/services/logging/eventlog"
	"shop.example/services/order/ordering"
	"shop.example/services/webhooks/webhook"
	"shop.example/topology"
)

// stopTimeout bounds the stop of all services together.
const stopTimeout = 9 * time.Second

// Config says which servers the shop uses and on which addresses it listens. The tags are those of github.com/caarlos0/env.
type Config struct {
	// AMQPURLs are the broker's URLs by service, because each service has a user of its own.
	AMQPURLs map[string]string
	// DatabaseURLs are the database's URLs by schema, because each service has a role of its own.
	DatabaseURLs map[string]string

	// HTTPAddr can be reached from this machine only, by default, because everybody who can reach it can place orders.
	HTTPAddr      string `env:"HTTP_ADDR"      envDefault:"127.0.0.1:3000"`
	OrderAddr     string `env:"ORDER_ADDR"     envDefault:"127.0.0.1:3001"`
	InventoryAddr string `env:"INVENTORY_ADDR" envDefault:"127.0.0.1:3002"`
	LoggingAddr   string `env:"LOGGING_ADDR"   envDefault:"127.0.0.1:3003"`
	WebhooksAddr  string `env:"WEBHOOKS_ADDR"  envDefault:"127.0.0.1:3004"`
	// AdminAddr is the gateway's; the other services use the ports that follow it, in the order of package topology. With
	// port 0 each uses a free port.
	AdminAddr string `env:"ADMIN_ADDR" envDefault:"127.0.0.1:3100"`
	// PprofAddr is the address that serves the profiles of the process.
	PprofAddr string `env:"PPROF_ADDR" envDefault:"127.0.0.1:0"`

	// Ingress configures the gateway's ingress.
	Ingress ingress.Config

	// Controls, if set, returns calls for operators to add to the gateway's REST API. It is called before the gateway is
	// built; the calls it returns are made only when the shop runs.
	Controls func(*Shop) []rest.DemoHandler

	// TLS is the certificate that all services share, for when their addresses can be reached from other machines.
	TLS mtls.Config

	OperatorToken     string        `env:"SHOP_OPERATOR_TOKEN"`
	OperatorTokens    []string      `env:"SHOP_OPERATOR_TOKENS"`
	IDSecret          string        `env:"SHOP_ID_SECRET"`
	PreviousIDSecret  string        `env:"SHOP_ID_SECRET_PREVIOUS"`
	KeyRetention      time.Duration `env:"IDEMPOTENCY_KEY_RETENTION"`
	Currency          string        `env:"SHOP_CURRENCY" envDefault:"USD"`
	MaxStreams        int           `env:"SHOP_MAX_STREAMS"`
	TraceURL          string        `env:"TRACE_URL"`
	DashboardURL      string        `env:"DASHBOARD_URL"`
	HoldLimit         time.Duration `env:"HOLD_LIMIT"`
	EventLogRetention time.Duration `env:"EVENT_LOG_RETENTION" envDefault:"9600h"`
	Retention         outbox.Retention
	Webhooks          webhook.Delivery
	Telemetry         telemetry.Config
}

// OneBroker returns AMQPURLs with the same URL for every service, so that they share a user.
func OneBroker(amqpURL string) map[string]string {
	urls := map[string]string{}
	for _, service := range topology.Names() {
		urls[service] = amqpURL
	}
	return urls
}

// Shop is all services in one process.
type Shop struct {
	Gateway   *server.Service
	Order     *Service
	Inventory *Service
	Logging   *Service

	cfg       Config               // with the addresses of the services
	services  []*Service           // all but the gateway, in the order of package topology
	telemetry *telemetry.Telemetry // the gateway's
}

// builders make the services of package topology but the gateway.
var builders = map[string]func(Config, context.Context, addresses, *telemetry.Telemetry) (instance, error){
	topology.Order:     Config.order,
	topology.Inventory: Config.inventory,
	topology.Logging:   Config.logging,
	topology.Webhooks:  Config.webhooks,
}

// New migrates all schemas and opens all listeners. A shop that is not run must be closed.
func New(ctx context.Context, cfg Config) (_ *Shop, err error) {
	admin, err := adminAddrs(cfg.AdminAddr)
	if err != nil {
		return nil, err
	}
	if err := cfg.checkAddrs(admin[0]); err != nil {
		return nil, err
	}
	cfg.TLS.OfAllServices = true
	s := &Shop{}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	// Each has to know the addresses of those before it.
	for i, name := range topology.Names()[1:] {
		at := addresses{admin: admin[i+1]}
		addr := cfg.grpcAddr(name)
		if addr != nil {
			at.grpc = *addr
		}
		now := cfg
		service, err := newService(ctx, name, cfg.Telemetry, at, func(ctx context.Context, at addresses, t *telemetry.Telemetry) (instance, error) {
			return builders[name](now, ctx, at, t)
		})
		if err != nil {
			return nil, err
		}
		s.services = append(s.services, service)
		if addr != nil {
			*addr = service.GRPCAddr()
		}
	}
	s.Order, s.Inventory, s.Logging = s.Services()[topology.Order], s.Services()[topology.Inventory], s.Services()[topology.Logging]
	if s.telemetry, err = cfg.gatewayTelemetry(ctx); err != nil {
		return nil, err
	}
	s.cfg = cfg
	front := cfg.gateway(admin[0])
	if cfg.Controls != nil {
		front.DemoHandlers = cfg.Controls(s)
	}
	s.Gateway, err = server.New(ctx, front, s.telemetry)
	return s, err
}

// Replica builds another replica of a service, the gateway's too, on free ports of this machine. change may give it other
// servers, or other limits. Run it; it is stopped for good when the context of that ends.
func (s *Shop) Replica(ctx context.Context, name string, change func(*Config)) (*Service, error) {
	cfg := s.cfg
	cfg.AMQPURLs, cfg.DatabaseURLs = maps.Clone(cfg.AMQPURLs), maps.Clone(cfg.DatabaseURLs)
	change(&cfg)
	const anyPort = "127.0.0.1:0"
	at := addresses{grpc: anyPort, admin: anyPort}
	if cfg.grpcAddr(name) == nil { // what has no gRPC of its own
		at.grpc = ""
	}
	build := builders[name]
	if name == topology.Gateway {
		cfg.HTTPAddr = anyPort
		build = Config.anotherGateway
	}
	return newService(ctx, name, cfg.Telemetry, at, func(ctx context.Context, at addresses, t *telemetry.Telemetry) (instance, error) {
		return build(cfg, ctx, at, t)
	})
}

// NewService opens the listeners of one service other than the gateway, which is to run alone: the others, whose addresses
// cfg has, run in other processes. It must be run or closed.
func NewService(ctx context.Context, name string, cfg Config) (*Service, error) {
	cfg.TLS.OfAllServices = true
	at := addresses{admin: cfg.AdminAddr}
	if addr := cfg.grpcAddr(name); addr != nil {
		at.grpc = *addr
	}
	return newService(ctx, name, cfg.Telemetry, at, func(ctx context.Context, at addresses, t *telemetry.Telemetry) (instance, error) {
		return builders[name](cfg, ctx, at, t)
	})
}

// NewGateway is NewService for the gateway.
func NewGateway(ctx context.Context, cfg Config) (*server.Service, error) {
	cfg.TLS.OfAllServices = true
	t, err := cfg.gatewayTelemetry(ctx)
	if err != nil {
		return nil, err
	}
	return server.New(ctx, cfg.gateway(cfg.AdminAddr), t)
}

func (cfg Config) gatewayTelemetry(ctx context.Context) (*telemetry.Telemetry, error) {
	cfg.Telemetry.Service = topology.Gateway
	return telemetry.New(ctx, cfg.Telemetry)
}

// gateway is the configuration of the gateway.
func (cfg Config) gateway(admin string) server.Config {
	return server.Config{
		AMQPURL: cfg.AMQPURLs[topology.Gateway], HTTPAddr: cfg.HTTPAddr, AdminAddr: admin, PprofAddr: cfg.PprofAddr,
		OrderAddr: cfg.OrderAddr, InventoryAddr: cfg.InventoryAddr, LoggingAddr: cfg.LoggingAddr, WebhooksAddr: cfg.WebhooksAddr, TLS: cfg.TLS,
		OperatorToken: cfg.OperatorToken, OperatorTokens: cfg.OperatorTokens, IDSecret: cfg.IDSecret, PreviousIDSecret: cfg.PreviousIDSecret,
		Currency: cfg.Currency, MaxStreams: cfg.MaxStreams, TraceURL: cfg.TraceURL, DashboardURL: cfg.DashboardURL, Ingress: cfg.Ingress,
	}
}

// gatewayInstance is a gateway as another service is: its REST and gRPC share an address.
type gatewayInstance struct{ *server.Service }

func (g gatewayInstance) GRPCAddr() string { return g.HTTPAddr() }

func (cfg Config) anotherGateway(ctx context.Context, at addresses, t *telemetry.Telemetry) (instance, error) {
	s, err := server.New(ctx, cfg.gateway(at.admin), t)
	return gatewayInstance{s}, err
}

func (cfg Config) order(ctx context.Context, at addresses, t *telemetry.Telemetry) (instance, error) {
	return ordering.New(ctx, ordering.Config{
		AMQPURL: cfg.AMQPURLs[topology.Order], DatabaseURL: cfg.DatabaseURLs["orders"], GRPCAddr: at.grpc, TLS: cfg.TLS, AdminAddr: at.admin,
		KeyRetention: cfg.KeyRetention, RedriveHorizon: cfg.Retention.RedriveHorizon,
	}, t)
}

func (cfg Config) inventory(ctx context.Context, at addresses, t *telemetry.Telemetry) (instance, error) {
	return stock.New(ctx, stock.Config{
		AMQPURL: cfg.AMQPURLs[topology.Inventory], DatabaseURL: cfg.DatabaseURLs["inventory"], GRPCAddr: at.grpc, TLS: cfg.TLS, AdminAddr: at.admin,
		OrderAddr: cfg.OrderAddr, HoldLimit: cfg.HoldLimit, Currency: cfg.Currency, Retention: cfg.Retention,
	}, t)
}

func (cfg Config) logging(ctx context.Context, at addresses, t *telemetry.Telemetry) (instance, error) {
	return eventlog.New(ctx, eventlog.Config{
		AMQPURL: cfg.AMQPURLs[topology.Logging], DatabaseURL: cfg.DatabaseURLs["logging"], GRPCAddr: at.grpc, TLS: cfg.TLS, AdminAddr: at.admin,
		OrderAddr: cfg.OrderAddr, InventoryAddr: cfg.InventoryAddr, Retention: cfg.EventLogRetention, Messages: cfg.Retention,
	}, t)
}

// webhooks builds the webhooks service, which may call this machine unless the configuration says otherwise: a developer's
// receivers are on it.
func (cfg Config) webhooks(ctx context.Context, at addresses, t *telemetry.Telemetry) (instance, error) {
	if len(cfg.Webhooks.AllowedNetworks) == 0 {
		cfg.Webhooks.AllowedNetworks = []string{"127.0.0.0/8", "::1/128"}
	}
	return webhook.New(ctx, webhook.Config{
		AMQPURL: cfg.AMQPURLs[topology.Webhooks], DatabaseURL: cfg.DatabaseURLs["webhooks"], GRPCAddr: at.grpc, TLS: cfg.TLS, AdminAddr: at.admin,
		LoggingAddr: cfg.LoggingAddr, Delivery: cfg.Webhooks,
	}, t)
}

// grpcAddr is the address that a service is configured to have for its own gRPC; nil if it has none.
func (cfg *Config) grpcAddr(service string) *string {
	switch service {
	case topology.Order:
		return &cfg.OrderAddr
	case topology.Inventory:
		return &cfg.InventoryAddr
	case topology.Logging:
		return &cfg.LoggingAddr
	case topology.Webhooks:
		return &cfg.WebhooksAddr
	}
	return nil
}

// Addrs returns pointers to the addresses that services listen on, by the environment variables that set them.
func (cfg *Config) Addrs() map[string]*string {
	addrs := map[string]*string{"HTTP_ADDR": &cfg.HTTPAddr, "ADMIN_ADDR": &cfg.AdminAddr}
	for _, name := range topology.Names() {
		if addr := cfg.grpcAddr(name); addr != nil {
			addrs[strings.ToUpper(name)+"_ADDR"] = addr
		}
	}
	return addrs
}

// AnyPort changes all addresses to free ports of this machine.
func (cfg *Config) AnyPort() {
	for _, addr := range cfg.Addrs() {
		*addr = "127.0.0.1:0"
	}
}

// Services returns all services but the gateway, by name.
func (s *Shop) Services() map[string]*Service {
	services := map[string]*Service{}
	for _, service := range s.services {
		services[service.name] = service
	}
	return services
}

// Run runs the services until ctx ends or one of them fails, and then stops them in the order in which an order passes
// through them: the gateway first, logging last.
func (s *Shop) Run(ctx context.Context) error {
	failed, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	for _, service := range s.services {
		service.start(fail)
	}
	serving, stop := context.WithCancel(context.Background())
	defer stop()
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		if err := s.Gateway.Run(serving); err != nil {
			fail(fmt.Errorf("gateway: %w", err))
		}
	}()
	<-failed.Done()
	var errs []error
	if ctx.Err() == nil {
		errs = append(errs, context.Cause(failed))
	}
	deadline := time.After(stopTimeout)
	type stage struct {
		name string
		stop func()
	}
	stages := []stage{{topology.Gateway, func() { stop(); <-stopped }}}
	for _, service := range s.services {
		stages = append(stages, stage{service.name, func() { _ = service.shutdown() }}) // what did not end well is in the log
	}
	for _, stage := range stages {
		done := make(chan struct{})
		go func() { stage.stop(); close(done) }()
		select {
		case <-done:
		case <-deadline:
			return errors.Join(append(errs, fmt.Errorf("%s has not stopped within %s", stage.name, stopTimeout))...)
		}
	}
	s.telemetry.Shutdown(ctx)
	return errors.Join(errs...)
}

// AdminAddrs returns the addresses that serve health and metrics, by service.
func (s *Shop) AdminAddrs() map[string]string {
	addrs := map[string]string{topology.Gateway: s.Gateway.AdminAddr()}
	for _, service := range s.services {
		addrs[service.name] = service.AdminAddr()
	}
	return addrs
}

// Close releases a shop that was never run.
func (s *Shop) Close() error {
	var errs []error
	if s.Gateway != nil {
		errs = append(errs, s.Gateway.Close())
	}
	for _, service := range s.services {
		errs = append(errs, service.Close())
	}
	if s.telemetry != nil {
		s.telemetry.Shutdown(context.Background())
	}
	return errors.Join(errs...)
}

// adminAddrs returns the admin addresses of the services, in the order of package topology.
func adminAddrs(first string) ([]string, error) {
	host, port, err := net.SplitHostPort(first)
	if err != nil {
		return nil, fmt.Errorf("ADMIN_ADDR: %w (it has the form host:port)", err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		return nil, fmt.Errorf("ADMIN_ADDR: %q is not a port number", port)
	}
	addrs := make([]string, len(topology.Names()))
	for i := range addrs {
		p := n
		if n != 0 {
			p += i
		}
		addrs[i] = net.JoinHostPort(host, strconv.Itoa(p))
	}
	return addrs, nil
}

// address is one that this process listens on, by the variable that moves it.
type address struct {
	variable, addr string
	private        bool // for services alone
}

// addrs returns all addresses but those of the other services' health and metrics, which follow admin.
func (cfg Config) addrs(admin string) []address {
	all := []address{{"HTTP_ADDR", cfg.HTTPAddr, false}, {"ADMIN_ADDR", admin, false}}
	for _, name := range topology.Names() {
		if addr := cfg.grpcAddr(name); addr != nil {
			all = append(all, address{strings.ToUpper(name) + "_ADDR", *addr, true})
		}
	}
	return all
}

// checkAddrs says which address is no address, that of another service too, taken, or open to other machines without TLS, before
// anything is started.
func (cfg Config) checkAddrs(admin string) error {
	all := cfg.addrs(admin)
	if err := distinct(all); err != nil {
		return err
	}
	for _, a := range all {
		var check func(variable string, lis net.Listener) error
		if a.private && !cfg.TLS.Enabled() {
			check = mtls.RequireLoopback
		}
		if err := try(a.variable, a.addr, check); err != nil {
			return err
		}
	}
	return tryLocalhost(cfg.HTTPAddr)
}

// distinct says whether two addresses are the same, which one service would find taken by another one, or one has no port.
func distinct(all []address) error {
	taken := map[string]string{} // the variable by its address
	for _, a := range all {
		host, port, err := net.SplitHostPort(a.addr)
		if err != nil {
			return fmt.Errorf("%s is %q: it must have a host and a port, for example localhost:8080", a.variable, a.addr)
		}
		if host == "localhost" {
			host = "127.0.0.1"
		}
		addr := net.JoinHostPort(host, port)
		if other := taken[addr]; other != "" && port != "0" {
			return fmt.Errorf("%s and %s are both %s: set one of them to another address", other, a.variable, addr)
		}
		taken[addr] = a.variable
	}
	return nil
}

// try listens on an address for a moment, and calls check, if there is one, with the listener.
func try(variable, addr string, check func(variable string, lis net.Listener) error) error {
	lis, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("cannot listen on %s: %w (stop what listens there, or set %s to another address)", addr, cause(err), variable)
	}
	if check != nil {
		err = check(variable, lis)
	}
	if closeErr := lis.Close(); closeErr != nil && err == nil {
		err = fmt.Errorf("closing the listener on %s: %w", addr, closeErr)
	}
	return err
}

// tryLocalhost says whether another program would answer at http://localhost in the gateway's place: browsers ask [::1] first, and
// 127.0.0.1 can be listened on although that is taken.
func tryLocalhost(addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil || port == "0" || host != "localhost" && host != "127.0.0.1" {
		return err
	}
	if err := try("HTTP_ADDR", net.JoinHostPort("::1", port), nil); errors.Is(err, syscall.EADDRINUSE) { // else there is no IPv6 here
		return err
	}
	return nil
}

// cause is the innermost error, the operating system's: the message names the address already.
func cause(err error) error {
	for next := err; next != nil; next = errors.Unwrap(next) {
		err = next
	}
	return err
}

// WaitReady returns nil when every service is ready; if ctx ends before, an error that says what is not.
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
	if err := service.Probe(ctx, s.Gateway.AdminAddr()); err != nil {
		return err
	}
	for _, other := range s.services {
		if err := service.Probe(ctx, other.AdminAddr()); err != nil {
			return err
		}
	}
	return nil
}
