package command

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"shop.example/shop/cli"
)

// colour is how a terminal shows a cell: the number of ANSI's SGR.
type colour string

const (
	plain  colour = ""
	bold   colour = "1"
	dim    colour = "2"
	red    colour = "31"
	green  colour = "32"
	yellow colour = "33"
)

// cell is a text in a table.
type cell struct {
	text   string
	colour colour
	right  bool // stands at the right side of its column
}

func text(s string) cell   { return cell{text: s} }
func number(s string) cell { return cell{text: s, right: true} }

// screen is the output of a command for people.
type screen struct {
	out    io.Writer
	width  int // in columns; 0 if it is no terminal: then nothing is cut
	colour bool
}

func screenOf(out io.Writer) screen {
	columns, isTerminal := cli.TerminalWidth(out)
	return screen{out, columns, isTerminal && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"}
}

// table is rows of cells under a header.
type table struct {
	header   []string
	flexible int  // the column that is cut if the terminal is too narrow
	minWidth int  // what of that column is shown in any case, in columns
	wraps    bool // on a narrow terminal lines go on in the next one; otherwise their end is cut off
	rows     [][]cell
}

func (t *table) add(row ...cell) { t.rows = append(t.rows, row) }

// print writes the table; nothing if it has no rows.
func (s screen) print(t *table) {
	if len(t.rows) == 0 {
		return
	}
	header := make([]cell, len(t.header))
	for i, name := range t.header {
		header[i] = cell{name, bold, t.rows[0][i].right}
	}
	lines := append([][]cell{header}, t.rows...)
	widths := make([]int, len(t.header))
	for _, line := range lines {
		for i := range line {
			line[i].text = cli.Printable(line[i].text)
			widths[i] = max(widths[i], cli.Columns(line[i].text))
		}
	}
	if s.width > 0 {
		surplus := -s.width - gap
		for _, w := range widths {
			surplus += w + gap
		}
		if surplus > 0 {
			widths[t.flexible] = max(widths[t.flexible]-surplus, min(t.minWidth, widths[t.flexible]))
		}
	}
	for _, line := range lines {
		room := 0 // nothing is cut
		if !t.wraps {
			room = s.width
		}
		s.line(line, widths, room)
	}
}

// gap is how far the columns of a table are apart.
const gap = 2

// line writes cells with the given widths, the last one unpadded. If room is not 0, the line is cut to that many columns.
func (s screen) line(cells []cell, widths []int, room int) {
	var out strings.Builder
	at := 0
	for i, c := range cells {
		if i > 0 {
			out.WriteString(strings.Repeat(" ", gap))
			at += gap
		}
		width := widths[i]
		if room > 0 {
			width = min(width, room-at)
		}
		if width <= 0 {
			break
		}
		shown := cli.Truncate(c.text, width)
		padding := strings.Repeat(" ", width-cli.Columns(shown))
		switch {
		case c.right:
			out.WriteString(padding + s.paint(shown, c.colour))
		case i == len(cells)-1:
			out.WriteString(s.paint(shown, c.colour))
		default:
			out.WriteString(s.paint(shown, c.colour) + padding)
		}
		at += width
	}
	fmt.Fprintln(s.out, strings.TrimRight(out.String(), " "))
}

// stream writes a row of a list that has no end: widths are minimums, because later rows are not known.
func (s screen) stream(cells []cell, widths []int) {
	widths = slices.Clone(widths)
	for i := range cells {
		cells[i].text = cli.Printable(cells[i].text)
		widths[i] = max(widths[i], cli.Columns(cells[i].text))
	}
	s.line(cells, widths, s.width)
}

func (s screen) paint(text string, c colour) string {
	if !s.colour || c == plain || text == "" {
		return text
	}
	return "\x1b[" + string(c) + "m" + text + "\x1b[0m"
}
