// Package stack starts the two servers of the shop, PostgreSQL and RabbitMQ, on a developer's machine.
//
// Each server is the first of these that is available: the one whose URL is in the environment (which is never started,
// stopped or configured), a private instance of the installed server, with ports of its own and its data in the stack's
// folder, a Docker container, or a private instance after Debian's packages were installed. A server that was started
// survives a crash of this process: the next Start in the same folder takes over those that still answer, and starts the
// others again with the same data.
package stack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"shop.example/shop/workspace"
)

// Options configure a stack.
type Options struct {
	// Dir is the folder for data, logs and what is needed to find the servers again. Only one process at a time can use it.
	Dir string
	// Fast lets PostgreSQL answer before commits are on disk. It is for tests only: a power failure loses data.
	Fast bool
	// Brokers is how many nodes RabbitMQ has, one if it is 0, at least as many as there are in the folder.
	Brokers int
	// Progress receives a line for each step, with the time it took; nil for none.
	Progress io.Writer
}

// Stack is a running pair of servers. Its fields do not change.
type Stack struct {
	// DatabaseURL is that of a role which may create databases and roles, unless it comes from the environment.
	DatabaseURL string
	AMQPURL     string
	// ManagementURL is the URL of RabbitMQ's HTTP API, with user and password; "" if AMQP_URL is set without
	// AMQP_MANAGEMENT_URL. If there are several nodes it is that of the first.
	ManagementURL string
	// MetricsAddr is the address of RabbitMQ's metrics for Prometheus, "" if it is no private instance.
	MetricsAddr string
	// PostgresPID (the postmaster) and RabbitMQPID (the Erlang machine) are 0 for servers from the environment.
	PostgresPID, RabbitMQPID int

	host host
	dir  string
	lock *os.File
	end  sync.Once
	err  error
}

// Environment returns the environment variables, NAME=value, with which a command finds the servers.
func (s *Stack) Environment() []string {
	env := []string{"DATABASE_URL=" + s.DatabaseURL, "AMQP_URL=" + s.AMQPURL}
	if s.ManagementURL != "" {
		env = append(env, "AMQP_MANAGEMENT_URL="+s.ManagementURL)
	}
	return env
}

// Start starts both servers and returns when they answer. If one fails, or ctx ends, whatever was started is stopped again,
// and its data is kept. An error says in one sentence what is wrong and what to do, with the end of the server's log if
// that helps.
func Start(ctx context.Context, o Options) (*Stack, error) {
	return start(ctx, o, thisHost())
}

func start(ctx context.Context, o Options, h host) (*Stack, error) {
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("finding folder %s: %w", o.Dir, err)
	}
	h.report = reporter(o.Progress)
	s := &Stack{dir: dir, host: h}
	if s.lock, err = acquire(dir); err != nil {
		return nil, err
	}
	if err := s.startServers(ctx, o); err != nil {
		return nil, errors.Join(err, s.Stop())
	}
	return s, nil
}

// StartAndLeave is Start for servers that several commands use, one after the other or at the same time: it leaves them
// running and releases the folder. If another process is starting them, it waits for that. Down stops them.
func StartAndLeave(ctx context.Context, o Options) (*Stack, error) {
	return startAndLeave(ctx, o, thisHost())
}

func startAndLeave(ctx context.Context, o Options, h host) (*Stack, error) {
	for {
		s, err := start(ctx, o, h)
		if err == nil {
			return s, s.lock.Close()
		}
		var used InUseError
		if !errors.As(err, &used) {
			return nil, err
		}
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return nil, err
		}
	}
}

