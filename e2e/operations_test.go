package e2e

import (
	"io"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"
)

var (
	// instrument is where a metric is made: its kind, its name, and its unit if it has one.
	instrument = regexp.MustCompile(`(?s)(?:Int64|Float64)(?:Observable)?(Counter|Gauge|Histogram)\("([a-z_.]+)",\s*(?:metric\.WithUnit\("(\w+)"\))?`)
	// namedMetric is one on a page; RabbitMQ's plugin is not.
	namedMetric = regexp.MustCompile(`\b(?:http_server|gateway|messaging|outbox|inbox|inventory|logging|shop_audit)_[a-z_]+`)
)

// metricNames are the metrics of the sources, as Prometheus gets to see them.
func metricNames(t *testing.T) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	for _, source := range goSources(t) {
		for _, m := range instrument.FindAllStringSubmatch(source, -1) {
			name := strings.ReplaceAll(m[2], ".", "_")
			if m[3] == "s" {
				name += "_seconds"
			}
			if m[1] == "Counter" {
				name += "_total"
			}
			names[name] = true
		}
	}
	return names
}

func TestOperations_NamesMetricsThatExist(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	known := metricNames(t)
	named := map[string]bool{}
	for _, name := range namedMetric.FindAllString(fence.ReplaceAllString(string(page), ""), -1) {
		named[name] = true
		if !known[name] {
			t.Errorf("docs/operations.md names %s, which no source has", name)
		}
	}
	if len(named) < 15 {
		t.Errorf("it names %v only", named)
	}

	// The names above are how they are on the wire.
	s := start(t)
	s.decided(t, s.place(t, 1, 1))
	s.settled(t)
	var served strings.Builder
	for _, admin := range []string{s.Gateway.AdminAddr(), s.Order.AdminAddr(), s.Inventory.AdminAddr(), s.Logging.AdminAddr()} {
		res, err := http.Get("http://" + admin + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		served.Write(text)
	}
	for _, name := range []string{
		"http_server_request_duration_seconds", "messaging_published_total", "messaging_consumed_total", "messaging_rpc_duration_seconds",
		"outbox_oldest_age_seconds", "outbox_published_total", "inventory_holds_oldest_age_seconds",
	} {
		if !named[name] || !strings.Contains(served.String(), "# TYPE "+name+" ") {
			t.Errorf("%s: on the page %v, and the shop serves it as something else", name, named[name])
		}
	}
}
