package cli

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/spf13/cobra"
)

// endless is a command that prints one line and goes on until its context ends.
func endless(errs *bytes.Buffer) *cobra.Command {
	root := &cobra.Command{Use: "tail", SilenceUsage: true, SilenceErrors: true, RunE: func(cmd *cobra.Command, _ []string) error {
		fmt.Fprintln(cmd.OutOrStdout(), "an event")
		select {
		case <-cmd.Context().Done():
			return cmd.Context().Err()
		case <-time.After(30 * time.Second):
			return errors.New("it goes on")
		}
	}}
	root.SetArgs([]string{})
	root.SetErr(errs)
	return root
}

// A tail into a file on a full disk went on without a word.
func TestRun_ACommandEndsWhenItsOutputCannotBeWritten(t *testing.T) {
	t.Parallel()
	full, err := os.Open(os.DevNull) // for reading
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = full.Close() })
	var errs bytes.Buffer
	if code := run(endless(&errs), full); code != 1 || errs.String() != "tail: the output is incomplete: write /dev/null: bad file descriptor\n" {
		t.Errorf("exit code %d, %q", code, errs.String())
	}
}

// What a command has to tidy up, as the webhook of shop webhooks listen, stayed when it was piped to head.
func TestRun_AClosedPipeEndsACommandWithoutAWord(t *testing.T) {
	t.Parallel()
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = writer.Close() })
	_ = reader.Close()
	var errs bytes.Buffer
	if code := run(endless(&errs), writer); code != 141 || errs.String() != "" {
		t.Errorf("exit code %d, %q", code, errs.String())
	}
}
