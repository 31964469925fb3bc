package command

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// terminal returns both ends of a terminal of so many columns: where a person types, and what a program sees.
func terminal(t *testing.T, columns uint16) (person, program *os.File) {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip("no terminals here: ", err)
	}
	t.Cleanup(func() { person.Close() })
	if err := unix.IoctlSetPointerInt(int(person.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(person.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Skip("no terminals here: ", err)
	}
	t.Cleanup(func() { program.Close() })
	if err := unix.IoctlSetWinsize(int(program.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: columns, Row: 24}); err != nil {
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
		if err := confirm(cmd, "Discard 3 dead letters?"); (err == nil) != yes || err != nil && !errors.Is(err, errDeclined) {
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
	if err := confirm(cmd, "Discard?"); err != nil || asked.Len() > 0 {
		t.Errorf("without a terminal: %v, %q", err, asked.String())
	}
}

func TestTerminalWidth_IsThatOfTheTerminal(t *testing.T) {
	t.Parallel()
	_, program := terminal(t, 132)
	if columns, isTerminal := terminalWidth(program); columns != 132 || !isTerminal {
		t.Errorf("%d, %v", columns, isTerminal)
	}
	if _, isTerminal := terminalWidth(&bytes.Buffer{}); isTerminal {
		t.Error("a buffer is no terminal")
	}
}
