// Package customer recognizes the stored data of a person, by e-mail address or owner (OIDC issuer and subject), and erases
// them from events.
package customer

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"

	"shop.example/domain/email"
	customerv1 "shop.example/gen/shop/customer/v1"
	eventsv1 "shop.example/gen/shop/events/v1"
)

// Erased replaces a name or an address that has been erased.
const Erased = "(erased)"

// Erase removes from an event, in place, the personal data of the customer and the hashes derived from them. The result no
// longer meets the event's contract, so a redelivery or redrive of it is refused. The owner, if there is one, is replaced, because what has
// none may be seen by everybody who knows the order's id.
func Erase(placed *eventsv1.OrderPlaced) {
	owned := placed.GetOwner() != ""
	m := placed.ProtoReflect()
	for _, name := range ErasedFields() {
		m.Clear(m.Descriptor().Fields().ByName(protoreflect.Name(name)))
	}
	placed.CustomerName = Erased
	if owned {
		placed.Owner = Erased
	}
}

// ErasedFields returns the names of the OrderPlaced fields that Erase removes or replaces: personal data, and hashes derived from them.
func ErasedFields() []string {
	names := []string{"fingerprint", "key_hash", "previous_key_hash"}
	for _, field := range PersonalFields(&eventsv1.OrderPlaced{}) {
		names = append(names, string(field.Name()))
	}
	return names
}

// PersonalFields returns the fields of a message that its contract marks as personal data, by debug_redact.
func PersonalFields(m proto.Message) (personal []protoreflect.FieldDescriptor) {
	fields := m.ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		if options, ok := fields.Get(i).Options().(*descriptorpb.FieldOptions); ok && options.GetDebugRedact() {
			personal = append(personal, fields.Get(i))
		}
	}
	return personal
}

// Person is somebody whose data are looked for, by e-mail address, by owner, or by both. It is immutable.
type Person struct {
	email string   // folded; "" for none
	forms []string // how it may be written, with letters of any case
	owner string   // "" for none
}

// Of returns the Person that a request names.
func Of(p *customerv1.Person) Person {
	person := Person{owner: p.GetOwner()}
	if p.GetEmail() == "" {
		return person
	}
	person.email = email.Fold(p.GetEmail())
	for _, spelling := range email.Spellings(p.GetEmail()) {
		for _, form := range []string{norm.NFC.String(spelling), norm.NFD.String(spelling)} {
			if !slices.Contains(person.forms, form) {
				person.forms = append(person.forms, form)
			}
		}
	}
	return person
}

// Owner returns the person's owner, in the form of enduser.Owner that orders store; "" if only the address is known.
func (p Person) Owner() string { return p.owner }

// Patterns returns patterns for PostgreSQL's ILIKE ANY, to narrow down a search: every address that Matches accepts fits one
// of them, but so may others. They are for COLLATE "C", where ILIKE regards i and I as equal and no other letters than those of ASCII: in
// a Turkish locale it does not. So any other character becomes a wildcard; and so does the domain, which can be written in too many ways to list, in full-width letters for example.
func (p Person) Patterns() []string {
	var patterns []string
	for _, form := range p.forms {
		var b strings.Builder
		at := strings.LastIndexByte(form, '@')
		for i, r := range form {
			if i == at {
				b.WriteString("@%")
				break
			}
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
		if pattern := b.String(); !slices.Contains(patterns, pattern) {
			patterns = append(patterns, pattern)
		}
	}
	return patterns
}

// Matches reports whether a stored address or a stored owner is this person's.
func (p Person) Matches(address, owner string) bool {
	return p.email != "" && address != "" && email.Fold(address) == p.email || p.owner != "" && owner == p.owner
}

// NamedIn reports whether data, which cannot be decoded, contain the person's address or owner, other than as a part of a
// longer one.
func (p Person) NamedIn(data []byte) bool {
	if p.owner != "" && containsName(data, p.owner) {
		return true
	}
	lower := bytes.ToLower(data)
	return slices.ContainsFunc(p.forms, func(form string) bool { return containsName(lower, form) })
}

// containsName reports whether text occurs in data as a whole name: "da@example.org" does not in "ada@example.org".
func containsName(data []byte, text string) bool {
	for from := 0; ; {
		i := bytes.Index(data[from:], []byte(text))
		if i < 0 {
			return false
		}
		begin, end := from+i, from+i+len(text)
		if hasLengthBefore(data[:begin], len(text)) || !endsInName(data[:begin]) && !beginsInName(data[end:]) {
			return true
		}
		from = begin + 1
	}
}

// hasLengthBefore reports whether data end with the length of the text that follows, as protobuf encodes it: in one byte. If
// the value of that byte is that of a letter, it may have been lower-cased with the rest.
func hasLengthBefore(data []byte, length int) bool {
	return len(data) > 0 && length < 0x80 && data[len(data)-1] == bytes.ToLower([]byte{byte(length)})[0]
}

// joints are the characters that can join two parts of an address or owner, but also follow one in text.
const joints = "._-+|:/@"

// endsInName reports whether data end with what could be the beginning of a longer address or owner.
func endsInName(data []byte) bool {
	r, _ := utf8.DecodeLastRune(data)
	return isAlphanumeric(r) || r < utf8.RuneSelf && strings.ContainsRune(joints, r) && r != ':' && r != '/'
}

// beginsInName reports whether data begin with what could be the end of a longer address or owner.
func beginsInName(data []byte) bool {
	r, size := utf8.DecodeRune(data)
	if r < utf8.RuneSelf && strings.ContainsRune(joints, r) {
		r, _ = utf8.DecodeRune(data[size:])
	}
	return isAlphanumeric(r)
}

// isAlphanumeric is also false for utf8.RuneError, which stands for bytes that are no character.
func isAlphanumeric(r rune) bool {
	return unicode.IsLetter(r) || unicode.IsNumber(r) || unicode.IsMark(r)
}

// String identifies the person, for logs and records, without personal data: by the first 8 bytes of the SHA-256 of the folded
// address, or of the owner if there is no address. Somebody who knows the address can compute the same.
func (p Person) String() string {
	named := p.email
	if named == "" {
		named = p.owner
	}
	sum := sha256.Sum256([]byte(named))
	return "customer sha256:" + hex.EncodeToString(sum[:8])
}
