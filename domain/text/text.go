// Package text validates the names of people and products, and normalizes them.
package text

import (
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// Normal returns s in Unicode's normal form C: an accented letter, for example, is then one character however it was written,
// so equal texts compare as equal. The result may have more characters than s.
func Normal(s string) string { return norm.NFC.String(s) }

// Rule is the description of an error about text that is not Visible; the field's name precedes it.
const Rule = "must have something that can be seen, and no control characters or characters that cannot be seen or change the direction of text"

// hidden are the characters that are invisible themselves but change a text or how it is shown: control characters, format
// characters (among them those without width and those that set the direction of text), line separators, whatever else
// Unicode wants ignored if it cannot be shown, and what has no meaning: private use and noncharacters. Variation selectors
// are not among them, because emoji are written with them.
var hidden = []*unicode.RangeTable{
	unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp, unicode.Other_Default_Ignorable_Code_Point, unicode.Co, unicode.Noncharacter_Code_Point,
}

const (
	zeroWidthNonJoiner = '\u200c'
	zeroWidthJoiner    = '\u200d'
	blankPattern       = '\u2800' // the Braille pattern without dots, which looks like a space but is none to Unicode
)

// joining are the scripts in which the two joiners are part of how words are written (RFC 5892, appendix A).
var joining = []*unicode.RangeTable{
	unicode.Arabic, unicode.Syriac, unicode.Mongolian, unicode.Nko, unicode.Devanagari, unicode.Bengali, unicode.Gurmukhi, unicode.Gujarati, unicode.Oriya,
	unicode.Tamil, unicode.Telugu, unicode.Kannada, unicode.Malayalam, unicode.Sinhala, unicode.Khmer, unicode.Myanmar,
}

// Visible reports whether s is empty, or has at least one character that can be seen and none that is hidden.
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

// joins reports whether a joiner is legitimate between two characters: in words of the scripts that use it, and in emoji that
// are made of several.
func joins(joiner, before, after rune) bool {
	if unicode.In(before, joining...) && unicode.In(after, joining...) {
		return true
	}
	return joiner == zeroWidthJoiner && unicode.In(before, unicode.So, unicode.Sk, unicode.Variation_Selector) && unicode.Is(unicode.So, after)
}
