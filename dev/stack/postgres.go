package stack

import (
	"bytes"
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	_ "github.com/lib/pq"
)

var postgresKind = kind{name: "PostgreSQL", variable: "DATABASE_URL", folder: "postgres", image: "postgres:17.12", pkg: "postgresql", stopTimeout: 15 * time.Second}

// oldestPostgres is the oldest major version that the shop is tested on.
const oldestPostgres = 15

const (
	postgresRecord = "process"
	serverLog      = "server.log"
	dataFolder     = "data"
)

type postgres struct {
	host host
	dir  string
	fast bool

	bin       string // folder of the programs, for a private instance
	container *docker
	settings  settings

	url string
	pid int
}

func (p *postgres) kind() kind       { return postgresKind }
func (p *postgres) given(url string) { p.url = url }
func (p *postgres) use(d *docker)    { p.container = d }

var majorVersion = regexp.MustCompile(`\d+`)

// find chooses the newest installed version, or the one that the data was created by.
func (p *postgres) find(ctx context.Context) (bool, error) {
	wanted := ""
	if data, err := os.ReadFile(filepath.Join(p.data(), "PG_VERSION")); err == nil {
		wanted = strings.TrimSpace(string(data))
	}
	newest := 0
	for _, folder := range p.host.programs("initdb", p.host.postgresFolders...) {
		bin := filepath.Dir(folder)
		out, err := p.host.run(ctx, filepath.Join(bin, "postgres"), "--version")
		if err != nil {
			continue
		}
		version, _ := strconv.Atoi(majorVersion.FindString(string(out)))
		if strconv.Itoa(version) == wanted {
			p.bin = bin
			return true, nil
		}
		if version > newest {
			p.bin, newest = bin, version
		}
	}
	if wanted != "" {
		return false, fmt.Errorf("the data in %s is of PostgreSQL %s, which is not installed: install postgresql-%s, or remove the data with `make down`", p.dir, wanted, wanted)
	}
	return newest >= oldestPostgres, nil
}

func (p *postgres) start(ctx context.Context) (string, error) {
	if p.url != "" {
		version, err := p.ask(ctx)
		if err != nil {
			return "", fmt.Errorf("cannot use the server that DATABASE_URL names: %w", err)
		}
		return version + " of DATABASE_URL", nil
	}
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		return "", explain(fmt.Errorf("creating %s: %w", p.dir, err), p.dir)
	}
	if err := p.settings.load(p.dir); err != nil {
		return "", err
	}
	if p.settings.Password == "" {
		p.settings = settings{Password: rand.Text(), Ports: []int{0}, Fast: p.fast}
	}
	if p.container != nil {
		return p.startContainer(ctx)
	}
	return p.startPrivate(ctx)
}

func (p *postgres) startPrivate(ctx context.Context) (string, error) {
	record, log := filepath.Join(p.dir, postgresRecord), filepath.Join(p.dir, serverLog)
	if proc, running := recorded(record); running {
		if version, err := p.adopt(ctx, proc); err == nil {
			return version, nil
		}
		if err := stopPostgres(p.dir, false); err != nil {
			return "", err
		}
	}
	l := launch{record: record, log: log, env: cleanEnvironment(p.dir), attr: ownSession()}
	if p.host.root {
		owner, err := user.Lookup("postgres")
		if err != nil {
			return "", fmt.Errorf("PostgreSQL refuses to run as root and there is no user postgres: create one, or run as an ordinary user")
		}
		if l.attr, err = asUser(owner, p.dir); err != nil {
			return "", err
		}
		if err := os.Chown(p.dir, int(l.attr.Credential.Uid), int(l.attr.Credential.Gid)); err != nil {
			return "", fmt.Errorf("giving %s to user postgres: %w", p.dir, err)
		}
	}
	if err := p.initialize(ctx, l); err != nil {
		return "", err
	}
	if err := p.forgetOriginal(); err != nil {
		return "", err
	}
	crashed, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for attempt := 1; ; {
		port, err := p.host.freePort(p.settings.Ports[0])
		if err != nil {
			return "", err
		}
		p.settings.Ports, p.settings.Fast = []int{port}, p.fast
		if err := p.settings.save(p.dir); err != nil {
			return "", err
		}
		proc, err := l.start(filepath.Join(p.bin, "postgres"), p.arguments(port)...)
		if err != nil {
			return "", err
		}
		version, err := p.await(ctx, proc, time.Minute) // after a crash it first works through its log
		if err == nil {
			return fmt.Sprintf("%s on 127.0.0.1:%d", version, port), nil
		}
		switch {
		case !errors.Is(err, errEnded):
			return "", withLog(err, log)
		case portTaken(log) && attempt < 3:
			attempt++
			p.settings.Ports[0] = 0
		case predecessorEnding(log) && pause(crashed, 100*time.Millisecond) == nil:
		default:
			return "", withLog(err, log)
		}
	}
}

