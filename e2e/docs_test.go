package e2e

import (
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"

	"go.yaml.in/yaml/v3"

	"shop.example/topology"
)

var (
	// link is a link within a document: its target, without a title.
	link    = regexp.MustCompile(`\]\(([^()\s]+)\)`)
	heading = regexp.MustCompile(`(?m)^#{1,6} (.+)$`)

	// goBlock is code that a guide adds, with its own tests.
	goBlock     = regexp.MustCompile("(?ms)^```go .*?^```$")
	namedTest   = regexp.MustCompile(`\bTest[A-Z]\w*_(\w+|…)`)
	declaration = regexp.MustCompile(`(?m)^func (Test\w+)\(`)
)

// A document that promises something names the test that shows it, so renaming or removing a test must change the document.
func TestDocuments_NameTestsThatExist(t *testing.T) {
	t.Parallel()
	tests := map[string]bool{}
	var documents []string
	err := filepath.WalkDir("..", func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && (strings.HasPrefix(entry.Name(), ".") && entry.Name() != ".." || entry.Name() == "node_modules"):
			return filepath.SkipDir
		case strings.HasSuffix(path, ".md"), entry.Name() == "breaking.js": // the page names tests, too
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
		for _, name := range namedTest.FindAllString(goBlock.ReplaceAllString(string(text), ""), -1) {
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

// declared reports whether there is a test of that name, or one that begins with the text before an ellipsis.
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

func TestDocuments_LinksLeadSomewhere(t *testing.T) {
	t.Parallel()
	texts := documents(t)
	links := 0
	for document, text := range texts {
		for _, m := range link.FindAllStringSubmatch(inline.ReplaceAllString(fence.ReplaceAllString(text, ""), ""), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			links++
			file, anchor, _ := strings.Cut(m[1], "#")
			target := document
			if file != "" {
				target = path.Join(path.Dir(document), file)
			}
			if !exists(filepath.Join("..", target)) {
				t.Errorf("%s links to %s, which does not exist", document, m[1])
			} else if anchor != "" && !slices.Contains(anchors(texts[target]), anchor) {
				t.Errorf("%s links to %s: %s has no heading of that name", document, m[1], target)
			}
		}
	}
	if links < 50 {
		t.Errorf("%d links were found", links)
	}
}

// anchors are what links to the headings of a document end with, as GitHub and GitLab make them.
func anchors(text string) (all []string) {
	for _, m := range heading.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
		var anchor strings.Builder
		for _, r := range strings.ToLower(m[1]) {
			switch {
			case r == ' ':
				anchor.WriteByte('-')
			case r == '-' || r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r):
				anchor.WriteRune(r)
			}
		}
		all = append(all, anchor.String())
	}
	return all
}

// Every document is listed in docs/README.md, and every decision in docs/adr/README.md.
func TestDocuments_TheirMapsAreComplete(t *testing.T) {
	t.Parallel()
	for folder, more := range map[string][]string{"docs": {"../CONTRIBUTING.md", "../CHANGELOG.md", "../SECURITY.md"}, "docs/adr": nil} {
		index, err := os.ReadFile(filepath.Join("..", folder, "README.md"))
		if err != nil {
			t.Fatal(err)
		}
		pages, err := filepath.Glob(filepath.Join("..", folder, "*.*"))
		if err != nil || len(pages) < 10 {
			t.Fatalf("%d documents in %s, %v", len(pages), folder, err)
		}
		for _, page := range append(pages, more...) {
			name := filepath.Base(page)
			if !strings.HasPrefix(page, filepath.Join("..", folder)) {
				name = page
			}
			if name != "README.md" && !strings.Contains(string(index), "("+name+")") {
				t.Errorf("%s/README.md does not link to %s", folder, name)
			}
		}
	}
}

var makeCall = regexp.MustCompile(`\bmake ((?:[a-z.]+[/ ]?)+)`)

// CI runs the make targets that developers run.
func TestCI_CallsTargetsThatExist(t *testing.T) {
	t.Parallel()
	makefile, err := os.ReadFile("../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string][]string{
		"../.github/workflows/ci.yaml": {"unit", "test", "long", "upgrade", "sbom", "chaos"},
		"../.gitlab-ci.yml":            {"unit", "test", "long", "upgrade", "sbom", "chaos"}, "../.ci/run": {"test", "long", "upgrade", "sbom"}, "../.devcontainer/devcontainer.json": {"setup", "up"},
	} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(file, "ml") {
			var parsed map[string]any
			if err := yaml.Unmarshal(text, &parsed); err != nil {
				t.Errorf("%s: %v", file, err)
			}
		}
		called := map[string]bool{}
		for _, m := range makeCall.FindAllStringSubmatch(comment.ReplaceAllString(string(text), ""), -1) {
			for target := range strings.FieldsSeq(m[1]) {
				called[target] = true
				if !strings.Contains(string(makefile), "\n"+target+":") {
					t.Errorf("%s calls make %s, which the Makefile does not have", file, target)
				}
			}
		}
		for _, target := range want {
			if !called[target] {
				t.Errorf("%s does not call make %s", file, target)
			}
		}
	}
}

