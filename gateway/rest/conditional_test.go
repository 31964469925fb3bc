package rest

import (
	"net/http"
	"slices"
	"testing"
)

func TestConditions_AreThoseOfRFC9110(t *testing.T) {
	t.Parallel()
	const tag = "3"
	for name, c := range map[string]struct {
		match, noneMatch []string
		hold             bool
	}{
		"none":                           {hold: true},
		"the tag":                        {match: []string{`"3"`}, hold: true},
		"one of several":                 {match: []string{`"1", "3"`}, hold: true},
		"one of several lines":           {match: []string{`"1"`, `"3"`}, hold: true},
		"another":                        {match: []string{`"4"`}},
		"any":                            {match: []string{"*"}, hold: true},
		"a tag with a comma":             {match: []string{`"1,", "3"`}, hold: true},
		"a part of a tag":                {match: []string{`"1,3"`}},
		"a weak one is never strong":     {match: []string{`W/"3"`}},
		"an empty list":                  {match: []string{""}},
		"not the tag":                    {noneMatch: []string{`"3"`}},
		"not it, weak":                   {noneMatch: []string{`W/"3"`}},
		"not another":                    {noneMatch: []string{`"4"`}, hold: true},
		"not any":                        {noneMatch: []string{"*"}},
		"the tag of the compressed form": {match: []string{`"3-gzip"`}, hold: true},
		"not the compressed form":        {noneMatch: []string{`"3-gzip"`}},
		"both":                           {match: []string{`"3"`}, noneMatch: []string{`"4"`}, hold: true},
	} {
		r, err := withConditions(&http.Request{Header: http.Header{"If-Match": c.match, "If-None-Match": c.noneMatch}})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		conditions, given := r.Context().Value(conditionsKey{}).(*conditions)
		if given != (len(c.match)+len(c.noneMatch) > 0) || given && conditions.hold(tag) != c.hold {
			t.Errorf("%s: they hold: %t, want %t", name, !c.hold, c.hold)
		}
	}
	for _, wrong := range []string{"3", `"3`, `W/3`, `"3" 4`} {
		if tags, err := parseTags("If-Match", []string{wrong}, false); err == nil {
			t.Errorf("%s is read as %q", wrong, tags)
		}
	}
	if tags, err := parseTags("If-Match", []string{` ,"a" ,, "b"`}, false); err != nil || !slices.Equal(tags, []string{"a", "b"}) {
		t.Errorf("a list with gaps is read as %q, %v", tags, err)
	}
}
