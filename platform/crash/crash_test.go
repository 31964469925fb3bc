package crash

import (
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const root = "../.." // of the workspace

func TestPoints_AreThoseOfTheCode(t *testing.T) {
	t.Parallel()
	call := regexp.MustCompile(`crash\.Point\("([^"]*)"\)`)
	placed := map[string]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && strings.HasPrefix(d.Name(), ".") && path != root {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		source, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, m := range call.FindAllStringSubmatch(string(source), -1) {
			if before, twice := placed[m[1]]; twice {
				t.Errorf("point %s is in %s and in %s: a point is one place", m[1], before, path)
			}
			placed[m[1]] = path
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := slices.Sorted(maps.Keys(placed)); !slices.Equal(got, slices.Sorted(slices.Values(Points))) {
		t.Errorf("the code has the points\n%q, the list has\n%q", got, slices.Sorted(slices.Values(Points)))
	}
}

func TestPoints_AreThoseOfTheDocumentation(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join(root, "docs/crash-points.md"))
	if err != nil {
		t.Fatal(err)
	}
	var described []string
	for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\|").FindAllStringSubmatch(string(text), -1) {
		described = append(described, m[1])
	}
	if !slices.Equal(slices.Sorted(slices.Values(described)), slices.Sorted(slices.Values(Points))) {
		t.Errorf("the documentation has the points\n%q, the list has\n%q", described, Points)
	}
}
