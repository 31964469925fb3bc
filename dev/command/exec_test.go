package command

import (
	"errors"
	"os/signal"
	"syscall"
	"testing"

	"shop.example/shop/cli"
)

// What a process ignores all its tests ignore, so this one is alone.
func TestExec_UnderNohupTheCommandOutlivesItsTerminal(t *testing.T) {
	signal.Ignore(syscall.SIGHUP)
	t.Cleanup(func() { signal.Reset(syscall.SIGHUP) })
	const script = `trap 'exit 3' HUP; trap 'exit 4' TERM; kill -HUP $PPID; kill -TERM $PPID; while :; do sleep 0.1; done`
	var code cli.ExitCode
	if err := run("/bin/sh", []string{"sh", "-c", script}, nil); !errors.As(err, &code) || code != 4 {
		t.Errorf("%v, want 4 for SIGTERM: SIGHUP is to be ignored", err)
	}
}
