package e2e

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	// variableTag is a field of a configuration; the second group is its default, if it has one.
	variableTag = regexp.MustCompile("`[^`]*\\benv:\"([A-Z][A-Z0-9_]*)[^\"]*\"(?:[^`]*\\benvDefault:\"([^\"]*)\")?[^`]*`")
	prefixTag   = regexp.MustCompile(`\benvPrefix:"([A-Z][A-Z0-9_]*)"`)
	// variableRow is a row of the table: the variable, who reads it, the default.
	variableRow = regexp.MustCompile("(?m)^\\| `([A-Z][A-Z0-9_]*)` \\|([^|]*)\\|([^|]*)\\|")
)

const configurationPage = "../docs/configuration.md"

// A variable in the code must have a row in docs/configuration.md.
func TestConfiguration_EveryVariableIsInTheTableWithItsDefault(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile(configurationPage)
	if err != nil {
		t.Fatal(err)
	}
	defaults := map[string]string{} // by variable, as the table says
	for _, row := range variableRow.FindAllStringSubmatch(string(page), -1) {
		defaults[row[1]] = row[3]
	}
	sources := goSources(t)
	prefixes := []string{""}
	for _, source := range sources {
		for _, m := range prefixTag.FindAllStringSubmatch(source, -1) {
			prefixes = append(prefixes, m[1])
		}
	}
	tags := 0
	for path, source := range sources {
		for _, m := range variableTag.FindAllStringSubmatch(source, -1) {
			tags++
			said, ok := "", false
			for i := 0; i < len(prefixes) && !ok; i++ {
				said, ok = defaults[prefixes[i]+m[1]]
			}
			switch {
			case !ok:
				t.Errorf("%s reads %s, which has no row in %s: add | `%s` | who reads it | default | meaning |", path, m[1], configurationPage, m[1])
			case m[2] != "" && !strings.Contains(said, "`"+m[2]+"`"):
				t.Errorf("%s: %s is %q where it is unset; the row in %s says %q: name it in backticks there", path, m[1], m[2], configurationPage, said)
			}
		}
	}
	if tags == 0 {
		t.Error("no source has a variable: nothing was checked")
	}
	for variable := range defaults {
		if !read(sources, prefixes, variable) {
			t.Errorf("%s has a row for %s, which nothing reads", configurationPage, variable)
		}
	}
}

// read says whether a source names the variable.
func read(sources map[string]string, prefixes []string, variable string) bool {
	for _, source := range sources {
		for _, prefix := range prefixes {
			name, ok := strings.CutPrefix(variable, prefix)
			if ok && (strings.Contains(source, `"`+name+`"`) || strings.Contains(source, `env:"`+name+`,`)) {
				return true
			}
		}
	}
	return false
}

// goSources returns the programs of the project, without their tests and tools, by path.
func goSources(t *testing.T) map[string]string {
	t.Helper()
	sources := map[string]string{}
	err := filepath.WalkDir("..", func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && entry.Name() != ".." && (strings.HasPrefix(entry.Name(), ".") || entry.Name() == "tools" || entry.Name() == "gen"):
			return filepath.SkipDir
		case strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go"):
			source, err := os.ReadFile(path)
			sources[path] = string(source)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return sources
}
