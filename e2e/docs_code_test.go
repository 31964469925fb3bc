package e2e

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// codeLink is a link to what a Go file declares: [`name`](file.go).
var codeLink = regexp.MustCompile("\\[`([\\w.]+)`\\]\\(([^()\\s]+\\.go)\\)")

// Links from documents into the code name declarations that exist.
func TestDocuments_LinksToCodeNameWhatIsThere(t *testing.T) {
	t.Parallel()
	documents, err := filepath.Glob("../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	declared := map[string]map[string]bool{} // by file
	named := map[string]int{}                // how many names there are, by document
	for _, document := range documents {
		text, err := os.ReadFile(document)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range codeLink.FindAllStringSubmatch(string(text), -1) {
			name, target := m[1], m[2]
			file := filepath.Join(filepath.Dir(document), target)
			named[filepath.Base(document)]++
			if _, err := os.Stat(file); err != nil {
				t.Errorf("%s: %s of %s: there is no such file", document, name, target)
				continue
			}
			if declared[file] == nil {
				declared[file] = declarations(t, file)
			}
			if !declared[file][name] {
				t.Errorf("%s: %s does not declare %s", document, target, name)
			}
		}
	}
	for _, document := range []string{"architecture.md", "patterns.md"} {
		if named[document] < 20 {
			t.Errorf("%s names %d places in the code: the check does not see its links", document, named[document])
		}
	}
}

// declarations are the names that a Go file declares at its top level; methods as Type.Method.
func declarations(t *testing.T, file string) map[string]bool {
	t.Helper()
	parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, d := range parsed.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			names[methodName(d)] = true
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				switch spec := spec.(type) {
				case *ast.TypeSpec:
					names[spec.Name.Name] = true
				case *ast.ValueSpec:
					for _, id := range spec.Names {
						names[id.Name] = true
					}
				}
			}
		}
	}
	return names
}

func methodName(d *ast.FuncDecl) string {
	if d.Recv == nil {
		return d.Name.Name
	}
	receiver := d.Recv.List[0].Type
	if pointer, ok := receiver.(*ast.StarExpr); ok {
		receiver = pointer.X
	}
	if generic, ok := receiver.(*ast.IndexExpr); ok {
		receiver = generic.X
	}
	if id, ok := receiver.(*ast.Ident); ok {
		return id.Name + "." + d.Name.Name
	}
	return d.Name.Name
}
