// Package text says what the names of people and products may be made of, and brings them into one form.
package text

import (
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// Normal is s in the normal form that Unicode has for comparing (NFC): what looks the same is the same. It may have more
// characters than s.
func Normal(s string) string { return norm.NFC.String(s) }

// Rule is what an error says about text that is not Visible.
const Rule = "must have something that can be seen, and no control characters or characters that cannot be seen or change the direction of text"

// hidden are the characters that nobody sees, though they change what is there or how it is shown: controls, formats
// (those that set the direction of text and those without width are among them), separators of lines, what else Unicode
// says is to be ignored if it cannot be shown, and what means nothing: private use, and noncharacters. Variation selectors
// are not: emoji are written with them.
var hidden = []*unicode.RangeTable{
	unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp, unicode.Other_Default_Ignorable_Code_Point, unicode.Co, unicode.Noncharacter_Code_Point,
}

const (
	zeroWidthNonJoiner = '\u200c'
	zeroWidthJoiner    = '\u200d'
	blankPattern       = '\u2800' // of Braille, without a dot
)

// joining are the scripts in which the two joiners are part of how words are written (RFC 5892, appendix A).
var joining = []*unicode.RangeTable{
	unicode.Arabic, unicode.Syriac, unicode.Mongolian, unicode.Nko, unicode.Devanagari, unicode.Bengali, unicode.Gurmukhi, unicode.Gujarati, unicode.Oriya,
	unicode.Tamil, unicode.Telugu, unicode.Kannada, unicode.Malayalam, unicode.Sinhala, unicode.Khmer, unicode.Myanmar,
}

// Visible says whether s has no characters that deceive whoever reads it, and, unless it is empty, one that can be seen.
func Visible(s string) bool {
	seen := s == ""
	for i, r := range s {
		switch {
		case r == zeroWidthNonJoiner || r == zeroWidthJoiner:
			before, _ := utf8.DecodeLastRuneInString(s[:i])
			after, _ := utf8.DecodeRuneInString(s[i+utf8.RuneLen(r):])
			if !joins(r, before, after) {
				return false
			}
		case r < ' ' || r == utf8.RuneError || r >= '\x7f' && unicode.In(r, hidden...):
			return false
		default:
			seen = seen || !unicode.IsSpace(r) && r != blankPattern
		}
	}
	return seen
}

// joins says whether a joiner belongs between two characters: in words of scripts that have it, and in emoji of several parts.
func joins(joiner, before, after rune) bool {
	if unicode.In(before, joining...) && unicode.In(after, joining...) {
		return true
	}
	return joiner == zeroWidthJoiner && unicode.In(before, unicode.So, unicode.Sk, unicode.Variation_Selector) && unicode.Is(unicode.So, after)
}
