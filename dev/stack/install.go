package stack

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// installScript takes the packages as its arguments.
//
//go:embed install.sh
var installScript string

// fromPackages installs what is missing. The reason says why Docker was no help.
func fromPackages(ctx context.Context, h host, dir string, missing []server, reason string) error {
	var names, packages, variables []string
	for _, srv := range missing {
		k := srv.kind()
		names, packages, variables = append(names, k.name), append(packages, k.pkg), append(variables, k.variable)
	}
	as, possible := installer(ctx, h)
	if !possible {
		return fmt.Errorf("%s not found, and %s: install it (Debian, Ubuntu: sudo apt-get install %s), start Docker, or set %s",
			strings.Join(names, " and "), reason, strings.Join(packages, " "), strings.Join(variables, " and "))
	}
	if err := install(ctx, h, as, dir, packages); err != nil {
		return err
	}
	for _, srv := range missing {
		if found, err := srv.find(ctx); err != nil || !found {
			return errors.Join(err, fmt.Errorf("%s is not usable after package %s was installed: set %s to a server that runs (PostgreSQL %d or newer, RabbitMQ 3.10 or newer)",
				srv.kind().name, srv.kind().pkg, srv.kind().variable, oldestPostgres))
		}
	}
	return nil
}

// installer returns what to put before a command that installs packages, if we may and can.
func installer(ctx context.Context, h host) (prefix []string, possible bool) {
	if len(h.programs("apt-get")) == 0 {
		return nil, false
	}
	if h.root {
		return nil, true
	}
	_, err := h.run(ctx, "sudo", "-n", "true")
	return []string{"sudo", "-n"}, err == nil
}

// installLog is what apt-get said, in the stack's folder.
const installLog = "install.log"

func install(ctx context.Context, h host, prefix []string, dir string, packages []string) error {
	begin := time.Now()
	h.report("installing %s with apt-get", strings.Join(packages, " and "))
	ctx, cancel := context.WithTimeoutCause(ctx, 15*time.Minute, errors.New("not done within 15 minutes"))
	defer cancel()
	command := append(append([]string{}, prefix...), "sh", "-c", installScript, "install")
	command = append(command, packages...)
	out, err := h.run(ctx, command[0], command[1:]...)
	log := filepath.Join(dir, installLog)
	if writeErr := os.WriteFile(log, out, 0o644); writeErr != nil {
		err = errors.Join(err, writeErr)
	}
	if err != nil {
		return withLog(fmt.Errorf("installing %s: %w", strings.Join(packages, " and "), err), log)
	}
	h.report("installed  %s  %.1f s", strings.Join(packages, " and "), time.Since(begin).Seconds())
	return nil
}
