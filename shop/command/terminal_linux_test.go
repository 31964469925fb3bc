package command

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// terminal returns both ends of a terminal of so many columns: where a person types, and what a program sees.
func terminal(t *testing.T, columns uint16) (person, program *os.File) {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal("opening a terminal: ", err)
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
		t.Fatal("opening a terminal: ", err)
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
	if err := confirm(cmd, "Discard?"); ExitStatus(err) != 2 || !strings.Contains(err.Error(), "--yes") || asked.Len() > 0 {
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

// shown is what a terminal of so many columns gets to see of a table.
func shown(t *testing.T, columns uint16, tab *table) string {
	t.Helper()
	person, program := terminal(t, columns)
	screenOf(program).print(tab)
	if _, err := program.WriteString("end\n"); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for lines := bufio.NewScanner(person); lines.Scan() && lines.Text() != "end"; {
		out.WriteString(lines.Text() + "\n")
	}
	return out.String()
}

// Not parallel: it sets the environment.
func TestTable_FitsTheTerminalAndHasColoursThereAlone(t *testing.T) {
	t.Setenv("NO_COLOR", "")
	t.Setenv("TERM", "xterm")
	tab := &table{header: []string{"ID", "NAME", "STATE"}, flexible: 1, least: 5}
	tab.add(number("7"), text("a name that is too long"), cell{text: "CONFIRMED", colour: green})
	tab.add(number("12"), text("マウスとキーボード"), text("REJECTED"))
	const want = "" +
		"\x1b[1mID\x1b[0m  \x1b[1mNAME\x1b[0m          \x1b[1mSTATE\x1b[0m\n" +
		" 7  a name that…  \x1b[32mCONFIRMED\x1b[0m\n" +
		"12  マウスとキ…   REJECTED\n"
	if got := shown(t, 27, tab); got != want {
		t.Errorf("on 27 columns:\n%q, want\n%q", got, want)
	}
	t.Setenv("NO_COLOR", "1")
	if got := shown(t, 100, tab); strings.Contains(got, "\x1b") || !strings.Contains(got, "\n 7  a name that is too long  CONFIRMED\n12  マウスとキーボード       REJECTED\n") {
		t.Errorf("on 100 columns, without colours:\n%s", got)
	}
	for line := range strings.Lines(shown(t, 14, tab)) {
		if n := columns(strings.TrimSpace(line)); n > 14 {
			t.Errorf("a line of %d columns on 14: %s", n, line)
		}
	}
	var file bytes.Buffer
	t.Setenv("NO_COLOR", "")
	screenOf(&file).print(tab)
	if strings.Contains(file.String(), "\x1b") || strings.Contains(file.String(), "…") {
		t.Errorf("what is no terminal gets\n%s", &file)
	}
}
