//go:build !crashpoints

package failpoint

// Hit marks a point at which a test may kill the process. In this build it does nothing.
func Hit(string) {}

// Enabled reports whether a point will kill the process: never in this build.
func Enabled() bool { return false }
