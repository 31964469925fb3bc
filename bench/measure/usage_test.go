package measure

import (
	"os/exec"
	"testing"
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
