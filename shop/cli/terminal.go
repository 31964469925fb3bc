package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// output is the standard output of a process. Commands do not check each write: the first one that fails ends the command.
type output struct {
	file *os.File
	fail context.CancelCauseFunc
}

func (o *output) Fd() uintptr { return o.file.Fd() }

func (o *output) Write(text []byte) (int, error) {
	n, err := o.file.Write(text)
	switch {
	case errors.Is(err, syscall.EPIPE): // head has what it wants; the exit code is that of a process that SIGPIPE ends
		o.fail(ExitCode(128 + int(syscall.SIGPIPE)))
	case err != nil:
		o.fail(fmt.Errorf("the output is incomplete: %w", err))
	}
	return n, err
}

// TerminalWidth returns how many columns the terminal f has; isTerminal is false if f is no terminal.
func TerminalWidth(f any) (columns int, isTerminal bool) {
	file, ok := f.(interface{ Fd() uintptr })
	if !ok {
		return 0, false
	}
	columns, _, err := term.GetSize(int(file.Fd()))
	return columns, err == nil
}

// ErrDeclined is the error of a command whose question was answered with no.
var ErrDeclined = errors.New("nothing was done")

// CanAsk reports whether the command's input is a terminal, so that somebody can answer a question.
func CanAsk(cmd *cobra.Command) bool {
	_, isTerminal := TerminalWidth(cmd.InOrStdin())
	return isTerminal
}

// Confirm asks a question and returns nil if it is answered with yes. If the input is no terminal it fails, and the error
// asks for --yes.
func Confirm(cmd *cobra.Command, question string) error {
	if !CanAsk(cmd) {
		return WrongUsage("%s Nobody can answer here, because the input is no terminal: --yes does it without asking", question)
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "%s [y/N] ", question)
	answer, err := readLine(cmd)
	if err != nil {
		return err
	}
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return nil
	}
	return ErrDeclined
}

// readLine reads a line of the input. If ctx ends before, it returns the context's error and leaves the reading goroutine
// behind, because nothing else ends a read from a terminal and the process is about to end.
func readLine(cmd *cobra.Command) (string, error) {
	type line struct {
		text string
		err  error
	}
	read := make(chan line, 1)
	go func() {
		text, err := bufio.NewReader(cmd.InOrStdin()).ReadString('\n')
		read <- line{text, err}
	}()
	var ended <-chan struct{}
	if ctx := cmd.Context(); ctx != nil {
		ended = ctx.Done()
	}
	select {
	case l := <-read:
		if l.err != nil && !errors.Is(l.err, io.EOF) {
			return "", fmt.Errorf("reading the answer: %w", l.err)
		}
		return l.text, nil
	case <-ended:
		fmt.Fprintln(cmd.ErrOrStderr())
		return "", cmd.Context().Err()
	}
}
