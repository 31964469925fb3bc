// Package edge is the gateway: REST and gRPC on one port.
//
// It takes orders itself and publishes them (orders.go), so that taking orders needs the broker alone. All other calls
// are forwarded to the services that answer them (forward.go). Every call, whichever way it came, is checked for access
// (access.go), validated, and answered by the same gRPC handler: REST calls reach it within the process (local.go),
// through grpc-gateway (rest.go); streams of events reach it too, and are answered as Server-Sent Events (sse.go).
package edge

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/protobuf/reflect/protoreflect"

	"shop.example/domain/money"
	checkoutv1 "shop.example/gen/shop/checkout/v1"
	customerv1 "shop.example/gen/shop/customer/v1"
	eventsv1 "shop.example/gen/shop/events/v1"
	intermediaryv1 "shop.example/gen/shop/intermediary/v1"
	inventoryv1 "shop.example/gen/shop/inventory/v1"
	loggingv1 "shop.example/gen/shop/logging/v1"
	orderv1 "shop.example/gen/shop/order/v1"
	statusv1 "shop.example/gen/shop/status/v1"
	"shop.example/platform/apierror"
	"shop.example/platform/messaging"
	"shop.example/platform/service"
	"shop.example/platform/telemetry"
	"shop.example/platform/transport"
	"shop.example/topology"
)

const (
	headerTimeout = 10 * time.Second
	// readTimeout bounds how long a request takes to arrive, and writeTimeout a call all in all; streams have no such bound.
	readTimeout  = 30 * time.Second
	writeTimeout = 60 * time.Second
	idleTimeout  = 2 * time.Minute
	maxHeaders   = 16 << 10
	// maxStreams is how many calls one HTTP/2 connection may have open. A gRPC client puts all its calls on one.
	maxStreams = 1000
	// maxUnread and maxUnreadCall are how many bytes an HTTP/2 connection, or one of its calls, may send ahead of what is read.
	maxUnread     = 256 << 10
	maxUnreadCall = 64 << 10
	// What may be open where nothing else is configured. A call costs up to 30 KB while it waits, a connection about as much:
	// all of them together stay below 200 MB.
	defaultStreams     = 1000
	defaultCalls       = 3000
	defaultConnections = 3000
	// mostReply is how large an answer of a service may be: a dead letter comes with its body, which RabbitMQ lets be
	// 16 MiB large.
	mostReply = 17 << 20
	// streamWindow and connWindow are how many bytes a service may send ahead of what is read, in one call and in all.
	streamWindow = 64 << 10
	connWindow   = 1 << 20
	// minSecret is the least length of SHOP_ID_SECRET, in bytes.
	minSecret = 16
)

// Config is the gateway's configuration.
type Config struct {
	AMQPURL       string `env:"AMQP_URL,required,notEmpty"`
	HTTPAddr      string `env:"HTTP_ADDR"      envDefault:":3000"`
	AdminAddr     string `env:"ADMIN_ADDR"     envDefault:":3100"`
	PprofAddr     string `env:"PPROF_ADDR"     envDefault:"127.0.0.1:0"`
	OrderAddr     string `env:"ORDER_ADDR"     envDefault:"localhost:3001"`
	InventoryAddr string `env:"INVENTORY_ADDR" envDefault:"localhost:3002"`
	LoggingAddr   string `env:"LOGGING_ADDR"   envDefault:"localhost:3003"`
	// TLS is what the gateway calls the other services with.
	TLS transport.MutualTLS
	// OperatorToken is what an operator without a name sends, OperatorTokens what those with one do: entries name:token,
	// where a name may have several. A token has 16 characters or more. Without any nobody is an operator.
	OperatorToken  string   `env:"SHOP_OPERATOR_TOKEN"`
	OperatorTokens []string `env:"SHOP_OPERATOR_TOKENS"`
	// IDSecret keys the order ids that are derived from idempotency keys, 16 bytes at least. All replicas need the same.
	// Without one an idempotency key is good until the gateway restarts.
	IDSecret string `env:"SHOP_ID_SECRET"`
	// PreviousIDSecret is the IDSecret before this one: the idempotency keys of its time stay good while it is set.
	PreviousIDSecret string `env:"SHOP_ID_SECRET_PREVIOUS"`
	// Currency is the ISO 4217 code of the prices that the demo's interface gives as plain numbers.
	Currency string `env:"SHOP_CURRENCY" envDefault:"USD"`
	// MaxStreams is how many event streams may be open at a time, over REST and gRPC together; 1,000 where it is 0. One client
	// may have a quarter of them.
	MaxStreams int `env:"SHOP_MAX_STREAMS"`
	// HTTPTLS is what REST and gRPC are served with.
	HTTPTLS TLS
	// Door says who comes in, and how many.
	Door DoorConfig
	// Telemetry says how the gateway logs.
	Telemetry telemetry.Config
	// Controls are calls for operators that the gateway's process adds to the REST API. A gateway of its own has none.
	Controls []Control `env:"-"`
}

