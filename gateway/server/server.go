// Package server wires the gateway: REST and gRPC on one port.
//
// A call first passes package ingress, which identifies the client and enforces limits. gRPC calls go on to the handlers.
// REST calls are transcoded by package rest, and event streams are served by package streams; both reach the same handlers
// within the process, through package inprocess. Package access guards each handler. Package intake takes orders and
// publishes them, for which it needs the broker only. All other calls go to the services behind the gateway (package
// upstream). Optional parts, such as the demo's API (package intermediary) and the page (package web), are added in
// features.go.
package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"google.golang.org/grpc"

	"shop.example/domain/money"
	"shop.example/gateway/access"
	"shop.example/gateway/ingress"
	"shop.example/gateway/inprocess"
	"shop.example/gateway/intake"
	"shop.example/gateway/rest"
	"shop.example/gateway/streams"
	"shop.example/gateway/upstream"
	checkoutv1 "shop.example/gen/shop/checkout/v1"
	customerv1 "shop.example/gen/shop/customer/v1"
	eventsv1 "shop.example/gen/shop/events/v1"
	inventoryv1 "shop.example/gen/shop/inventory/v1"
	loggingv1 "shop.example/gen/shop/logging/v1"
	orderv1 "shop.example/gen/shop/order/v1"
	statusv1 "shop.example/gen/shop/status/v1"
	webhooksv1 "shop.example/gen/shop/webhooks/v1"
	"shop.example/platform/apierror"
	"shop.example/platform/messaging"
	"shop.example/platform/mtls"
	"shop.example/platform/service"
	"shop.example/platform/telemetry"
	"shop.example/topology"
)

// Config is the gateway's configuration. The tags are those of github.com/caarlos0/env.
type Config struct {
	AMQPURL       string `env:"AMQP_URL,required,notEmpty"`
	HTTPAddr      string `env:"HTTP_ADDR"      envDefault:":3000"`
	AdminAddr     string `env:"ADMIN_ADDR"     envDefault:":3100"`
	PprofAddr     string `env:"PPROF_ADDR"     envDefault:"127.0.0.1:0"`
	OrderAddr     string `env:"ORDER_ADDR"     envDefault:"localhost:3001"`
	InventoryAddr string `env:"INVENTORY_ADDR" envDefault:"localhost:3002"`
	LoggingAddr   string `env:"LOGGING_ADDR"   envDefault:"localhost:3003"`
	WebhooksAddr  string `env:"WEBHOOKS_ADDR"  envDefault:"localhost:3004"`
	// TLS is the certificate for calls to the other services.
	TLS mtls.Config
	// OperatorToken is the token of operators without a name; OperatorTokens are those with a name, as entries name:token,
	// of which a name may have several. A token has at least 16 characters. Without any token there are no operators.
	OperatorToken  string   `env:"SHOP_OPERATOR_TOKEN"`
	OperatorTokens []string `env:"SHOP_OPERATOR_TOKENS"`
	// IDSecret, of at least 16 bytes, signs order ids and is the key for ids that are derived from idempotency keys. All
	// replicas need the same. Without it an idempotency key is forgotten when the gateway restarts, and an undecided order
	// is PENDING only at the gateway that took it and unknown at others.
	IDSecret string `env:"SHOP_ID_SECRET"`
	// PreviousIDSecret is the IDSecret that was used before. As long as it is set, idempotency keys and ids of its time
	// stay valid.
	PreviousIDSecret string `env:"SHOP_ID_SECRET_PREVIOUS"`
	// Currency is the ISO 4217 code of the prices in the demo's API, which are plain numbers.
	Currency string `env:"SHOP_CURRENCY" envDefault:"USD"`
	// MaxStreams is how many event streams may be open at a time, over REST and gRPC together; 1,000 if it is 0. One client
	// may have a quarter of them.
	MaxStreams int `env:"SHOP_MAX_STREAMS"`
	// TraceURL is the URL of the page that shows a trace, with {trace_id} in it, for links on the front page; empty for no
	// links.
	TraceURL string `env:"TRACE_URL"`
	// DashboardURL is the URL of the dashboards, for a link that operators see on the front page; empty for none.
	DashboardURL string `env:"DASHBOARD_URL"`
	// HTTPTLS is the certificate for REST and gRPC.
	HTTPTLS ingress.TLS
	// Ingress has the limits of calls, and the issuer of customers' tokens.
	Ingress ingress.Config
	// StopDelay is how long a replica goes on serving, but not ready, before it stops.
	StopDelay time.Duration `env:"SHUTDOWN_DELAY"`
	// Telemetry says how the gateway logs.
	Telemetry telemetry.Config
	// DemoHandlers are calls for operators that the program around the gateway adds to the REST API. A gateway in a process
	// of its own has none.
	DemoHandlers []rest.DemoHandler `env:"-"`
}

