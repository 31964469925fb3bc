package cli

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// TerminalWidth returns how many columns the terminal f has; false if f is not a terminal.
func TerminalWidth(f any) (columns int, isTerminal bool) {
	file, ok := f.(*os.File)
	if !ok {
		return 0, false
	}
	columns, _, err := term.GetSize(int(file.Fd()))
	return columns, err == nil
}

// ErrDeclined is the error of a command whose question was answered with no.
var ErrDeclined = errors.New("nothing was done")

// CanAsk says whether the input is a terminal, so that somebody can answer a question.
func CanAsk(cmd *cobra.Command) bool {
	_, isTerminal := TerminalWidth(cmd.InOrStdin())
	return isTerminal
}

// Confirm asks a question and returns nil after a yes. If the input is not a terminal nobody can answer, and the error
// asks for --yes.
func Confirm(cmd *cobra.Command, question string) error {
	if !CanAsk(cmd) {
		return WrongUsage("%s Nobody can answer here, because the input is no terminal: --yes does it without asking", question)
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "%s [y/N] ", question)
	answer, err := bufio.NewReader(cmd.InOrStdin()).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("reading the answer: %w", err)
	}
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return nil
	}
	return ErrDeclined
}
