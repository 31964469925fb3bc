package measure

import (
	"fmt"
	"io"
	"text/tabwriter"
)

// What is asked of a shop that has grown: any page of any list within 50 ms, and nothing slower than 1.2 times what it was.
const (
	maxCallMillis = 50.0
	maxSlowdown   = 1.2
)

// Write prints the report as tables, with a column for each size, and what is slower than it should be.
func (r *GrowthReport) Write(out io.Writer) error {
	fmt.Fprintf(out, "%s\n%d orders a run, medians of %d runs; %d orders/s due for %d s\n\n", r.Machine, r.Options.Load, r.Options.Runs, r.Options.Rate, r.Options.Seconds)
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	line := func(about string, cell func(*GrowthStep) string) {
		fmt.Fprint(w, about)
		for _, s := range r.Steps {
			fmt.Fprintf(w, "\t%s", cell(s))
		}
		fmt.Fprintln(w)
	}
	count := func(about string, of func(sizes) int) {
		line(about, func(s *GrowthStep) string { return fmt.Sprint(of(s.Sizes)) })
	}
	count("orders", func(s sizes) int { return s.Orders })
	count("rows of the log", func(s sizes) int { return s.LogRows })
	count("products", func(s sizes) int { return s.Products })
	count("open holds", func(s sizes) int { return s.OpenHolds })
	count("idempotency keys", func(s sizes) int { return s.Keys })
	fmt.Fprintln(w)
	figure := func(about string, of func(*GrowthStep) Figures, name string) {
		line(about, func(s *GrowthStep) string {
			v, ok := of(s)[name]
			if !ok {
				return "-"
			}
			return number(v)
		})
	}
	closed := func(s *GrowthStep) Figures { return s.Closed }
	open := func(s *GrowthStep) Figures { return s.Open }
	for _, row := range rows[:len(rows)-len(serviceRows())] {
		figure(row.about, closed, row.name)
	}
	for _, name := range []row{{acceptP99, "due: accept p99, ms"}, {confirmP99, "due: accept to CONFIRMED p99, ms"}} {
		figure(name.about, open, name.name)
	}
	for _, what := range []string{secondsReady, secondsMigrate, secondsAudit, secondsFill} {
		line(what+", s", func(s *GrowthStep) string { return number(s.Seconds[what]) })
	}
	fmt.Fprintln(w)
	last := r.Steps[len(r.Steps)-1]
	for _, c := range last.Calls {
		line(fmt.Sprintf("%s, %s: p50 / p99, ms", c.Call, c.Place), func(s *GrowthStep) string {
			if f, ok := s.call(c.Call, c.Place); ok {
				return number(f.P50) + " / " + number(f.P99)
			}
			return "-"
		})
	}
	fmt.Fprintln(w)
	for _, t := range last.Tables {
		line(t.Table+": rows, MiB, MiB of indexes", func(s *GrowthStep) string { return s.table(t.Table) })
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if f := r.Retention; f != nil {
		fmt.Fprintf(out, "\n%d partitions with %d rows and %d MiB were dropped %.1f s after the start of the service, while %d orders/s were due: accept p99 %s ms, accept to CONFIRMED p99 %s ms\n",
			f.Partitions, f.Rows, f.Bytes>>20, f.Seconds, r.Options.Rate, number(f.Open[acceptP99]), number(f.Open[confirmP99]))
	}
	for _, s := range r.slow() {
		fmt.Fprintf(out, "slow: %s\n", s)
	}
	return nil
}

func (s *GrowthStep) call(about, place string) (CallFigures, bool) {
	for _, c := range s.Calls {
		if c.Call == about && c.Place == place {
			return c, true
		}
	}
	return CallFigures{}, false
}

func (s *GrowthStep) table(name string) string {
	for _, t := range s.Tables {
		if t.Table == name {
			return fmt.Sprintf("%d, %d, %d", t.Rows, t.Bytes>>20, t.Indexes>>20)
		}
	}
	return "-"
}

// slow returns what takes longer than it should at the largest size.
func (r *GrowthReport) slow() (slow []string) {
	empty, full := r.Steps[0], r.Steps[len(r.Steps)-1]
	for _, c := range full.Calls {
		if c.P99 > maxCallMillis {
			slow = append(slow, fmt.Sprintf("%s, %s page: p99 %s ms, above %g", c.Call, c.Place, number(c.P99), maxCallMillis))
		}
	}
	if was, is := empty.Closed[settledRate], full.Closed[settledRate]; is*maxSlowdown < was {
		slow = append(slow, fmt.Sprintf("settled: %s orders/s, %s when it was empty", number(is), number(was)))
	}
	for _, took := range []struct {
		about   string
		was, is float64
	}{
		{"accept p99", empty.Closed[acceptP99], full.Closed[acceptP99]},
		{"orders due: accept p99", empty.Open[acceptP99], full.Open[acceptP99]},
		{"orders due: accept to CONFIRMED p99", empty.Open[confirmP99], full.Open[confirmP99]},
	} {
		if took.is > maxSlowdown*took.was {
			slow = append(slow, fmt.Sprintf("%s: %s ms, %s when it was empty", took.about, number(took.is), number(took.was)))
		}
	}
	return slow
}
