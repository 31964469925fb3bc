// Package service is the life cycle that all services share: listeners, health checks, and an orderly stop.
//
// A service consists of parts, which are added in the order in which they need each other. Run starts them in that order
// and stops them in reverse, each one only after all that were added later have stopped:
//
//	s.OnStop("database", db.Close)   // last, when nothing uses it any more
//	s.Go("broker", conn.Run)
//	s.Go("relay", relay.Run)         // still publishes what the consumer left in the outbox
//	s.Go("consumer", consumer.Run)   // finishes the batch in hand
//	                                 // first: gRPC, when its calls have ended
//
// The admin listener, which serves health and metrics, is served from New on, and stops after all of them.
package service

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"shop.example/platform/backoff"
	"shop.example/platform/mtls"
	"shop.example/platform/telemetry"
)

const (
	// defaultStopTimeout leaves time for lastGrace and the last spans before Docker kills, after 10 s; Kubernetes waits 30.
	defaultStopTimeout = 8 * time.Second
	// lastGrace is what the parts get, all together, when the time for an orderly stop is used up.
	lastGrace = time.Second
)

// Config says how a service runs.
type Config struct {
	// GRPCAddr is the address to serve gRPC on; empty if the service serves GRPC() on a listener of its own.
	GRPCAddr string
	// TLS is the certificate that gRPC on GRPCAddr is served with. Without files GRPCAddr must be a loopback address.
	TLS mtls.Config
	// AdminAddr is the address to serve health and metrics on; empty to serve none.
	AdminAddr string
	// PprofAddr is the address to serve Go's profiles on; empty to serve none. Use a loopback address: profiles show what is
	// in memory, and take CPU.
	PprofAddr string
	// StopDelay is how long the service works on before it stops, while it reports that it is not ready: until every load
	// balancer has noticed and sends it nothing new.
	StopDelay time.Duration
	// StopTimeout bounds an orderly stop, 8 s if it is 0. Calls in flight may take half of it.
	StopTimeout time.Duration
	// KnownCaller is set for a service that anybody may call. It reports whether the caller of ctx has shown who it is; the
	// trace of any other caller is linked instead of continued.
	KnownCaller func(ctx context.Context) bool
	// MaxRequest bounds a gRPC request, in bytes; 4 MiB if it is 0.
	MaxRequest int
	// Transient are errors of handlers (errors.Is) after which a client should try again, for example that of a database
	// which is down: the client gets UNAVAILABLE.
	Transient []error
	// Prepare has to succeed before the service listens for calls; nil for nothing. After a Transient error it is tried again, at
	// most 5 s later, and the admin listener says what the service waits for. Any other error is that of New.
	Prepare func(context.Context) error
}

// Service is a running service. Its parts are added before Run, from one goroutine.
type Service struct {
	stopDelay   time.Duration
	stopTimeout time.Duration
	logger      *slog.Logger
	grpc        *grpc.Server
	grpcLis     net.Listener
	callers     map[string][]string // who may call a method of our contracts, by its full name; read by Run
	allNames    []string            // in the certificate that all services share, if they do: see mtls.Config
	adminLis    net.Listener
	pprofLis    net.Listener
	listeners   []net.Listener
	components  []*component
	checks      []check
	probes      []*probe // of checks, for the metrics
	samples     []*probe
	inHand      func() map[string]int // nil without a broker

	failed    chan error            // of the part that fails first
	waits     atomic.Pointer[error] // why Prepare has to be tried again
	used      atomic.Bool           // run or closed; either can happen once
	running   atomic.Bool
	leaving   atomic.Bool     // about to stop: in use, but no longer ready
	stopping  context.Context // ends when the service begins to stop
	beginStop context.CancelFunc
}

// component is a goroutine that runs until its context ends.
type component struct {
	name    string
	run     func(context.Context) error
	release func() error       // of OnStop, for a service that is never run
	cancel  context.CancelFunc // nil until it is started
	ended   chan struct{}
	err     error // to be read when ended is closed
}

