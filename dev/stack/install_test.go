package stack

import (
	"bytes"
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// bare is a machine without servers, whose commands are answered by run. Folder bin has its programs.
func bare(t *testing.T, run func(name string, args ...string) ([]byte, error)) (h host, bin string) {
	t.Helper()
	bin = t.TempDir()
	h = ours()
	h.path, h.root = bin, true
	h.postgresFolders, h.rabbitMQFolders, h.erlangFolders = nil, nil, nil
	h.run = func(_ context.Context, name string, args ...string) ([]byte, error) { return run(name, args...) }
	return h, bin
}

func program(t *testing.T, bin, name string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
}

var errNone = errors.New("executable file not found in $PATH")

func TestChoose_WithoutAnySourceSaysWhatToInstall(t *testing.T) {
	t.Parallel()
	h, _ := bare(t, func(string, ...string) ([]byte, error) { return nil, errNone })
	_, err := start(t.Context(), Options{Dir: t.TempDir()}, h)
	want := "PostgreSQL and RabbitMQ not found, and Docker does not answer: install it (Debian, Ubuntu: sudo apt-get install postgresql rabbitmq-server), start Docker, or set DATABASE_URL and AMQP_URL"
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

func TestChoose_OnlyWhatIsMissingIsInstalled(t *testing.T) {
	t.Parallel()
	for name, root := range map[string]bool{"as root": true, "with sudo": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var bin string
			var installs [][]string
			h, bin := bare(t, func(name string, args ...string) ([]byte, error) {
				switch {
				case strings.HasSuffix(name, "/postgres"):
					return []byte("postgres (PostgreSQL) 17.2 (Debian 17.2-1)\n"), nil
				case name == "docker":
					return nil, errNone
				case slices.Contains(args, "true"): // sudo -n true
					return nil, nil
				}
				installs = append(installs, append([]string{name}, args...))
				program(t, bin, "rabbitmq-server")
				program(t, bin, "epmd")
				return nil, nil
			})
			h.root = root
			program(t, bin, "apt-get")
			program(t, bin, "initdb")
			var progress bytes.Buffer
			h.report = reporter(&progress)
			dir := t.TempDir()
			pg, mq := &postgres{host: h, dir: filepath.Join(dir, "postgres")}, &rabbitMQ{host: h, dir: filepath.Join(dir, "rabbitmq")}
			if err := choose(t.Context(), h, dir, pg, mq); err != nil {
				t.Fatal(err)
			}
			want := []string{"sh", "-c", installScript, "install", "rabbitmq-server"}
			if !root {
				want = append([]string{"sudo", "-n"}, want...)
			}
			if len(installs) != 1 || !slices.Equal(installs[0], want) {
				t.Errorf("ran %q", installs)
			}
			if pg.bin != bin || mq.program != filepath.Join(bin, "rabbitmq-server") {
				t.Errorf("PostgreSQL from %q, RabbitMQ from %q, want both from %s", pg.bin, mq.program, bin)
			}
			if !strings.Contains(progress.String(), "installing rabbitmq-server with apt-get") {
				t.Errorf("progress: %s", progress.String())
			}
		})
	}
}

func TestInstall_FailureShowsTheEndOfItsOutput(t *testing.T) {
	t.Parallel()
	h, bin := bare(t, func(name string, _ ...string) ([]byte, error) {
		if name == "docker" {
			return nil, errNone
		}
		return []byte("E: Unable to locate package rabbitmq-server\n"), errors.New("exit status 100")
	})
	program(t, bin, "apt-get")
	_, err := start(t.Context(), Options{Dir: t.TempDir()}, h)
	if err == nil || !strings.Contains(err.Error(), "installing postgresql and rabbitmq-server: exit status 100") || !strings.Contains(err.Error(), "Unable to locate") {
		t.Errorf("got %v", err)
	}
}

func TestChoose_WithoutImagesPackagesAreInstalled(t *testing.T) {
	t.Parallel()
	installed := false
	h, bin := bare(t, func(name string, args ...string) ([]byte, error) {
		switch {
		case name == "docker" && args[0] == "info":
			return []byte("27.0\n"), nil
		case name == "docker":
			return []byte("no route to host"), errors.New("exit status 1")
		}
		installed = true
		return nil, errors.New("exit status 100")
	})
	program(t, bin, "apt-get")
	if _, err := start(t.Context(), Options{Dir: t.TempDir()}, h); err == nil || !installed {
		t.Errorf("packages tried: %t, error %v", installed, err)
	}
}

// Ctrl-C while the images were pulled was reported as "PostgreSQL and RabbitMQ not found … install it".
func TestChoose_InterruptedWhilePullingSaysNothingElse(t *testing.T) {
	t.Parallel()
	ctx, interrupt := context.WithCancelCause(t.Context())
	interrupted := errors.New("interrupted")
	var after []string
	h, bin := bare(t, func(name string, args ...string) ([]byte, error) {
		switch {
		case ctx.Err() != nil:
			after = append(after, name)
		case name == "docker" && args[0] == "info":
			return []byte("27.0\n"), nil
		case name == "docker" && args[0] == "pull":
			interrupt(interrupted)
		}
		return nil, errors.New("exit status 1")
	})
	program(t, bin, "apt-get")
	var progress bytes.Buffer
	_, err := start(ctx, Options{Dir: t.TempDir(), Progress: &progress}, h)
	if !errors.Is(err, interrupted) || err.Error() != "interrupted" || len(after) > 0 || strings.Contains(progress.String(), "exit status") {
		t.Errorf("got %v, ran %q after the interrupt, said:\n%s", err, after, progress.String())
	}
}

// Only exec takes --dir: who follows the advice in make up meets an unknown flag.
func TestStart_WhatUpCannotTakeIsNoAdvice(t *testing.T) {
	t.Parallel()
	full := checkSpace(t.TempDir(), math.MaxUint64)
	if used := (InUseError{Dir: "here", PID: 1}); strings.Contains(used.Error()+full.Error(), "--dir") {
		t.Errorf("%v, and %v", used, full)
	}
}
