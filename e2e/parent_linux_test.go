package e2e

import "syscall"

// endsWithParent has the kernel kill a process when the tests die without having ended it, by their timeout for example.
func endsWithParent() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
