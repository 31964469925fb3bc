package command

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// usageError says what is wrong with a command line.
type usageError struct{ error }

func wrongUsage(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// ExitStatus is the exit code for the error of a command: 0 for none, 2 where the command line is wrong, be it that the
// shop says so, 130 for an interrupt, 1 for all else, unless the error is an ExitCode.
func ExitStatus(err error) int {
	var code ExitCode
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	case errors.As(err, &usageError{}), status.Code(err) == codes.InvalidArgument:
		return 2
	case errors.Is(err, context.Canceled):
		return 130
	}
	return 1
}

// strict makes a command and those under it say what is wrong with their arguments and flags as a usageError, in one
// line that names the help.
func strict(cmd *cobra.Command) {
	cmd.SetFlagErrorFunc(helpful)
	if cmd.HasSubCommands() && cmd.RunE == nil {
		cmd.Args = cobra.ArbitraryArgs
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			return helpful(cmd, unknownCommand(cmd, args[0]))
		}
	}
	if args := cmd.Args; args != nil {
		cmd.Args = func(cmd *cobra.Command, given []string) error {
			err := args(cmd, given)
			if err == nil {
				err = cmd.ValidateRequiredFlags()
			}
			if err == nil {
				err = cmd.ValidateFlagGroups()
			}
			return helpful(cmd, err)
		}
	}
	for _, sub := range cmd.Commands() {
		strict(sub)
	}
}

func helpful(cmd *cobra.Command, err error) error {
	if err == nil {
		return nil
	}
	return wrongUsage("%w (see %s --help)", err, cmd.CommandPath())
}

func unknownCommand(cmd *cobra.Command, name string) error {
	if cmd.SuggestionsMinimumDistance <= 0 {
		cmd.SuggestionsMinimumDistance = 2
	}
	if near := cmd.SuggestionsFor(name); len(near) > 0 {
		return fmt.Errorf("there is no %s %s: did you mean %s?", cmd.CommandPath(), printable(name), strings.Join(near, " or "))
	}
	return fmt.Errorf("there is no %s %s", cmd.CommandPath(), printable(name))
}

// exactly takes these arguments, no more and no fewer.
func exactly(names ...string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		switch {
		case len(args) < len(names):
			return fmt.Errorf("%s is missing", names[len(args)])
		case len(args) > len(names):
			return fmt.Errorf("there is nothing to do with %q", printable(args[len(names)]))
		}
		return nil
	}
}
