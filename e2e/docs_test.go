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
	namedTest   = regexp.MustCompile(`\bTest[A-Z]\w*_(\w+|…)`)
	declaration = regexp.MustCompile(`(?m)^func (Test\w+)\(`)
)

// A promise in a document names the test that shows it. A test that was renamed or removed takes its promise along.
func TestDocuments_NameTestsThatExist(t *testing.T) {
	t.Parallel()
	tests := map[string]bool{}
	var documents []string
	err := filepath.WalkDir("..", func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && strings.HasPrefix(entry.Name(), ".") && entry.Name() != "..":
			return filepath.SkipDir
		case strings.HasSuffix(path, ".md"):
			documents = append(documents, path)
		case strings.HasSuffix(path, "_test.go"):
			source, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			for _, m := range declaration.FindAllSubmatch(source, -1) {
				tests[string(m[1])] = true
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	named := 0
	for _, path := range documents {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range namedTest.FindAllString(string(text), -1) {
			named++
			if !declared(tests, name) {
				t.Errorf("%s names %s, which does not exist", path, name)
			}
		}
	}
	if named == 0 {
		t.Error("no document names a test: nothing was checked")
	}
}

// declared says whether there is a test of that name, or one that begins with what stands before an ellipsis.
func declared(tests map[string]bool, name string) bool {
	prefix, open := strings.CutSuffix(name, "…")
	if !open {
		return tests[name]
	}
	for test := range tests {
		if strings.HasPrefix(test, prefix) {
			return true
		}
	}
	return false
}
