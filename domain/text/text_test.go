package text

import "testing"

func TestVisible_WhatDeceivesTheReaderIsRefused(t *testing.T) {
	t.Parallel()
	for name, s := range map[string]string{
		"NUL": "A\x00da", "line feed": "Ada\nTotal: 0", "tab": "Ada\tL", "escape": "\x1b[2JAda", "DEL": "Ada\x7f", "next line (C1)": "Ada\u0085",
		"right-to-left override": "Ada\u202egnp.exe", "left-to-right embedding": "\u202aAda", "isolate": "\u2066Ada\u2069",
		"right-to-left mark": "Ada\u200f", "Arabic letter mark": "Ada\u061c",
		"zero width space": "A\u200bda", "zero width non-joiner": "A\u200cda", "zero width joiner": "A\u200dda", "word joiner": "A\u2060da",
		"byte order mark": "\ufeffAda", "soft hyphen": "A\u00adda", "Mongolian vowel separator": "A\u180eda", "tag": "Ada\U000e0041",
		"combining grapheme joiner": "A\u034fda", "Hangul filler": "\u3164", "halfwidth Hangul filler": "\uffa0", "line separator": "Ada\u2028",
		"spaces alone": "   ", "no-break space": "\u00a0", "ideographic space": "\u3000", "Braille without a dot": "\u2800", "noncharacter": "Ada\uffff",
		"replacement of what was lost": "Ada\ufffd", "private use": "\ue000", "not UTF-8": "Ada\xff", "joiner at the end": "\u0645\u200c", "joiner before a space": "\u0645\u200c \u0646",
		"two joiners": "\u0645\u200c\u200c\u0646", "emoji joined to a letter": "\u2764\u200dA", "paragraph separator": "Ada\u2029",
	} {
		if Visible(s) {
			t.Errorf("%s is taken: %q", name, s)
		}
	}
	for _, s := range []string{
		"", "Ada", "Ada Lovelace-Byron, Jr.", "René O'Connor", "Rene\u0301", "Žižek", "Ἀριστοτέλης", "محمد", "יוסף", "田中 太郎", "김철수", "श्रीनिवास", "ประยุทธ์",
		"Desk \u2764\ufe0f", "☕ 250 g", "5 €", "a\u00a0b", "Mouse ﬁne", "𝒜da", "می\u200cخواهم", "क्\u200dष", "👨\u200d👩\u200d👧 set", "🏴\u200d☠\ufe0f", "a  b",
	} {
		if !Visible(s) {
			t.Errorf("%q is refused", s)
		}
	}
}

func TestNormal_WhatLooksTheSameIsTheSame(t *testing.T) {
	t.Parallel()
	if got := Normal("Rene\u0301 Sala\u0308"); got != "Ren\u00e9 Sal\u00e4" {
		t.Errorf("%q", got)
	}
}
