package local

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"shop.example/platform/telemetry"
)

// errStopping is returned when a service of a shop that is stopping, or has stopped, is to be started.
var errStopping = errors.New("the shop is stopping")

// Service is a service of the shop, other than the gateway. It can be stopped and started again, on the same addresses,
// while the others go on. Its methods may be called concurrently; starts and stops follow one another.
type Service struct {
	name   string
	report telemetry.Config
	build  func(context.Context, addresses, *telemetry.Telemetry) (instance, error)
	addrs  addresses

	mu         sync.Mutex                 // locked while it is started or stopped
	fail       func(error)                // set by the first start
	final      bool                       // it is stopped for good
	generation atomic.Pointer[generation] // nil while it is stopped
}

type addresses struct{ grpc, admin string }

// instance is a service that was built. It can be run once.
type instance interface {
	Run(context.Context) error
	Close() error
	GRPCAddr() string
	AdminAddr() string
}

// generation is a service between one start and the next stop. Its metrics start from zero, as in a restarted process.
type generation struct {
	instance
	telemetry *telemetry.Telemetry
	stop      context.CancelFunc // nil until it runs
	done      chan struct{}
	err       error // to be read when done is closed
}

// newService builds a service with its listeners open. It keeps their addresses from then on.
func newService(ctx context.Context, name string, report telemetry.Config, at addresses,
	build func(context.Context, addresses, *telemetry.Telemetry) (instance, error),
) (*Service, error) {
	report.Service = name
	s := &Service{name: name, report: report, build: build, addrs: at}
	l, err := s.open(ctx)
	if err != nil {
		return nil, err
	}
	s.addrs = addresses{l.GRPCAddr(), l.AdminAddr()}
	s.generation.Store(l)
	return s, nil
}

func (s *Service) open(ctx context.Context) (*generation, error) {
	t, err := telemetry.New(ctx, s.report)
	if err != nil {
		return nil, err
	}
	built, err := s.build(ctx, s.addrs, t)
	if err != nil {
		t.Shutdown(ctx)
		return nil, err
	}
	return &generation{instance: built, telemetry: t, done: make(chan struct{})}, nil
}

// GRPCAddr returns the address of the service's gRPC, which never changes; "" if it has none.
func (s *Service) GRPCAddr() string { return s.addrs.grpc }

// AdminAddr returns the address of the service's health and metrics, which never changes.
func (s *Service) AdminAddr() string { return s.addrs.admin }

// Running reports whether the service is started. It may not be ready yet.
func (s *Service) Running() bool { return s.generation.Load() != nil }

// start runs for the first time what newService has built. fail is called with the error if it ends by itself.
func (s *Service) start(fail func(error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = fail
	if s.final {
		fail(errStopping)
		return
	}
	s.run(s.generation.Load())
}

func (s *Service) run(l *generation) {
	ctx, stop := context.WithCancel(context.Background())
	l.stop = stop
	go func() {
		defer close(l.done)
		if l.err = l.Run(ctx); l.err != nil && ctx.Err() == nil {
			s.fail(fmt.Errorf("%s: %w", s.name, l.err))
		}
	}()
	s.generation.Store(l)
}

// Run runs the service alone until ctx ends or it fails, and then stops it for good.
func (s *Service) Run(ctx context.Context) error {
	failed := make(chan error, 1)
	s.start(func(err error) {
		select {
		case failed <- err:
		default: // the first one counts
		}
	})
	select {
	case <-ctx.Done():
		return s.shutdown()
	case err := <-failed:
		_ = s.shutdown() // err says what is wrong
		return err
	}
}

// Start starts the service if it is stopped. It returns when the listeners are open; the service may not be ready yet. ctx
// bounds only the start. It fails if the shop is stopping.
func (s *Service) Start(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.final:
		return errStopping
	case s.Running():
		return nil
	}
	l, err := s.open(ctx)
	if err != nil {
		return fmt.Errorf("starting the %s service: %w", s.name, err)
	}
	s.run(l)
	return nil
}

// Stop stops the service if it runs, as SIGTERM would: it finishes what it has in hand, within 9 s.
func (s *Service) Stop() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stop()
}

func (s *Service) stop() error {
	l := s.generation.Swap(nil)
	if l == nil {
		return nil
	}
	l.stop()
	<-l.done
	l.telemetry.Shutdown(context.Background())
	if l.err != nil {
		return fmt.Errorf("stopping the %s service: %w", s.name, l.err)
	}
	return nil
}

// shutdown stops the service for good.
func (s *Service) shutdown() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.final = true
	return s.stop()
}

// Close releases a service that was never run.
func (s *Service) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.final = true
	l := s.generation.Swap(nil)
	if l == nil {
		return nil
	}
	err := l.Close()
	l.telemetry.Shutdown(context.Background())
	return err
}
