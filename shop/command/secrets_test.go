package command

import (
	"bytes"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"shop.example/shop/cli"
)

// makeSecrets runs `shop secrets` on the file and returns what is in it then.
func makeSecrets(t *testing.T, file string, args ...string) (values map[string]string, said string) {
	t.Helper()
	var out bytes.Buffer
	cmd := Root()
	cmd.SetOut(&out)
	cmd.SetArgs(append([]string{"secrets", "--file", file}, args...))
	if err := cmd.ExecuteContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	values = map[string]string{}
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			if _, twice := values[name]; twice {
				t.Errorf("%s stands there twice", name)
			}
			values[name] = value
		}
	}
	for name, value := range values {
		if len(value) >= 16 && name != "COMPOSE_FILE" && strings.Contains(out.String(), value) {
			t.Errorf("%s is shown on the screen: %s", name, out.String())
		}
	}
	return values, out.String()
}

func TestSecrets_AreAllMadeOnceAndStay(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), ".env")
	first, said := makeSecrets(t, file, "--operator", "ada", "--operator", "bob")
	if info, err := os.Stat(file); err != nil || info.Mode() != 0o600 {
		t.Errorf("others can read it: %v, %v", info.Mode(), err)
	}
	seen := map[string]bool{}
	for _, name := range secretNames {
		if !regexp.MustCompile(`^[A-Z0-9]{26}$`).MatchString(first[name]) || seen[first[name]] {
			t.Errorf("%s is %q", name, first[name])
		}
		seen[first[name]] = true
		if !strings.Contains(said, name+"\n") {
			t.Errorf("%s is not said to be made: %s", name, said)
		}
	}
	if !regexp.MustCompile(`^ada:[A-Z0-9]{26},bob:[A-Z0-9]{26}$`).MatchString(first[operatorTokens]) {
		t.Errorf("the operators are %q", first[operatorTokens])
	}
	again, said := makeSecrets(t, file)
	if !maps.Equal(again, first) || said != file+" has all secrets.\n" {
		t.Errorf("they were made again: %s", said)
	}
}

func TestSecrets_OneIsRenewedAndTheOthersStay(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), ".env")
	kept := "# mine\nRATE_LIMIT=7\nORDERS_PASSWORD=\nSHOP_OPERATOR_TOKENS=\"ada:a-token-that-ada-has\"\n"
	if err := os.WriteFile(file, []byte(kept), 0o644); err != nil {
		t.Fatal(err)
	}
	first, _ := makeSecrets(t, file)
	if info, err := os.Stat(file); err != nil || info.Mode() != 0o600 {
		t.Errorf("it stays open to others: %v, %v", info.Mode(), err)
	}
	if first["RATE_LIMIT"] != "7" || first["ORDERS_PASSWORD"] == "" || first[operatorTokens] != `"ada:a-token-that-ada-has"` {
		t.Errorf("%v", first)
	}
	changed := func(before, after map[string]string) (names []string) {
		for name, value := range after {
			if before[name] != value {
				names = append(names, name)
			}
		}
		return slices.Sorted(slices.Values(names))
	}
	second, said := makeSecrets(t, file, "--renew", "ORDERS_PASSWORD", "--renew", "ORDER_AMQP_PASSWORD")
	if got := changed(first, second); !slices.Equal(got, []string{"ORDERS_PASSWORD", "ORDER_AMQP_PASSWORD"}) {
		t.Errorf("changed %v: %s", got, said)
	}
	// What the old secret has signed is good for a while.
	third, said := makeSecrets(t, file, "--renew", idSecret)
	if got := changed(second, third); !slices.Equal(got, []string{idSecret, previousIDSecret}) || third[previousIDSecret] != second[idSecret] {
		t.Errorf("changed %v: %s", got, said)
	}
	fourth, _ := makeSecrets(t, file, "--operator", "ada")
	if !regexp.MustCompile(`^ada:a-token-that-ada-has,ada:[A-Z0-9]{26}$`).MatchString(fourth[operatorTokens]) {
		t.Errorf("the operators are %q", fourth[operatorTokens])
	}
}

// Where .env was there before, for the demonstration, docker compose alone still meant that.
func TestSecrets_DockerComposeMeansProductionAlsoWhereThereWasAFile(t *testing.T) {
	t.Parallel()
	const both = "compose.yaml:deploy/compose/production.yaml"
	for _, c := range []struct{ before, want, warning string }{
		{"SHOP_PORT=4000\n", both, ""},
		{"#COMPOSE_FILE=mine.yaml\nCOMPOSE_FILE=\n", both, ""},
		{"COMPOSE_FILE=" + both + ":mine.yaml\n", both + ":mine.yaml", ""},
		{"COMPOSE_FILE=compose.yaml\n", "compose.yaml", "says COMPOSE_FILE=compose.yaml: deploy/compose/production.yaml has to be one of these files"},
	} {
		file := filepath.Join(t.TempDir(), ".env")
		if err := os.WriteFile(file, []byte(c.before), 0o600); err != nil {
			t.Fatal(err)
		}
		var warned bytes.Buffer
		for range 2 {
			warned.Reset()
			cmd := Root()
			cmd.SetOut(io.Discard)
			cmd.SetErr(&warned)
			cmd.SetArgs([]string{"secrets", "--file", file})
			if err := cmd.ExecuteContext(t.Context()); err != nil {
				t.Fatal(err)
			}
			if said := warned.String(); (said == "") != (c.warning == "") || !strings.Contains(said, c.warning) {
				t.Errorf("%q: it says %q", c.before, said)
			}
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains("\n"+string(text), "\nCOMPOSE_FILE="+c.want+"\n") || strings.Count(string(text), "\nCOMPOSE_FILE=") > 1 {
			t.Errorf("%q became\n%s", c.before, text)
		}
	}
}

func TestSecrets_WrongNamesAreRefusedAndNothingIsWritten(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), ".env")
	for _, args := range [][]string{{"--renew", "PASSWORD"}, {"--renew", "SHOP_OPERATOR_TOKENS"}, {"--operator", ""}, {"--operator", "a:b"}, {"--operator", "a,b"}, {"--operator", "a\nb"}, {"x"}} {
		cmd := Root()
		cmd.SetArgs(append([]string{"secrets", "--file", file}, args...))
		if err := cmd.ExecuteContext(t.Context()); cli.ExitStatus(err) != 2 {
			t.Errorf("%q: %v", args, err)
		}
	}
	if _, err := os.Stat(file); err == nil {
		t.Error("the file was written")
	}
}
