package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// dashboard is what the tests read of one in deploy/grafana/dashboards.
type dashboard struct {
	UID, Title string
	Panels     []struct {
		Title, Description string
		Type               string
		Targets            []struct{ Expr, LegendFormat string }
	}
}

func dashboards(t *testing.T) (all []dashboard) {
	t.Helper()
	files, err := filepath.Glob("../deploy/grafana/dashboards/*.json")
	if err != nil || len(files) != 3 {
		t.Fatalf("the dashboards are %v, %v", files, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var d dashboard
		if err := json.Unmarshal(text, &d); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		all = append(all, d)
	}
	return all
}

// A panel about a metric that does not exist is always empty, as if all were well. `make dashboards` tests that each has
// values.
func TestDashboards_AreAboutMetricsThatExist(t *testing.T) {
	t.Parallel()
	known := metricNames(t)
	_, recorded := alertRules(t)
	name := regexp.MustCompile(`\bshop:[a-z_]+:[a-z0-9_]+|\b[a-z]+_[a-z_]+`)
	ours := regexp.MustCompile(`^(shop|gateway|order|inventory|logging|webhooks|messaging|outbox|inbox|service|db|http)[_:]`)
	seen := 0
	for _, d := range dashboards(t) {
		for _, p := range d.Panels {
			if p.Type == "row" {
				continue
			}
			if p.Description == "" || len(p.Targets) == 0 {
				t.Errorf("%s: panel %s says nothing about itself, or shows nothing", d.Title, p.Title)
			}
			for _, target := range p.Targets {
				for _, found := range name.FindAllString(labelsOf.ReplaceAllString(target.Expr, ""), -1) {
					metric := strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(found, "_bucket"), "_count"), "_sum")
					if !ours.MatchString(metric) || metric == "http_route" || metric == "http_response_status_code" {
						continue
					}
					if seen++; !known[metric] && !recorded[metric] {
						t.Errorf("%s, %s: no source has %s", d.Title, p.Title, metric)
					}
				}
			}
		}
	}
	if seen < 50 {
		t.Errorf("%d metrics were looked at", seen)
	}
}

// A Prometheus that watches more than the shop has targets, alerts and brokers of others, which were counted, too.
func TestDashboards_ShowWhatIsOfTheShopAlone(t *testing.T) {
	t.Parallel()
	alerts, _ := alertRules(t)
	var names []string
	for _, a := range alerts {
		names = append(names, a.Alert)
	}
	var seen []string
	selector := regexp.MustCompile(`\b(up|ALERTS|rabbitmq_\w+|http_\w+_(?:count|bucket))\b(\{[^}]*\})?`)
	of := map[string]string{"up": `{job=~"` + strings.Join(services, "|") + `"}`, "rabbitmq": `{job="rabbitmq"}`, "http": `{job="gateway"}`}
	for _, d := range dashboards(t) {
		for _, p := range d.Panels {
			for _, target := range p.Targets {
				for _, m := range selector.FindAllStringSubmatch(target.Expr, -1) {
					kind, _, _ := strings.Cut(m[1], "_")
					seen = append(seen, kind)
					want := of[kind]
					if kind == "ALERTS" {
						want = `{alertstate="firing",alertname=~"` + strings.Join(names, "|") + `"}`
					}
					if m[2] != want {
						t.Errorf("%s, %s: %s is of others, too, want %s%s", d.Title, p.Title, m[0], m[1], want)
					}
				}
			}
		}
	}
	slices.Sort(seen)
	if kinds := slices.Compact(seen); len(kinds) != 4 {
		t.Errorf("looked at %v only", kinds)
	}
}
