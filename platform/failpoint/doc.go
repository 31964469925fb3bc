// Package failpoint kills the process at a named point of its work, so that a test can show what holds there: that
// nothing is lost, and nothing is done twice. The code calls Hit where a crash would be worst. In an ordinary build that is
// an empty function, which the compiler removes; a build with the tag crashpoints kills itself at the point that the
// environment variable SHOP_CRASH_AT names (name:n for its n-th passing).
package failpoint
