package cli

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/creack/pty"
	"github.com/spf13/cobra"
)

// terminal returns both ends of a terminal of so many columns: where a person types, and what a program sees.
func terminal(t *testing.T, columns uint16) (person, program *os.File) {
	t.Helper()
	person, program, err := pty.Open()
	if err != nil {
		t.Fatal("opening a terminal: ", err)
	}
	t.Cleanup(func() { person.Close(); program.Close() })
	if err := pty.Setsize(program, &pty.Winsize{Cols: columns, Rows: 24}); err != nil {
		t.Fatal(err)
	}
	return person, program
}

func TestConfirm_AsksOnATerminalAndTakesAYesOnly(t *testing.T) {
	t.Parallel()
	for answer, yes := range map[string]bool{"y": true, "YES ": true, "": false, "n": false, "yesterday": false} {
		person, program := terminal(t, 100)
		if _, err := person.WriteString(answer + "\n"); err != nil {
			t.Fatal(err)
		}
		var asked bytes.Buffer
		cmd := &cobra.Command{}
		cmd.SetIn(program)
		cmd.SetErr(&asked)
		if err := Confirm(cmd, "Discard 3 dead letters?"); (err == nil) != yes || err != nil && !errors.Is(err, ErrDeclined) {
			t.Errorf("%q means %v", answer, err)
		}
		if asked.String() != "Discard 3 dead letters? [y/N] " {
			t.Errorf("asked %q", asked.String())
		}
	}
	var asked bytes.Buffer
	cmd := &cobra.Command{}
	cmd.SetIn(&bytes.Buffer{})
	cmd.SetErr(&asked)
	if err := Confirm(cmd, "Discard?"); ExitStatus(err) != 2 || !strings.Contains(err.Error(), "--yes") || asked.Len() > 0 {
		t.Errorf("without a terminal: %v, %q", err, asked.String())
	}
}

func TestTerminalWidth_IsThatOfTheTerminal(t *testing.T) {
	t.Parallel()
	_, program := terminal(t, 132)
	if columns, isTerminal := TerminalWidth(program); columns != 132 || !isTerminal {
		t.Errorf("%d, %v", columns, isTerminal)
	}
	if _, isTerminal := TerminalWidth(&bytes.Buffer{}); isTerminal {
		t.Error("a buffer is no terminal")
	}
}

func TestConfirm_AnInterruptEndsTheWaitForAnAnswer(t *testing.T) {
	t.Parallel()
	_, program := terminal(t, 100)
	ctx, interrupt := context.WithCancel(t.Context())
	cmd := &cobra.Command{}
	cmd.SetContext(ctx)
	cmd.SetIn(program)
	cmd.SetErr(writer(func([]byte) { interrupt() })) // as soon as the question is there
	if err := Confirm(cmd, "Discard 3 dead letters?"); ExitStatus(err) != 130 {
		t.Errorf("Confirm = %v, want an interrupt", err)
	}
}

type writer func([]byte)

func (w writer) Write(text []byte) (int, error) {
	w(text)
	return len(text), nil
}
