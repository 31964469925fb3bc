package command

import (
	"bytes"
	"database/sql"
	"encoding/json"
	"errors"
	"io"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"shop.example/db/dbtest"
	"shop.example/platform/telemetry"
	"shop.example/shop/audit"
	"shop.example/shop/cli"
)

func runAudit(args ...string) (out string, err error) {
	var text bytes.Buffer
	root := Root()
	root.SetArgs(append([]string{"audit"}, args...))
	root.SetOut(&text)
	root.SetErr(io.Discard)
	err = root.Execute()
	return text.String(), err
}

// Not parallel: it sets the environment.
func TestAudit_ExitCodeAndOutputSayWhatIsWrong(t *testing.T) {
	url := dbtest.New(t)
	t.Setenv("DATABASE_URL", url)
	out, err := runAudit("--wait", "1s")
	if err != nil || !strings.Contains(out, "on_hand          ok   a product's pieces on hand") || !strings.Contains(out, "0 violations, 0 orders in ") {
		t.Errorf("a new shop: %v\n%s", err, out)
	}

	pool, err := sql.Open("postgres", url)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	if _, err := pool.ExecContext(t.Context(), `UPDATE inventory.product SET on_hand = 7 WHERE id = 1`); err != nil {
		t.Fatal(err)
	}
	// The URLs of one schema each go before the common one.
	for _, variable := range []string{"ORDERS_DATABASE_URL", "INVENTORY_DATABASE_URL", "LOGGING_DATABASE_URL", "WEBHOOKS_DATABASE_URL"} {
		t.Setenv(variable, url)
	}
	t.Setenv("DATABASE_URL", "postgres://nobody@127.0.0.1:1/nowhere")
	out, err = runAudit()
	if code := cli.ExitCode(0); !errors.As(err, &code) || code != 1 {
		t.Errorf("the error is %v, want exit status 1", err)
	}
	for _, want := range []string{"on_hand          1 violation   ", "\non_hand:\n  product 1 (Laptop): 7 on hand, its movements sum up to 50\n", "\n1 violation, 0 orders in "} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	out, err = runAudit("--json")
	var report audit.Report
	if json.Unmarshal([]byte(out), &report) != nil || report.Count() != 1 || len(report.Violations) != 1 || report.Violations[0].Product != "1 (Laptop)" || err == nil {
		t.Errorf("as JSON: %v\n%s", err, out)
	}

	t.Setenv("LOGGING_DATABASE_URL", "")
	t.Setenv("DATABASE_URL", "")
	t.Chdir(t.TempDir())
	if _, err := runAudit(); err == nil || !strings.Contains(err.Error(), "LOGGING_DATABASE_URL and DATABASE_URL are not set") || !strings.Contains(err.Error(), "make up") {
		t.Errorf("without a database: %v", err)
	}
}

// With --since -1h the orders that nobody had decided were no violation: it left out all.
func TestAudit_ATimeThatIsLessThanNoneIsRefused(t *testing.T) {
	t.Parallel()
	for _, flag := range []string{"--since", "--late", "--wait", "--every"} {
		if out, err := runAudit(flag, "-1h"); cli.ExitStatus(err) != 2 || !strings.Contains(err.Error(), flag+" -1h") || out != "" {
			t.Errorf("%s: %v\n%s", flag, err, out)
		}
	}
}

func TestAuditMetrics_AreTheLastReport(t *testing.T) {
	t.Parallel()
	tel, err := telemetry.New(t.Context(), telemetry.Config{Service: "audit", Output: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	m, err := newAuditMetrics(tel.Meter)
	if err != nil {
		t.Fatal(err)
	}
	for _, violations := range []int{5, 3} {
		m.record(t.Context(), &audit.Report{At: time.Unix(1_700_000_000, 0), Took: 1500 * time.Millisecond, Checks: []audit.Result{
			{Check: audit.Holds, Violations: violations, Overdue: 1, InFlight: 2}, {Check: audit.Lines},
		}})
	}
	answer := httptest.NewRecorder()
	tel.MetricsHandler().ServeHTTP(answer, httptest.NewRequestWithContext(t.Context(), "GET", "/metrics", nil))
	for _, want := range []string{
		`shop_audit_violations{check="holds",kind="wrong"} 2`, `shop_audit_violations{check="holds",kind="late"} 1`, `shop_audit_violations{check="lines",kind="wrong"} 0`, `shop_audit_in_flight{check="holds"} 2`,
		`shop_audit_last_run_timestamp_seconds 1.7e+09`, `shop_audit_duration_seconds 1.5`,
	} {
		if !strings.Contains(answer.Body.String(), "\n"+want+"\n") {
			t.Errorf("no %s in the metrics", want)
		}
	}
	for line := range strings.Lines(answer.Body.String()) {
		if strings.HasPrefix(line, "shop_audit") {
			t.Log(strings.TrimSpace(line))
		}
	}
}
