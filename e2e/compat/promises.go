package compat

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
)

// Promises are the facts that others rely on, in a file beside the contracts, so that changes are visible in review.
type Promises struct {
	// Broken says what was promised once, and why that was broken on purpose, the newest last.
	Broken []string `json:"broken"`
	Facts  Facts    `json:"facts"`
}

// ReadPromises reads the file at path.
func ReadPromises(path string) (p Promises, err error) {
	text, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(text, &p)
	}
	if err != nil {
		return p, fmt.Errorf("reading what was promised: %w", err)
	}
	return p, nil
}

// Write writes the promises to the file at path.
func (p Promises) Write(path string) error {
	text, err := json.MarshalIndent(p, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644) //nolint:gosec // everybody may read it
}

// Become replaces the promised facts by now and returns what that breaks. If it breaks something and because, the reason
// for breaking it, is "", it changes nothing.
func (p *Promises) Become(now Facts, because string) []Break {
	breaks := p.Facts.Breaks(now)
	if len(breaks) > 0 && because == "" {
		return breaks
	}
	for _, b := range breaks {
		p.Broken = append(p.Broken, fmt.Sprintf("%s (was %q): %s", b.Fact, b.Before, because))
	}
	p.Facts = now
	return breaks
}

// Unpromised returns the facts that differ from now but break nobody (they are new, or gone), sorted.
func (p Promises) Unpromised(now Facts) (facts []string) {
	all := maps.Clone(now)
	maps.Copy(all, p.Facts)
	for _, fact := range slices.Sorted(maps.Keys(all)) {
		before, promised := p.Facts[fact]
		if value, is := now[fact]; is != promised || value != before {
			facts = append(facts, fact)
		}
	}
	return facts
}

// HowToBreak is what to do when something breaks.
const HowToBreak = "Keep what was promised beside what is new: a field, a route or a message under another name. To break it on purpose, " +
	"make generate BECAUSE='the reason': that goes into proto/promised.json. Say it in CHANGELOG.md, too."
