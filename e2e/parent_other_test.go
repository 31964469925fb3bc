//go:build !linux

package e2e

import "syscall"

// endsWithParent has no counterpart here: tests that die leave their processes behind.
func endsWithParent() *syscall.SysProcAttr { return nil }
