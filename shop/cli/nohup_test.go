//go:build unix

package cli

import (
	"bytes"
	"context"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"

	"github.com/spf13/cobra"
)

// nohup shop audit --every 1m ended with its terminal. What a process ignores all its tests ignore, so this one is alone.
func TestRun_ACommandUnderNohupOutlivesItsTerminal(t *testing.T) {
	signal.Ignore(syscall.SIGHUP)
	t.Cleanup(func() { signal.Reset(syscall.SIGHUP) })
	var ended error
	root := &cobra.Command{SilenceUsage: true, SilenceErrors: true, RunE: func(cmd *cobra.Command, _ []string) error {
		for _, s := range []syscall.Signal{syscall.SIGHUP, syscall.SIGTERM} { // the first one that is not ignored ends it
			if err := syscall.Kill(os.Getpid(), s); err != nil {
				return err
			}
		}
		<-cmd.Context().Done()
		ended = context.Cause(cmd.Context())
		return nil
	}}
	root.SetArgs([]string{})
	var errs bytes.Buffer
	root.SetErr(&errs)
	if code := run(root, os.Stdout); code != 0 || ended == nil || !strings.Contains(ended.Error(), "terminated") {
		t.Errorf("ended by %v, exit code %d, %s", ended, code, &errs)
	}
}
