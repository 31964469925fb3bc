// Command dashboards writes the dashboards of the shop for Grafana, as JSON, into the folder that it is given. dashboards.go
// says what they show; `make dashboards` executes their queries. They have the form that every Grafana reads from a file; the SDK
// prefers the second one, which is newer.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"

	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/common"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/prometheus"
	"github.com/grafana/grafana-foundation-sdk/go/stat"
	"github.com/grafana/grafana-foundation-sdk/go/timeseries"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "dashboards: %v\n", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 1 {
		return errors.New("give the folder that the dashboards are written to")
	}
	if err := os.MkdirAll(args[0], 0o755); err != nil {
		return err
	}
	alerts, err := alertNames("../../deploy/prometheus/rules.yaml")
	if err != nil {
		return err
	}
	for name, builder := range map[string]cog.Builder[dashboard.Dashboard]{"shop": shop(alerts), "messaging": messaging(), "service": service()} {
		built, err := builder.Build()
		if err != nil {
			return fmt.Errorf("building dashboard %s: %w", name, err)
		}
		text, err := json.MarshalIndent(built, "", "  ")
		if err != nil {
			return fmt.Errorf("writing dashboard %s: %w", name, err)
		}
		if err := os.WriteFile(filepath.Join(args[0], name+".json"), append(text, '\n'), 0o644); err != nil {
			return err
		}
	}
	return nil
}

var alertName = regexp.MustCompile(`(?m)^ *- alert: (\w+)$`)

// alertNames are those of the rules of Prometheus.
func alertNames(file string) (names []string, err error) {
	rules, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading the alerts: %w", err)
	}
	for _, m := range alertName.FindAllSubmatch(rules, -1) {
		names = append(names, string(m[1]))
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("%s has no alert", file)
	}
	return names, nil
}

// query is a line, or several, of a panel: what Prometheus is asked, and how Grafana names what it answers.
type query struct{ expr, legend string }

// panel is one picture.
type panel struct {
	title, about string // about says what is normal, and what it means if it is not
	unit         string
	queries      []query
	// For single values: from warn on yellow, from bad on red.
	warn, bad float64
}

// newDashboard returns a dashboard of the last hour with the data source as a variable.
func newDashboard(uid, title, about string) *dashboard.DashboardBuilder {
	return dashboard.NewDashboardBuilder(title).
		Uid(uid).Description(about).Tags([]string{"shop"}).
		Time("now-1h", "now").Refresh("10s").Timezone("browser").Tooltip(dashboard.DashboardCursorSyncCrosshair).
		Link(dashboard.NewDashboardLinkBuilder("Shop").Type(dashboard.DashboardLinkTypeDashboards).Tags([]string{"shop"}).KeepTime(true)).
		WithVariable(dashboard.NewDatasourceVariableBuilder("datasource").Label("Data source").Type("prometheus"))
}

func row(d *dashboard.DashboardBuilder, title string, panels ...panel) {
	d.WithRow(dashboard.NewRowBuilder(title))
	for _, p := range panels {
		d.WithPanel(graph(p))
	}
}

func values(d *dashboard.DashboardBuilder, title string, panels ...panel) {
	d.WithRow(dashboard.NewRowBuilder(title))
	for _, p := range panels {
		d.WithPanel(single(p, uint32(24/len(panels))))
	}
}

// graph is a panel of lines over time.
func graph(p panel) *timeseries.PanelBuilder {
	g := timeseries.NewPanelBuilder().
		Title(p.title).Description(p.about).Datasource(source()).Unit(p.unit).Min(0).Span(8).Height(8).
		FillOpacity(10).ShowPoints(common.VisibilityModeNever).
		Legend(common.NewVizLegendOptionsBuilder().DisplayMode(common.LegendDisplayModeList).Placement(common.LegendPlacementBottom).ShowLegend(true)).
		Tooltip(common.NewVizTooltipOptionsBuilder().Mode(common.TooltipDisplayModeMulti))
	for i, q := range p.queries {
		g.WithTarget(target(q, i))
	}
	return g
}

// single is a panel of the newest value.
func single(p panel, width uint32) *stat.PanelBuilder {
	s := stat.NewPanelBuilder().
		Title(p.title).Description(p.about).Datasource(source()).Unit(p.unit).Span(width).Height(4).
		GraphMode(common.BigValueGraphModeArea).ColorMode(common.BigValueColorModeValue).
		ReduceOptions(common.NewReduceDataOptionsBuilder().Calcs([]string{"lastNotNull"}))
	steps := []dashboard.Threshold{{Color: "green"}}
	for _, limit := range []struct {
		value float64
		color string
	}{{p.warn, "yellow"}, {p.bad, "red"}} {
		if limit.value != 0 {
			steps = append(steps, dashboard.Threshold{Value: cog.ToPtr(limit.value), Color: limit.color})
		}
	}
	s.Thresholds(dashboard.NewThresholdsConfigBuilder().Mode(dashboard.ThresholdsModeAbsolute).Steps(steps))
	for i, q := range p.queries {
		s.WithTarget(target(q, i))
	}
	return s
}

// target asks for exemplars, too: the traces of slow calls, if they were recorded.
func target(q query, i int) *prometheus.DataqueryBuilder {
	return prometheus.NewDataqueryBuilder().Expr(q.expr).LegendFormat(q.legend).Range().Exemplar(true).RefId(string(rune('A' + i)))
}

func source() common.DataSourceRef {
	return common.DataSourceRef{Type: cog.ToPtr("prometheus"), Uid: cog.ToPtr("${datasource}")}
}
