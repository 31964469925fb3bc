package measure

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/prometheus/procfs"

	"shop.example/platform/messaging/provision"
	"shop.example/topology"
)

// Figures are the results of one run, by name; the name tells the unit (orders per second, milliseconds, microseconds of CPU
// an order, or mebibytes). What could not be measured is missing.
type Figures map[string]float64

const (
	acceptedRate = "accepted_per_second"
	settledRate  = "settled_per_second"
	loggedRate   = "logged_per_second"
	acceptP50    = "accept_p50_ms"
	acceptP99    = "accept_p99_ms"
	acceptP999   = "accept_p99.9_ms"
	confirmP50   = "confirmed_p50_ms"
	confirmP99   = "confirmed_p99_ms"
)

// row is a figure as it is printed.
type row struct{ name, about string }

// rows are the figures in the order in which they are printed.
var rows = append([]row{
	{acceptedRate, "accepted, orders/s"},
	{settledRate, "settled, orders/s"},
	{loggedRate, "logged, orders/s"},
	{acceptP50, "accept p50, ms"},
	{acceptP99, "accept p99, ms"},
	{acceptP999, "accept p99.9, ms"},
	{confirmP50, "accept to CONFIRMED p50, ms"},
	{confirmP99, "accept to CONFIRMED p99, ms"},
	{"cpu_process", "CPU of the process, µs/order"},
	{"cpu_rabbitmq", "CPU of RabbitMQ, µs/order"},
	{"cpu_postgres", "CPU of PostgreSQL, µs/order"},
	{"cpu_generator", "CPU of the load, µs/order"},
	{"memory_process", "peak memory of the process, MiB"},
	{"memory_rabbitmq", "peak memory of RabbitMQ, MiB"},
	{"memory_postgres", "peak memory of PostgreSQL, MiB"},
	{othersCPU, "CPU of everything else, cores"},
}, serviceRows()...)

// serviceRows are the figures of services that have a process of their own.
func serviceRows() (rows []row) {
	for _, name := range topology.Names() {
		rows = append(rows, row{"cpu_" + alone + name, "CPU of " + name + ", µs/order"}, row{"memory_" + alone + name, "peak memory of " + name + ", MiB"})
	}
	return rows
}

func (f Figures) addLoad(l *loadResult) {
	f[acceptedRate] = float64(l.latencies.TotalCount()) / l.end.Sub(l.begin).Seconds()
	f.addLatencies(l.latencies)
}

func (f Figures) addLatencies(h *hdrhistogram.Histogram) {
	f[acceptP50] = milliseconds(h.ValueAtQuantile(50))
	f[acceptP99] = milliseconds(h.ValueAtQuantile(99))
	f[acceptP999] = milliseconds(h.ValueAtQuantile(99.9))
}

func milliseconds(microseconds int64) float64 { return float64(microseconds) / 1000 }

// Report is the outcome of all runs. Its JSON is a file that later runs can be compared with.
type Report struct {
	At       time.Time `json:"at"`
	Settings Settings  `json:"settings"`
	Machine  Machine   `json:"machine"`
	// Results are those of the shop, and of the baseline if that was measured, too.
	Results map[Pipeline]*Result `json:"results"`
	// Ratio is the shop's median of each figure divided by the baseline's.
	Ratio Figures `json:"shop_to_baseline,omitempty"`
}

// Settings are the options that figures depend on.
type Settings struct {
	Orders   int  `json:"orders"`
	Clients  int  `json:"clients"`
	Rate     int  `json:"rate,omitempty"`
	Lines    int  `json:"lines"`
	Products int  `json:"products"`
	GRPC     bool `json:"grpc,omitempty"`
	// Connections is how many the clients share over gRPC, 0 for one each.
	Connections int  `json:"connections,omitempty"`
	Idle        int  `json:"idle,omitempty"`
	Preload     int  `json:"preload,omitempty"`
	Backlog     bool `json:"backlog,omitempty"`
	Replicas    int  `json:"replicas"`
	Separate    bool `json:"separate,omitempty"`
	// Contention is for runs in which locks and fairness were measured.
	Contention bool `json:"contention,omitempty"`
	// LogLevel is the shop's. Reports from before it was measured at the default level have none; they are at warn.
	LogLevel slog.Level `json:"log_level"`
}