// Service is one running replica of the gateway.
type Service struct {
	*service.Service
	lis net.Listener
}

// New opens the gateway's listeners and returns a gateway that does nothing until Run. It needs no other service, nor
// the broker, to be there. A gateway that is not run must be closed.
func New(ctx context.Context, cfg Config, t *telemetry.Telemetry) (_ *Service, err error) {
	if min(cfg.MaxStreams, cfg.Door.MaxCalls, cfg.Door.MaxConnections) < 0 {
		return nil, errors.New("SHOP_MAX_STREAMS, SHOP_MAX_CALLS and SHOP_MAX_CONNECTIONS must be 1 or more, or 0 for the default")
	}
	if !money.Valid(cfg.Currency) {
		return nil, fmt.Errorf("SHOP_CURRENCY is %q: give a currency by its code in ISO 4217, USD for example", cfg.Currency)
	}
	secrets, err := idSecrets(ctx, cfg, t.Logger)
	if err != nil {
		return nil, err
	}
	if n := cfg.Door.OrdersInFlight; n != 0 && n < maxWeight {
		return nil, fmt.Errorf("ORDERS_IN_FLIGHT must be %d or more orders, which the largest counts as, or 0 for the default", maxWeight)
	}
	operators, err := newOperators(cfg.OperatorToken, cfg.OperatorTokens)
	if err != nil {
		return nil, err
	}
	if len(operators) == 0 && cfg.Door.OIDC.Issuer == "" {
		t.Logger.WarnContext(ctx, "no operator token is set: calls for operators are refused (set SHOP_OPERATOR_TOKENS)")
	}
	base, err := service.New(service.Config{AdminAddr: cfg.AdminAddr, PprofAddr: cfg.PprofAddr, MaxRequest: maxBody}, t)
	if err != nil {
		return nil, err
	}
	s := &Service{Service: base}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	pub, consume, err := s.Broker(cfg.AMQPURL, topology.Broker(), topology.Gateway, t)
	if err != nil {
		return nil, err
	}
	replies := messaging.NewRPCClient(consume, pub)
	s.Go("replies", replies.Run)
	queues := messaging.NewQueueWatch(consume, &eventsv1.OrderPlaced{})
	s.Go("watch of the queues", queues.Run)
	s.Check("queues of orders", queues.Ready)
	upstreams, err := s.dialUpstreams(cfg, t)
	if err != nil {
		return nil, err
	}
	a := newAPI(s.GRPC(), operators, t)
	if err := a.access.configureOIDC(cfg.Door.OIDC, t.Logger); err != nil {
		return nil, err
	}
	if tokens := a.access.tokens; tokens != nil {
		if err := tokens.observe(t.Meter.Meter("shop.example/gateway/edge")); err != nil {
			return nil, err
		}
		s.Go("keys of the token issuer", tokens.run)
	}
	taken := &orders{
		secrets: secrets, publish: ifQueued(queues, pub.Publish),
		stored: orderv1.NewOrderServiceClient(upstreams[0].conn), keys: orderv1.NewIntakeServiceClient(upstreams[0].conn),
		inFlight: semaphore.NewWeighted(cmp.Or(cfg.Door.OrdersInFlight, defaultOrdersInFlight)), log: t.Logger,
	}
	awaited := newDecisions(consume, taken.lookup, s.Stopping())
	s.Go("decisions", awaited.events.Run)
	checkoutv1.RegisterCheckoutServiceServer(a, checkout{orders: taken, decisions: awaited})
	intermediaryv1.RegisterIntermediaryServiceServer(a, intermediary{
		orders: taken, request: replies.Request, lists: semaphore.NewWeighted(maxLists), currency: cfg.Currency,
	})
	statusv1.RegisterStatusServiceServer(a, newStatusBoard(s.Ready, consume, upstreams))
	// The log first: what it has of dead letters is discarded before the orders are erased.
	customerv1.RegisterCustomerServiceServer(a, &customers{issuer: cfg.Door.OIDC.Issuer, keepers: []keeper{
		{upstreams[2].name, customerv1.NewPersonalDataServiceClient(upstreams[2].conn)},
		{upstreams[0].name, customerv1.NewPersonalDataServiceClient(upstreams[0].conn)},
	}})
	proxies := cfg.Door.RateLimit.TrustedProxies
	l, err := newLimits(cmp.Or(cfg.Door.MaxConnections, defaultConnections), cmp.Or(cfg.Door.MaxCalls, defaultCalls),
		cmp.Or(cfg.MaxStreams, defaultStreams), proxies > 0, t.Meter.Meter("shop.example/gateway/edge"))
	if err != nil {
		return nil, err
	}
	if err := forwardAll(a, upstreams, l.streams); err != nil {
		return nil, err
	}
	if err := checkRules(s.GRPC().GetServiceInfo()); err != nil {
		return nil, err
	}
	rest, err := newREST(a.local, callers{a.access, proxies}, s.Stopping(), t)
	if err != nil {
		return nil, err
	}
	if err := rest.addControls(cfg.Controls, a.access, s.Stopping()); err != nil {
		return nil, err
	}
	d, err := newDoor(cfg.Door, a, rest, l, t)
	if err != nil {
		return nil, err
	}
	if s.lis, err = s.Listen("HTTP_ADDR", cfg.HTTPAddr); err != nil {
		return nil, err
	}
	lis, err := cfg.HTTPTLS.secure(boundedListener{s.lis, l.connections}, t.Logger)
	if err != nil {
		return nil, err
	}
	s.ServeHTTP("http", lis, newHTTPServer(d, t.Logger))
	t.Logger.InfoContext(ctx, "listening", "http", s.HTTPAddr())
	return s, nil
}

