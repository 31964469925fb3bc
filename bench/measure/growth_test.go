package measure

import (
	"bytes"
	"os"
	"strings"
	"testing"
)

// What is stored by SQL passes the audit, or Growth fails.
func TestGrowth_MeasuresAShopOfEachSize(t *testing.T) {
	t.Parallel()
	small := small(t)
	report, err := Growth(t.Context(), GrowthOptions{
		Orders: 2000, Load: 300, Runs: 1, Rate: 100, Seconds: 2, Calls: 2, Program: []string{os.Args[0], "serve"}, Servers: small.Servers, Logs: t.Output(),
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(report.Steps) != 3 {
		t.Fatalf("%d steps, want 3", len(report.Steps))
	}
	for _, s := range report.Steps {
		wantFigures(t, s.Closed, settledRate, acceptP99, "memory_process")
		wantFigures(t, s.Open, acceptP99, confirmP99)
		for _, what := range []string{secondsReady, secondsMigrate, secondsAudit} {
			if s.Seconds[what] <= 0 {
				t.Errorf("%s took %v s", what, s.Seconds[what])
			}
		}
	}
	full := report.Steps[2]
	for _, place := range []string{"first", "middle", "last"} {
		if c, ok := full.call("events", place); !ok || c.P99 <= 0 {
			t.Errorf("the %s page of the events: %+v", place, c)
		}
	}
	if f := report.Retention; f.Partitions < 4 || f.Partitions > 5 {
		t.Errorf("%d partitions of a month were dropped, want those of its weeks", f.Partitions)
	}
	var out bytes.Buffer
	if err := report.Write(&out); err != nil || !strings.Contains(out.String(), "rows of the log") {
		t.Errorf("%v, %s", err, out.String())
	}
}
