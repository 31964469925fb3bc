// Package gate compares benchmarks of two trees of the project and fails if the newer one costs more.
//
// The benchmarks of both run in turns, so that whatever else the machine does meets both, and what counts is the median of
// the rounds' ratios. Allocations hardly vary. Times do: those that look worse are measured again before they count.
package gate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Options say what is compared.
type Options struct {
	// Base and This are the roots of the trees.
	Base, This string
	// Benchmarks are regular expressions of benchmarks by the folder of their package. They may need no server.
	Benchmarks map[string]string
	Rounds     int
	// Time is how long a benchmark runs in one round.
	Time time.Duration
	// Limit is the ratio above which a benchmark fails, 1.1 for 10 %.
	Limit float64
	Out   io.Writer
}

// HotParts are the parts of an order's way that can be measured without servers.
func HotParts() map[string]string {
	return map[string]string{
		"gateway/server":            "^BenchmarkPlaceOrder_REST$",
		"gateway/ingress":           "^BenchmarkIngress$",
		"platform/contract":         "^BenchmarkValidate$",
		"platform/messaging":        "^BenchmarkNewOutgoing$",
		"services/logging/eventlog": "^BenchmarkReadDelivery$",
		"services/inventory/stock":  "^BenchmarkDecide$",
	}
}

// units are the figures of a benchmark that count, with the profile that explains each.
var units = []struct{ name, profile, index string }{
	{"allocs/op", "mem", "alloc_objects"},
	{"ns/op", "cpu", "cpu"},
}

// benchmark is one benchmark of one package, and its figures of each round, by unit: base's, then this tree's.
type benchmark struct {
	folder, name string
	rounds       map[string][][2]float64
}

// Run prints the ratio of each benchmark, and for what got worse the difference of the profiles. Its error then names the
// benchmarks. One that Base does not have yet is left out.
func Run(ctx context.Context, o Options) error {
	dir, err := os.MkdirTemp("", "gate")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }() // of the temporary folder, which the system empties too
	var worse []error
	for _, folder := range sorted(o.Benchmarks) {
		c := comparison{Options: o, folder: folder, programs: [2]string{filepath.Join(dir, "base.test"), filepath.Join(dir, "this.test")}}
		if err := c.build(ctx); err != nil {
			return err
		}
		benchmarks, err := c.measure(ctx, o.Benchmarks[folder], o.Rounds)
		if err != nil {
			return err
		}
		if len(benchmarks) == 0 {
			fmt.Fprintf(o.Out, "%-26s %-32s is new\n", folder, o.Benchmarks[folder])
		}
		for _, name := range sorted(benchmarks) {
			if err := c.judge(ctx, benchmarks[name]); err != nil {
				worse = append(worse, err)
			}
		}
	}
	return errors.Join(worse...)
}

// comparison is that of one package.
type comparison struct {
	Options
	folder   string
	programs [2]string // the tests of base and this
}

func (c *comparison) build(ctx context.Context) error {
	for i, root := range []string{c.Base, c.This} {
		cmd := exec.CommandContext(ctx, "go", "test", "-c", "-o", c.programs[i], "./"+c.folder)
		cmd.Dir = root
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("building the benchmarks of %s in %s: %w\n%s", c.folder, root, err, out)
		}
	}
	return nil
}

// measure runs the benchmarks that match, rounds times in each tree.
func (c *comparison) measure(ctx context.Context, match string, rounds int) (map[string]*benchmark, error) {
	found := map[string]*benchmark{}
	for round := range rounds {
		var figures [2]map[string]map[string]float64
		for n := range 2 {
			tree := (n + round) % 2 // the one that begins changes, too
			out, err := c.run(ctx, tree, "-test.bench="+match, "-test.benchmem")
			if err != nil {
				return nil, err
			}
			figures[tree] = parse(out)
		}
		if len(figures[1]) == 0 {
			return nil, fmt.Errorf("%s: there is no benchmark %s", c.folder, match)
		}
		for name, this := range figures[1] {
			base, ok := figures[0][name]
			if !ok {
				continue
			}
			if found[name] == nil {
				found[name] = &benchmark{folder: c.folder, name: name, rounds: map[string][][2]float64{}}
			}
			for _, unit := range units {
				found[name].rounds[unit.name] = append(found[name].rounds[unit.name], [2]float64{base[unit.name], this[unit.name]})
			}
		}
	}
	return found, nil
}

