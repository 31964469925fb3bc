package e2e

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// alert is an alert in deploy/prometheus/rules.yaml.
type alert struct {
	Alert       string            `yaml:"alert"`
	Record      string            `yaml:"record"`
	Expr        string            `yaml:"expr"`
	For         string            `yaml:"for"`
	Labels      map[string]string `yaml:"labels"`
	Annotations map[string]string `yaml:"annotations"`
}

// alertRules returns the alerts, and the names of what is recorded.
func alertRules(t *testing.T) (alerts []alert, recorded map[string]bool) {
	t.Helper()
	text, err := os.ReadFile("../deploy/prometheus/rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Groups []struct {
			Rules []alert `yaml:"rules"`
		} `yaml:"groups"`
	}
	if err := yaml.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	recorded = map[string]bool{}
	for _, group := range file.Groups {
		for _, rule := range group.Rules {
			if rule.Record != "" {
				recorded[rule.Record] = true
				continue
			}
			alerts = append(alerts, rule)
		}
	}
	if len(alerts) < 20 {
		t.Fatalf("there are %d alerts", len(alerts))
	}
	return alerts, recorded
}

// The table in docs/operations.md once differed from the rules, and three of its alerts could not fire in their main case.
func TestAlerts_ThePageSaysWhatTheRulesSay(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(text)
	_, table, _ := strings.Cut(page, "\n## Alerts\n")
	table, _, _ = strings.Cut(table, "\n## ")
	alerts, _ := alertRules(t)
	rows := regexp.MustCompile(`(?m)^\| \[.*$`).FindAllString(table, -1)
	if len(rows) != len(alerts) {
		t.Fatalf("the page has %d alerts, the rules have %d", len(rows), len(alerts))
	}
	for i, a := range alerts {
		paragraph := strings.TrimPrefix(a.Annotations["runbook"], "docs/operations.md#")
		condition := strings.ReplaceAll(strings.Join(strings.Fields(a.Expr), " "), "|", `\|`)
		want := "| [" + a.Alert + "](#" + paragraph + ") | " + a.Labels["severity"] + " | `" + condition + "` | " + a.For + " | "
		if !strings.HasPrefix(rows[i], want) {
			t.Errorf("the page says\n%s\nwhere the rules say\n%s", rows[i], want)
		}
		if !regexp.MustCompile(`(?i)\n### ` + paragraph + "\n").MatchString(table) {
			t.Errorf("%s has no paragraph %s", a.Alert, a.Annotations["runbook"])
		}
	}
}

// A rule about a metric that does not exist never fires, and no tool complains.
func TestAlerts_AreAboutMetricsThatExist(t *testing.T) {
	t.Parallel()
	known := metricNames(t)
	alerts, recorded := alertRules(t)
	name := regexp.MustCompile(`\b(?:shop:[a-z_]+:[a-z0-9_]+|[a-z]+_[a-z_]+)(?:\{|\[|\)| )`)
	seen := 0
	for _, a := range alerts {
		for _, found := range name.FindAllString(labelsOf.ReplaceAllString(a.Expr, "{"), -1) {
			found = found[:len(found)-1]
			if seen++; !recorded[found] && !known[found] {
				t.Errorf("%s is about %s, which no source has", a.Alert, found)
			}
		}
	}
	if seen < len(alerts) {
		t.Errorf("%d metrics in %d alerts", seen, len(alerts))
	}
}

// labelsOf returns the labels in the braces of an expression and in its aggregations.
var labelsOf = regexp.MustCompile(`\{[^}]*\}|by \([^)]*\) `)