// New opens the listeners, so that their addresses are known and a port that is taken is an error at once. It serves health and
// metrics already; Run serves the others. It waits until cfg.Prepare has succeeded, or ctx ends. A service that is not run must
// be closed.
func New(ctx context.Context, cfg Config, t *telemetry.Telemetry) (*Service, error) {
	if cfg.StopDelay < 0 {
		return nil, fmt.Errorf("SHUTDOWN_DELAY is %s: it must be 0 or more", cfg.StopDelay)
	}
	s := &Service{stopDelay: cfg.StopDelay, stopTimeout: cfg.StopTimeout, logger: t.Logger, failed: make(chan error, 1)}
	s.stopping, s.beginStop = context.WithCancel(context.Background())
	if s.stopTimeout == 0 {
		s.stopTimeout = defaultStopTimeout
	}
	creds, err := cfg.TLS.Server(t.Logger)
	if err != nil {
		return nil, err
	}
	if cfg.TLS.Enabled() && cfg.TLS.OfAllServices {
		if s.allNames, err = cfg.TLS.Names(); err != nil {
			return nil, err
		}
	}
	if err := s.ObserveCertificate(cfg.TLS, t); err != nil {
		return nil, err
	}
	s.grpc = s.newGRPCServer(creds, cfg, t)
	if err := s.observe(t); err != nil {
		return nil, err
	}
	if err := s.openListeners(ctx, cfg, t); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Service) openListeners(ctx context.Context, cfg Config, t *telemetry.Telemetry) (err error) {
	if cfg.AdminAddr != "" {
		if s.adminLis, err = s.Listen("ADMIN_ADDR", cfg.AdminAddr); err != nil {
			return err
		}
		s.ServeHTTP("admin", s.adminLis, s.newAdminServer(t))
		s.components[0].start(ctx, s.failed)
	}
	if cfg.PprofAddr != "" {
		if err := s.servePprof(cfg.PprofAddr); err != nil {
			return err
		}
	}
	// Clients of an address where nobody listens know at once that they have to go elsewhere.
	if cfg.Prepare != nil {
		if err := s.prepare(ctx, cfg); err != nil {
			return err
		}
	}
	if cfg.GRPCAddr != "" {
		if s.grpcLis, err = s.Listen("GRPC_ADDR", cfg.GRPCAddr); err != nil {
			return err
		}
		if !cfg.TLS.Enabled() {
			return mtls.RequireLoopback("GRPC_ADDR", s.grpcLis)
		}
	}
	return nil
}

// prepare tries Prepare until it succeeds, or fails for a reason that does not pass by itself.
func (s *Service) prepare(ctx context.Context, cfg Config) error {
	defer s.waits.Store(nil)
	wait := backoff.New(100*time.Millisecond, 5*time.Second)
	for {
		err := cfg.Prepare(ctx)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			if cause := s.waits.Load(); cause != nil {
				return fmt.Errorf("%w: %w", ctx.Err(), *cause)
			}
			return ctx.Err()
		case !slices.ContainsFunc(cfg.Transient, func(kind error) bool { return errors.Is(err, kind) }):
			return err
		}
		s.waits.Store(&err)
		s.logger.WarnContext(ctx, "cannot start yet, trying again", "error", err)
		wait.Sleep(ctx)
	}
}

// Listen opens a TCP listener, which Close and Run close. The error names variable, the environment variable with the
// address.
func (s *Service) Listen(variable, addr string) (net.Listener, error) {
	// The context would cancel no more than the lookup of a name.
	lis, err := new(net.ListenConfig).Listen(context.Background(), "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s: %w (set %s to another address)", addr, rootCause(err), variable)
	}
	s.listeners = append(s.listeners, lis)
	return lis, nil
}

// rootCause strips what the message says already: "listen tcp :3001: bind: address already in use".
func rootCause(err error) error {
	var operation *net.OpError
	if errors.As(err, &operation) {
		err = operation.Err
	}
	var call *os.SyscallError
	if errors.As(err, &call) {
		err = call.Err
	}
	return err
}

// GRPCAddr returns the address that gRPC is served on, "" if it is not.
func (s *Service) GRPCAddr() string { return address(s.grpcLis) }

// AdminAddr returns the address that health and metrics are served on, "" if they are not.
func (s *Service) AdminAddr() string { return address(s.adminLis) }

// PprofAddr returns the address that Go's profiles are served on, "" if they are not.
func (s *Service) PprofAddr() string { return address(s.pprofLis) }

// InHand returns how many messages the service has received and not settled yet, by queue.
func (s *Service) InHand() map[string]int {
	if s.inHand == nil {
		return nil
	}
	return s.inHand()
}

func address(lis net.Listener) string {
	if lis == nil {
		return ""
	}
	return lis.Addr().String()
}

// Go adds a part that Run starts in a goroutine. run must return when its context ends, after it has finished what it has
// in hand. If it returns an error before that, the service stops; if it returns nil, the part is done.
func (s *Service) Go(name string, run func(context.Context) error) {
	s.components = append(s.components, &component{name: name, run: run, ended: make(chan struct{})})
}

// OnStop adds a function that Run calls when everything that was added later has stopped.
func (s *Service) OnStop(name string, release func() error) {
	s.Go(name, func(ctx context.Context) error {
		<-ctx.Done()
		return release()
	})
	s.components[len(s.components)-1].release = release
}

