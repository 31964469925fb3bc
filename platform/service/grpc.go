package service

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc/filters"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/stats"

	"shop.example/platform/apierror"
	"shop.example/platform/telemetry"
)

// defaultMaxRequest is gRPC's own bound.
const defaultMaxRequest = 4 << 20

// GRPC returns the server to register the service's implementations on, before Run. It checks which service calls (with
// mutual TLS), validates requests, completes errors, measures and traces calls, and serves reflection and health.
func (s *Service) GRPC() *grpc.Server { return s.grpc }

func (s *Service) newGRPCServer(creds credentials.TransportCredentials, cfg Config, t *telemetry.Telemetry) *grpc.Server {
	errs := apierror.NewInterceptor(t.Logger, cfg.Transient...)
	unary := []grpc.UnaryServerInterceptor{errs.Unary}
	stream := []grpc.StreamServerInterceptor{s.endWhenStopping, errs.Stream}
	if cfg.TLS.Enabled() { // else nobody knows who calls, and all are on this machine
		unary = slices.Insert(unary, 0, s.checkUnaryCaller)
		stream = slices.Insert(stream, 0, s.checkStreamCaller)
	}
	server := grpc.NewServer(
		grpc.Creds(creds),
		grpc.StatsHandler(otelgrpc.NewServerHandler(
			otelgrpc.WithTracerProvider(t.Tracer),
			otelgrpc.WithMeterProvider(t.Meter),
			otelgrpc.WithPropagators(t.Propagator),
			otelgrpc.WithFilter(filters.Not(filters.ServicePrefix("grpc."))), // health and reflection
			otelgrpc.WithPublicEndpointFn(func(ctx context.Context, _ *stats.RPCTagInfo) bool {
				return cfg.KnownCaller != nil && !cfg.KnownCaller(ctx)
			}),
		)),
		grpc.ChainUnaryInterceptor(unary...),
		grpc.ChainStreamInterceptor(stream...),
		// Clients look for new replicas when a connection ends.
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionAge: 10 * time.Minute}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.MaxRecvMsgSize(cmp.Or(cfg.MaxRequest, defaultMaxRequest)),
		// A handler may use the database until it returns, so it is waited for.
		grpc.WaitForHandlers(true),
	)
	healthv1.RegisterHealthServer(server, health{service: s})
	reflection.Register(server)
	return server
}

// serveGRPC serves until ctx ends; then calls in flight get half of the time for a stop.
func (s *Service) serveGRPC(ctx context.Context) error {
	served := make(chan error, 1)
	go func() { served <- s.grpc.Serve(s.grpcLis) }()
	select {
	case err := <-served:
		return fmt.Errorf("serving %s: %w", s.GRPCAddr(), err)
	case <-ctx.Done():
	}
	cut := time.AfterFunc(s.stopTimeout/2, func() {
		s.logger.Warn("calls that are still running are cut off", "server", "grpc")
		s.grpc.Stop()
	})
	defer cut.Stop()
	s.grpc.GracefulStop()
	if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serving %s: %w", s.GRPCAddr(), err)
	}
	return nil
}

// endWhenStopping ends the context of a stream when the service stops, because a stream that a client follows never ends by
// itself.
func (s *Service) endWhenStopping(server any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	defer context.AfterFunc(s.stopping, cancel)()
	err := handler(server, contextStream{stream, ctx})
	if err == nil || stream.Context().Err() != nil || ctx.Err() == nil {
		return err
	}
	return apierror.Unavailable("STOPPING", time.Second, "the service is stopping; connect again")
}

type contextStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s contextStream) Context() context.Context { return s.ctx }
