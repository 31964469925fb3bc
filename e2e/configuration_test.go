package e2e

import (
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/caarlos0/env/v11"
	"github.com/spf13/cobra"

	"shop.example/dev/local"
	"shop.example/gateway/server"
	"shop.example/platform/service"
	"shop.example/platform/telemetry"
	"shop.example/services/inventory/stock"
	"shop.example/services/logging/eventlog"
	"shop.example/services/order/ordering"
	"shop.example/services/webhooks/webhook"
	"shop.example/shop/command"
)

var (
	// variableTag is a field of a configuration; the second group is its default, if it has one.
	variableTag = regexp.MustCompile("`[^`]*\\benv:\"([A-Z][A-Z0-9_]*)[^\"]*\"(?:[^`]*\\benvDefault:\"([^\"]*)\")?[^`]*`")
	prefixTag   = regexp.MustCompile(`\benvPrefix:"([A-Z][A-Z0-9_]*)"`)
	// variableRow is a row of the table: the variables, who reads them, the default.
	variableRow  = regexp.MustCompile("(?m)^\\| (`[A-Z][A-Z0-9_]*`(?:, `[A-Z][A-Z0-9_]*`)*) \\|([^|]*)\\|([^|]*)\\|")
	variableName = regexp.MustCompile(`[A-Z][A-Z0-9_]*`)
)

const configurationPage = "../docs/configuration.md"

// setting is a row of docs/configuration.md.
type setting struct {
	names     []string
	readers   []string // as they stand there, but each service by its name
	byDefault string
}

func settings(t *testing.T) []setting {
	t.Helper()
	page, err := os.ReadFile(configurationPage)
	if err != nil {
		t.Fatal(err)
	}
	var all []setting
	for _, row := range variableRow.FindAllStringSubmatch(string(page), -1) {
		readers := strings.Replace(strings.TrimSpace(row[2]), "all services", strings.Join(services, ", "), 1)
		all = append(all, setting{variableName.FindAllString(row[1], -1), strings.Split(readers, ", "), row[3]})
	}
	if len(all) < 60 {
		t.Fatalf("%s has %d rows: it was not read", configurationPage, len(all))
	}
	return all
}

// Its column of readers named programs that do not read a variable, and left others out.
func TestConfiguration_TheTableSaysWhoReadsAVariable(t *testing.T) {
	t.Parallel()
	const up, shop = "`make up`", "`shop"
	reads := map[string]map[string]bool{}
	for program, configs := range map[string][]any{
		"gateway":   {&server.Config{}, &service.ProfileConfig{}},
		"order":     {&ordering.Config{}, &service.ProfileConfig{}},
		"inventory": {&stock.Config{}, &service.ProfileConfig{}},
		"logging":   {&eventlog.Config{}, &service.ProfileConfig{}},
		"webhooks":  {&webhook.Config{}, &service.ProfileConfig{}},
		up:          {&local.Config{}, &service.ProfileConfig{}},
		shop:        {&telemetry.Config{}}, // of the audit that goes on
	} {
		reads[program] = map[string]bool{}
		for _, config := range configs {
			fields, err := env.GetFieldParams(config)
			if err != nil {
				t.Fatal(err)
			}
			for _, field := range fields {
				reads[program][field.Key] = true
			}
		}
	}
	reads[up]["AMQP_URL"], reads[up]["DATABASE_URL"] = true, true // the stack's
	fields := map[string]bool{}                                   // the variables that are fields of a configuration
	for _, of := range reads {
		maps.Copy(fields, of)
	}
	sources := goSources(t)
	maps.DeleteFunc(sources, func(path, _ string) bool {
		return !strings.HasPrefix(path, "../shop/") || path == "../shop/command/secrets.go" // which makes variables
	})
	for _, row := range settings(t) {
		if len(row.names) > 1 {
			continue // OpenTelemetry's, and those whose names shop puts together
		}
		name := row.names[0]
		reads[shop][name] = reads[shop][name] || read(sources, []string{""}, name)
		for program, of := range reads {
			said := slices.ContainsFunc(row.readers, func(reader string) bool { // `shop audit` is one of shop's
				return reader == program || program == shop && regexp.MustCompile("^`shop[ `]").MatchString(reader)
			})
			if (fields[name] || program == shop) && said != of[name] {
				t.Errorf("%s: %s is read by %s: %t; its row says %t", configurationPage, name, strings.Trim(program, "`"), of[name], said)
			}
		}
	}
}

// The row of SHOP_SERVER had seven of the commands that talk to a shop.
func TestConfiguration_TheTableHasEachCommandThatTalksToAShop(t *testing.T) {
	t.Parallel()
	var want, said []string
	for _, cmd := range command.Root().Commands() {
		if slices.ContainsFunc(append(cmd.Commands(), cmd), func(c *cobra.Command) bool { return c.PersistentFlags().Lookup("server") != nil }) {
			want = append(want, cmd.Name())
		}
	}
	for _, row := range settings(t) {
		if row.names[0] == "SHOP_SERVER" {
			for _, reader := range row.readers {
				name, _, _ := strings.Cut(strings.Trim(strings.TrimPrefix(reader, "`shop "), "`"), " ")
				said = append(said, name)
			}
		}
	}
	slices.Sort(want)
	slices.Sort(said)
	if !slices.Equal(slices.Compact(said), want) {
		t.Errorf("%s: SHOP_SERVER is read by %v, want %v", configurationPage, said, want)
	}
}

// A variable in the code must have a row in docs/configuration.md.
func TestConfiguration_EveryVariableIsInTheTableWithItsDefault(t *testing.T) {
	t.Parallel()
	defaults := map[string]string{} // by variable, as the table says
	for _, row := range settings(t) {
		if len(row.names) == 1 {
			defaults[row.names[0]] = row.byDefault
		}
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
