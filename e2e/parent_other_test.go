//go:build !linux

package e2e

import (
	"syscall"
	"testing"
)

// endsWithParent has no counterpart here: tests that die leave their processes behind.
func endsWithParent() *syscall.SysProcAttr { return nil }

// peakMemory is not known here.
func (r *replica) peakMemory(*testing.T) (bytes int64) { return 0 }
