// Package cli has what the command line tools share: they report a wrong command line in one line, have the same exit
// codes, ask before they destroy something, and print only text that is safe for a terminal.
package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Main runs a command with the process' arguments and returns its exit code. The first SIGINT, SIGTERM or SIGHUP ends the
// command's context, as a failed write to standard output does; the second signal ends the process.
func Main(root *cobra.Command) int {
	// A write to a closed pipe fails instead of ending the process before the command has tidied up. The programs that it starts
	// inherit an ignored signal, but not this.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	return run(root, os.Stdout)
}

func run(root *cobra.Command, stdout *os.File) int {
	complete, fail := context.WithCancelCause(context.Background())
	defer fail(nil)
	ctx, stop := signal.NotifyContext(complete, EndSignals()...)
	defer stop()
	context.AfterFunc(ctx, stop)
	root.SetOut(&output{stdout, fail})
	err := root.ExecuteContext(ctx)
	if failed := context.Cause(complete); failed != nil { // what the command met after that follows from it
		err = failed
	}
	var code ExitCode
	if err != nil && !errors.As(err, &code) && !errors.Is(err, context.Canceled) { // an interrupt needs no words
		fmt.Fprintf(root.ErrOrStderr(), "%s: %v\n", root.Name(), err)
	}
	return ExitStatus(err)
}

// EndSignals returns the signals that ask a program to end. After nohup a terminal that closes is none.
func EndSignals() []os.Signal {
	if signal.Ignored(syscall.SIGHUP) {
		return []os.Signal{os.Interrupt, syscall.SIGTERM}
	}
	return []os.Signal{os.Interrupt, syscall.SIGTERM, syscall.SIGHUP}
}

// ExitCode is the error of a command that has already printed what went wrong.
type ExitCode int

func (c ExitCode) Error() string { return fmt.Sprintf("exit status %d", int(c)) }

// ExitStatus returns the exit code for the error of a command: 0 for nil; the code itself for an ExitCode; 2 if the command
// line is wrong, also if the shop found that out; 130 after an interrupt; 1 for everything else.
func ExitStatus(err error) int {
	var code ExitCode
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	case errors.As(err, &usageError{}), status.Code(err) == codes.InvalidArgument:
		return 2
	case errors.Is(err, context.Canceled):
		return 130
	}
	return 1
}
