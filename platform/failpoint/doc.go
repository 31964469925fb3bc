// Package failpoint lets a test kill the process at a named point of the code, to show that nothing is lost and nothing is
// done twice. The code calls Hit where a crash would do the most harm. In an ordinary build Hit is an empty function, which
// the compiler removes; a build with the tag crashpoints kills itself at the point that the environment variable
// SHOP_CRASH_AT names ("name:n": when it passes the point for the n-th time).
package failpoint
