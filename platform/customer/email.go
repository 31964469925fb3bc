package customer

import (
	"strings"
	"unicode"

	"golang.org/x/net/idna"

	"shop.example/platform/text"
)

const (
	// maxAddress is how long an address may be as it is sent, and maxLabel a part of its domain, in bytes.
	maxAddress = 254
	maxLabel   = 63
)

// domains are names in any script as IDNA (RFC 5891, UTS 46) has them; in ASCII they are as long as DNS allows.
var domains = idna.New(idna.MapForLookup(), idna.BidiRule(), idna.StrictDomainName(true), idna.VerifyDNSLength(true))

// ValidEmail says whether address is one that mail can be sent to, as far as its form tells. In ASCII that is what HTML's
// input fields take. Beyond ASCII (RFC 6531) what stands before the @ may have any characters that can be seen, and the
// domain has to be one that IDNA allows. It does not look at upper and lower case.
func ValidEmail(address string) bool {
	at := strings.LastIndexByte(address, '@')
	if at < 1 || len(address) > maxAddress || !text.Visible(address) {
		return false
	}
	local, domain := address[:at], address[at+1:]
	if strings.ContainsFunc(local, notLocal) {
		return false
	}
	if !isASCII(domain) {
		ascii, err := domains.ToASCII(domain)
		if err != nil || at+1+len(ascii) > maxAddress {
			return false
		}
		domain = ascii
	}
	for label := range strings.SplitSeq(domain, ".") {
		if !validLabel(label) {
			return false
		}
	}
	return true
}

func notLocal(r rune) bool {
	if r > unicode.MaxASCII {
		return unicode.IsSpace(r)
	}
	return !isAlphanumeric(byte(r)) && !strings.ContainsRune(".!#$%&'*+/=?^_`{|}~-", r)
}

func validLabel(label string) bool {
	if len(label) == 0 || len(label) > maxLabel || label[0] == '-' || label[len(label)-1] == '-' {
		return false
	}
	for i := range len(label) {
		if label[i] != '-' && !isAlphanumeric(label[i]) {
			return false
		}
	}
	return true
}

func isAlphanumeric(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}

func isASCII(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r > unicode.MaxASCII })
}
