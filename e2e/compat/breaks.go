package compat

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	optionsv1 "shop.example/gen/shop/options/v1"
)

// kind is a kind of facts.
type kind struct {
	// breaks says whether it breaks somebody that what was about something becomes another. "" is none.
	breaks func(c change) bool
	// consequence says for whom it breaks, and how.
	consequence string
}

// change is that of one fact, and all facts before and after it.
type change struct {
	about       string
	before, now string
	was, is     Facts
}

var kinds = map[string]kind{
	"type":             {breaks: never}, // buf sees what happens to types
	"field":            {breaks: never},
	"route":            {lost, "REST clients that call it are answered with 404, or with another body than they read"},
	"access":           {tighter, "clients that could make the call are refused, without a token or with the one they have"},
	"callers":          {fewer, "the service of the release before that still makes the call is refused"},
	"call":             {lost, "callers over the broker of the release before ask where nobody answers"},
	"called_by":        {fewer, "the service of the release before that still makes the call is refused"},
	"answered_by":      {lost, "callers of the release before refuse the answer of another service"},
	"event":            {lost, "consumers that are bound to the old key hear nothing more, and what waits in queues becomes a dead letter"},
	"identity":         {differs, "what was published before gets another id: it is handled and logged a second time"},
	"published_by":     {fewer, "what that service of the release before has published, in queues and outboxes, becomes a dead letter"},
	"handled_by":       {fewer, "what waits in the queue of that service becomes a dead letter"},
	"answer":           {lost, "whoever asks waits in vain, or reads another message than comes"},
	"rule":             {stricter, "what clients send today is refused, and what waits in queues becomes a dead letter"},
	"java_package":     {lost, "clients in Java and Kotlin do not compile against the new classes"},
	"csharp_namespace": {lost, "clients in C# do not compile against the new classes"},
	"operation":        {lost, "in clients that are generated from the document the call has another name: they do not compile"},
	"schema":           {lost, "in clients that are generated from the document the type has another name: they do not compile"},
	"channel":          {lost, "consumers that are generated from the document do not compile"},
	"message":          {lost, "consumers that are generated from the document do not compile"},
}

// Break is a change of the contracts that breaks somebody.
type Break struct {
	Fact        string // its kind, and what it is about
	Before, Now string // "" if there was none, or is none any more
	Consequence string // for whom it breaks, and how
}

func (b Break) String() string {
	change := fmt.Sprintf("was %q, is %q", b.Before, b.Now)
	switch {
	case b.Now == "":
		change = fmt.Sprintf("was %q, is gone", b.Before)
	case b.Before == "":
		change = fmt.Sprintf("is new: %q", b.Now)
	}
	return fmt.Sprintf("%s %s: %s", b.Fact, change, b.Consequence)
}

// Breaks returns the changes from f to is that break somebody who relies on f, sorted by fact.
func (f Facts) Breaks(is Facts) (breaks []Break) {
	all := maps.Clone(is)
	maps.Copy(all, f)
	for _, fact := range slices.Sorted(maps.Keys(all)) {
		name, about, _ := strings.Cut(fact, " ")
		k := kinds[name]
		if before, now := f[fact], is[fact]; before != now && k.breaks(change{about, before, now, f, is}) {
			breaks = append(breaks, Break{fact, before, now, k.consequence})
		}
	}
	return breaks
}

func never(change) bool { return false }

// lost is about facts that may be added, and not taken away or changed.
func lost(c change) bool { return c.before != "" }

// differs is about facts of something that was there before: a new event has a new identity.
func differs(c change) bool { return c.before != "" && c.now != "" }

// fewer is about sets, which may grow.
func fewer(c change) bool { return c.now != anybody && !contains(c.now, c.before) }

// contains says whether the set of words has all members of another one.
func contains(set, members string) bool {
	words := strings.Fields(set)
	return !slices.ContainsFunc(strings.Fields(members), func(member string) bool { return !slices.Contains(words, member) })
}

// openness orders who may call, the fewest first.
var openness = []string{
	optionsv1.Access_ACCESS_INTERNAL.String(), optionsv1.Access_ACCESS_OPERATOR.String(), optionsv1.Access_ACCESS_OPERATOR_OR_OWNER.String(),
	optionsv1.Access_ACCESS_OPERATOR_OR_ORDER_ID.String(), optionsv1.Access_ACCESS_PUBLIC.String(),
}

func tighter(c change) bool {
	return c.before != "" && slices.Index(openness, c.now) < slices.Index(openness, c.before)
}

// stricter is about validation rules: what was valid has to stay so.
func stricter(c change) bool {
	subject, path, _ := strings.Cut(c.about, " ")
	rule := path[strings.LastIndexByte(path, '.')+1:]
	_, oldField := c.was["field "+subject]
	_, oldType := c.was["type "+subject]
	switch {
	case c.now == "" || c.now == "false" || rule == "ignore":
		return false
	case oldField || oldType:
		return !allows(rule, c.before, c.now)
	}
	// A new field, which those before it do not send. In a new message nobody is before it.
	parent := subject[:max(strings.LastIndexByte(subject, '.'), 0)]
	_, sentBefore := c.was["type "+parent]
	return sentBefore && (rule == "required" || c.is["field "+subject] == implicit && !takesZero(path, rule, c.now))
}

// allows says whether a rule takes all that it took before. before is "" if there was none.
func allows(rule, before, now string) bool {
	old, oldErr := strconv.ParseFloat(before, 64)
	next, nextErr := strconv.ParseFloat(now, 64)
	numbers := oldErr == nil && nextErr == nil
	switch rule {
	case "min_len", "min_bytes", "min_items", "min_pairs", "gte", "gt":
		return numbers && next <= old
	case "max_len", "max_bytes", "max_items", "max_pairs", "lte", "lt":
		return numbers && next >= old
	case "in":
		return before != "" && contains(now, before)
	case "not_in":
		return contains(before, now)
	}
	return false
}

// takesZero says whether a rule takes a field that is not sent.
func takesZero(path, rule, now string) bool {
	switch rule {
	case "max_len", "max_bytes", "max_items", "max_pairs", "lte", "lt", "not_in", "not_contains", "unique", "defined_only", "finite":
		return true
	case "gte":
		least, err := strconv.ParseFloat(now, 64)
		return err == nil && least <= 0
	case "pattern":
		pattern, err := regexp.Compile(now)
		return err == nil && pattern.MatchString("")
	}
	return strings.HasPrefix(path, "repeated.items.") || strings.HasPrefix(path, "map.")
}