// Service is one replica of the gateway.
type Service struct {
	*service.Service
	lis net.Listener
}

// New opens the gateway's listeners and returns a gateway that serves while Run runs. Neither the broker nor any other
// service has to be available. A gateway that is not run must be closed.
func New(ctx context.Context, cfg Config, t *telemetry.Telemetry) (_ *Service, err error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	secrets, err := intake.ParseSecrets(ctx, cfg.IDSecret, cfg.PreviousIDSecret, t.Logger)
	if err != nil {
		return nil, err
	}
	operators, err := access.ParseOperators(cfg.OperatorToken, cfg.OperatorTokens)
	if err != nil {
		return nil, err
	}
	if len(operators) == 0 && cfg.Ingress.OIDC.Issuer == "" {
		t.Logger.WarnContext(ctx, "no operator token is set: calls for operators are refused (set SHOP_OPERATOR_TOKENS)")
	}
	base, err := service.New(ctx, service.Config{
		AdminAddr: cfg.AdminAddr, PprofAddr: cfg.PprofAddr, StopDelay: cfg.StopDelay, MaxRequest: ingress.MaxBody, KnownCaller: ingress.KnownCaller,
	}, t)
	if err != nil {
		return nil, err
	}
	s := &Service{Service: base}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if err := s.ObserveCertificate(cfg.TLS, t); err != nil {
		return nil, err
	}
	meter := t.Meter.Meter("shop.example/gateway")

	// Access.
	a := newAPI(s.GRPC(), operators, t)
	refreshKeys, err := a.access.ConfigureOIDC(cfg.Ingress.OIDC, t.Logger, meter)
	if err != nil {
		return nil, err
	}
	if refreshKeys != nil {
		s.Go("keys of the token issuer", refreshKeys)
	}

	// The broker and the services behind the gateway.
	pub, consume, err := s.Broker(cfg.AMQPURL, topology.Broker(), topology.Gateway, t)
	if err != nil {
		return nil, err
	}
	replies := messaging.NewRPCClient(consume, pub)
	s.Go("replies", replies.Run)
	if cfg.IDSecret == "" {
		s.Go("look for other gateways", messaging.Alone(consume, topology.WithoutIDSecret, func() {
			t.Logger.Error("another gateway runs, and SHOP_ID_SECRET is not set: an order that is sent again with its idempotency key, to the other gateway, is placed twice; set the same SHOP_ID_SECRET on all gateways")
		}))
	}
	queues := messaging.NewQueueWatch(consume, &eventsv1.OrderPlaced{})
	s.Go("watch of the queues", queues.Run)
	s.Check("queues of orders", queues.Ready)
	up, err := s.dialUpstreams(cfg, t)
	if err != nil {
		return nil, err
	}

	// What the gateway answers itself, and what it forwards.
	orders, err := intake.NewOrders(intake.Config{
		Secrets: secrets, Publish: intake.RequireQueues(queues, pub.Publish), OrderService: up.order.Conn, MaxInFlight: cfg.Ingress.OrdersInFlight, Log: t.Logger,
		Meter: meter,
	})
	if err != nil {
		return nil, err
	}
	up.order.Fallback, up.inventory.Prepare = orders.AnswerUndecided, orders.PassItemKey
	decisions := intake.NewDecisions(consume, orders.Lookup, s.Stopping())
	s.Go("decisions", decisions.Run)
	checkoutv1.RegisterCheckoutServiceServer(a, intake.NewCheckout(orders, decisions))
	share, err := intake.NewShare(orders, cfg.Ingress.OIDC.Issuer != "")
	if err != nil {
		return nil, err
	}
	checkoutv1.RegisterShareServiceServer(a, share)
	statusv1.RegisterStatusServiceServer(a, upstream.NewStatusServer(s.Ready, consume.Queues, up.order, up.inventory, up.logging, up.webhooks))
	// The log first: what it has of dead letters is discarded before the orders are erased, and webhooks get nothing from it
	// afterwards that names the customer.
	customerv1.RegisterCustomerServiceServer(a, upstream.NewCustomers(cfg.Ingress.OIDC.Issuer, up.logging, up.webhooks, up.order))
	proxies := cfg.Ingress.RateLimit.TrustedProxies
	l, err := ingress.NewLimits(cfg.Ingress.MaxConnections, cfg.Ingress.MaxCalls, cfg.MaxStreams, proxies > 0, meter)
	if err != nil {
		return nil, err
	}
	if err := up.forward(a, l.Streams); err != nil {
		return nil, err
	}

	// The same over REST.
	clients := ingress.ClientIdentifier{Authorizer: a.access, TrustedProxies: proxies}
	restServer, err := rest.New(a.local, t)
	if err != nil {
		return nil, err
	}
	paths := ingress.NewPathLimits(meter)
	err = errors.Join(
		addServices(restServer),
		addFeatures(parts{
			services: a, conn: a.local, rest: restServer, paths: paths, orders: orders, request: replies.Request, currency: cfg.Currency, demo: len(cfg.DemoHandlers) > 0, traceURL: cfg.TraceURL, dashboardURL: cfg.DashboardURL,
		}),
		streams.New(a.local, restServer, clients, s.Stopping()).Register(),
		restServer.AddDemo(cfg.DemoHandlers, a.access.RequireOperator, s.Stopping()),
		addCheckout(restServer),
		access.CheckRules(s.GRPC().GetServiceInfo()),
	)
	if err != nil {
		return nil, err
	}

	// The listener.
	d, err := ingress.New(cfg.Ingress, a.grpc, restServer, clients, l, paths, t.Logger, meter)
	if err != nil {
		return nil, err
	}
	if s.lis, err = s.Listen("HTTP_ADDR", cfg.HTTPAddr); err != nil {
		return nil, err
	}
	lis, err := cfg.HTTPTLS.Secure(l.Listener(s.lis), t.Logger)
	if err != nil {
		return nil, err
	}
	s.ServeHTTP("http", lis, ingress.NewServer(d, t.Logger))
	t.Logger.InfoContext(ctx, "listening", "http", s.HTTPAddr())
	return s, nil
}

