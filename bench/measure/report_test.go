package measure

import (
	"bytes"
	"strings"
	"testing"
)

func reportOf(shop, baseline []float64) *Report {
	r := &Report{
		Settings: Settings{Orders: 30000, Clients: 64, Lines: 2, Products: 8, Replicas: 1},
		Machine:  Machine{CPUs: 2, Go: "go1.26", Postgres: "15", RabbitMQ: "3.10", LoadAverage: 0.5},
		Results:  map[Pipeline]*Result{},
	}
	for _, v := range shop {
		r.add(Shop, Figures{settledRate: v, acceptP99: v / 100})
	}
	for _, v := range baseline {
		r.add(Baseline, Figures{settledRate: v})
	}
	r.finish()
	return r
}

func TestReport_HasMediansExtremesAndRatios(t *testing.T) {
	t.Parallel()
	r := reportOf([]float64{3600, 3000, 3300}, []float64{4000, 4400})
	shop, baseline := r.Results[Shop], r.Results[Baseline]
	if shop.Median[settledRate] != 3300 || shop.Min[settledRate] != 3000 || shop.Max[settledRate] != 3600 {
		t.Errorf("shop: %+v", shop)
	}
	if baseline.Median[settledRate] != 4200 {
		t.Errorf("the median of two is %v", baseline.Median[settledRate])
	}
	if got := number(r.Ratio[settledRate] * 1000); got != "786" {
		t.Errorf("the ratio is %s thousandths", got)
	}
	if _, ok := r.Ratio[acceptP99]; ok {
		t.Error("there is a ratio to a figure that the baseline has not")
	}
}

func TestReport_TableComparesWithAnEarlierReport(t *testing.T) {
	t.Parallel()
	var file bytes.Buffer
	if err := reportOf([]float64{3000}, []float64{4000}).WriteJSON(&file); err != nil {
		t.Fatal(err)
	}
	earlier, err := Read(&file)
	if err != nil {
		t.Fatal(err)
	}
	earlier.Settings.Clients = 16
	var table strings.Builder
	if err := reportOf([]float64{3300, 3500, 3200}, []float64{4000}).Write(&table, earlier); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"30000 orders of 2 lines over 8 products, 64 clients, log level info\n2 cores, go1.26, PostgreSQL 15, RabbitMQ 3.10, load average before 0.5\n",
		"earlier: 30000 orders of 2 lines over 8 products, 16 clients, log level info\n",
		"shop                  baseline   shop/baseline   earlier   shop/earlier   earlier shop/baseline\n",
		"settled, orders/s                 3300 (3200 to 3500)   4000       0.825           3000      1.100          0.750\n",
		"accept p99, ms                    33.0 (32.0 to 35.0)   -          -               30.0      1.100          -\n",
	} {
		if !strings.Contains(table.String(), want) {
			t.Errorf("no %q in\n%s", want, table.String())
		}
	}
}

func TestRead_OlderReportsCallTheBaselineFloor(t *testing.T) {
	t.Parallel()
	const file = `{"results": {"shop": {"runs": [{"settled_per_second": 3000}]}, "floor": {"runs": [{"settled_per_second": 4000}]}}, "shop_to_floor": {"settled_per_second": 0.75}}`
	r, err := Read(strings.NewReader(file))
	if err != nil || r.Ratio["settled_per_second"] != 0.75 || r.Results[Baseline].Median["settled_per_second"] != 4000 {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestRead_OtherFilesAreRefused(t *testing.T) {
	t.Parallel()
	for _, file := range []string{"", "[1]", "{}", "accepted, orders/s 3000"} {
		if _, err := Read(strings.NewReader(file)); err == nil || !strings.Contains(err.Error(), "shopbench --json") {
			t.Errorf("%q: %v", file, err)
		}
	}
}
