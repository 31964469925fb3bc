package email

import (
	"strings"
	"testing"
)

func TestValid_InternationalisedAddressesAreTaken(t *testing.T) {
	t.Parallel()
	label := strings.Repeat("a", 63)
	for _, good := range []string{
		"ada@example.org", "ada@exämple.org", "josé@example.org", "josé@exämple.org", "用户@例子.广告", "अजय@डाटा.भारत", "квіточка@пошта.укр", "χρήστης@παράδειγμα.ελ",
		"ada@xn--exmple-cua.org", "Ada.Lovelace+shop@Example.ORG", "o'connor@example.org", "ada@localhost", "ada@sub.sub.example.co.uk", "!#$%&'*+/=?^_`{|}~-@example.org",
		".ada.@example.org", "ada@" + label + ".org", "ada@1.2.3.4", "محمد@مثال.إختبار", "שרה@דוגמה.טסט", "❤@example.org", "jose\u0301@example.org", "ada@exa\u0308mple.org",
		strings.Repeat("a", 242) + "@example.org",
	} {
		if !Valid(good) {
			t.Errorf("%q is refused", good)
		}
	}
	for _, bad := range []string{
		"", "ada", "@", "@example.org", "ada@", "ada@@example.org", "ada@example..org", "ada@.example.org", "ada@example.org.", "ada @example.org", "ada@exa mple.org", "ada@example.org ",
		"ada@-example.org", "ada@example-.org", "ada@exam_ple.org", "ada@" + label + "a.org", "ada@[127.0.0.1]", `"ada"@example.org`, "ada(comment)@example.org", "ada,bob@example.org",
		"ada@example.org\r\nBcc: all@example.org", "ada\x00@example.org", "ad\u200ba@example.org", "ada@exam\u200bple.org", "ada@exa\u00admple.org", "\u202eada@example.org", "ada\u00a0l@example.org",
		"ada\u3000l@example.org", "ada@ex\u00e4mple..org", "ada@-ex\u00e4mple.org", "ada@ex\u00e4m ple.org", "ada@" + strings.Repeat("ä", 60) + ".org", "ada@\u0661a.org", "josé", "josé@",
		strings.Repeat("a", 243) + "@example.org", strings.Repeat("é", 122) + "@example.org", "ada@❤.org\u2028",
	} {
		if Valid(bad) {
			t.Errorf("%q is taken", bad)
		}
	}
}