// predecessorEnding reports whether, according to the log, processes of a killed server are still ending.
func predecessorEnding(log string) bool {
	data, _ := os.ReadFile(log)
	return bytes.Contains(data, []byte(`lock file "postmaster.pid" already exists`)) ||
		bytes.Contains(data, []byte("pre-existing shared memory block"))
}

// forgetOriginal removes the lock file that was copied with the data while the original's server ran. PostgreSQL would take that
// server for one that uses the copy.
func (p *postgres) forgetOriginal() error {
	path := filepath.Join(p.data(), "postmaster.pid")
	lock, _ := os.ReadFile(path)
	line, _, _ := strings.Cut(string(lock), "\n")
	pid, err := strconv.Atoi(line)
	if err != nil || !(process{pid: pid}).elsewhere(p.dir) {
		return nil
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("removing the lock file of another server from the copy of its data: %w", err)
	}
	return nil
}

// adopt takes over a server that an earlier process has left running.
func (p *postgres) adopt(ctx context.Context, proc process) (string, error) {
	if p.settings.Fast != p.fast {
		return "", errors.New("it runs with another durability")
	}
	version, err := p.await(ctx, proc, 10*time.Second)
	return fmt.Sprintf("%s on 127.0.0.1:%d, still running", version, p.settings.Ports[0]), err
}

func (p *postgres) await(ctx context.Context, proc process, limit time.Duration) (version string, err error) {
	p.pid = proc.pid
	p.setURL(p.settings.Ports[0])
	err = proc.await(ctx, limit, func(ctx context.Context) error {
		version, err = p.ask(ctx)
		return err
	})
	return version, err
}

func (p *postgres) setURL(port int) {
	p.url = (&url.URL{Scheme: "postgres", User: url.UserPassword("postgres", p.settings.Password),
		Host: net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), Path: "/postgres", RawQuery: "sslmode=disable"}).String()
}

// ask returns the server's version, which only a server with our password tells.
func (p *postgres) ask(ctx context.Context) (version string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	db, err := sql.Open("postgres", p.url)
	if err != nil {
		return "", err
	}
	defer db.Close()
	err = db.QueryRowContext(ctx, "SELECT split_part(current_setting('server_version'), ' ', 1)").Scan(&version)
	return version, err
}

func (p *postgres) data() string { return filepath.Join(p.dir, dataFolder) }

