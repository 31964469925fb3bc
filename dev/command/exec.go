package command

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"shop.example/dev/stack"
	"shop.example/shop/cli"
	"shop.example/shop/workspace"
)

func execCommand() *cobra.Command {
	var options stack.Options
	var keep bool
	cmd := &cobra.Command{
		Use:   "exec [flags] -- COMMAND [ARGUMENT...]",
		Short: "Run a command with a PostgreSQL and a RabbitMQ of its own",
		Long: `Starts a private PostgreSQL and RabbitMQ, runs the command with DATABASE_URL, AMQP_URL and
AMQP_MANAGEMENT_URL set, and stops them when it ends. The exit code is the command's.

Without --dir the data is thrown away at the end, and any number of these can run side by side.
With --keep the servers go on running, so that the next command with --keep starts at once. Several
such commands can use them at the same time; shopdev down removes them.`,
		Example: "  shopdev exec --fast -- go test ./...\n  shopdev exec --dir /tmp/try -- sh -c 'psql \"$DATABASE_URL\"'",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return errors.New("no command given: shopdev exec [flags] -- COMMAND [ARGUMENT...]")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			options.Progress = cmd.ErrOrStderr()
			if keep {
				return runWithKeptStack(cmd.Context(), options, args)
			}
			return runWithStack(cmd.Context(), options, args)
		},
	}
	cmd.Flags().SetInterspersed(false) // what follows the command is the command's
	cmd.Flags().StringVar(&options.Dir, "dir", "", "keep the servers' data in this folder, and find it there again")
	cmd.Flags().BoolVar(&options.Fast, "fast", false, "do not wait for commits to reach the disk (for tests)")
	cmd.Flags().IntVar(&options.Brokers, "brokers", 1, "so many nodes of RabbitMQ, as one cluster")
	cmd.Flags().BoolVar(&keep, "keep", false, "leave the servers running for the next command with --keep")
	cmd.MarkFlagsMutuallyExclusive("dir", "keep")
	return cmd
}

func runWithStack(ctx context.Context, options stack.Options, args []string) error {
	program, err := exec.LookPath(args[0])
	if err != nil {
		return err
	}
	use := func(servers *stack.Stack) error { return run(program, args, servers.Environment()) }
	if options.Dir == "" {
		base, err := workspace.Dir()
		if err != nil {
			return err
		}
		return stack.WithTemporary(ctx, base, options, use)
	}
	servers, err := stack.Start(ctx, options)
	if err != nil {
		return err
	}
	err = use(servers)
	if stopErr := servers.Stop(); stopErr != nil {
		return errors.Join(stopErr, err)
	}
	return err
}

// runWithKeptStack runs the command on servers that are left running.
func runWithKeptStack(ctx context.Context, options stack.Options, args []string) error {
	program, err := exec.LookPath(args[0])
	if err != nil {
		return err
	}
	base, err := workspace.Dir()
	if err != nil {
		return err
	}
	options.Dir = filepath.Join(base, "kept")
	servers, err := stack.StartAndLeave(ctx, options)
	if err != nil {
		return err
	}
	return run(program, args, servers.Environment())
}

// run runs the command to its end, and passes on signals that the command does not get itself.
func run(program string, args, env []string) error {
	cmd := &exec.Cmd{Path: program, Args: args, Env: append(os.Environ(), env...),
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, cli.EndSignals()...)
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("running %s: %w", args[0], err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		select {
		case s := <-signals:
			if s != syscall.SIGTERM && inForeground() { // the terminal sends these to the command too
				continue
			}
			_ = cmd.Process.Signal(s) // if this fails it has ended already
		case err := <-ended:
			return exitCode(err)
		}
	}
}

func inForeground() bool {
	tty, err := os.Open("/dev/tty")
	if err != nil {
		return false
	}
	defer tty.Close()
	group, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

func exitCode(err error) error {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return err
	}
	if status := exit.Sys().(syscall.WaitStatus); status.Signaled() {
		return cli.ExitCode(128 + int(status.Signal()))
	}
	return cli.ExitCode(exit.ExitCode())
}
