package command

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// terminalWidth returns how many columns the terminal has that f is; false where f is none.
func terminalWidth(f any) (columns int, isTerminal bool) {
	file, ok := f.(*os.File)
	if !ok {
		return 0, false
	}
	size, err := unix.IoctlGetWinsize(int(file.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0, false
	}
	return int(size.Col), true
}

// errDeclined is the answer no to a question of a command.
var errDeclined = errors.New("nothing was done")

// canAsk says whether the input is a terminal, where somebody can answer.
func canAsk(cmd *cobra.Command) bool {
	_, isTerminal := terminalWidth(cmd.InOrStdin())
	return isTerminal
}

// confirm asks a question and returns nil after a yes. When the input is no terminal nobody can answer, and the error
// asks for --yes.
func confirm(cmd *cobra.Command, question string) error {
	if !canAsk(cmd) {
		return wrongUsage("%s Nobody can answer here, because the input is no terminal: --yes does it without asking", question)
	}
	in := cmd.InOrStdin()
	fmt.Fprintf(cmd.ErrOrStderr(), "%s [y/N] ", question)
	answer, err := bufio.NewReader(in).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("reading the answer: %w", err)
	}
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return nil
	}
	return errDeclined
}
