package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"go.yaml.in/yaml/v3"
	"golang.org/x/sync/errgroup"

	"shop.example/shop/command"
	"shop.example/shop/workspace"
)

// observer is a Prometheus that watches a shop on this machine, with the rules of deploy/prometheus, and a repeated audit.
type observer struct {
	program string // of Prometheus
	rules   string
	dir     string // is made anew, and removed at the end
}

// newObserver finds the program and the rules, before anything is started.
func newObserver() (*observer, error) {
	folder, err := workspace.Dir()
	if err != nil {
		return nil, err
	}
	root := filepath.Dir(folder)
	o := &observer{rules: filepath.Join(root, "deploy", "prometheus", "rules.yaml"), dir: filepath.Join(folder, "observe")}
	for _, program := range []string{"prometheus", filepath.Join(root, ".bin", "prometheus")} {
		if o.program, err = exec.LookPath(program); err == nil {
			return o, nil
		}
	}
	return nil, errors.New("--observe needs Prometheus: run tools/prometheus.sh, which unpacks Debian's, or install it from https://prometheus.io/download")
}

// run watches the shop until ctx ends. It calls ready with the URL of Prometheus when that answers. targets are addresses
// by job; broker is the address of RabbitMQ's metrics, or "".
func (o *observer) run(ctx context.Context, targets map[string]string, broker string, logs io.Writer, ready func(url string)) (err error) {
	addr, err := freeAddr("127.0.0.1:9090")
	if err != nil {
		return err
	}
	audit, err := freeAddr("127.0.0.1:3109")
	if err != nil {
		return err
	}
	jobs := maps.Clone(targets)
	jobs["audit"] = audit
	defer func() { err = errors.Join(err, os.RemoveAll(o.dir)) }()
	if err := o.configure(jobs, broker); err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(o.dir, "prometheus.log"))
	if err != nil {
		return fmt.Errorf("creating the log of Prometheus: %w", err)
	}
	defer log.Close()
	both, ctx := errgroup.WithContext(ctx)
	both.Go(func() error {
		root := command.Root()
		root.SetArgs([]string{"audit", "--every", "1m", "--listen", audit})
		root.SetOut(logs)
		root.SetErr(logs)
		return untilEnd(ctx, "the audit", root.ExecuteContext(ctx))
	})
	both.Go(func() error {
		cmd := exec.CommandContext(ctx, o.program, "--config.file="+filepath.Join(o.dir, "prometheus.yaml"),
			"--storage.tsdb.path="+filepath.Join(o.dir, "data"), "--web.listen-address="+addr, "--enable-feature=exemplar-storage")
		cmd.Stdout, cmd.Stderr = log, log
		cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
		cmd.WaitDelay = 5 * time.Second
		return untilEnd(ctx, "Prometheus (see "+log.Name()+")", cmd.Run())
	})
	both.Go(func() error {
		if err := awaitOK(ctx, "http://"+addr+"/-/ready"); err == nil {
			ready("http://" + addr)
		}
		return nil
	})
	return both.Wait()
}

// untilEnd returns an error if a part has ended before it was asked to.
func untilEnd(ctx context.Context, part string, err error) error {
	switch {
	case ctx.Err() != nil:
		return nil
	case err == nil:
		return fmt.Errorf("%s has ended", part)
	}
	return fmt.Errorf("%s has failed: %w", part, err)
}

// configure writes the configuration of Prometheus.
func (o *observer) configure(targets map[string]string, broker string) error {
	type job struct {
		Name   string                `yaml:"job_name"`
		Path   string                `yaml:"metrics_path,omitempty"`
		Static []map[string][]string `yaml:"static_configs"`
	}
	var jobs []job
	add := func(name, path, addr string) {
		jobs = append(jobs, job{name, path, []map[string][]string{{"targets": {addr}}}})
	}
	for _, name := range slices.Sorted(maps.Keys(targets)) {
		add(name, "", targets[name])
	}
	if broker != "" {
		add("rabbitmq", "/metrics/per-object", broker)
	}
	text, err := yaml.Marshal(map[string]any{
		"global":         map[string]string{"scrape_interval": "5s", "evaluation_interval": "5s"},
		"rule_files":     []string{o.rules},
		"scrape_configs": jobs,
	})
	if err != nil {
		return fmt.Errorf("writing the configuration of Prometheus: %w", err)
	}
	if err := os.RemoveAll(o.dir); err != nil { // of a run that was killed
		return err
	}
	if err := os.MkdirAll(o.dir, 0o750); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(o.dir, "prometheus.yaml"), text, 0o600)
}

// freeAddr returns addr if nothing listens on it, otherwise the same with another port.
func freeAddr(addr string) (string, error) {
	lis, err := net.Listen("tcp", addr)
	if err != nil {
		if lis, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			return "", fmt.Errorf("finding a free port: %w", err)
		}
	}
	return lis.Addr().String(), lis.Close()
}

// awaitOK returns once a GET of the URL answers 200.
func awaitOK(ctx context.Context, url string) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		if res, err := http.DefaultClient.Do(req); err == nil {
			_ = res.Body.Close()
			if res.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}