func (cfg Config) check() error {
	if min(cfg.MaxStreams, cfg.Ingress.MaxCalls, cfg.Ingress.MaxConnections) < 0 {
		return errors.New("SHOP_MAX_STREAMS, SHOP_MAX_CALLS and SHOP_MAX_CONNECTIONS must be 1 or more, or 0 for the default")
	}
	if !money.Valid(cfg.Currency) {
		return fmt.Errorf("SHOP_CURRENCY is %q: give a currency by its code in ISO 4217, USD for example", cfg.Currency)
	}
	if n := cfg.Ingress.OrdersInFlight; n != 0 && n < intake.MaxWeight {
		return fmt.Errorf("ORDERS_IN_FLIGHT must be %d or more orders, which the largest counts as, or 0 for the default", intake.MaxWeight)
	}
	return nil
}

// HTTPAddr returns the address that REST and gRPC are served on.
func (s *Service) HTTPAddr() string { return s.lis.Addr().String() }

// upstreams are the services behind the gateway.
type upstreams struct{ order, inventory, logging, webhooks *upstream.Service }

func (s *Service) dialUpstreams(cfg Config, t *telemetry.Telemetry) (up upstreams, err error) {
	creds, err := cfg.TLS.Client(t.Logger)
	if err != nil {
		return up, err
	}
	for _, u := range []struct {
		name, addr string
		to         **upstream.Service
	}{
		{"order", cfg.OrderAddr, &up.order}, {"inventory", cfg.InventoryAddr, &up.inventory}, {"logging", cfg.LoggingAddr, &up.logging},
		{"webhooks", cfg.WebhooksAddr, &up.webhooks},
	} {
		if *u.to, err = upstream.Dial(u.name, u.addr, creds, t); err != nil {
			return up, err
		}
		s.OnStop(u.name, (*u.to).Conn.Close)
	}
	return up, nil
}

