package local

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"shop.example/platform/telemetry"
)

// errEnded says that the shop is stopping, or has stopped.
var errEnded = errors.New("the shop is stopping")

// Service is one of the services but the gateway within the shop. It can be stopped and started again, on the same addresses,
// while the others go on. Its methods may be called concurrently; one of them starts or stops it at a time.
type Service struct {
	name   string
	report telemetry.Config
	build  func(context.Context, addresses, *telemetry.Telemetry) (instance, error)
	addrs  addresses

	turn  sync.Mutex           // held while it is started or stopped
	fail  func(error)          // set by the first start
	ended bool                 // it is not to be started any more
	life  atomic.Pointer[life] // nil while it is stopped
}

type addresses struct{ grpc, admin string }

// instance is a service that was built. It runs once.
type instance interface {
	Run(context.Context) error
	Close() error
	GRPCAddr() string
	AdminAddr() string
}

// life is what a service has from one start to the next stop: metrics begin anew, as in a process that was restarted.
type life struct {
	instance
	telemetry *telemetry.Telemetry
	stop      context.CancelFunc // nil until it runs
	done      chan struct{}
	err       error // to be read when done is closed
}

// newService builds a service with its listeners open; their addresses are its own from then on.
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
	s.life.Store(l)
	return s, nil
}

func (s *Service) open(ctx context.Context) (*life, error) {
	t, err := telemetry.New(ctx, s.report)
	if err != nil {
		return nil, err
	}
	built, err := s.build(ctx, s.addrs, t)
	if err != nil {
		t.Shutdown(ctx)
		return nil, err
	}
	return &life{instance: built, telemetry: t, done: make(chan struct{})}, nil
}

// GRPCAddr returns the address of its gRPC, which stays the same; "" if it has none.
func (s *Service) GRPCAddr() string { return s.addrs.grpc }

// AdminAddr returns the address of its health and metrics, which stays the same.
func (s *Service) AdminAddr() string { return s.addrs.admin }

// Running says whether it is started. It may not be ready yet.
func (s *Service) Running() bool { return s.life.Load() != nil }

// begin runs for the first time what newService has built; fail is called where it ends by itself with an error.
func (s *Service) begin(fail func(error)) {
	s.turn.Lock()
	defer s.turn.Unlock()
	s.fail = fail
	if s.ended {
		fail(errEnded)
		return
	}
	s.run(s.life.Load())
}

func (s *Service) run(l *life) {
	ctx, stop := context.WithCancel(context.Background())
	l.stop = stop
	go func() {
		defer close(l.done)
		if l.err = l.Run(ctx); l.err != nil && ctx.Err() == nil {
			s.fail(fmt.Errorf("%s: %w", s.name, l.err))
		}
	}()
	s.life.Store(l)
}

// Run runs it by itself until ctx ends or it fails, and stops it for good.
func (s *Service) Run(ctx context.Context) error {
	failed := make(chan error, 1)
	s.begin(func(err error) {
		select {
		case failed <- err:
		default: // the first one counts
		}
	})
	select {
	case <-ctx.Done():
		return s.end()
	case err := <-failed:
		_ = s.end() // it has said what is wrong
		return err
	}
}

// Start starts it, if it is stopped. It returns once its listeners are open; Ready tells the rest. ctx bounds the start
// alone.
func (s *Service) Start(ctx context.Context) error {
	s.turn.Lock()
	defer s.turn.Unlock()
	switch {
	case s.ended:
		return errEnded
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

// Stop stops it as SIGTERM would, if it runs: it finishes what it has in hand, within 9 s.
func (s *Service) Stop() error {
	s.turn.Lock()
	defer s.turn.Unlock()
	return s.stop()
}

func (s *Service) stop() error {
	l := s.life.Swap(nil)
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

// end stops it for good.
func (s *Service) end() error {
	s.turn.Lock()
	defer s.turn.Unlock()
	s.ended = true
	return s.stop()
}

// Close releases a service that was never run.
func (s *Service) Close() error {
	s.turn.Lock()
	defer s.turn.Unlock()
	s.ended = true
	l := s.life.Swap(nil)
	if l == nil {
		return nil
	}
	err := l.Close()
	l.telemetry.Shutdown(context.Background())
	return err
}
