package e2e

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/grpc/codes"
)

// ownStatus are the reasons whose HTTP status does not follow from their gRPC code.
var ownStatus = map[string]int{"METHOD_NOT_ALLOWED": 405, "BODY_TOO_LARGE": 413, "UNSUPPORTED_MEDIA_TYPE": 415, "REQUEST_TIMEOUT": 408, "PRECONDITION_FAILED": 412}

var errorRow = regexp.MustCompile("(?m)^\\| `(\\w+)` \\| (\\w+) \\| (\\d+) \\| [^|]+ \\| [^|]+ \\|$")

func TestErrors_EachReasonHasARow(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../docs/errors.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string][2]string{}
	for _, m := range errorRow.FindAllStringSubmatch(string(text), -1) {
		if _, twice := rows[m[1]]; twice {
			t.Errorf("docs/errors.md has two rows for %s", m[1])
		}
		rows[m[1]] = [2]string{m[2], m[3]}
	}
	used := reasons(t)
	if len(used) < 20 {
		t.Fatalf("the sources have the reasons %v only", used)
	}
	for reason, codeName := range used {
		c := codes.Code(code.Code_value[codeName])
		status, own := ownStatus[reason]
		if !own {
			status = runtime.HTTPStatusFromCode(c)
		}
		row, ok := rows[reason]
		want := "| `" + reason + "` | " + codeName + " | " + strconv.Itoa(status) + " |"
		switch {
		case !ok:
			t.Errorf("docs/errors.md has no row for %s: add %s what it means | what to do |", reason, want)
		case row != [2]string{codeName, strconv.Itoa(status)}:
			t.Errorf("docs/errors.md says that %s is %s, HTTP %s; its row has to begin with %s", reason, row[0], row[1], want)
		}
	}
	for reason := range rows {
		if used[reason] == "" {
			t.Errorf("docs/errors.md has a row for %s, which no source uses: remove it", reason)
		}
	}
}

// reasons finds the reasons in the sources, with their codes: the calls of apierror.New and apierror.Unavailable, and the
// errors that package apierror makes itself.
func reasons(t *testing.T) map[string]string {
	t.Helper()
	found := map[string]string{}
	for _, root := range []string{"../platform", "../gateway", "../services", "../shop", "../dev", "../bench", "../db"} {
		err := filepath.WalkDir(root, func(dir string, entry fs.DirEntry, err error) error {
			if err != nil || !entry.IsDir() {
				return err
			}
			files := token.NewFileSet()
			sources, err := sourcesIn(files, dir)
			if err != nil {
				return err
			}
			constants := constantsOf(sources)
			for _, file := range sources {
				ast.Inspect(file, func(n ast.Node) bool {
					codeName, reason, is := refusal(n, file.Name.Name == "apierror", constants)
					if !is {
						return true
					}
					if reason == "" || codeName == "" {
						t.Errorf("%s: an error needs its code as codes.X and its reason as a string in the call, so that docs/errors.md can be compared with it", files.Position(n.Pos()))
						return true
					}
					if other := found[reason]; other != "" && other != codeName {
						t.Errorf("%s: %s is %s here and %s elsewhere", files.Position(n.Pos()), reason, codeName, other)
					}
					found[reason] = codeName
					return true
				})
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return found
}

// sourcesIn parses the files of a package, without its tests.
func sourcesIn(files *token.FileSet, dir string) ([]*ast.File, error) {
	paths, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return nil, err
	}
	var sources []*ast.File
	for _, path := range paths {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(files, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		sources = append(sources, file)
	}
	return sources, nil
}

// constantsOf finds the constants of a package that are strings.
func constantsOf(sources []*ast.File) map[string]string {
	found := map[string]string{}
	for _, file := range sources {
		ast.Inspect(file, func(n ast.Node) bool {
			if spec, ok := n.(*ast.ValueSpec); ok && len(spec.Names) == 1 && len(spec.Values) == 1 {
				found[spec.Names[0].Name] = textOf(spec.Values[0], nil)
			}
			return true
		})
	}
	return found
}

// refusal reads code and reason of an expression that makes an error for clients. inside is package apierror. The reason may be
// one of the package's constants.
func refusal(n ast.Node, inside bool, constants map[string]string) (codeName, reason string, is bool) {
	switch n := n.(type) {
	case *ast.CallExpr:
		var name string
		switch f := n.Fun.(type) {
		case *ast.SelectorExpr:
			if pkg, ok := f.X.(*ast.Ident); ok && pkg.Name == "apierror" {
				name = f.Sel.Name
			}
		case *ast.Ident:
			if inside {
				name = f.Name
			}
		}
		switch {
		case name == "New" && len(n.Args) > 2:
			if parameter, ok := n.Args[1].(*ast.Ident); ok && inside && parameter.Name == "reason" {
				return "", "", false // passed on
			}
			return codeOf(n.Args[0]), textOf(n.Args[1], constants), true
		case name == "Unavailable" && len(n.Args) > 2:
			return code.Code_UNAVAILABLE.String(), textOf(n.Args[0], constants), true
		}
	case *ast.CompositeLit:
		if kind, ok := n.Type.(*ast.Ident); !ok || !inside || kind.Name != "Error" {
			return "", "", false
		}
		for _, element := range n.Elts {
			if pair, ok := element.(*ast.KeyValueExpr); ok {
				switch pair.Key.(*ast.Ident).Name {
				case "code":
					codeName = codeOf(pair.Value)
				case "reason":
					reason = textOf(pair.Value, constants)
				}
			}
		}
		return codeName, reason, reason != ""
	}
	return "", "", false
}

// codeOf is the name that a code has in a google.rpc.Status: codes.NotFound is NOT_FOUND.
func codeOf(e ast.Expr) string {
	selector, ok := e.(*ast.SelectorExpr)
	if !ok {
		return ""
	}
	for value, name := range code.Code_name {
		if codes.Code(value).String() == selector.Sel.Name {
			return name
		}
	}
	return ""
}

func textOf(e ast.Expr, constants map[string]string) string {
	if name, ok := e.(*ast.Ident); ok {
		return constants[name.Name]
	}
	literal, ok := e.(*ast.BasicLit)
	if !ok || literal.Kind != token.STRING {
		return ""
	}
	text, _ := strconv.Unquote(literal.Value)
	return text
}