func (s *Stack) startServers(ctx context.Context, o Options) error {
	pg := &postgres{host: s.host, dir: filepath.Join(s.dir, postgresKind.folder), fast: o.Fast}
	mq := &rabbitMQ{host: s.host, dir: filepath.Join(s.dir, rabbitKind.folder)}
	if n := max(o.Brokers, len(brokerFolders(s.dir))); n > 1 {
		mq = newCluster(s.host, s.dir, n)
	}
	if err := choose(ctx, s.host, s.dir, pg, mq); err != nil {
		if interrupted := context.Cause(ctx); interrupted != nil {
			return interrupted // what it kept from working is no news
		}
		return err
	}
	if pg.url == "" {
		if err := forgetServer(); err != nil {
			return err
		}
	}
	// The first failure ends the other start too: there is nothing to wait for any more.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for _, srv := range []server{pg, mq} {
		wg.Go(func() {
			begin := time.Now()
			about, err := srv.start(ctx)
			if err != nil {
				cancel(fmt.Errorf("starting %s: %w", srv.kind().name, err))
				return
			}
			s.host.report("%-10s %s  %.1f s", srv.kind().name, about, time.Since(begin).Seconds())
		})
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		return err
	}
	s.DatabaseURL, s.PostgresPID = pg.url, pg.pid
	s.AMQPURL, s.ManagementURL, s.MetricsAddr, s.RabbitMQPID = mq.url, mq.management, mq.metrics, mq.pid
	return nil
}

// forgetServer removes the variables of PostgreSQL's clients (PGHOSTADDR, PGSERVICE, PGGSSENCMODE …) from the environment of this
// process and its commands. They are for a server of the user's; lib/pq obeys them, or refuses to connect because of them, even if
// a URL says everything.
func forgetServer() error {
	for _, variable := range os.Environ() {
		if name, _, _ := strings.Cut(variable, "="); strings.HasPrefix(name, "PG") {
			if err := os.Unsetenv(name); err != nil {
				return fmt.Errorf("unsetting %s: %w", name, err)
			}
		}
	}
	return nil
}

// Stop stops the servers in this folder, also those that were taken over, and keeps their data. It takes at most half a
// minute: a server that does not stop in time is killed. It may be called again, and concurrently; all calls return the
// same error.
func (s *Stack) Stop() error {
	return s.finish(func() error { return stopServers(s.host, s.dir, false) })
}

// Remove ends the servers at once and deletes the folder with their data.
func (s *Stack) Remove() error {
	return s.finish(func() error { return remove(s.host, s.dir) })
}

func (s *Stack) finish(end func() error) error {
	s.end.Do(func() { s.err = errors.Join(end(), s.lock.Close()) })
	return s.err
}

// Down stops and removes everything that was started for dir, also after a crash. If another process is using the stack it
// does nothing and returns an InUseError.
func Down(dir string) error { return down(dir, acquire) }

// EndAndDown is Down, but asks a process that is using the stack to end first, and waits up to half a minute for that.
func EndAndDown(dir string) error { return down(dir, takeOver) }

func down(dir string, lock func(dir string) (*os.File, error)) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("finding folder %s: %w", dir, err)
	}
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err := checkStack(dir); err != nil {
		return fmt.Errorf("%s is no folder of a stack, so it is left alone: %w", dir, err)
	}
	held, err := lock(dir)
	if err != nil {
		return err
	}
	defer held.Close()
	return remove(thisHost(), dir)
}

// checkStack returns an error if dir is not the folder of a stack. Other folders have a file of the lock's name, for
// example apt's and dpkg's. Ours contains the id of a process, and only the servers' folders and the secrets of `make up`
// are beside it.
func checkStack(dir string) error {
	lock, err := os.ReadFile(filepath.Join(dir, lockFile))
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("it has no file %s", lockFile)
	}
	if err != nil {
		return err
	}
	if _, err := strconv.Atoi(strings.TrimSpace(string(lock))); err != nil && len(lock) > 0 { // empty if the disk was full
		return fmt.Errorf("its file %s is somebody else's", lockFile)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		switch name := e.Name(); {
		case name == lockFile, name == postgresKind.folder, name == installLog:
		case slices.Contains(brokerFolders(dir), filepath.Join(dir, name)):
		case name == workspace.DatabaseURLsFile, name == workspace.AMQPURLFile:
		case strings.HasSuffix(name, "-password"), strings.HasSuffix(name, "-token"), strings.HasSuffix(name, "-secret"):
		default:
			return fmt.Errorf("it has %s, which no stack has", name)
		}
	}
	return nil
}