// HTTPAddr returns the address REST and gRPC are served on.
func (s *Service) HTTPAddr() string { return s.lis.Addr().String() }

func idSecrets(ctx context.Context, cfg Config, log *slog.Logger) ([]idSecret, error) {
	if cfg.IDSecret == "" {
		if cfg.PreviousIDSecret != "" {
			return nil, errors.New("SHOP_ID_SECRET_PREVIOUS is set, but SHOP_ID_SECRET is not: set it to the secret that is to be used")
		}
		log.WarnContext(ctx, "no secret for order ids is set: idempotency keys are good until the next restart, and on this gateway alone (set SHOP_ID_SECRET)")
		return []idSecret{[]byte(rand.Text())}, nil
	}
	secrets := []idSecret{idSecret(cfg.IDSecret)}
	if cfg.PreviousIDSecret != "" {
		secrets = append(secrets, idSecret(cfg.PreviousIDSecret))
	}
	for i, variable := range []string{"SHOP_ID_SECRET", "SHOP_ID_SECRET_PREVIOUS"}[:len(secrets)] {
		if len(secrets[i]) < minSecret {
			return nil, fmt.Errorf("%s is too short: it needs at least %d bytes", variable, minSecret)
		}
	}
	return secrets, nil
}

// upstream is a service that calls are forwarded to.
type upstream struct {
	name     string
	addr     string
	services []protoreflect.ServiceDescriptor
	conn     *grpc.ClientConn
}