func (c *comparison) run(ctx context.Context, tree int, args ...string) ([]byte, error) {
	args = append([]string{"-test.run=^$", "-test.benchtime=" + c.Time.String()}, args...)
	cmd := exec.CommandContext(ctx, c.programs[tree], args...)
	cmd.Dir = filepath.Join([]string{c.Base, c.This}[tree], c.folder)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("running the benchmarks of %s: %w\n%s", cmd.Dir, err, out)
	}
	return out, nil
}

// judge prints the ratios of a benchmark and returns an error if one is above the limit.
func (c *comparison) judge(ctx context.Context, b *benchmark) error {
	var worse []error
	for _, unit := range units {
		r := b.ratio(unit.name)
		if r > c.Limit && unit.name == "ns/op" {
			again, err := c.measure(ctx, exactly(b.name), 2*c.Rounds)
			if err != nil {
				return err
			}
			if a := again[b.name]; a != nil {
				r = a.ratio(unit.name)
			}
		}
		fmt.Fprintf(c.Out, "%-26s %-32s %-10s %.3f\n", b.folder, b.name, unit.name, r)
		if r <= c.Limit {
			continue
		}
		worse = append(worse, fmt.Errorf("%s in %s: %s is %.2f times what it was, and at most %.2f is allowed", b.name, b.folder, unit.name, r, c.Limit))
		if err := c.explain(ctx, b, unit.profile, unit.index); err != nil {
			worse = append(worse, err)
		}
	}
	return errors.Join(worse...)
}

// explain prints where the difference of a benchmark comes from.
func (c *comparison) explain(ctx context.Context, b *benchmark, profile, index string) error {
	var files [2]string
	for tree := range 2 {
		files[tree] = c.programs[tree] + "." + profile
		args := []string{"-test.bench=" + exactly(b.name), "-test." + profile + "profile=" + files[tree]}
		if profile == "mem" {
			args = append(args, "-test.memprofilerate=1") // each allocation
		}
		if _, err := c.run(ctx, tree, args...); err != nil {
			return err
		}
	}
	// Normalized, because the faster one has done more operations in the same time.
	cmd := exec.CommandContext(ctx, "go", "tool", "pprof", "-top", "-nodecount=15", "-normalize", "-sample_index="+index,
		"-diff_base="+files[0], c.programs[1], files[1])
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("comparing profiles: %w\n%s", err, out)
	}
	_, err = c.Out.Write(out)
	return err
}

// ratio is the median of the rounds' ratios. What was nothing and is something is infinitely more, and so above any limit.
func (b *benchmark) ratio(unit string) float64 {
	var ratios []float64
	for _, r := range b.rounds[unit] {
		if r[0] == r[1] {
			ratios = append(ratios, 1) // of nothing, too
			continue
		}
		ratios = append(ratios, r[1]/r[0])
	}
	slices.Sort(ratios)
	return (ratios[(len(ratios)-1)/2] + ratios[len(ratios)/2]) / 2
}

// exactly is the regular expression of a benchmark, or of a part of one, by its name.
func exactly(name string) string {
	parts := strings.Split(name, "/")
	for i, p := range parts {
		parts[i] = "^" + regexp.QuoteMeta(p) + "$"
	}
	return strings.Join(parts, "/")
}

var (
	line       = regexp.MustCompile(`(?m)^(Benchmark\S+)\s+\d+\s+(.*)$`)
	processors = regexp.MustCompile(`-\d+$`)
)

// parse returns the figures of each benchmark by unit.
func parse(out []byte) map[string]map[string]float64 {
	all := map[string]map[string]float64{}
	for _, m := range line.FindAllSubmatch(out, -1) {
		figures := map[string]float64{}
		fields := bytes.Fields(m[2])
		for i := 0; i+1 < len(fields); i += 2 {
			if v, err := strconv.ParseFloat(string(fields[i]), 64); err == nil {
				figures[string(fields[i+1])] = v
			}
		}
		all[processors.ReplaceAllString(string(m[1]), "")] = figures
	}
	return all
}

func sorted[V any](m map[string]V) []string {
	var keys []string
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}
