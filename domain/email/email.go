// Package email validates e-mail addresses, in any script, and compares them: two spellings of one address are equal.
package email

import (
	"strings"
	"unicode"

	"golang.org/x/net/idna"

	"shop.example/domain/text"
)

const (
	// maxAddress is how long an address may be as it is sent, and maxLabel a part of its domain, in bytes.
	maxAddress = 254
	maxLabel   = 63
)

// domains are names in any script as IDNA (RFC 5891, UTS 46) has them; in ASCII they are as long as DNS allows.
var domains = idna.New(idna.MapForLookup(), idna.BidiRule(), idna.StrictDomainName(true), idna.VerifyDNSLength(true))

// Valid says whether address is one that mail can be sent to, as far as its form tells. In ASCII that is what HTML's
// input fields take. Beyond ASCII (RFC 6531) what stands before the @ may have any characters that can be seen, and the
// domain has to be one that IDNA allows. It does not look at upper and lower case.
func Valid(address string) bool {
	local, domain, ok := cut(address)
	if !ok || local == "" || len(address) > maxAddress || !text.Visible(address) || strings.ContainsFunc(local, notLocal) {
		return false
	}
	if !isASCII(domain) {
		ascii, err := domains.ToASCII(domain)
		if err != nil || len(local)+1+len(ascii) > maxAddress {
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

func cut(address string) (local, domain string, ok bool) {
	at := strings.LastIndexByte(address, '@')
	if at < 0 {
		return address, "", false
	}
	return address[:at], address[at+1:], true
}

// Fold is the same for all spellings of an address: upper and lower case, Unicode's forms, and the domain in its own
// script or in ASCII. It takes any text for an address.
func Fold(address string) string {
	address = strings.ToLower(text.Normal(address))
	local, domain, ok := cut(address)
	if !ok {
		return address
	}
	if ascii, err := domains.ToASCII(domain); err == nil {
		domain = ascii
	}
	return local + "@" + domain
}

// Spellings are the ways to write an address that Fold makes the same, but for upper and lower case and Unicode's forms: as
// it is given, and with the domain in ASCII and in its own script.
func Spellings(address string) []string {
	all := []string{address, Fold(address)}
	if local, domain, ok := cut(all[1]); ok {
		if own, err := domains.ToUnicode(domain); err == nil && own != domain {
			all = append(all, local+"@"+own)
		}
	}
	return all
}
