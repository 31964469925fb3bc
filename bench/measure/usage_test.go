package measure

import (
	"os/exec"
	"testing"
	"time"
)

func TestMeter_CountsDescendantsAlsoAfterTheirEnd(t *testing.T) {
	t.Parallel()
	// The grandchild works and ends; its parent waits for it and lives on until its input ends.
	cmd := exec.Command("sh", "-c", `sh -c 'i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done'; echo; read -r _`)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); _ = cmd.Wait() })
	m, err := newMeter(Servers{PostgresPID: cmd.Process.Pid}, []*process{{cmd: cmd}})
	if err != nil {
		t.Fatal(err)
	}
	defer m.close()
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	f := Figures{}
	if err := m.read(f, 1); err != nil {
		t.Fatal(err)
	}
	if f["cpu_postgres"] < float64(2*tick.Microseconds()) {
		t.Errorf("the tree has used %f µs", f["cpu_postgres"])
	}
	if f["cpu_process"] > f["cpu_postgres"]/2 {
		t.Errorf("the shell itself has used %f µs, which its child did", f["cpu_process"])
	}
	wantFigures(t, f, "memory_postgres", "memory_process")
}

func TestParseStat_TheNameMayHoldAnything(t *testing.T) {
	t.Parallel()
	line := "123 (a) b ( c) S 7 1 1 0 -1 4194560 100 0 0 0 11 22 33 44 20 0 1 0 5000 1 2"
	got, err := parseStat([]byte(line))
	if want := (stat{parent: 7, used: 330 * time.Millisecond, children: 770 * time.Millisecond}); err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := parseStat([]byte("123 (x) S 1")); err == nil {
		t.Error("a line that breaks off is read")
	}
}
