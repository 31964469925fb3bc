package measure

import (
	"bufio"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime/pprof"
	"strings"
	"time"

	"github.com/caarlos0/env/v11"
	"golang.org/x/sync/errgroup"

	"shop.example/db"
	"shop.example/dev/local"
	platform "shop.example/platform/service"
	"shop.example/topology"
)

const (
	startTimeout = time.Minute
	stopTimeout  = 15 * time.Second
)

// process is a pipeline, or one service of the shop, that runs in a child process (Serve).
type process struct {
	name    string // the pipeline's, or the service's
	service string // that it runs alone, if it does
	cmd     *exec.Cmd
	stdin   io.WriteCloser
	addrs   addrs
	ended   chan error
}

// addrs are the addresses that a child process listens on.
type addrs struct {
	HTTP  string   `json:"http,omitempty"`  // that takes orders
	GRPC  string   `json:"grpc,omitempty"`  // of a service that runs alone
	Admin []string `json:"admin,omitempty"` // of the services that have to be ready
}

// startProcess starts a pipeline, or with service one service of the shop, in a child process. It returns once that
// listens, and is not ready yet. environ is added to its environment.
func startProcess(ctx context.Context, o *Options, pipeline Pipeline, service string, e *environment, profile string, environ []string) (*process, error) {
	args := append([]string(nil), o.Program[1:]...)
	args = append(args, "--pipeline="+string(pipeline), "--service="+service, fmt.Sprintf("--held=%t", o.Backlog), "--profile="+profile)
	cmd := exec.Command(o.Program[0], args...) //nolint:noctx // it is asked to end when its input ends
	cmd.Env = append(os.Environ(), "DATABASE_URL="+e.databaseURL, "AMQP_URL="+e.amqpURL, "LOG_LEVEL="+o.LogLevel.String())
	cmd.Env = append(cmd.Env, environ...)
	cmd.Stderr = o.Logs
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	name := cmp.Or(service, string(pipeline))
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting the %s: %w", name, err)
	}
	p := &process{name: name, service: service, cmd: cmd, stdin: stdin, ended: make(chan error, 1)}
	listening := make(chan error, 1)
	go func() {
		line, err := bufio.NewReader(stdout).ReadBytes('\n')
		switch {
		case err == nil:
			err = json.Unmarshal(line, &p.addrs)
		case errors.Is(err, io.EOF):
			err = errors.New("it has ended")
		}
		listening <- err
		_, _ = io.Copy(io.Discard, stdout) // to its end, before which Wait must not be called
		p.ended <- cmd.Wait()
	}()
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, fmt.Errorf("it does not listen within %s", startTimeout))
	defer cancel()
	select {
	case err = <-listening:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("starting the %s: %w", name, errors.Join(err, p.stop()))
	}
	return p, nil
}

// startServices starts each service of the shop in a process of its own, as compose does. The gateway comes last, because
// each has to know the addresses of those before it.
func startServices(ctx context.Context, o *Options, e *environment, profile string) (started []*process, err error) {
	var environ []string
	for _, name := range append(topology.Names()[1:], topology.Gateway) {
		to := profile
		if to != "" {
			to += "." + name
		}
		p, err := startProcess(ctx, o, Shop, name, e, to, environ)
		if err != nil {
			return started, err
		}
		started = append(started, p)
		environ = append(environ, strings.ToUpper(name)+"_ADDR="+p.addrs.GRPC)
	}
	return started, nil
}

// release lets a pipeline that was started with held decide orders.
func (p *process) release() error {
	_, err := p.stdin.Write([]byte{'\n'})
	return err
}

// stop ends the process in an orderly way, or kills it after 15 s.
func (p *process) stop() error {
	_ = p.stdin.Close()
	select {
	case err := <-p.ended:
		return err
	case <-time.After(stopTimeout):
		_ = p.cmd.Process.Kill() // if this fails it has ended already
		return fmt.Errorf("process %d has not stopped within %s: %w", p.cmd.Process.Pid, stopTimeout, <-p.ended)
	}
}

// Serve runs a pipeline, or the service of the shop that is named, on the servers that DATABASE_URL and AMQP_URL name, until
// in reaches its end or ctx ends. Once it listens it writes its addresses to out, as a line of JSON. If held, it decides no
// order before it has read a byte from in. profile is the file to write a CPU profile to, "" for none.
func Serve(ctx context.Context, pipeline Pipeline, service string, held bool, profile string, in io.Reader, out io.Writer) (err error) {
	if profile != "" {
		stop, err := startProfile(profile)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, stop()) }()
	}
	platform.TuneGC()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	released := make(chan struct{})
	go func() {
		defer cancel()
		one := make([]byte, 1)
		if _, err := in.Read(one); err != nil {
			return
		}
		if held {
			close(released)
		}
		_, _ = in.Read(one) // its end
	}()
	if !held {
		close(released)
	}
	listening := func(a addrs) error { return json.NewEncoder(out).Encode(a) }
	switch {
	case pipeline == Shop && service != "":
		return serveService(ctx, service, held, released, listening)
	case pipeline == Shop:
		return serveShop(ctx, held, released, listening)
	case pipeline == Baseline:
		return serveBaseline(ctx, released, func(addr string) error { return listening(addrs{HTTP: addr}) })
	default:
		return fmt.Errorf("no pipeline %q: it is %s or %s", pipeline, Shop, Baseline)
	}
}