// Stopping returns a channel that is closed when the service begins to stop. Calls that wait long, or never end by
// themselves, watch it. gRPC streams need not, because their contexts end then.
func (s *Service) Stopping() <-chan struct{} { return s.stopping.Done() }

// Run starts the parts. It returns when ctx has ended or a part has failed, and all parts have stopped. The error is that
// of the part, or says which part did not stop in time; it is nil after an orderly stop.
func (s *Service) Run(ctx context.Context) error {
	if s.grpcLis != nil {
		if err := s.readCallers(); err != nil {
			return errors.Join(err, s.Close())
		}
	}
	if !s.used.CompareAndSwap(false, true) {
		return errors.New("the service was run or closed before")
	}
	if s.grpcLis != nil {
		s.Go("grpc", s.serveGRPC)
	}
	for _, c := range s.checks {
		p := newProbe(c.name, c.ask)
		s.probes = append(s.probes, p)
		s.Go("check of "+c.name, p.run)
	}
	for _, p := range s.components {
		if p.cancel == nil {
			p.start(ctx, s.failed)
		}
	}
	s.running.Store(true)
	s.logger.InfoContext(ctx, "serving", s.addresses()...)

	var err error
	select {
	case <-ctx.Done():
		err = s.leave()
	case err = <-s.failed:
	}
	if err != nil {
		s.logger.ErrorContext(ctx, "stopping, because a part failed", "error", err)
	}
	begin := time.Now()
	stopErr := s.stop()
	s.logger.InfoContext(ctx, "stopped", "after", time.Since(begin).Round(time.Millisecond))
	if err != nil {
		return err
	}
	return stopErr
}

// leave gives load balancers the time to notice. It ends early with the error of a part that fails.
func (s *Service) leave() error {
	s.leaving.Store(true)
	if s.stopDelay == 0 {
		return nil
	}
	s.logger.Info("not ready any more, stopping soon", "in", s.stopDelay)
	delay := time.NewTimer(s.stopDelay)
	defer delay.Stop()
	select {
	case err := <-s.failed:
		return err
	case <-delay.C:
		return nil
	}
}

func (s *Service) addresses() []any {
	var attrs []any
	if s.grpcLis != nil {
		attrs = append(attrs, "grpc", s.GRPCAddr())
	}
	if s.adminLis != nil {
		attrs = append(attrs, "admin", s.AdminAddr())
	}
	if s.pprofLis != nil {
		attrs = append(attrs, "pprof", s.PprofAddr())
	}
	return attrs
}

// start runs the part in a context of its own, because the end of ctx begins an orderly stop and must not end all parts at
// once.
func (p *component) start(ctx context.Context, failed chan<- error) {
	ctx, p.cancel = context.WithCancel(context.WithoutCancel(ctx))
	go func() {
		defer close(p.ended)
		err := p.run(ctx)
		if err == nil || (ctx.Err() != nil && errors.Is(err, context.Canceled)) {
			return
		}
		p.err = fmt.Errorf("%s: %w", p.name, err)
		select {
		case failed <- p.err:
		default: // another one has failed before
		}
	}()
}

// stop stops one part after the other, and when the time is used up all that are left at once. It returns the first error.
func (s *Service) stop() error {
	s.beginStop()
	orderly, cancel := context.WithTimeout(context.Background(), s.stopTimeout)
	defer cancel()
	for _, p := range slices.Backward(s.components) {
		p.cancel()
		_ = p.wait(orderly) // Asked again below, when every part has been told to stop.
	}
	atLast, cancel := context.WithTimeout(context.Background(), lastGrace)
	defer cancel()
	var first error
	for _, p := range slices.Backward(s.components) {
		if err := p.wait(atLast); err != nil {
			s.logger.Error("a part did not stop well", "error", err)
			if first == nil {
				first = err
			}
		}
	}
	return first
}

// wait returns the part's error when it has ended, or says that it has not by the end of ctx.
func (p *component) wait(ctx context.Context) error {
	select {
	case <-p.ended:
		return p.err
	default:
	}
	select {
	case <-p.ended:
		return p.err
	case <-ctx.Done():
		return fmt.Errorf("%s did not stop in time", p.name)
	}
}

// Close releases what a service holds that was never run. After Run it does nothing.
func (s *Service) Close() error {
	if !s.used.CompareAndSwap(false, true) {
		return nil
	}
	s.beginStop()
	var errs []error
	for _, p := range slices.Backward(s.components) {
		switch {
		case p.cancel != nil: // of the admin listener
			p.cancel()
			<-p.ended
			errs = append(errs, p.err)
		case p.release != nil:
			errs = append(errs, p.release())
		}
	}
	for _, lis := range s.listeners {
		if err := lis.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
