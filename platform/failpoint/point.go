//go:build !crashpoints

package failpoint

// Hit is where a test may kill the process. It does nothing in this build.
func Hit(string) {}

// Enabled says whether a point will kill the process: never in this build.
func Enabled() bool { return false }
