package command

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/creack/pty"

	"shop.example/bench/measure"
)

func TestBench_WhatCannotBeComparedIsSaidBeforeServersStart(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "report.json")
	if err := os.WriteFile(path, []byte("settled 3000"), 0o600); err != nil {
		t.Fatal(err)
	}
	for want, args := range map[string][]string{
		"no such file":       {"--compare", path + ".old"},
		"shopbench --json":   {"--compare", path},
		"[backlog orders]":   {"--backlog", "10", "--orders", "10"},
		"[compare json]":     {"--compare", path, "--json"},
		"must be at least 1": {"--clients", "0"},
	} {
		root := Root()
		root.SetArgs(args)
		root.SetOut(io.Discard)
		root.SetErr(io.Discard)
		if err := root.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: the error is %v, want one with %q", args, err, want)
		}
	}
}

func TestBench_FloorIsTheFormerNameOfBaseline(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"--baseline", "--floor"} {
		root := Root()
		if err := root.ParseFlags([]string{name}); err != nil {
			t.Fatal(err)
		}
		if on, err := root.Flags().GetBool("baseline"); err != nil || !on {
			t.Errorf("%s: %v, %v", name, on, err)
		}
	}
}

func TestProgressBar_IsOneLineOfATerminal(t *testing.T) {
	t.Parallel()
	p := measure.Progress{Pipeline: measure.Baseline, Run: 2, Runs: 5, Doing: "500 of 1000 orders settled", Done: 500, Of: 1000}
	const want = "baseline 2/5  [===============               ]  500 of 1000 orders settled"
	if got := progressLine(p); got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if show, _ := progressBar(&bytes.Buffer{}); show != nil {
		t.Error("a file gets a progress bar")
	}
	person, program, err := pty.Open()
	if err != nil {
		t.Fatal("opening a terminal: ", err)
	}
	defer person.Close()
	defer program.Close()
	if err := pty.Setsize(program, &pty.Winsize{Cols: 40, Rows: 24}); err != nil {
		t.Fatal(err)
	}
	show, end := progressBar(program)
	show(p)
	end()
	seen := make([]byte, 200)
	n, err := person.Read(seen)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(string(seen[:n]), "\r\x1b[Kbaseline 2/5  [") || strings.Contains(string(seen[:n]), "settled") {
		t.Errorf("40 columns show %q", seen[:n])
	}
}
