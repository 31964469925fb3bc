// Package customer knows the people who order: which e-mail addresses they can have, and which of what the shop has kept
// names one of them.
package customer

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"

	"golang.org/x/text/unicode/norm"

	customerv1 "shop.example/gen/shop/customer/v1"
	eventsv1 "shop.example/gen/shop/events/v1"
)

// Erased stands where a name or an address was, once it has been erased.
const Erased = "(erased)"

// Erase takes out of an event who has placed the order, and what was derived from that. What is left breaks the event's
// contract, so that nobody handles it again.
func Erase(placed *eventsv1.OrderPlaced) {
	placed.CustomerName, placed.CustomerEmail, placed.Owner = Erased, "", ""
	placed.Fingerprint, placed.KeyHash, placed.PreviousKeyHash = nil, nil, nil
}

// Person is whose data are looked for: who has the e-mail address, or is the owner. It does not change.
type Person struct {
	email string   // folded; "" for none
	forms []string // how it may be written, with letters of any case
	owner string   // "" for none
}

// Of reads a person.
func Of(p *customerv1.Person) Person {
	person := Person{owner: p.GetOwner()}
	if p.GetEmail() == "" {
		return person
	}
	person.email = fold(p.GetEmail())
	local, domain, _ := cutAddress(person.email)
	written := []string{person.email, p.GetEmail()}
	if domain != "" {
		if spelled, err := domains.ToUnicode(domain); err == nil {
			written = append(written, local+"@"+spelled)
		}
	}
	for _, w := range written { // as it may have been stored
		for _, form := range []string{norm.NFC.String(w), norm.NFD.String(w)} {
			if !slices.Contains(person.forms, form) {
				person.forms = append(person.forms, form)
			}
		}
	}
	return person
}

// fold is what is the same for two spellings of one address: upper and lower case, Unicode's forms, and the domain in its
// own script or in ASCII.
func fold(email string) string {
	email = strings.ToLower(norm.NFC.String(email))
	local, domain, ok := cutAddress(email)
	if !ok {
		return email
	}
	if ascii, err := domains.ToASCII(domain); err == nil {
		domain = ascii
	}
	return local + "@" + domain
}

func cutAddress(email string) (local, domain string, ok bool) {
	at := strings.LastIndexByte(email, '@')
	if at < 0 {
		return email, "", false
	}
	return email[:at], email[at+1:], true
}

// Owner is the owner that is looked for, as orders have it; "" for none.
func (p Person) Owner() string { return p.owner }

// Patterns are for ILIKE ANY of the database: each address that Matches fits one of them, others may. Which letters a
// database takes for the same in upper and lower case depends on its locale; so beyond ASCII any character fits.
func (p Person) Patterns() []string {
	patterns := make([]string, len(p.forms))
	for i, form := range p.forms {
		var b strings.Builder
		for _, r := range form {
			switch {
			case r > 0x7f:
				b.WriteByte('_')
			case r == '%' || r == '_' || r == '\\':
				b.WriteByte('\\')
				b.WriteRune(r)
			default:
				b.WriteRune(r)
			}
		}
		patterns[i] = b.String()
	}
	return patterns
}

// Matches says whether an address and an owner, as they are stored, are this person's.
func (p Person) Matches(email, owner string) bool {
	return p.email != "" && email != "" && fold(email) == p.email || p.owner != "" && owner == p.owner
}

// NamedIn says whether bytes that nobody can read hold the person's address or owner.
func (p Person) NamedIn(data []byte) bool {
	if p.owner != "" && bytes.Contains(data, []byte(p.owner)) {
		return true
	}
	lower := bytes.ToLower(data)
	return slices.ContainsFunc(p.forms, func(form string) bool { return bytes.Contains(lower, []byte(form)) })
}

// String names the person without telling who it is: by the beginning of the SHA-256 of the address in lower case, or of
// the owner. Who has the address can tell that it is meant.
func (p Person) String() string {
	named := p.email
	if named == "" {
		named = p.owner
	}
	sum := sha256.Sum256([]byte(named))
	return "customer sha256:" + hex.EncodeToString(sum[:8])
}
