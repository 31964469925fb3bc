package measure

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"

	"shop.example/platform/testkit/postgrestest"
	"shop.example/topology"
)

// TestMain makes the test's program the one that serves pipelines too.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "serve" {
		if err := serve(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func serve(args []string) error {
	flags := flag.NewFlagSet("serve", flag.ContinueOnError)
	pipeline, service, profile := flags.String("pipeline", "", ""), flags.String("service", "", ""), flags.String("profile", "", "")
	held := flags.Bool("held", false, "")
	if err := flags.Parse(args); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return Serve(ctx, Pipeline(*pipeline), *service, *held, *profile, os.Stdin, os.Stdout)
}

// small is a measurement that takes a second or two.
func small(t *testing.T) Options {
	t.Helper()
	return Options{
		Orders: 300, Clients: 8, Lines: 2, Products: 8, Runs: 1, Replicas: 1,
		Program: []string{os.Args[0], "serve"}, Logs: t.Output(),
		Servers: Servers{DatabaseURL: postgrestest.AdminURL(t), AMQPURL: os.Getenv("AMQP_URL"), ManagementURL: os.Getenv("AMQP_MANAGEMENT_URL")},
	}
}

func mustRun(t *testing.T, o Options) *Report {
	t.Helper()
	report, err := Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return report
}

// wantFigures fails if a figure is missing, or is none that a run can give.
func wantFigures(t *testing.T, f Figures, names ...string) {
	t.Helper()
	for _, name := range names {
		if value, ok := f[name]; !ok || value <= 0 || value > 1e6 {
			t.Errorf("%s is %v", name, value)
		}
	}
}

var always = []string{
	acceptedRate, settledRate, loggedRate, acceptP50, acceptP99, acceptP999, confirmP50, confirmP99,
	"cpu_process", "cpu_generator", "memory_process",
}

func TestRun_MeasuresShopAndBaseline(t *testing.T) {
	t.Parallel()
	o := small(t)
	o.Baseline, o.Preload = true, 500
	var seen []string
	o.Progress = func(p Progress) { seen = append(seen, p.Doing) }
	report := mustRun(t, o)
	for _, pipeline := range []Pipeline{Shop, Baseline} {
		wantFigures(t, report.Results[pipeline].Median, always...)
	}
	wantFigures(t, report.Ratio, always...)
	if all := strings.Join(seen, ", "); !strings.Contains(all, "0 of 500 earlier orders stored") || !strings.Contains(all, "of 300 orders settled") {
		t.Errorf("progress was %s", all)
	}
}

func TestRun_OpenLoopSeesEachConfirmation(t *testing.T) {
	t.Parallel()
	for _, overGRPC := range []bool{false, true} {
		t.Run(fmt.Sprintf("gRPC %t", overGRPC), func(t *testing.T) {
			t.Parallel()
			o := small(t)
			o.Orders, o.Rate, o.GRPC, o.Replicas, o.Idle = 100, 200, overGRPC, 2, 5
			if overGRPC {
				o.Connections = 2
			}
			f := mustRun(t, o).Results[Shop].Median
			wantFigures(t, f, always...)
			if f[acceptedRate] > 210 {
				t.Errorf("%f orders/s were accepted where 200 were due", f[acceptedRate])
			}
		})
	}
}

func TestRun_EachServiceInAProcessOfItsOwn(t *testing.T) {
	t.Parallel()
	for _, backlog := range []bool{false, true} {
		o := small(t)
		o.Separate, o.Backlog = true, backlog
		f := mustRun(t, o).Results[Shop].Median
		wantFigures(t, f, always...)
		var memory float64
		for _, name := range topology.Names() {
			memory += f["memory_"+alone+name]
			if name != topology.Webhooks { // which has next to nothing to do
				wantFigures(t, f, "cpu_"+alone+name)
			}
		}
		if int(memory) != int(f["memory_process"]) {
			t.Errorf("services use %f MiB, and all together %f", memory, f["memory_process"])
		}
	}
}

func TestRun_BacklogIsAcceptedBeforeAnybodyDecides(t *testing.T) {
	t.Parallel()
	o := small(t)
	o.Backlog, o.Baseline, o.Products = true, true, 1
	report := mustRun(t, o)
	for _, pipeline := range []Pipeline{Shop, Baseline} {
		f := report.Results[pipeline].Median
		wantFigures(t, f, always...)
		// The first to be accepted waited until the last was.
		if accepting := float64(o.Orders) / f[acceptedRate] * 1000; f[confirmP99] < accepting/2 {
			t.Errorf("%s: accepting took %f ms, and the orders that waited most were decided after %f ms", pipeline, accepting, f[confirmP99])
		}
	}
}

func TestRun_WhatCannotBeMeasuredIsRefused(t *testing.T) {
	t.Parallel()
	for about, change := range map[string]func(*Options){
		"at least 1":            func(o *Options) { o.Clients = 0 },
		"at most 100 lines":     func(o *Options) { o.Lines = 101 },
		"leave out --rate":      func(o *Options) { o.Backlog, o.Rate = true, 10 },
		"leave out --replicas":  func(o *Options) { o.Backlog, o.Replicas = true, 2 },
		"or --separate":         func(o *Options) { o.Separate, o.Replicas = true, 2 },
		"must not be negative":  func(o *Options) { o.Preload = -1 },
		"AMQP_MANAGEMENT_URL":   func(o *Options) { o.Servers.ManagementURL = "" },
		"starting the shop: it": func(o *Options) { o.Program = []string{"false"} },
	} {
		o := small(t)
		change(&o)
		if _, err := Run(t.Context(), o); err == nil || !strings.Contains(err.Error(), about) {
			t.Errorf("the error is %v, want one with %q", err, about)
		}
	}
}
