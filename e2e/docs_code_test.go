package e2e

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	link       = regexp.MustCompile(`\[([^\]]+)\]\(([^)\s#]+)(#[^)\s]*)?\)`)
	codeName   = regexp.MustCompile("^`([A-Za-z]\\w*(?:\\.[A-Za-z]\\w*)?)`$")
	codeBlocks = regexp.MustCompile("(?s)```.*?```")
)

// Whoever follows a document to the code finds it: a link `[`name`](file.go)` names what the file declares.
func TestDocuments_LinksToCodeNameWhatIsThere(t *testing.T) {
	t.Parallel()
	declared := map[string]map[string]bool{} // by file
	named := map[string]int{}                // how many names of code, by document
	for _, document := range markdownFiles(t) {
		text, err := os.ReadFile(document)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(codeBlocks.ReplaceAllString(string(text), ""), -1) {
			label, target := m[1], m[2]
			if strings.Contains(target, ":") { // another site
				continue
			}
			file := filepath.Join(filepath.Dir(document), target)
			if _, err := os.Stat(file); err != nil {
				t.Errorf("%s links to %s, which does not exist", document, target)
				continue
			}
			name := codeName.FindStringSubmatch(label)
			if name == nil || filepath.Ext(file) != ".go" {
				continue
			}
			named[document]++
			if declared[file] == nil {
				declared[file] = declarations(t, file)
			}
			if !declared[file][name[1]] {
				t.Errorf("%s: %s declares no %s", document, target, name[1])
			}
		}
	}
	for _, document := range []string{"../docs/architecture.md", "../docs/patterns.md"} {
		if named[document] < 20 {
			t.Errorf("%s names %d places in the code: the check does not see its links", document, named[document])
		}
	}
}

// markdownFiles are the documents of the repository.
func markdownFiles(t *testing.T) (files []string) {
	t.Helper()
	err := filepath.WalkDir("..", func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && strings.HasPrefix(entry.Name(), ".") && entry.Name() != "..":
			return filepath.SkipDir
		case filepath.Ext(path) == ".md":
			files = append(files, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
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
