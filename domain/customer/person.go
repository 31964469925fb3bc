// Package customer finds what the shop has stored about a person, by e-mail address or subject, and says what is left of it
// when personal data are erased.
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

// Erase takes out of an event who has placed the order, and what was derived from that. What is left breaks the event's
// contract, so that nobody handles it again.
func Erase(placed *eventsv1.OrderPlaced) {
	m := placed.ProtoReflect()
	for _, name := range ErasedFields() {
		m.Clear(m.Descriptor().Fields().ByName(protoreflect.Name(name)))
	}
	placed.CustomerName = Erased
}

// ErasedFields are the fields of OrderPlaced that Erase takes out: those with personal data, and what was derived from them.
func ErasedFields() []string {
	names := []string{"fingerprint", "key_hash", "previous_key_hash"}
	for _, field := range PersonalFields(&eventsv1.OrderPlaced{}) {
		names = append(names, string(field.Name()))
	}
	return names
}

// PersonalFields are the fields of a message that its contract marks as personal data, by debug_redact.
func PersonalFields(m proto.Message) (personal []protoreflect.FieldDescriptor) {
	fields := m.ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		if options, ok := fields.Get(i).Options().(*descriptorpb.FieldOptions); ok && options.GetDebugRedact() {
			personal = append(personal, fields.Get(i))
		}
	}
	return personal
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

// Owner is the owner that is looked for, as orders have it; "" for none.
func (p Person) Owner() string { return p.owner }

// Patterns are for ILIKE ANY of the database: each address that Matches fits one of them, others may. Which letters a
// database takes for the same in upper and lower case depends on its locale; so beyond ASCII any character fits. A domain
// can be written in more ways than anybody can list, in full-width letters for example, so any one does.
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

// Matches says whether an address and an owner, as they are stored, are this person's.
func (p Person) Matches(address, owner string) bool {
	return p.email != "" && address != "" && email.Fold(address) == p.email || p.owner != "" && owner == p.owner
}

// NamedIn says whether bytes that nobody can read hold the person's address or owner, and not only as a part of somebody
// else's.
func (p Person) NamedIn(data []byte) bool {
	if p.owner != "" && holds(data, p.owner) {
		return true
	}
	lower := bytes.ToLower(data)
	return slices.ContainsFunc(p.forms, func(form string) bool { return holds(lower, form) })
}

// holds says whether a text stands in data by itself: "da@example.org" does not in "ada@example.org".
func holds(data []byte, text string) bool {
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

// hasLengthBefore says whether data end with the length of the text that follows, as protobuf writes it. That byte may be
// a letter, which may have been made a small one.
func hasLengthBefore(data []byte, length int) bool {
	return len(data) > 0 && length < 0x80 && data[len(data)-1] == bytes.ToLower([]byte{byte(length)})[0]
}

// joints are what addresses and subjects have between letters, and text has after them, too.
const joints = "._-+|:/@"

// endsInName says whether data end with what could be the beginning of a longer address or owner.
func endsInName(data []byte) bool {
	r, _ := utf8.DecodeLastRune(data)
	return isAlphanumeric(r) || r < utf8.RuneSelf && strings.ContainsRune(joints, r) && r != ':' && r != '/'
}

// beginsInName is the same for what follows.
func beginsInName(data []byte) bool {
	r, size := utf8.DecodeRune(data)
	if r < utf8.RuneSelf && strings.ContainsRune(joints, r) {
		r, _ = utf8.DecodeRune(data[size:])
	}
	return isAlphanumeric(r)
}

// isAlphanumeric is false for what is no character.
func isAlphanumeric(r rune) bool {
	return unicode.IsLetter(r) || unicode.IsNumber(r) || unicode.IsMark(r)
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
