package apierror

import (
	"fmt"
	"math"
	"sync"

	"buf.build/go/protovalidate"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// lengthRule is what the contract says about the length of a list, or of lists in the messages of a field.
type lengthRule struct {
	field protoreflect.FieldDescriptor
	max   uint64
	// nested says that there are rules for the messages of the field, too.
	nested bool
}

// lengthRules are the rules of each message type, by its descriptor: they are read from the contract once.
var lengthRules sync.Map // protoreflect.MessageDescriptor → []lengthRule

// tooLong returns the violation of the first list that is longer than its contract allows, and reports whether there is one.
//
// protovalidate looks at each element of such a list, too, and says of each what is wrong: it would take half a gigabyte to
// refuse a request of 1 MiB. Maps are not looked at, because no request has one.
func tooLong(m protoreflect.Message) (Violation, bool) {
	for _, rule := range lengthRulesOf(m.Descriptor()) {
		if !m.Has(rule.field) {
			continue
		}
		name := string(rule.field.Name())
		if !rule.field.IsList() {
			if found, ok := tooLong(m.Get(rule.field).Message()); ok {
				return found.in(name), true
			}
			continue
		}
		list := m.Get(rule.field).List()
		if uint64(list.Len()) > rule.max { //nolint:gosec // a length is not negative
			return LongList(name, rule.max), true
		}
		if !rule.nested {
			continue
		}
		for i := range list.Len() {
			if found, ok := tooLong(list.Get(i).Message()); ok {
				return found.in(fmt.Sprintf("%s[%d]", name, i)), true
			}
		}
	}
	return Violation{}, false
}

// LongList returns the violation of a list at path that is longer than limit.
func LongList(path string, limit uint64) Violation {
	return Violation{Field: path, Description: fmt.Sprintf("must contain no more than %d item(s)", limit)}
}

// in returns the violation as that of a message which has the other one at path.
func (v Violation) in(path string) Violation {
	v.Field = path + "." + v.Field
	return v
}

func lengthRulesOf(md protoreflect.MessageDescriptor) []lengthRule {
	if known, ok := lengthRules.Load(md); ok {
		return known.([]lengthRule)
	}
	var rules []lengthRule
	for i := range md.Fields().Len() {
		field := md.Fields().Get(i)
		rule := lengthRule{field: field, max: MaxItems(field), nested: hasLengthRules(messageOf(field), map[protoreflect.FullName]bool{})}
		if rule.max < math.MaxUint64 || rule.nested {
			rules = append(rules, rule)
		}
	}
	lengthRules.Store(md, rules)
	return rules
}

// hasLengthRules reports whether md, or a message in it, has a list with a rule. seen are the types that were looked at; a
// message may contain its own type.
func hasLengthRules(md protoreflect.MessageDescriptor, seen map[protoreflect.FullName]bool) bool {
	if md == nil || seen[md.FullName()] {
		return false
	}
	seen[md.FullName()] = true
	for i := range md.Fields().Len() {
		field := md.Fields().Get(i)
		if MaxItems(field) < math.MaxUint64 || hasLengthRules(messageOf(field), seen) {
			return true
		}
	}
	return false
}

// messageOf returns the type of the messages of a field; nil if it has none, or is a map.
func messageOf(field protoreflect.FieldDescriptor) protoreflect.MessageDescriptor {
	if field.IsMap() {
		return nil
	}
	return field.Message()
}

// MaxItems returns how many elements the contract allows in a field. Without a rule, or if it cannot be read, it returns the
// maximum of all numbers; in the second case protovalidate fails.
func MaxItems(field protoreflect.FieldDescriptor) uint64 {
	rules, err := protovalidate.ResolveFieldRules(field)
	if err != nil || !rules.GetRepeated().HasMaxItems() {
		return math.MaxUint64
	}
	return rules.GetRepeated().GetMaxItems()
}