// initialize creates the database cluster, under another name until it is complete.
func (p *postgres) initialize(ctx context.Context, l launch) error {
	if _, err := os.Stat(p.data()); err == nil {
		return nil
	}
	unfinished, password := p.data()+".new", filepath.Join(p.dir, "password")
	if err := os.RemoveAll(unfinished); err != nil {
		return fmt.Errorf("removing an unfinished cluster: %w", err)
	}
	// The password's folder is closed to others; the server's user has to read it.
	if err := os.WriteFile(password, []byte(p.settings.Password), 0o600); err != nil {
		return explain(fmt.Errorf("writing the password: %w", err), p.dir)
	}
	defer func() { _ = os.Remove(password) }()
	if c := l.attr.Credential; c != nil {
		if err := os.Chown(password, int(c.Uid), int(c.Gid)); err != nil {
			return fmt.Errorf("giving the password to user postgres: %w", err)
		}
	}
	args := []string{"-D", unfinished, "-U", "postgres", "-A", "scram-sha-256", "--pwfile=" + password, "-E", "UTF8", "--locale=C.UTF-8"}
	if p.fast {
		args = append(args, "--no-sync")
	}
	cmd := exec.CommandContext(ctx, filepath.Join(p.bin, "initdb"), args...)
	cmd.Dir, cmd.Env, cmd.SysProcAttr = "/", l.env, l.attr
	if out, err := cmd.CombinedOutput(); err != nil {
		return explain(fmt.Errorf("initdb: %w:\n  %s", err, lastLines(string(out), 4)), p.dir)
	}
	if err := os.Rename(unfinished, p.data()); err != nil {
		return fmt.Errorf("naming the new cluster: %w", err)
	}
	return nil
}

func (p *postgres) arguments(port int) []string {
	args := []string{"-D", p.data(), "-c", "listen_addresses=127.0.0.1", "-c", fmt.Sprintf("port=%d", port), "-c", "unix_socket_directories="}
	return append(args, p.parameters()...)
}

// parameters are for private instances and containers alike.
func (p *postgres) parameters() []string {
	args := []string{"-c", "max_connections=200", "-c", "shared_buffers=128MB"}
	if p.fast {
		// Commits are still handed to the kernel: killing the server loses none.
		args = append(args, "-c", "fsync=off", "-c", "full_page_writes=off")
	}
	return args
}

func (p *postgres) startContainer(ctx context.Context) (string, error) {
	if p.settings.Fast != p.fast {
		return "", fmt.Errorf("the container of %s was made for another durability: remove it with `.bin/shopdev down --dir '%s'`", p.dir, filepath.Dir(p.dir))
	}
	if err := p.settings.save(p.dir); err != nil {
		return "", err
	}
	err := p.container.start(ctx, []int{5432}, []string{"-e", "POSTGRES_PASSWORD=" + p.settings.Password},
		append([]string{"postgres"}, p.parameters()...)...)
	if err != nil {
		return "", err
	}
	p.pid = p.container.pid
	p.setURL(p.container.ports[0])
	var version string
	err = p.container.await(ctx, time.Minute, func(ctx context.Context) (err error) {
		version, err = p.ask(ctx)
		return err
	})
	return fmt.Sprintf("%s in a container, on 127.0.0.1:%d", version, p.container.ports[0]), err
}

// stopPostgres stops the recorded server with a fast shutdown or, atOnce, an immediate one, after which it recovers from
// its log.
func stopPostgres(dir string, atOnce bool) error {
	p, running := recorded(filepath.Join(dir, postgresRecord))
	if !running {
		return nil
	}
	steps := []step{{syscall.SIGINT, postgresKind.stopTimeout}, {syscall.SIGQUIT, 5 * time.Second}, {syscall.SIGKILL, 5 * time.Second}}
	if atOnce {
		steps = steps[1:]
	}
	if err := p.stop(steps...); err != nil {
		return fmt.Errorf("stopping PostgreSQL: %w", err)
	}
	return nil
}

// cleanEnvironment returns an environment without the user's settings (PGPORT, RABBITMQ_…, LANG) that would affect the
// servers. It keeps those of libfaketime, which gives each server the time that .faketimerc in its folder says.
func cleanEnvironment(home string) []string {
	env := []string{"PATH=" + os.Getenv("PATH") + ":/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + home, "LANG=C.UTF-8"}
	for _, variable := range os.Environ() {
		if strings.HasPrefix(variable, "LD_PRELOAD=") || strings.HasPrefix(variable, "FAKETIME_") {
			env = append(env, variable)
		}
	}
	return env
}
