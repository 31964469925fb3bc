package e2e

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"shop.example/platform/contract"
	"shop.example/topology"
)

// spelledTwice are the files, other than contracts, documents and tests, that may contain a routing key, with the reason.
var spelledTwice = map[string]string{
	"topology/topology.go":             "the table of services has the patterns",
	"topology/definitions.json":        "written by make generate",
	"gateway/web/assets/contracts.js":  "written by make generate",
	"bench/measure/baseline.go":        "the bare minimum that the shop is compared with has no contracts",
	"bench/measure/baseline_stock.go":  "as above",
	"bench/measure/growth_fill.go":     "SQL that writes a past of the shop as it is stored",
	"bench/measure/preload.go":         "SQL that writes a past of the shop as it is stored",
	"bench/measure/growth_fill.go":     "as above",
	"gateway/web/assets/recorded.json": "an order as it was recorded, which a test compares with one of now",
	"gateway/web/index.html":           "an example of a pattern, for people",
	"examples/client/main.go":          "a client, which knows of the shop what its documents say",
}

// A routing key that is written in code a second time is easily forgotten when the contract changes: nothing fails, and the
// event is not received. Tests may contain keys, because they state what others see.
func TestRoutingKeys_StandInTheContractsAlone(t *testing.T) {
	t.Parallel()
	var keys []string
	for _, e := range contract.Events() {
		keys = append(keys, regexp.QuoteMeta(e.RoutingKey))
	}
	for _, m := range contract.Methods() {
		keys = append(keys, regexp.QuoteMeta(m.RoutingKey))
	}
	for _, s := range topology.Services() {
		for _, pattern := range s.Bindings {
			keys = append(keys, regexp.QuoteMeta(pattern))
		}
	}
	slices.Sort(keys)
	spelled := regexp.MustCompile(`["'` + "`" + `](` + strings.Join(keys, "|") + `)["'` + "`" + `]`)
	read := 0
	err := filepath.WalkDir("..", func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel("..", path)
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if slices.Contains([]string{".git", ".bin", ".shop", "gen", "proto", "docs", "testdata", "node_modules", "out"}, entry.Name()) {
				return filepath.SkipDir
			}
			return nil
		}
		if !slices.Contains([]string{".go", ".js", ".html", ".sql", ".json", ".yaml", ".yml", ".sh"}, filepath.Ext(name)) || strings.HasSuffix(name, "_test.go") ||
			strings.HasSuffix(name, ".test.js") || spelledTwice[filepath.ToSlash(name)] != "" {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		read++
		for _, found := range spelled.FindAllSubmatch(text, -1) {
			t.Errorf("%s spells %s: take it from the contract (contract.EventOf, topology.RoutingKey, page/contracts.js)", name, found[1])
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if read < 200 {
		t.Errorf("%d files were read: the project has more", read)
	}
}