func (up upstreams) forward(a *api, streams *ingress.Limiter) error {
	return errors.Join(
		up.order.Forward(a, streams, orderv1.File_shop_order_v1_order_proto),
		up.inventory.Forward(a, streams, inventoryv1.File_shop_inventory_v1_inventory_proto),
		up.logging.Forward(a, streams, loggingv1.File_shop_logging_v1_event_log_proto, loggingv1.File_shop_logging_v1_dead_letter_proto,
			loggingv1.File_shop_logging_v1_operator_action_proto, loggingv1.File_shop_logging_v1_audit_proto),
		up.webhooks.Forward(a, streams, webhooksv1.File_shop_webhooks_v1_webhook_proto),
	)
}

// addServices serves over REST the services that are not optional.
func addServices(r *rest.Server) error {
	return errors.Join(
		rest.Add(r, &orderv1.OrderService_ServiceDesc, orderv1.NewOrderServiceClient, orderv1.RegisterOrderServiceHandlerClient),
		rest.Add(r, &checkoutv1.ShareService_ServiceDesc, checkoutv1.NewShareServiceClient, checkoutv1.RegisterShareServiceHandlerClient),
		rest.Add(r, &inventoryv1.InventoryService_ServiceDesc, inventoryv1.NewInventoryServiceClient, inventoryv1.RegisterInventoryServiceHandlerClient),
		rest.Add(r, &loggingv1.EventLogService_ServiceDesc, loggingv1.NewEventLogServiceClient, loggingv1.RegisterEventLogServiceHandlerClient),
		rest.Add(r, &loggingv1.DeadLetterService_ServiceDesc, loggingv1.NewDeadLetterServiceClient, loggingv1.RegisterDeadLetterServiceHandlerClient),
		rest.Add(r, &loggingv1.OperatorActionService_ServiceDesc, loggingv1.NewOperatorActionServiceClient, loggingv1.RegisterOperatorActionServiceHandlerClient),
		rest.Add(r, &loggingv1.AuditService_ServiceDesc, loggingv1.NewAuditServiceClient, loggingv1.RegisterAuditServiceHandlerClient),
		rest.Add(r, &webhooksv1.WebhookService_ServiceDesc, webhooksv1.NewWebhookServiceClient, webhooksv1.RegisterWebhookServiceHandlerClient),
		rest.Add(r, &customerv1.CustomerService_ServiceDesc, customerv1.NewCustomerServiceClient, customerv1.RegisterCustomerServiceHandlerClient),
		rest.Add(r, &statusv1.StatusService_ServiceDesc, statusv1.NewStatusServiceClient, statusv1.RegisterStatusServiceHandlerClient),
	)
}

// addCheckout serves orders over REST. It is called last, because the router tries the routes that were added last first.
func addCheckout(r *rest.Server) error {
	return rest.Add(r, &checkoutv1.CheckoutService_ServiceDesc, checkoutv1.NewCheckoutServiceClient, checkoutv1.RegisterCheckoutServiceHandlerClient)
}

// api registers services twice: for gRPC calls and for calls within the process, both behind the same check of access.
type api struct {
	grpc   *grpc.Server
	local  *inprocess.Conn
	access *access.Authorizer
}

func newAPI(server *grpc.Server, operators access.Operators, t *telemetry.Telemetry) *api {
	interceptor := apierror.NewInterceptor(t.Logger)
	return &api{grpc: server, local: inprocess.New(interceptor), access: access.New(operators, interceptor, ingress.Login)}
}

// RegisterService implements grpc.ServiceRegistrar.
func (a *api) RegisterService(desc *grpc.ServiceDesc, server any) {
	guarded := a.access.Guard(desc)
	a.grpc.RegisterService(guarded, server)
	a.local.RegisterService(guarded, server)
}
