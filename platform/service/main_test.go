package service_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.opentelemetry.io/otel"
	"google.golang.org/grpc/grpclog"
)

// program is what the tests of Main run in a process of its own.
func program(ctx context.Context) error {
	switch os.Getenv("RUN_AS") {
	case "failing":
		return errors.New("cannot listen on :3001: address already in use (set GRPC_ADDR to another address)")
	case "talking":
		log.Print("from package log")
		otel.Handle(errors.New("from OpenTelemetry"))
		grpclog.Error("from gRPC")
		return errors.New("from the program")
	case "interrupted":
		_, _ = io.WriteString(os.Stdout, "started\n")
		<-ctx.Done()
		return ctx.Err()
	default: // "stuck"
		_, _ = io.WriteString(os.Stdout, "started\n")
		<-ctx.Done()
		_, _ = io.WriteString(os.Stdout, "stopping\n")
		select {}
	}
}

func command(t *testing.T, as string) (cmd *exec.Cmd, stdout io.Reader, stderr *bytes.Buffer) {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd = exec.CommandContext(t.Context(), program)
	cmd.Env = append(os.Environ(), "RUN_AS="+as)
	stderr = &bytes.Buffer{}
	cmd.Stderr = stderr
	stdout, err = cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, stdout, stderr
}

func expectLine(t *testing.T, from io.Reader, line string) {
	t.Helper()
	got := make([]byte, len(line)+1)
	if _, err := io.ReadFull(from, got); err != nil || string(got) != line+"\n" {
		t.Fatalf("got %q, %v, want %s", got, err, line)
	}
}

func TestMain_AnErrorIsOneLineAndExitCode1(t *testing.T) {
	t.Parallel()
	cmd, _, stderr := command(t, "failing")
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("got %v", err)
	}
	want := "order: cannot listen on :3001: address already in use (set GRPC_ADDR to another address)\n"
	if stderr.String() != want {
		t.Errorf("got %q, want %q", stderr, want)
	}
}

// A program that reads the log met lines of libraries, and the last one of the program, that are no JSON.
func TestMain_JSONMeansEveryLine(t *testing.T) {
	t.Setenv("LOG_FORMAT", "json")
	cmd, _, stderr := command(t, "talking")
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("got %v", err)
	}
	text := stderr.String()
	for line := range strings.Lines(text) {
		var fields map[string]any
		if err := json.Unmarshal([]byte(line), &fields); err != nil || fields["service"] != "order" {
			t.Errorf("%v: %s", err, line)
		}
	}
	for _, want := range []string{"from package log", `"error":"from OpenTelemetry"`, "from gRPC", `"error":"from the program"`} {
		if strings.Count(text, want) != 1 {
			t.Errorf("%q is not there once: %s", want, text)
		}
	}
}

func TestMain_ASignalEndsTheContextAndIsNoError(t *testing.T) {
	t.Parallel()
	for _, signal := range []os.Signal{os.Interrupt, syscall.SIGTERM} {
		cmd, stdout, stderr := command(t, "interrupted")
		expectLine(t, stdout, "started")
		if err := cmd.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil || stderr.Len() > 0 {
			t.Errorf("%s: %v, %q", signal, err, stderr)
		}
	}
}

func TestMain_ASecondSignalEndsTheProcessAtOnce(t *testing.T) {
	t.Parallel()
	cmd, stdout, _ := command(t, "stuck")
	expectLine(t, stdout, "started")
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	expectLine(t, stdout, "stopping")
	// The first signal's handler is removed beside the program, so the second may still come too early for it.
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		select {
		case err := <-ended:
			if err == nil {
				t.Error("it ended as if all was well")
			}
			return
		case <-time.After(10 * time.Millisecond):
			_ = cmd.Process.Signal(os.Interrupt)
		}
	}
}
