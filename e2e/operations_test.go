package e2e

import (
	"bytes"
	"io"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
)

var (
	// instrument matches the code that creates a metric: its kind, its name, and its unit if it has one.
	instrument = regexp.MustCompile(`(?s)(?:Int64|Float64)(?:Observable)?(Counter|Gauge|Histogram)\("([a-z_.]+)",\s*(?:metric\.WithUnit\("(\w+)"\))?`)
	// tableName is one of the database, with its schema.
	tableName = regexp.MustCompile("`[a-z]+\\.[a-z_]+`")
	// namedMetric is one on a page; RabbitMQ's plugin is not.
	namedMetric = regexp.MustCompile(`\b(?:http_server|db_client|gateway|messaging|outbox|inbox|inventory|logging|shop_audit|service_(?:ready|sample|build|certificate)|order_deci)[a-z]*_[a-z_]+|\bservice_ready\b`)
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
	text := tableName.ReplaceAllString(fence.ReplaceAllString(string(page), ""), "")
	for _, name := range namedMetric.FindAllString(text, -1) {
		named[name] = true
		if !known[name] {
			t.Errorf("docs/operations.md names %s, which no source has", name)
		}
	}
	if len(named) < 15 {
		t.Errorf("it names %v only", named)
	}

	// They are there from the start, but for histograms, which have nothing to show before the first call, and for what is there
	// only with an issuer of tokens or with certificates; the linter of Prometheus has nothing to say about any.
	s := start(t)
	served := s.metrics(t)
	for name := range named {
		histogram := strings.HasSuffix(name, "_duration_seconds")
		if !histogram && !strings.HasPrefix(name, "shop_audit_") && name != "gateway_issuer_keys_age_seconds" && name != "service_certificate_expiry_timestamp_seconds" && !strings.Contains(served, "# TYPE "+name+" ") {
			t.Errorf("%s is not served before something happens", name)
		}
	}
	s.decided(t, s.place(t, 1, 1))
	s.settled(t)
	served = s.metrics(t)
	for name := range named {
		if strings.HasSuffix(name, "_duration_seconds") && !strings.HasPrefix(name, "shop_audit_") && !strings.Contains(served, "# TYPE "+name+" histogram") {
			t.Errorf("%s is not served after an order", name)
		}
	}
}

// metrics are those of all services. It is an error if the linter of Prometheus, which is that of promtool, finds a problem.
func (s *shop) metrics(t *testing.T) string {
	t.Helper()
	var all strings.Builder
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
		problems, err := promlint.New(bytes.NewReader(text)).Lint()
		if err != nil || len(problems) > 0 {
			t.Errorf("%s: %v, %v", admin, problems, err)
		}
		all.Write(text)
	}
	return all.String()
}
