package stack

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process is a server's process and the time at which it began (in the kernel's ticks since boot), because its id may have
// been given to another process by now.
type process struct {
	pid   int
	began string
}

// launch says how a server is run.
type launch struct {
	record, log string
	env         []string
	attr        *syscall.SysProcAttr
}

// start starts the server in a session of its own, so that a Ctrl-C in the terminal does not reach it. The process writes
// its own record before it becomes the server, so that a crash of ours at any moment leaves a record.
func (l launch) start(program string, args ...string) (process, error) {
	if err := os.Rename(l.log, l.log+".1"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return process{}, fmt.Errorf("keeping the last log: %w", err)
	}
	log, err := os.Create(l.log)
	if err != nil {
		return process{}, fmt.Errorf("creating the log: %w", err)
	}
	defer log.Close()
	const script = `cd "${0%/*}" && read -r stat </proc/$$/stat && echo "$stat" >"$0" && exec "$@"` // see elsewhere
	cmd := exec.Command("/bin/sh",                                                                  //nolint:noctx // a server outlives whoever starts it
		append([]string{"-c", script, l.record, program}, args...)...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = "/", l.env, log, log // any user may go there
	cmd.SysProcAttr = l.attr
	if err := cmd.Start(); err != nil {
		return process{}, fmt.Errorf("running %s: %w", program, err)
	}
	p := process{pid: cmd.Process.Pid}
	if stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid)); err == nil {
		p, _ = parseStat(string(stat))
	}
	go func() { _ = cmd.Wait() }() // only so that no zombie stays; the end is seen in /proc, as for adopted servers
	return p, nil
}

func ownSession() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setsid: true} }

// recorded returns the process in a record, if it is still alive. A copy of a folder (cp -a) has the record of the original's
// server too, which is not ours to use or to end.
func recorded(record string) (process, bool) {
	data, err := os.ReadFile(record)
	if err != nil {
		return process{}, false
	}
	p, _ := parseStat(string(data))
	return p, p.alive() && !p.elsewhere(filepath.Dir(record))
}

// elsewhere reports whether the process is known to work in another folder than dir, whatever the folders are called by now.
// start has it begin in its folder; PostgreSQL goes on to the data in it. Where we may not look at a process, as a container's
// root without CAP_SYS_PTRACE may not at PostgreSQL, the command line names the data.
func (p process) elsewhere(dir string) bool {
	places := []string{dir, filepath.Join(dir, dataFolder)}
	cwd, err := os.Stat(fmt.Sprintf("/proc/%d/cwd", p.pid))
	if errors.Is(err, os.ErrPermission) {
		command, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.pid))
		_, after, _ := strings.Cut(string(command), "\x00-D\x00")
		data, _, _ := strings.Cut(after, "\x00")
		cwd, err = os.Stat(data)
	}
	return err == nil && !slices.ContainsFunc(places, func(place string) bool {
		info, err := os.Stat(place)
		return err == nil && os.SameFile(cwd, info)
	})
}

// parseStat parses a line of /proc/PID/stat. The name in it, in parentheses, may contain anything.
func parseStat(stat string) (p process, state string) {
	number, _, _ := strings.Cut(stat, " ")
	rest := strings.Fields(stat[strings.LastIndex(stat, ")")+1:])
	if len(rest) < 20 {
		return process{}, ""
	}
	p.pid, _ = strconv.Atoi(number)
	p.began = rest[19]
	return p, rest[0]
}

// alive is false for a process that has ended, even if its parent has not waited for it.
func (p process) alive() bool {
	if p.pid <= 0 {
		return false
	}
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid))
	if err != nil {
		return false
	}
	now, state := parseStat(string(data))
	return now == p && state != "Z" && state != "X"
}

// withEnvironment returns the processes that have the variable, as far as we may look at them.
func withEnvironment(variable string) (pids []int) {
	environments, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, path := range environments {
		data, _ := os.ReadFile(path) // a process that has ended, or of another user
		if slices.Contains(strings.Split(string(data), "\x00"), variable) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			pids = append(pids, pid)
		}
	}
	return pids
}

// stop sends one signal after the other, and waits after each for the time of its step.
func (p process) stop(steps ...step) error {
	for _, s := range steps {
		if !p.alive() {
			return nil
		}
		if err := syscall.Kill(p.pid, s.signal); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("ending process %d: %w", p.pid, err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), s.timeout)
		for p.alive() && pause(ctx, 10*time.Millisecond) == nil {
		}
		cancel()
	}
	if p.alive() {
		return fmt.Errorf("process %d cannot be killed: look at what it waits for (ps -o stat,wchan %d)", p.pid, p.pid)
	}
	return nil
}

type step struct {
	signal  syscall.Signal
	timeout time.Duration
}

var errEnded = errors.New("it ended at once")

// await calls ask until it returns nil or errEnded, the process has ended (also errEnded), or limit has passed.
func (p process) await(ctx context.Context, limit time.Duration, ask func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no answer within %s", limit))
	defer cancel()
	for {
		alive := p.alive() // before asking: another server on the same port must not answer in its place
		err := ask(ctx)
		if !alive {
			return errEnded
		}
		if err == nil || errors.Is(err, errEnded) {
			return err
		}
		if cause := pause(ctx, 20*time.Millisecond); cause != nil {
			return fmt.Errorf("%w (%w)", cause, err)
		}
	}
}

// withLog adds the end of a server's log to the error of its start.
func withLog(err error, log string) error {
	data, readErr := os.ReadFile(log)
	if readErr != nil || len(data) == 0 {
		return err
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return explain(fmt.Errorf("%w; the end of %s:\n  %s", err, log, strings.Join(lines[max(0, len(lines)-8):], "\n  ")), filepath.Dir(log))
}

// portTaken reports whether, according to the log, another program has taken one of the ports.
func portTaken(log string) bool {
	data, _ := os.ReadFile(log)
	text := strings.ToLower(string(data))
	return strings.Contains(text, "address already in use") || strings.Contains(text, "eaddrinuse")
}

// settings are what must stay the same when a server is started again or taken over.
type settings struct {
	Password string `json:"password"`
	Ports    []int  `json:"ports"`
	Fast     bool   `json:"fast,omitempty"`
}

const settingsFile = "settings.json"

// load reads the settings in dir. It is no error if there are none.
func (s *settings) load(dir string) error {
	data, err := os.ReadFile(filepath.Join(dir, settingsFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = json.Unmarshal(data, s)
	}
	if err != nil {
		return fmt.Errorf("reading the settings of the stack: %w", err)
	}
	return nil
}

func (s settings) save(dir string) error {
	data, err := json.Marshal(s)
	if err == nil {
		err = writeFile(filepath.Join(dir, settingsFile), data, 0o600)
	}
	if err != nil {
		return explain(fmt.Errorf("writing the settings of the stack: %w", err), dir)
	}
	return nil
}

// writeFile replaces path as a whole, so that a crash leaves the old content or the new.
func writeFile(path string, data []byte, mode os.FileMode) error {
	if err := os.WriteFile(path+".new", data, mode); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
