package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"shop.example/dev/command"
	"shop.example/shop/cli"
)

// down runs `shopdev down` on the folder, without a terminal.
func down(t *testing.T, dir string, args ...string) (said string, err error) {
	t.Helper()
	root := command.Root()
	var errs bytes.Buffer
	root.SetIn(strings.NewReader("y\n")) // a pipe is nobody's answer
	root.SetErr(&errs)
	root.SetArgs(append([]string{"down", "--dir", dir}, args...))
	err = root.ExecuteContext(t.Context())
	return errs.String(), err
}

func TestDown_AsksBeforeItEndsWhatRuns(t *testing.T) {
	t.Parallel()
	bin := mustBinaries(t)
	dir := filepath.Join(t.TempDir(), "servers")
	holder := exec.Command(filepath.Join(bin, "shopdev"), "exec", "--dir", dir, "--", "sh", "-c", "echo runs && exec cat") // on the servers of the tests
	holder.Stderr = t.Output()
	holder.SysProcAttr = endsWithParent()
	input, err := holder.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	t.Cleanup(func() { _ = input.Close(); _ = holder.Process.Kill() })
	if _, err := out.Read(make([]byte, 5)); err != nil {
		t.Fatal("the command did not start: ", err)
	}
	go func() { defer close(ended); _ = holder.Wait() }()

	said, err := down(t, dir)
	if cli.ExitStatus(err) != 2 || !strings.Contains(err.Error(), "runs on the servers in "+dir) || !strings.Contains(err.Error(), "--yes") {
		t.Errorf("nobody was asked: %v, %q", err, said)
	}
	select {
	case <-ended:
		t.Fatal("what runs was ended all the same: ", holder.ProcessState)
	default:
	}
	if !exists(filepath.Join(dir, "lock")) {
		t.Fatal("the folder was removed all the same")
	}

	said, err = down(t, dir, "--yes")
	if err != nil || !strings.Contains(said, " has ended\n") || !strings.Contains(said, "removed "+dir+"\n") {
		t.Errorf("with --yes: %v, %q", err, said)
	}
	select {
	case <-ended:
	case <-time.After(testTimeout):
		t.Error("what runs was not ended")
	}
	if exists(dir) {
		t.Error("the folder is still there")
	}
}

func TestDown_LeavesAFolderAloneThatIsNoStacks(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	kept := filepath.Join(dir, "thesis.txt")
	if err := os.WriteFile(kept, []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	leftAlone := func(what string) {
		t.Helper()
		for _, args := range [][]string{nil, {"--yes"}} {
			if said, err := down(t, dir, args...); err == nil || !strings.Contains(err.Error(), "is no folder of a stack") {
				t.Errorf("%s, %v: %v, %q", what, args, err, said)
			}
		}
		if !exists(kept) {
			t.Fatalf("%s: its files were removed", what)
		}
	}
	leftAlone("without a lock")
	// /var/lib/dpkg and others have a file of this name, and were removed without a question.
	for _, lock := range []string{"", "held by another program\n", "4711\n"} {
		if err := os.WriteFile(filepath.Join(dir, "lock"), []byte(lock), 0o600); err != nil {
			t.Fatal(err)
		}
		leftAlone("with the lock " + strconv.Quote(lock))
	}
}
