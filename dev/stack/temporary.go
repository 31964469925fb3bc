package stack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// temporaryPrefix begins the name of a temporary stack's folder; the id of its process follows.
const temporaryPrefix = "exec-"

// WithTemporary starts servers in a new folder below base, calls use with them, and removes them with their data when use
// has returned. Any number of them can run at the same time. What a killed one has left behind is removed by the next one.
func WithTemporary(ctx context.Context, base string, o Options, use func(*Stack) error) error {
	if err := removeAbandoned(base); err != nil {
		reporter(o.Progress)("%v", err) // which is no reason not to start
	}
	o.Dir = filepath.Join(base, temporaryPrefix+strconv.Itoa(os.Getpid()))
	servers, err := Start(ctx, o)
	if err != nil {
		return errors.Join(err, Down(o.Dir))
	}
	err = use(servers)
	if endErr := servers.Remove(); endErr != nil {
		return errors.Join(endErr, err)
	}
	return err
}

// removeAbandoned removes the temporary stacks of processes that were killed before they could.
func removeAbandoned(base string) (err error) {
	dirs, _ := filepath.Glob(filepath.Join(base, temporaryPrefix+"*"))
	for _, dir := range dirs {
		pid, notOurs := strconv.Atoi(strings.TrimPrefix(filepath.Base(dir), temporaryPrefix))
		if notOurs != nil || !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			continue
		}
		if downErr := Down(dir); downErr != nil {
			err = errors.Join(err, fmt.Errorf("removing what an earlier run left: %w", downErr))
		}
	}
	return err
}
