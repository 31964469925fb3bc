package stack

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// host is the machine that the stack runs on. Tests use another one.
type host struct {
	getenv func(string) string
	// path lists the folders that programs are searched for in, in the form of $PATH, after the folders that packages use.
	path string
	// postgresFolders, rabbitMQFolders and erlangFolders are patterns of the folders in which packages install the servers'
	// programs.
	postgresFolders, rabbitMQFolders, erlangFolders []string
	// run runs a program and returns what it printed, standard error included.
	run func(ctx context.Context, name string, args ...string) ([]byte, error)
	// freePort returns a port of 127.0.0.1 on which nothing listens: preferred if that is one.
	freePort func(preferred int) (int, error)
	root     bool
	report   func(format string, args ...any)
}

func thisHost() host {
	return host{
		getenv:          os.Getenv,
		path:            os.Getenv("PATH") + ":/usr/local/sbin:/usr/sbin:/sbin",
		postgresFolders: []string{"/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/usr/local/pgsql/bin"},
		rabbitMQFolders: []string{"/usr/lib/rabbitmq/bin", "/usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin"},
		erlangFolders:   []string{"/usr/lib/erlang/bin", "/usr/lib/erlang/erts-*/bin", "/usr/lib64/erlang/erts-*/bin"},
		run: func(ctx context.Context, name string, args ...string) ([]byte, error) {
			cmd := exec.CommandContext(ctx, name, args...)
			// A package manager must not be cut off in the middle: it is asked to end.
			cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
			cmd.WaitDelay = time.Minute
			return cmd.CombinedOutput()
		},
		freePort: freePort,
		root:     os.Geteuid() == 0,
		report:   func(string, ...any) {},
	}
}

// programs returns the paths of an installed program. Only on Linux can we tell which processes are ours, so elsewhere
// nothing counts as installed, and Docker is used.
func (h host) programs(name string, patterns ...string) (paths []string) {
	if runtime.GOOS != "linux" {
		return nil
	}
	patterns = append(patterns, filepath.SplitList(h.path)...)
	for _, pattern := range patterns {
		found, _ := filepath.Glob(filepath.Join(pattern, name))
		for _, path := range found {
			if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
				paths = append(paths, path)
			}
		}
	}
	return paths
}

// kind has the constants of a server.
type kind struct {
	name string
	// variable is the environment variable with the URL of a server to use instead.
	variable string
	folder   string // in the stack's
	image    string // for Docker
	pkg      string // Debian's
	// stopTimeout is how long a clean shutdown may take.
	stopTimeout time.Duration
}

// server is one of the two servers of a stack. Before start, one of given, find and use decides what it runs on.
type server interface {
	kind() kind
	// given makes it the server that the environment names.
	given(url string)
	// find searches for the installed program and reports whether there is one that fits the data.
	find(ctx context.Context) (bool, error)
	use(*docker)
	// start starts the server and returns when it answers, with a few words about what was started.
	start(ctx context.Context) (string, error)
}

// choose decides for each server what it runs on, and installs packages if nothing else is possible.
func choose(ctx context.Context, h host, dir string, servers ...server) error {
	var missing []server
	ours := 0
	for _, srv := range servers {
		if url := h.getenv(srv.kind().variable); url != "" {
			srv.given(url)
			continue
		}
		ours++
		if d := newDocker(h, dir, srv.kind()); d.recorded() { // its data is in there, whatever has been installed since
			srv.use(d)
			continue
		}
		found, err := srv.find(ctx)
		if err != nil {
			return err
		}
		if !found {
			missing = append(missing, srv)
		}
	}
	if ours > 0 {
		if err := checkSpace(dir, spaceNeeded); err != nil {
			return err
		}
	}
	if len(missing) == 0 {
		return nil
	}
	missing, reason := fromDocker(ctx, h, dir, missing)
	if len(missing) == 0 {
		return nil
	}
	if err := context.Cause(ctx); err != nil { // pulling may have failed for that
		return err
	}
	return fromPackages(ctx, h, dir, missing, reason)
}

// spaceNeeded is the disk space for both servers' new files, in bytes; with less than 50 MB RabbitMQ accepts no messages.
const spaceNeeded = 256 << 20

func checkSpace(dir string, need uint64) error {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil {
		return fmt.Errorf("asking for the free space of %s: %w", dir, err)
	}
	if free := fs.Bavail * uint64(fs.Bsize); free < need {
		return fmt.Errorf("only %d MB are free on the disk that holds %s, and the servers need %d MB: free some", free>>20, dir, need>>20)
	}
	return nil
}

// explain replaces the error of a step by its cause, if that is known.
func explain(err error, dir string) error {
	if errors.Is(err, syscall.ENOSPC) || strings.Contains(err.Error(), "No space left on device") {
		return fmt.Errorf("the disk that holds %s is full: free some space: %w", dir, err)
	}
	return err
}

// freePort returns the preferred port if it is free, otherwise one below the range that systems assign to outgoing
// connections, so that a server that starts again finds it free.
func freePort(preferred int) (int, error) {
	const lowest, highest = 12_000, 20_000
	var l net.Listener
	var err error
	for try := range 100 {
		port := preferred
		if try > 0 || port == 0 {
			port = lowest + rand.IntN(highest-lowest) //nolint:gosec // no secret
		}
		if l, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			return port, l.Close()
		}
	}
	return 0, fmt.Errorf("finding a free port: %w", err)
}

// reachable reports whether something accepts connections at address.
func reachable(ctx context.Context, address string) error {
	d := net.Dialer{Timeout: 3 * time.Second}
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	return conn.Close()
}
