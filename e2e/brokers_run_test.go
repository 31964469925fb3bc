//go:build cluster || upgrade || clocks

package e2e

import (
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"
)

// stopBrokers stops nodes of the broker cleanly, all at once.
func (s *servers) stopBrokers(t *testing.T, nodes ...int) {
	t.Helper()
	pids := make([]int, len(nodes))
	for i, node := range nodes {
		pids[i] = s.pid(t, brokerName(node))
	}
	s.release(t, syscall.SIGKILL)
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
			t.Fatalf("stopping the broker: %v", err)
		}
	}
	eventuallyWithin(t, time.Minute, func() error {
		if slices.ContainsFunc(pids, func(pid int) bool { return syscall.Kill(pid, 0) == nil }) {
			return fmt.Errorf("brokers, processes %v, have not ended", pids)
		}
		return nil
	})
}