func startProfile(path string) (stop func() error, err error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, fmt.Errorf("creating the profile: %w", err)
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() error {
		pprof.StopCPUProfile()
		return f.Close()
	}, nil
}

// configure is how `shopdev up` configures the shop, on the run's servers.
func configure() (cfg local.Config, err error) {
	if err := env.Parse(&cfg); err != nil {
		return cfg, fmt.Errorf("reading the environment: %w", err)
	}
	cfg.OperatorToken, cfg.IDSecret = cmp.Or(cfg.OperatorToken, rand.Text()), rand.Text()
	cfg.AMQPURLs, cfg.DatabaseURLs = local.OneBroker(os.Getenv("AMQP_URL")), map[string]string{}
	for _, schema := range db.Schemas() {
		cfg.DatabaseURLs[schema] = os.Getenv("DATABASE_URL")
	}
	return cfg, nil
}

// serveShop runs the shop as `shopdev up` does, on ports that are free. With held the order service does not start before released is closed.
func serveShop(ctx context.Context, held bool, released <-chan struct{}, listening func(addrs) error) error {
	cfg, err := configure()
	if err != nil {
		return err
	}
	cfg.AnyPort()
	shop, err := local.New(ctx, cfg)
	if err != nil {
		return err
	}
	services, ctx := errgroup.WithContext(ctx)
	services.Go(func() error { return shop.Gateway.Run(ctx) })
	at := addrs{HTTP: shop.Gateway.HTTPAddr(), Admin: []string{shop.Gateway.AdminAddr()}}
	for name, s := range shop.Services() {
		services.Go(func() error { return runReleased(ctx, s, name, released) })
		if name != topology.Order || !held {
			at.Admin = append(at.Admin, s.AdminAddr())
		}
	}
	services.Go(func() error { return listening(at) })
	return services.Wait()
}

// serveService runs one service of the shop, on ports that are free. The addresses of the others are in the environment.
func serveService(ctx context.Context, name string, held bool, released <-chan struct{}, listening func(addrs) error) error {
	cfg, err := configure()
	if err != nil {
		return err
	}
	anyPort := "127.0.0.1:0"
	cfg.AdminAddr = anyPort
	if name == topology.Gateway {
		cfg.HTTPAddr = anyPort
		gateway, err := local.NewGateway(ctx, cfg)
		if err != nil {
			return err
		}
		if err := listening(addrs{HTTP: gateway.HTTPAddr(), Admin: []string{gateway.AdminAddr()}}); err != nil {
			return errors.Join(err, gateway.Close())
		}
		return gateway.Run(ctx)
	}
	own := cfg.Addrs()[strings.ToUpper(name)+"_ADDR"]
	if own == nil {
		return fmt.Errorf("no service %q: it is one of %s", name, strings.Join(topology.Names(), ", "))
	}
	*own = anyPort
	s, err := local.NewService(ctx, name, cfg)
	if err != nil {
		return err
	}
	at := addrs{GRPC: s.GRPCAddr()}
	if name != topology.Order || !held {
		at.Admin = []string{s.AdminAddr()}
	}
	if err := listening(at); err != nil {
		return errors.Join(err, s.Close())
	}
	return runReleased(ctx, s, name, released)
}

// runReleased runs a service; the order service once released is closed.
func runReleased(ctx context.Context, s *local.Service, name string, released <-chan struct{}) error {
	if name == topology.Order {
		select {
		case <-released:
		case <-ctx.Done():
			return s.Close()
		}
	}
	return s.Run(ctx)
}

// waitReady returns once all services of the processes are ready.
func waitReady(ctx context.Context, processes []*process) error {
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, fmt.Errorf("it is not ready within %s", startTimeout))
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for _, p := range processes {
		for _, addr := range p.addrs.Admin {
			for platform.Probe(ctx, addr) != nil {
				select {
				case err := <-p.ended:
					p.ended <- err // for stop
					return fmt.Errorf("starting the %s: it has ended: %w", p.name, err)
				case <-ctx.Done():
					return fmt.Errorf("starting the %s: %w", p.name, context.Cause(ctx))
				case <-tick.C:
				}
			}
		}
	}
	return nil
}
