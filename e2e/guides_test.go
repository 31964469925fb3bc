package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// A guide in docs/extending.md is a section whose blocks of code say what becomes of a file:
//
//	```go new PATH               the whole of a new file
//	```go after PATH: TEXT       lines to be added behind the one line that contains TEXT
//	```go before PATH: TEXT      in front of it
//	```go replace PATH: TEXT     instead of it
//	```sh run guide              commands, executed by `make guides` in a copy of the project
const guidesPage = "docs/extending.md"

type guide struct {
	title    string
	edits    []edit
	commands []string
	// As the guide says: files that are written by hand, and those of them that are new.
	files, added int
}

type edit struct {
	block
	path, anchor string
}

var (
	guideEdit  = regexp.MustCompile(`^([^:\s]+)(?:: (.+))?$`)
	guideFiles = regexp.MustCompile(`\*\*(\d+) files\*\* by hand, (\d+) of them new`)
)

func guides(t *testing.T) (all []guide) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", guidesPage))
	if err != nil {
		t.Fatal(err)
	}
	for _, section := range strings.Split(string(text), "\n## ")[1:] {
		g := guide{}
		g.title, _, _ = strings.Cut(section, "\n")
		prose := fence.ReplaceAllString(section, "")
		for _, b := range blocksOf(guidesPage+", "+g.title, section) {
			switch b.tag {
			case "new", "after", "before", "replace":
				m := guideEdit.FindStringSubmatch(b.rest)
				if m == nil || (m[2] == "") != (b.tag == "new") {
					t.Fatalf("%s: write ```%s %s PATH: a part of the line", b, b.language, b.tag)
				}
				if b.tag != "new" && !strings.Contains(prose, "`"+m[1]+"`") {
					t.Errorf("%s: readers see the block alone: name `%s` above it", b, m[1])
				}
				g.edits = append(g.edits, edit{b, m[1], m[2]})
			case executed:
				g.commands = append(g.commands, b.text)
			}
		}
		if m := guideFiles.FindStringSubmatch(section); m != nil {
			g.files, _ = strconv.Atoi(m[1])
			g.added, _ = strconv.Atoi(m[2])
		}
		if len(g.edits) > 0 {
			all = append(all, g)
		}
	}
	if len(all) == 0 {
		t.Fatalf("%s has no guide", guidesPage)
	}
	return all
}

// apply makes the edits of a guide in the project at root, and returns the files that it has changed.
func (g guide) apply(root string) (changed map[string]string, err error) {
	changed = map[string]string{}
	for _, e := range g.edits {
		text, known := changed[e.path]
		if !known {
			data, err := os.ReadFile(filepath.Join(root, e.path))
			if exists := err == nil; exists == (e.tag == "new") {
				return nil, fmt.Errorf("%s: %s exists: %t", e, e.path, exists)
			}
			text = string(data)
		}
		if changed[e.path], err = e.in(text); err != nil {
			return nil, err
		}
	}
	return changed, nil
}

// followed reports whether everything that the guide adds is there: then somebody is following it. A new file may have another
// name, as a migration has whose number was taken.
func (g guide) followed(root string) bool {
	return !slices.ContainsFunc(g.edits, func(e edit) bool {
		files := []string{filepath.Join(root, e.path)}
		if e.tag == "new" {
			files, _ = filepath.Glob(filepath.Join(root, filepath.Dir(e.path), "*"+filepath.Ext(e.path)))
		}
		return !slices.ContainsFunc(files, func(file string) bool {
			text, err := os.ReadFile(file)
			return err == nil && strings.Contains(string(text), e.text)
		})
	})
}

func (e edit) in(text string) (string, error) {
	if e.tag == "new" {
		return e.text, nil
	}
	lines, at := strings.SplitAfter(text, "\n"), -1
	for i, line := range lines {
		switch {
		case !strings.Contains(line, e.anchor):
		case at >= 0:
			return "", fmt.Errorf("%s: %q stands in more than one line of %s", e, e.anchor, e.path)
		default:
			at = i
		}
	}
	if at < 0 {
		return "", fmt.Errorf("%s: no line of %s contains %q", e, e.path, e.anchor)
	}
	line := map[string]string{"after": lines[at] + e.text, "before": e.text + lines[at], "replace": e.text}[e.tag]
	return strings.Join(lines[:at], "") + line + strings.Join(lines[at+1:], ""), nil
}

// A change of code that a guide builds on fails here. Whether the result builds and works is tested by `make guides`.
func TestGuides_FitTheCodeAndCountTheirFiles(t *testing.T) {
	t.Parallel()
	for _, g := range guides(t) {
		if g.followed("..") {
			continue
		}
		changed, err := g.apply("..")
		if err != nil {
			t.Error(err)
			continue
		}
		added := 0
		for _, e := range g.edits {
			if e.tag == "new" {
				added++
			}
		}
		if len(changed) != g.files || added != g.added {
			t.Errorf("%s, %s: write **%d files** by hand, %d of them new", guidesPage, g.title, len(changed), added)
		}
		if len(g.commands) == 0 {
			t.Errorf("%s, %s: there are no commands that check it", guidesPage, g.title)
		}
	}
}

// The guides allow another number for a migration, and then failed in a folder in which they had been followed.
func TestGuides_AMigrationMayHaveTheNumberThatIsFree(t *testing.T) {
	t.Parallel()
	for _, number := range []string{"00007", "00011"} {
		for _, g := range guides(t) {
			if g.followed("..") { // it fits no more
				continue
			}
			changed, err := g.apply("..")
			if err != nil {
				t.Fatal(err)
			}
			root := t.TempDir()
			for path, text := range changed {
				file := filepath.Join(root, path)
				if strings.HasPrefix(path, "db/") && strings.HasSuffix(path, ".sql") {
					file = filepath.Join(filepath.Dir(file), number+"_mine.sql")
				}
				if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
					t.Fatal(err)
				}
				if g.followed(root) {
					t.Errorf("%s: followed before everything is there", g.title)
				}
				if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if !g.followed(root) {
				t.Errorf("%s: not followed with migration %s", g.title, number)
			}
		}
	}
}
