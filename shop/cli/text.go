package cli

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/width"
)

// Columns returns how many columns of a terminal s takes; some characters take two or none.
func Columns(s string) (n int) {
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

// Truncate shortens s to at most maxColumns columns of a terminal. An ellipsis at the end shows that something is missing.
func Truncate(s string, maxColumns int) string {
	if Columns(s) <= maxColumns {
		return s
	}
	at := 0
	for i, r := range s {
		if at += runeColumns(r); at > maxColumns-1 {
			return s[:i] + "…"
		}
	}
	return s
}

// Printable returns s on one line and without control characters, which could do harm on a terminal: messages may come from
// anybody.
func Printable(s string) string {
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

// Plural returns a count with its noun: "1 order", "2 orders".
func Plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
