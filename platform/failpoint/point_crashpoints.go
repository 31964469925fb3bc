//go:build crashpoints

package failpoint

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

// name and left are SHOP_CRASH_AT: a point, or point:n for its n-th passing.
var (
	name, passing, _ = strings.Cut(os.Getenv("SHOP_CRASH_AT"), ":")
	left             = counter(passing)
)

func counter(n string) *atomic.Int64 {
	c := &atomic.Int64{}
	c.Store(1)
	if n == "" {
		return c
	}
	passings, err := strconv.ParseInt(n, 10, 64)
	if err != nil || passings < 1 {
		fmt.Fprintf(os.Stderr, "SHOP_CRASH_AT: %q is not a number of passings\n", n)
		os.Exit(1) //nolint:forbidigo // no caller to return an error to
	}
	c.Store(passings)
	return c
}

// Enabled reports whether SHOP_CRASH_AT names a point.
func Enabled() bool { return name != "" }

// Hit kills the process with SIGKILL if SHOP_CRASH_AT names the point, after a line on standard error. It may be
// called concurrently.
func Hit(point string) {
	if point != name || left.Add(-1) != 0 {
		return
	}
	fmt.Fprintf(os.Stderr, "crash point %s\n", point)
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {} // the signal is on its way
}