// Machine is the machine that the runs were made on.
type Machine struct {
	CPUs     int    `json:"cpus"`
	Go       string `json:"go"`
	Postgres string `json:"postgres,omitempty"`
	RabbitMQ string `json:"rabbitmq,omitempty"`
	// LoadAverage is how many processes wanted a core in the minute before the runs.
	LoadAverage float64 `json:"load_average,omitempty"`
}

// Result is the outcome of all runs of one pipeline.
type Result struct {
	Runs   []Figures `json:"runs"`
	Median Figures   `json:"median"`
	Min    Figures   `json:"min"`
	Max    Figures   `json:"max"`
}

func newReport(ctx context.Context, o *Options) *Report {
	r := &Report{
		At: time.Now().UTC().Truncate(time.Second),
		Settings: Settings{
			Orders: o.Orders, Clients: o.Clients, Rate: o.Rate, Lines: o.Lines, Products: o.Products, GRPC: o.GRPC, Connections: o.Connections, Idle: o.Idle,
			Preload: o.Preload, Backlog: o.Backlog, Replicas: o.Replicas, Separate: o.Separate, Contention: o.Contention, LogLevel: o.LogLevel,
		},
		Machine: Machine{CPUs: runtime.NumCPU(), Go: runtime.Version()},
		Results: map[Pipeline]*Result{},
	}
	if db, err := openDatabase(o.Servers.DatabaseURL); err == nil {
		_ = db.QueryRowContext(ctx, "SHOW server_version").Scan(&r.Machine.Postgres) // the runs meet the same error
		_ = db.Close()
	}
	if answer, err := provision.Call(ctx, http.MethodGet, o.Servers.ManagementURL+"/api/overview", nil); err == nil {
		var overview struct {
			Version string `json:"rabbitmq_version"`
		}
		_ = json.Unmarshal(answer, &overview)
		r.Machine.RabbitMQ = overview.Version
	}
	if fs, err := procfs.NewDefaultFS(); err == nil {
		if load, err := fs.LoadAvg(); err == nil {
			r.Machine.LoadAverage = load.Load1
		}
	}
	return r
}

// String is the machine and its servers, on one line.
func (m Machine) String() string {
	return fmt.Sprintf("%d cores, %s, PostgreSQL %s, RabbitMQ %s, load average before %.1f",
		m.CPUs, m.Go, cmp.Or(m.Postgres, "?"), cmp.Or(m.RabbitMQ, "?"), m.LoadAverage)
}

func (r *Report) add(p Pipeline, f Figures) {
	if r.Results[p] == nil {
		r.Results[p] = &Result{}
	}
	r.Results[p].Runs = append(r.Results[p].Runs, f)
}

// finish computes what follows from the runs.
func (r *Report) finish() {
	for _, result := range r.Results {
		result.summarize()
	}
	if b := r.Results[Baseline]; b != nil {
		r.Ratio = r.Results[Shop].Median.to(b.Median)
	}
}

func (r *Result) summarize() {
	r.Median, r.Min, r.Max = Figures{}, Figures{}, Figures{}
	values := map[string][]float64{}
	for _, run := range r.Runs {
		for name, value := range run {
			values[name] = append(values[name], value)
		}
	}
	for name, v := range values {
		slices.Sort(v)
		r.Min[name], r.Max[name] = v[0], v[len(v)-1]
		r.Median[name] = (v[(len(v)-1)/2] + v[len(v)/2]) / 2
	}
}

// to is the ratio of each figure to another's.
func (f Figures) to(other Figures) Figures {
	ratio := Figures{}
	for name, value := range f {
		if other[name] != 0 {
			ratio[name] = value / other[name]
		}
	}
	return ratio
}

