package e2e

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
)

// endsWithParent has the kernel kill a process when the tests die without having ended it, by their timeout for example.
func endsWithParent() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }

// peakMemory is the most that the process has had in memory at a time, in bytes.
func (r *replica) peakMemory(t *testing.T) (bytes int64) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(status), "VmHWM:")
	if _, err := fmt.Sscanf(after, "%d kB", &bytes); err != nil {
		t.Fatalf("the peak of the memory in %s: %v", status, err)
	}
	return bytes << 10
}
