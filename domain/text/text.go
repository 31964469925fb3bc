// Package text says what the names of people and products may be made of, and brings them into one form.
package text

import (
	"unicode"

	"golang.org/x/text/unicode/norm"
)

// Normal is s in the normal form that Unicode has for comparing (NFC): what looks the same is the same. It may have more
// characters than s.
func Normal(s string) string { return norm.NFC.String(s) }

// Rule is what an error says about text that is not Visible.
const Rule = "must not have control characters, or characters that cannot be seen or change the direction of text"

// hidden are the characters that nobody sees, though they change what is there or how it is shown: controls, formats
// (those that set the direction of text and those without width are among them), separators of lines, and what else
// Unicode says is to be ignored if it cannot be shown. Variation selectors are not: emoji are written with them.
var hidden = []*unicode.RangeTable{unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp, unicode.Other_Default_Ignorable_Code_Point}

// Visible says whether s has no characters that deceive whoever reads it.
func Visible(s string) bool {
	for _, r := range s {
		if r < ' ' || r >= '\x7f' && unicode.In(r, hidden...) {
			return false
		}
	}
	return true
}
