package measure

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime/pprof"
	"time"

	"github.com/caarlos0/env/v11"
	"golang.org/x/sync/errgroup"

	"shop.example/db"
	"shop.example/dev/local"
	"shop.example/platform/service"
)

const (
	startTimeout = time.Minute
	stopTimeout  = 15 * time.Second
)

// process is a pipeline that runs in a child process (Serve).
type process struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
	addr  string
	ended chan error
}

// startProcess starts a pipeline in a child process and returns once it takes orders.
func startProcess(ctx context.Context, o *Options, pipeline Pipeline, e *environment, profile string) (*process, error) {
	args := append([]string(nil), o.Program[1:]...)
	args = append(args, "--pipeline="+string(pipeline), fmt.Sprintf("--held=%t", o.Backlog), "--profile="+profile)
	cmd := exec.Command(o.Program[0], args...) //nolint:noctx // it is asked to end when its input ends
	cmd.Env = append(os.Environ(), "DATABASE_URL="+e.databaseURL, "AMQP_URL="+e.amqpURL, "LOG_LEVEL="+o.LogLevel.String())
	cmd.Stderr = o.Logs
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting the %s: %w", pipeline, err)
	}
	p := &process{cmd: cmd, stdin: stdin, ended: make(chan error, 1)}
	ready := make(chan error, 1)
	go func() {
		line, err := bufio.NewReader(stdout).ReadBytes('\n')
		switch {
		case err == nil:
			err = json.Unmarshal(line, &p.addr)
		case errors.Is(err, io.EOF):
			err = errors.New("it has ended")
		}
		ready <- err
		_, _ = io.Copy(io.Discard, stdout) // to its end, before which Wait must not be called
		p.ended <- cmd.Wait()
	}()
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, fmt.Errorf("it is not ready within %s", startTimeout))
	defer cancel()
	select {
	case err = <-ready:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("starting the %s: %w", pipeline, errors.Join(err, p.stop()))
	}
	return p, nil
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

// Serve runs a pipeline on the servers that DATABASE_URL and AMQP_URL name, until in reaches its end or ctx ends. Once it takes
// orders it writes its HTTP address to out, as a line of JSON. If held, it decides no order before it has read a byte from in.
// profile is the file to write a CPU profile to, "" for none.
func Serve(ctx context.Context, pipeline Pipeline, held bool, profile string, in io.Reader, out io.Writer) (err error) {
	if profile != "" {
		stop, err := startProfile(profile)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, stop()) }()
	}
	service.TuneGC()
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
	ready := func(addr string) error { return json.NewEncoder(out).Encode(addr) }
	switch pipeline {
	case Shop:
		return serveShop(ctx, held, released, ready)
	case Baseline:
		return serveBaseline(ctx, released, ready)
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

// serveShop runs the shop as `shopdev up` does, on ports that are free. With held the order service does not start before released is closed.
func serveShop(ctx context.Context, held bool, released <-chan struct{}, ready func(addr string) error) error {
	cfg := local.Config{}
	if err := env.Parse(&cfg); err != nil {
		return fmt.Errorf("reading the environment: %w", err)
	}
	cfg.AnyPort()
	cfg.OperatorToken, cfg.IDSecret = rand.Text(), rand.Text()
	cfg.AMQPURLs, cfg.DatabaseURLs = local.OneBroker(os.Getenv("AMQP_URL")), map[string]string{}
	for _, schema := range db.Schemas() {
		cfg.DatabaseURLs[schema] = os.Getenv("DATABASE_URL")
	}
	shop, err := local.New(ctx, cfg)
	if err != nil {
		return err
	}
	services, ctx := errgroup.WithContext(ctx)
	services.Go(func() error { return shop.Gateway.Run(ctx) })
	services.Go(func() error { return shop.Inventory.Run(ctx) })
	services.Go(func() error { return shop.Logging.Run(ctx) })
	services.Go(func() error {
		select {
		case <-released:
			return shop.Order.Run(ctx)
		case <-ctx.Done():
			return shop.Order.Close()
		}
	})
	needed := []string{shop.Gateway.AdminAddr(), shop.Inventory.AdminAddr(), shop.Logging.AdminAddr()}
	if !held {
		needed = append(needed, shop.Order.AdminAddr())
	}
	services.Go(func() error {
		if err := waitReady(ctx, needed); err != nil {
			return err
		}
		return ready(shop.Gateway.HTTPAddr())
	})
	return services.Wait()
}

// waitReady returns once all services are ready, or with nil when ctx has ended.
func waitReady(ctx context.Context, admin []string) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for _, addr := range admin {
		for service.Probe(ctx, addr) != nil {
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
		}
	}
	return nil
}
