package contract

import (
	"math"
	"regexp"

	"buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Rules are the rules of a field that JSON Schema can say, in its terms. Bounds include what they name.
type Rules struct {
	// Required is true if the field's zero value breaks its rules, so that a client has to give it.
	Required             bool
	MinLength, MaxLength uint64
	Pattern              string
	Format               string // "uuid", "email"
	Minimum, Maximum     *float64
	MinItems, MaxItems   uint64
	UniqueItems          bool
	Items                *Rules // of the elements of a list
	// Values are those of the enum that may not be given.
	NotIn []int32
}

// RulesOf returns the rules of a field.
func RulesOf(fd protoreflect.FieldDescriptor) Rules {
	rules, _ := proto.GetExtension(fd.Options(), validate.E_Field).(*validate.FieldRules)
	return rulesOf(fd, rules)
}

func rulesOf(fd protoreflect.FieldDescriptor, rules *validate.FieldRules) Rules {
	var r Rules
	zeroIsBad := false
	switch {
	case rules.GetString() != nil:
		s := rules.GetString()
		r.MinLength, r.MaxLength, r.Pattern = s.GetMinLen(), s.GetMaxLen(), s.GetPattern()
		switch {
		case s.GetUuid():
			r.Format = "uuid"
		case s.GetEmail():
			r.Format = "email"
		}
		// A rule that is written out says what a text has to look like, and nothing does not.
		zeroIsBad = r.MinLength > 0 || !matchesNothing(r.Pattern) || r.Format != "" || len(rules.GetCel()) > 0
	case rules.GetInt32() != nil:
		i := rules.GetInt32()
		r.Minimum, r.Maximum = bounds(i.HasGt(), float64(i.GetGt())+1, i.HasGte(), float64(i.GetGte())), bounds(i.HasLt(), float64(i.GetLt())-1, i.HasLte(), float64(i.GetLte()))
		zeroIsBad = r.Minimum != nil && *r.Minimum > 0
	case rules.GetInt64() != nil: // which JSON has as a string: its bounds cannot be said
		zeroIsBad = rules.GetInt64().HasGt() && rules.GetInt64().GetGt() >= 0
	case rules.GetDouble() != nil:
		d := rules.GetDouble()
		r.Minimum, r.Maximum = bounds(d.HasGt(), math.Nextafter(d.GetGt(), math.Inf(1)), d.HasGte(), d.GetGte()), bounds(d.HasLt(), math.Nextafter(d.GetLt(), math.Inf(-1)), d.HasLte(), d.GetLte())
		zeroIsBad = r.Minimum != nil && *r.Minimum > 0
	case rules.GetRepeated() != nil:
		l := rules.GetRepeated()
		r.MinItems, r.MaxItems, r.UniqueItems = l.GetMinItems(), l.GetMaxItems(), l.GetUnique()
		if l.GetItems() != nil {
			items := rulesOf(fd, l.GetItems())
			r.Items = &items
		}
		zeroIsBad = r.MinItems > 0
	case rules.GetEnum() != nil:
		r.NotIn = rules.GetEnum().GetNotIn()
		for _, n := range r.NotIn {
			zeroIsBad = zeroIsBad || n == 0
		}
	}
	ignored := rules.GetIgnore() != validate.Ignore_IGNORE_UNSPECIFIED || fd.HasPresence()
	r.Required = rules.GetRequired() || zeroIsBad && !ignored
	return r
}

// matchesNothing says whether the empty text has the pattern, or there is none. A pattern that Go cannot read is protovalidate's to refuse.
func matchesNothing(pattern string) bool {
	matches, err := regexp.MatchString(pattern, "")
	return err == nil && matches
}

// bounds is the bound that is set: the open one, given as the value next to it, or the closed one.
func bounds(open bool, next float64, closed bool, at float64) *float64 {
	switch {
	case open:
		return &next
	case closed:
		return &at
	}
	return nil
}
