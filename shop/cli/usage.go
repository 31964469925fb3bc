package cli

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// usageError says what is wrong with a command line.
type usageError struct{ error }

// WrongUsage returns an error about a wrong command line, for which the exit code is 2.
func WrongUsage(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// Strict makes a command and its subcommands report wrong arguments and flags as wrong usage, in one line that names the
// help. Call it when all subcommands have been added.
func Strict(cmd *cobra.Command) {
	cmd.SetFlagErrorFunc(wrongFlag)
	cmd.Flags().VisitAll(inDecimal)
	cmd.PersistentFlags().VisitAll(inDecimal)
	if cmd.HasSubCommands() && cmd.RunE == nil {
		cmd.Args = cobra.ArbitraryArgs
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			return withUsage(cmd, unknownCommand(cmd, args[0]))
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
			return withUsage(cmd, err)
		}
	}
	for _, sub := range cmd.Commands() {
		Strict(sub)
	}
}

// decimal is the value of a flag that takes a whole number, which pflag reads as Go's sources write it: 010 would be 8.
type decimal struct{ pflag.Value }

func (d decimal) Set(s string) error {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return err
	}
	return d.Value.Set(strconv.FormatInt(n, 10))
}

// inDecimal has a flag's number read with the base 10.
func inDecimal(flag *pflag.Flag) {
	switch flag.Value.Type() {
	case "int", "int32", "int64":
		flag.Value = decimal{flag.Value}
	}
}

// wanted is what a flag takes, by the name of its type.
var wanted = map[string]string{
	"bool": "true or false", "duration": "a time with its unit, 30s, 5m or 24h for example", "float64": "a number",
	"int": "a whole number", "int32": "a whole number, 2147483647 at most", "int64": "a whole number",
}

// wrongFlag says what is wrong with a flag. Of a value, Go's own error says that it cannot be parsed, and not what to give.
func wrongFlag(cmd *cobra.Command, err error) error {
	var invalid *pflag.InvalidValueError
	if errors.As(err, &invalid) && wanted[invalid.GetFlag().Value.Type()] != "" {
		err = fmt.Errorf("--%s %s: give %s", invalid.GetFlag().Name, Printable(invalid.GetValue()), wanted[invalid.GetFlag().Value.Type()])
	}
	return withUsage(cmd, err)
}

// withUsage adds to an error how to get help.
func withUsage(cmd *cobra.Command, err error) error {
	if err == nil {
		return nil
	}
	return WrongUsage("%w (see %s --help)", err, cmd.CommandPath())
}

func unknownCommand(cmd *cobra.Command, name string) error {
	if cmd.SuggestionsMinimumDistance <= 0 {
		cmd.SuggestionsMinimumDistance = 2
	}
	err := fmt.Errorf("unknown command %q", Printable(name))
	if near := cmd.SuggestionsFor(name); len(near) > 0 {
		err = fmt.Errorf("%w: did you mean %s?", err, strings.Join(near, " or "))
	}
	return err
}

// Args returns a check that a command is given exactly the arguments with these names.
func Args(names ...string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		switch {
		case len(args) < len(names):
			return fmt.Errorf("%s is missing", names[len(args)])
		case len(args) > len(names):
			return fmt.Errorf("unexpected argument %q", Printable(args[len(names)]))
		}
		return nil
	}
}
