//go:build alerts

package e2e

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestDashboards_EveryQueryHasAnAnswer runs all queries of the dashboards on a Prometheus that watches a running shop. The
// lines that it logs are what the panels show.
func TestDashboards_EveryQueryHasAnAnswer(t *testing.T) {
	f := newDeployment(t, deploymentOptions{})
	f.up(t)
	w := observe(t, f)
	<-time.After(90 * time.Second) // of orders: more than the window of the queries

	for _, d := range dashboards(t) {
		if d.UID != "shop-service" {
			w.ask(t, d, "", true)
			continue
		}
		for _, service := range append(services, "audit") {
			// The other services do not have all that order has: no database, or nothing to sample.
			w.ask(t, d, service, service == "order")
		}
	}
}

// ask executes the queries of a dashboard, of a service if there is a choice. With answered each has to have an answer.
func (w *watchedDeployment) ask(t *testing.T, d dashboard, service string, answered bool) {
	t.Helper()
	variables := strings.NewReplacer("$__rate_interval", "1m", "$job", service, "$instance", ".+")
	for _, p := range d.Panels {
		for _, target := range p.Targets {
			expr := variables.Replace(target.Expr)
			if strings.Contains(expr, "$") {
				t.Errorf("%s, %s: the test does not know a variable in %s", d.Title, p.Title, target.Expr)
			}
			series, err := w.query(t.Context(), expr)
			if err != nil {
				t.Errorf("%s, %s: %s: %v", d.Title, p.Title, expr, err)
				continue
			}
			maps.DeleteFunc(series, func(_ string, value float64) bool { return math.IsNaN(value) })
			if answered && len(series) == 0 {
				t.Errorf("%s, %s: no answer to %s", d.Title, p.Title, expr)
			}
			var shown []string
			for _, labels := range slices.Sorted(maps.Keys(series)) {
				shown = append(shown, fmt.Sprintf("%s %.4g", labels, series[labels]))
			}
			t.Logf("%s %s | %s | %s", d.Title, service, p.Title, strings.Join(shown, "; "))
		}
	}
}