// What the Makefile leaves out of make test, make long has to run: a test that has another name now is in make test again.
func TestCI_LongTestsExist(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^LONG = \^Test\(([\w|]+)\)$`).FindSubmatch(b)
	if m == nil {
		t.Fatal("the Makefile does not say which tests are LONG")
	}
	var tests []string
	for _, dir := range []string{".", "../bench/measure", "../dev/stack", "../services/webhooks/webhook"} { // where make long looks
		files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, found := range declaration.FindAllSubmatch(b, -1) {
				tests = append(tests, string(found[1]))
			}
		}
	}
	for long := range strings.SplitSeq(string(m[1]), "|") {
		if !slices.ContainsFunc(tests, func(test string) bool { return strings.HasPrefix(test, "Test"+long) }) {
			t.Errorf("no test begins with Test%s, which is LONG in the Makefile", long)
		}
	}
}

// CI tests with the Go version that the images are built with.
func TestCI_HasTheGoOfTheImages(t *testing.T) {
	t.Parallel()
	dockerfile, err := os.ReadFile("../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	workflow, err := os.ReadFile("../.github/workflows/ci.yaml")
	if err != nil {
		t.Fatal(err)
	}
	image := regexp.MustCompile(`FROM golang:([\d.]+) `).FindSubmatch(dockerfile)
	versions := regexp.MustCompile(`go-version: "([^"]*)"`).FindAllSubmatch(workflow, -1)
	if image == nil || len(versions) == 0 {
		t.Fatalf("Dockerfile: %q, CI: %q: there is a version missing", image, versions)
	}
	for _, version := range versions {
		if string(version[1]) != string(image[1]) {
			t.Errorf("CI has Go %s, the Dockerfile %s", version[1], image[1])
		}
	}
}

var comment = regexp.MustCompile(`(?m)(^|\s)(#|//).*$`)

// Pages that list the services lacked the one that came last: its image, its place in the diagram.
func TestDocuments_ListEveryService(t *testing.T) {
	t.Parallel()
	read := func(name string) string {
		text, err := os.ReadFile("../docs/" + name)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	_, images, _ := strings.Cut(read("releasing.md"), "\n## Images\n")
	images, _, _ = strings.Cut(images, "To publish")
	var want, got []string
	for _, service := range topology.Names() {
		want = append(want, "shop-"+service)
	}
	_, list, _ := strings.Cut(images, "with that tag:")
	for _, m := range regexp.MustCompile("`(shop[a-z-]*)`").FindAllStringSubmatch(list, -1) {
		got = append(got, m[1])
	}
	if want = append(want, "shop"); !slices.Equal(got, want) {
		t.Errorf("docs/releasing.md has images %q, want %q", got, want)
	}

	_, containers, _ := strings.Cut(read("architecture.md"), "\n## Containers\n")
	containers, _, _ = strings.Cut(containers, "\n## ")
	_, diagram, _ := strings.Cut(containers, "```mermaid")
	diagram, table, _ := strings.Cut(diagram, "```")
	var rows []string
	for _, m := range regexp.MustCompile(`(?m)^\| ([a-z]+) \|`).FindAllStringSubmatch(table, -1) {
		rows = append(rows, m[1])
	}
	if want := append([]string{"container"}, topology.Names()...); !slices.Equal(rows, want) { // the first is the heading
		t.Errorf("docs/architecture.md has rows %q, want %q", rows, want)
	}
	for _, service := range topology.Names() {
		if !regexp.MustCompile(`\b` + service + `\b`).MatchString(diagram) {
			t.Errorf("docs/architecture.md: the diagram has no %s", service)
		}
	}
}