// dialUpstreams connects to the services that others run: order, inventory and logging, in this order.
func (s *Service) dialUpstreams(cfg Config, t *telemetry.Telemetry) ([]upstream, error) {
	creds, err := cfg.TLS.Client(t.Logger)
	if err != nil {
		return nil, err
	}
	upstreams := []upstream{
		{name: "order", addr: cfg.OrderAddr, services: services(orderv1.File_shop_order_v1_order_proto)},
		{name: "inventory", addr: cfg.InventoryAddr, services: services(inventoryv1.File_shop_inventory_v1_inventory_proto)},
		{name: "logging", addr: cfg.LoggingAddr, services: services(loggingv1.File_shop_logging_v1_event_log_proto, loggingv1.File_shop_logging_v1_dead_letter_proto,
			loggingv1.File_shop_logging_v1_operator_action_proto)},
	}
	for i := range upstreams {
		u := &upstreams[i]
		if u.conn, err = dial(u.addr, creds, t); err != nil {
			return nil, fmt.Errorf("%s_ADDR: %w", strings.ToUpper(u.name), err)
		}
		s.OnStop(u.name, u.conn.Close)
	}
	return upstreams, nil
}

// forwardAll registers the services of the upstreams as if they were the gateway's own.
func forwardAll(a *api, upstreams []upstream, open *limiter) error {
	for _, u := range upstreams {
		for _, sd := range u.services {
			desc, err := forward(sd, u.name, u.conn, open)
			if err != nil {
				return err
			}
			a.RegisterService(desc, u.conn)
		}
	}
	return nil
}

func services(files ...protoreflect.FileDescriptor) []protoreflect.ServiceDescriptor {
	var all []protoreflect.ServiceDescriptor
	for _, file := range files {
		for i := range file.Services().Len() {
			all = append(all, file.Services().Get(i))
		}
	}
	return all
}

// dial returns a connection that is made when it is first used, to all replicas behind addr.
func dial(addr string, creds credentials.TransportCredentials, t *telemetry.Telemetry) (*grpc.ClientConn, error) {
	return grpc.NewClient(addr,
		grpc.WithTransportCredentials(creds),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(mostReply)),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig": [{"round_robin": {}}]}`),
		// What a client of a stream leaves unread stays with the service. By themselves the windows grow to 16 MiB, each.
		grpc.WithStaticStreamWindowSize(streamWindow),
		grpc.WithStaticConnWindowSize(connWindow),
		// A service that comes back is found again within a second or two; the default waits up to two minutes.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
			MinConnectTimeout: 2 * time.Second,
		}),
		// A replica that is gone without a word is noticed by the pings.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 20 * time.Second, Timeout: 5 * time.Second}),
		grpc.WithStatsHandler(otelgrpc.NewClientHandler(
			otelgrpc.WithTracerProvider(t.Tracer),
			otelgrpc.WithMeterProvider(t.Meter),
			otelgrpc.WithPropagators(t.Propagator),
		)),
	)
}

// api is where services are registered to be served: over gRPC and within the process, behind one check of access.
type api struct {
	grpc   *grpc.Server
	local  *localConn
	access *access
}

func newAPI(server *grpc.Server, operators operators, t *telemetry.Telemetry) *api {
	interceptor := apierror.NewInterceptor(t.Logger)
	return &api{grpc: server, local: newLocalConn(interceptor), access: newAccess(operators, interceptor)}
}

// RegisterService implements grpc.ServiceRegistrar.
func (a *api) RegisterService(desc *grpc.ServiceDesc, server any) {
	guarded := a.access.guard(desc)
	a.grpc.RegisterService(guarded, server)
	a.local.RegisterService(guarded, server)
}

// newHTTPServer serves all on one port: HTTP/1 and HTTP/2, with TLS and without.
func newHTTPServer(handler http.Handler, log *slog.Logger) *http.Server {
	protocols := &http.Protocols{}
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler:   handler,
		Protocols: protocols,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams:          maxStreams,
			MaxReceiveBufferPerConnection: maxUnread,
			MaxReceiveBufferPerStream:     maxUnreadCall,
			WriteByteTimeout:              readerPatience,
		},
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaders,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}
