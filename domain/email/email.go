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

// domains converts domain names between their own script and ASCII (IDNA, RFC 5891 and UTS 46), within DNS's limits of length.
var domains = idna.New(idna.MapForLookup(), idna.BidiRule(), idna.StrictDomainName(true), idna.VerifyDNSLength(true))

// Valid reports whether address has the form of an e-mail address. In ASCII the rules are those of HTML's input fields of
// type email. Beyond ASCII (RFC 6531) the part before the @ may contain any visible characters, and the domain must be
// one that IDNA allows. Letters may be of any case.
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

// Fold returns a form that is equal for all spellings of an address: in upper or lower case, in any Unicode normal form, and
// with the domain in its own script or in ASCII. It accepts any text, valid or not.
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

// Spellings returns the address as it is given, and folded with the domain in ASCII and in its own script. Other cases of
// letters and other Unicode normal forms, which Fold also makes equal, are not listed.
func Spellings(address string) []string {
	all := []string{address, Fold(address)}
	if local, domain, ok := cut(all[1]); ok {
		if own, err := domains.ToUnicode(domain); err == nil && own != domain {
			all = append(all, local+"@"+own)
		}
	}
	return all
}
