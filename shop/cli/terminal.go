package cli

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// output is the standard output of a process. Commands do not check each write; the first error is kept until the end.
type output struct {
	*os.File
	mu  sync.Mutex
	err error // of the first write that failed
}

func (o *output) Write(text []byte) (int, error) {
	n, err := o.File.Write(text)
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err == nil {
		o.err = err
	}
	return n, err
}

// failure returns an error if not everything could be written.
func (o *output) failure() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err != nil {
		return fmt.Errorf("the output is incomplete: %w", o.err)
	}
	return nil
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
