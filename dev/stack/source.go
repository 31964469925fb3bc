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

// host is the machine as the stack sees it. Tests put another one in its place.
type host struct {
	getenv func(string) string
	// path is where programs are looked up, in the form of $PATH, after the folders that packages use.
	path string
	// postgresFolders, rabbitMQFolders and erlangFolders are patterns of where packages put the servers' programs.
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

// programs returns where the program is installed. Only on Linux can we tell which processes are ours, so elsewhere
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

// kind is what is fixed about a server.
type kind struct {
	name string
	// variable names the environment variable that makes a server of one's own unnecessary.
	variable string
	folder   string // in the stack's
	image    string // for Docker
	pkg      string // Debian's
	// patience is how long a clean shutdown may take.
	patience time.Duration
}

// server is one of the two servers of a stack. Where it comes from is settled before start, by one of given, find and
// use.
type server interface {
	kind() kind
	// given takes the server that the environment names.
	given(url string)
	// find looks for the installed program and says whether there is one that fits the data.
	find(ctx context.Context) (bool, error)
	use(*docker)
	// start returns once the server answers, with a few words on what was started.
	start(ctx context.Context) (string, error)
}

// choose settles for each server where it comes from, and installs packages if nothing else is left.
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
	return fromPackages(ctx, h, dir, missing, reason)
}

// spaceNeeded covers both servers' files when new; under 50 MB RabbitMQ takes no messages.
const spaceNeeded = 256 << 20

func checkSpace(dir string, need uint64) error {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil {
		return fmt.Errorf("asking for the free space of %s: %w", dir, err)
	}
	if free := fs.Bavail * uint64(fs.Bsize); free < need {
		return fmt.Errorf("only %d MB are free on the disk that holds %s, and the servers need %d MB: free some, or choose another folder with --dir", free>>20, dir, need>>20)
	}
	return nil
}

// explain names the cause, which matters more than the step that failed.
func explain(err error, dir string) error {
	if errors.Is(err, syscall.ENOSPC) || strings.Contains(err.Error(), "No space left on device") {
		return fmt.Errorf("the disk that holds %s is full: free some space: %w", dir, err)
	}
	return err
}

// freePort returns the preferred port if it is free, and else one below those that systems give to connections: a server that starts
// again finds it free again.
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

// reachable tells whether something accepts connections at address.
func reachable(ctx context.Context, address string) error {
	d := net.Dialer{Timeout: 3 * time.Second}
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	return conn.Close()
}