// Read reads a report that was written as JSON.
func Read(in io.Reader) (*Report, error) {
	r := &Report{Settings: Settings{LogLevel: slog.LevelWarn}}
	if err := json.NewDecoder(in).Decode(r); err != nil {
		return nil, fmt.Errorf("reading the report: %w (it is what shopbench --json wrote)", err)
	}
	if r.Results[Shop] == nil {
		return nil, errors.New("reading the report: it has no figures of the shop (it is what shopbench --json wrote)")
	}
	if floor := r.Results["floor"]; floor != nil { // the baseline in older reports
		r.Results[Baseline] = floor
		r.finish()
	}
	return r, nil
}

// WriteJSON writes the report in the form that Read reads.
func (r *Report) WriteJSON(out io.Writer) error {
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

// Write prints the report as a table: medians, with minimum and maximum if there were several runs. earlier is a
// report to compare with, or nil.
func (r *Report) Write(out io.Writer, earlier *Report) error {
	fmt.Fprintf(out, "%s\n%s\n", r.Settings, r.Machine)
	if earlier != nil && earlier.Settings != r.Settings {
		fmt.Fprintf(out, "earlier: %s\n", earlier.Settings)
	}
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	columns := r.columns(earlier)
	for _, c := range columns {
		fmt.Fprintf(w, "\t%s", c.title)
	}
	fmt.Fprintln(w)
	printed := rows
	if r.Settings.Contention {
		printed = append(slices.Clone(rows), contentionRows...)
	}
	for _, row := range printed {
		if strings.Contains(row.name, alone) && !r.Settings.Separate {
			continue
		}
		fmt.Fprint(w, row.about)
		for _, c := range columns {
			fmt.Fprintf(w, "\t%s", c.cell(row.name))
		}
		fmt.Fprintln(w)
	}
	return w.Flush()
}

// column is one column of the table.
type column struct {
	title string
	cell  func(name string) string
}

func (r *Report) columns(earlier *Report) []column {
	columns := []column{{"shop", r.Results[Shop].cell}}
	if b := r.Results[Baseline]; b != nil {
		columns = append(columns, column{"baseline", b.cell}, column{"shop/baseline", r.Ratio.cell})
	}
	if earlier != nil {
		was := earlier.Results[Shop]
		columns = append(columns, column{"earlier", was.cell}, column{"shop/earlier", r.Results[Shop].Median.to(was.Median).cell})
		if r.Ratio != nil && earlier.Ratio != nil {
			columns = append(columns, column{"earlier shop/baseline", earlier.Ratio.cell})
		}
	}
	return columns
}

func (r *Result) cell(name string) string {
	median, ok := r.Median[name]
	switch {
	case !ok:
		return "-"
	case len(r.Runs) == 1:
		return number(median)
	}
	return fmt.Sprintf("%s (%s to %s)", number(median), number(r.Min[name]), number(r.Max[name]))
}

// cell is for ratios.
func (f Figures) cell(name string) string {
	if ratio, ok := f[name]; ok {
		return fmt.Sprintf("%.3f", ratio)
	}
	return "-"
}

// number formats v with fewer decimals the larger it is.
func number(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}

func (s Settings) String() string {
	how := fmt.Sprintf("%d clients", s.Clients)
	if s.Rate > 0 {
		how = fmt.Sprintf("%d orders/s due, %s", s.Rate, how)
	}
	if s.GRPC {
		how += " over gRPC"
		if s.Connections > 0 {
			how += fmt.Sprintf(" and %d connections", s.Connections)
		}
	}
	if s.Idle > 0 {
		how += fmt.Sprintf(" and %d idle connections", s.Idle)
	}
	text := fmt.Sprintf("%d orders of %d lines over %d products, %s", s.Orders, s.Lines, s.Products, how)
	if s.Preload > 0 {
		text += fmt.Sprintf(", %d orders stored before", s.Preload)
	}
	if s.Backlog {
		text += ", accepted while nobody decided them"
	}
	if s.Replicas > 1 {
		text += fmt.Sprintf(", %d processes", s.Replicas)
	}
	if s.Separate {
		text += ", a process for each service"
	}
	return text + ", log level " + strings.ToLower(s.LogLevel.String())
}
