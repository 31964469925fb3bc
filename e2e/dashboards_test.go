package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
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
