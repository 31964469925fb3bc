package command

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/width"
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

// screen is where a command writes for people.
type screen struct {
	out    io.Writer
	width  int // in columns; 0 where it is no terminal: then nothing is cut
	colour bool
}

func screenOf(out io.Writer) screen {
	columns, isTerminal := terminalWidth(out)
	return screen{out, columns, isTerminal && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"}
}

// table is lines of cells under a header.
type table struct {
	header   []string
	flexible int  // the column that is cut where the terminal is too narrow
	least    int  // what of that column is shown in any case, in columns
	wraps    bool // on a narrow terminal lines go on in the next one; otherwise their end is cut off
	rows     [][]cell
}

func (t *table) add(row ...cell) { t.rows = append(t.rows, row) }

// print writes the table; nothing where it has no rows.
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
			line[i].text = printable(line[i].text)
			widths[i] = max(widths[i], columns(line[i].text))
		}
	}
	if s.width > 0 {
		surplus := -s.width - gap
		for _, w := range widths {
			surplus += w + gap
		}
		if surplus > 0 {
			widths[t.flexible] = max(widths[t.flexible]-surplus, min(t.least, widths[t.flexible]))
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

// line writes cells of the given widths, and of the last one what there is; as far as there is room, where that is not 0.
func (s screen) line(cells []cell, widths []int, room int) {
	var out strings.Builder
	at := 0
	for i, c := range cells {
		if i > 0 {
			out.WriteString(strings.Repeat(" ", gap))
			at += gap
		}
		most := widths[i]
		if room > 0 {
			most = min(most, room-at)
		}
		if most <= 0 {
			break
		}
		shown := fit(c.text, most)
		padding := strings.Repeat(" ", most-columns(shown))
		switch {
		case c.right:
			out.WriteString(padding + s.paint(shown, c.colour))
		case i == len(cells)-1:
			out.WriteString(s.paint(shown, c.colour))
		default:
			out.WriteString(s.paint(shown, c.colour) + padding)
		}
		at += most
	}
	fmt.Fprintln(s.out, strings.TrimRight(out.String(), " "))
}

// stream writes a line of what has no end: widths are the least ones, for nobody knows what comes.
func (s screen) stream(cells []cell, widths []int) {
	widths = slices.Clone(widths)
	for i := range cells {
		cells[i].text = printable(cells[i].text)
		widths[i] = max(widths[i], columns(cells[i].text))
	}
	s.line(cells, widths, s.width)
}

func (s screen) paint(text string, c colour) string {
	if !s.colour || c == plain || text == "" {
		return text
	}
	return "\x1b[" + string(c) + "m" + text + "\x1b[0m"
}

// columns is how many columns of a terminal s takes.
func columns(s string) (n int) {
	for _, r := range s {
		n += runeColumns(r)
	}
	return n
}

func runeColumns(r rune) int {
	if unicode.In(r, unicode.Mn, unicode.Me) {
		return 0
	}
	if kind := width.LookupRune(r).Kind(); kind == width.EastAsianWide || kind == width.EastAsianFullwidth {
		return 2
	}
	return 1
}

// fit shortens s to at most so many columns, with an ellipsis where something is missing.
func fit(s string, most int) string {
	if columns(s) <= most {
		return s
	}
	at := 0
	for i, r := range s {
		if at += runeColumns(r); at > most-1 {
			return s[:i] + "…"
		}
	}
	return s
}

// printable is s on one line without what would move a terminal's cursor: messages may come from anybody.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r):
			return ' '
		case unicode.IsGraphic(r):
			return r
		}
		return utf8.RuneError
	}, s)
}
