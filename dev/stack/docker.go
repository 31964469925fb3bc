package stack

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// containerLabel marks our containers; its value is the stack's folder.
const containerLabel = "shop.example.stack"

// containerRecord is the name of the file that says that a server's data is in a container.
const containerRecord = "container"

// docker is the container of a server. The data is in the container's volumes, which are deleted with it.
type docker struct {
	host        host
	stack, name string
	kind        kind
	pid         int
	ports       []int // of 127.0.0.1, in the order asked for
}

// newDocker returns the container that is recorded in the stack's folder, else one that does not exist yet.
func newDocker(h host, stack string, k kind) *docker {
	d := &docker{host: h, stack: stack, kind: k}
	name, _ := os.ReadFile(d.record())
	if d.name = strings.TrimSpace(string(name)); d.name == "" {
		d.name = d.newName()
	}
	return d
}

func (d *docker) newName() string {
	return fmt.Sprintf("shop-%s-%s", strings.ToLower(rand.Text()[:8]), d.kind.folder)
}

func (d *docker) record() string { return filepath.Join(d.stack, d.kind.folder, containerRecord) }

func (d *docker) recorded() bool {
	_, err := os.Stat(d.record())
	return err == nil
}

// copied reports whether the record was copied with its folder, so that the container is another folder's. A folder that was moved
// takes its container with it, although the label cannot be changed.
func (d *docker) copied(ctx context.Context) bool {
	owner, err := d.run(ctx, "inspect", "-f", fmt.Sprintf("{{index .Config.Labels %q}}", containerLabel), d.name)
	if err != nil || owner == d.stack {
		return false
	}
	theirs := newDocker(d.host, owner, d.kind)
	there, err := os.Stat(theirs.record())
	if err != nil || theirs.name != d.name {
		return false
	}
	here, err := os.Stat(d.record())
	return err == nil && !os.SameFile(here, there) // one folder may have two paths
}

func (d *docker) run(ctx context.Context, args ...string) (string, error) {
	out, err := d.host.run(ctx, "docker", args...)
	text := strings.TrimSpace(string(out))
	if err != nil {
		return "", fmt.Errorf("docker %s: %w: %s", args[0], err, lastLines(text, 1))
	}
	return text, nil
}

// fromDocker makes the servers use containers if Docker works and has, or can pull, their images. It returns the servers
// for which that is not possible, and why.
func fromDocker(ctx context.Context, h host, stack string, servers []server) (missing []server, reason string) {
	asking, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if out, err := h.run(asking, "docker", "info", "--format", "{{.ServerVersion}}"); err != nil || strings.TrimSpace(string(out)) == "" {
		return servers, "Docker does not answer"
	}
	for _, srv := range servers {
		d := newDocker(h, stack, srv.kind())
		if err := d.getImage(ctx); err != nil {
			if ctx.Err() != nil {
				return servers, "Docker was interrupted"
			}
			h.report("%v", err)
			missing, reason = append(missing, srv), "Docker cannot get the images"
			continue
		}
		srv.use(d)
	}
	return missing, reason
}

func (d *docker) getImage(ctx context.Context) error {
	if _, err := d.run(ctx, "image", "inspect", d.kind.image); err == nil {
		return nil
	}
	d.host.report("pulling image %s", d.kind.image)
	_, err := d.run(ctx, "pull", "-q", d.kind.image)
	return err
}

// start starts the container, creating it if there is none, and finds its process and ports.
func (d *docker) start(ctx context.Context, ports []int, options []string, command ...string) error {
	if d.copied(ctx) {
		d.name = d.newName()
	}
	if err := writeFile(d.record(), []byte(d.name+"\n"), 0o644); err != nil {
		return explain(fmt.Errorf("noting the container: %w", err), d.stack)
	}
	if _, err := d.run(ctx, "inspect", d.name); err == nil {
		if _, err := d.run(ctx, "start", d.name); err != nil {
			return err
		}
	} else {
		args := append([]string{"run", "-d", "--name", d.name, "--label", containerLabel + "=" + d.stack}, options...)
		for _, port := range ports {
			args = append(args, "-p", fmt.Sprintf("127.0.0.1::%d", port))
		}
		if _, err := d.run(ctx, append(append(args, d.kind.image), command...)...); err != nil {
			return err
		}
	}
	pid, err := d.run(ctx, "inspect", "-f", "{{.State.Pid}}", d.name)
	if err != nil {
		return err
	}
	d.pid, _ = strconv.Atoi(pid)
	return d.findPorts(ctx, ports)
}

// findPorts reads the addresses at which the container's ports are published.
func (d *docker) findPorts(ctx context.Context, ports []int) error {
	d.ports = nil
	for _, port := range ports {
		out, err := d.run(ctx, "port", d.name, strconv.Itoa(port)) // 127.0.0.1:32768
		if err != nil {
			return fmt.Errorf("%w; the end of its log:\n  %s", err, d.log(ctx))
		}
		published, err := strconv.Atoi(out[strings.LastIndex(out, ":")+1:])
		if err != nil {
			return fmt.Errorf("reading the port of container %s from %q: %w", d.name, out, err)
		}
		d.ports = append(d.ports, published)
	}
	return nil
}

// await calls ask until it returns nil, the container has ended, or limit has passed.
func (d *docker) await(ctx context.Context, limit time.Duration, ask func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no answer within %s", limit))
	defer cancel()
	for {
		err := ask(ctx)
		if err == nil {
			return nil
		}
		if cause := pause(ctx, 200*time.Millisecond); cause != nil {
			return fmt.Errorf("%w (%w)", cause, err)
		}
		if running, err := d.run(ctx, "inspect", "-f", "{{.State.Running}}", d.name); err == nil && running != "true" {
			return fmt.Errorf("container %s ended; the end of its log:\n  %s", d.name, d.log(ctx))
		}
	}
}

func (d *docker) log(ctx context.Context) string {
	out, err := d.run(ctx, "logs", "--tail", "8", d.name)
	if err != nil {
		return err.Error()
	}
	return lastLines(out, 8)
}

// stopContainers stops the recorded containers; atOnce deletes them with their data.
func stopContainers(h host, stack string, atOnce bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var errs []error
	for _, k := range []kind{postgresKind, rabbitKind} {
		d := newDocker(h, stack, k)
		if !d.recorded() || d.copied(ctx) {
			continue
		}
		args := []string{"stop", "-t", strconv.Itoa(int(k.stopTimeout.Seconds())), d.name}
		if atOnce {
			args = []string{"rm", "-f", "-v", d.name}
		}
		if _, err := d.run(ctx, args...); err != nil && !strings.Contains(err.Error(), "No such container") {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n  ")
}