func remove(h host, dir string) error {
	if err := stopServers(h, dir, true); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("removing %s: %w", dir, err)
	}
	return nil
}

// stopServers stops the servers that are recorded in dir. atOnce means without a clean shutdown; containers are then
// deleted with their data.
func stopServers(h host, dir string, atOnce bool) error {
	var wg sync.WaitGroup
	var pg, docker error
	brokers := brokerFolders(dir)
	mq := make([]error, len(brokers))
	wg.Go(func() { pg = stopPostgres(filepath.Join(dir, postgresKind.folder), atOnce) })
	for i, folder := range brokers {
		wg.Go(func() { mq[i] = stopRabbitMQ(folder, atOnce) })
	}
	wg.Go(func() { docker = stopContainers(h, dir, atOnce) })
	wg.Wait()
	return errors.Join(append(mq, pg, docker)...)
}

const lockFile = "lock"

// InUseError means that another process is using a folder.
type InUseError struct {
	Dir string
	PID int // 0 when it is not known
}

func (e InUseError) Error() string {
	return fmt.Sprintf("%s is in use by process %d: stop that one first, with Ctrl-C where it runs, or wait for its end", e.Dir, e.PID)
}

// acquire locks dir for this process until the returned file is closed or the process ends, in whatever way. The servers do
// not inherit the lock.
func acquire(dir string) (*os.File, error) {
	for {
		// Only the servers' own folders hold data: others may pass through this one, as PostgreSQL's user must.
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("creating %s: %w", dir, err)
		}
		f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE, 0o644)
		if err != nil {
			return nil, fmt.Errorf("locking %s: %w", dir, err)
		}
		if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
			var pid int
			_, _ = fmt.Fscan(f, &pid) // 0 if it does not say
			_ = f.Close()
			if errors.Is(err, syscall.EWOULDBLOCK) {
				return nil, InUseError{dir, pid}
			}
			return nil, fmt.Errorf("locking %s: %w", dir, err)
		}
		if !stillAt(f, filepath.Join(dir, lockFile)) { // Down removed it between open and lock
			_ = f.Close()
			continue
		}
		err = f.Truncate(0)
		if err == nil {
			_, err = fmt.Fprintf(f, "%d\n", os.Getpid())
		}
		if err != nil {
			_ = f.Close()
			return nil, explain(fmt.Errorf("writing %s: %w", f.Name(), err), dir)
		}
		return f, nil
	}
}

func stillAt(f *os.File, path string) bool {
	held, err := f.Stat()
	if err != nil {
		return false
	}
	there, err := os.Stat(path)
	return err == nil && os.SameFile(held, there)
}

// takeOver acquires dir, after it has asked the process that has it to end.
func takeOver(dir string) (*os.File, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	asked := false
	for {
		lock, err := acquire(dir)
		var used InUseError
		if !errors.As(err, &used) || used.PID == os.Getpid() {
			return lock, err
		}
		if !asked && used.PID > 0 {
			if err := syscall.Kill(used.PID, syscall.SIGTERM); err != nil {
				return nil, fmt.Errorf("ending process %d, which uses %s: %w", used.PID, dir, err)
			}
			asked = true
		}
		if pause(ctx, 100*time.Millisecond) != nil {
			return nil, used
		}
	}
}

// pause waits for the duration d. If ctx ends before, it returns its error.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func reporter(w io.Writer) func(string, ...any) {
	var mu sync.Mutex
	return func(format string, args ...any) {
		if w == nil {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintf(w, format+"\n", args...)
	}
}
