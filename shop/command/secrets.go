package command

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"shop.example/shop/cli"
	"shop.example/topology"
)

const (
	idSecret         = "SHOP_ID_SECRET"
	previousIDSecret = "SHOP_ID_SECRET_PREVIOUS"
	operatorTokens   = "SHOP_OPERATOR_TOKENS"

	// composeFile makes `docker compose` alone mean production in this folder: with the demonstration's own file it would start a
	// demonstration with these secrets.
	composeFile = "COMPOSE_FILE"
	production  = "deploy/compose/production.yaml"
)

// secretNames are the variables, besides the operators', without which deploy/compose/production.yaml does not start.
var secretNames = func() []string {
	names := []string{idSecret, "POSTGRES_PASSWORD"}
	for _, role := range topology.Schemas() {
		names = append(names, strings.ToUpper(role)+"_PASSWORD")
	}
	names = append(names, "RABBITMQ_PASSWORD")
	for _, user := range topology.Names() {
		names = append(names, amqpPassword(user))
	}
	return names
}()

// amqpPassword names the variable with the password of a service's user on the broker.
func amqpPassword(service string) string { return strings.ToUpper(service) + "_AMQP_PASSWORD" }

// secretsHeader is how a new file begins.
const secretsHeader = `# The secrets of this shop, made by shop secrets. Whoever has them has the shop: keep the file to yourself, and a copy of
# it safe.
`

func secretsCommand() *cobra.Command {
	var (
		file             string
		operators, renew []string
	)
	cmd := &cobra.Command{
		Use:   "secrets",
		Short: "Make the secrets of a shop in production",
		Long: `Makes every secret that deploy/compose/production.yaml needs and that the file does not have yet: passwords,
the secret of order ids, a token for each operator. They are written to the file alone, which its owner
alone can read; docker compose reads it by itself when it is .env beside compose.yaml, and then means
production (COMPOSE_FILE).

--renew replaces a secret, and --operator adds a token, also for an operator who has one: then both are
good until the old one is taken out of the file. docs/production.md has the procedure for each secret.`,
		Example: "  shop secrets --operator ada --operator bob\n  shop secrets --renew ORDERS_PASSWORD",
		Args:    cli.Args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := readSecrets(file)
			if err != nil {
				return err
			}
			if _, known := s.get(operatorTokens); !known && len(operators) == 0 {
				operators = []string{"admin"}
			}
			made, err := s.complete(operators, renew)
			if err != nil {
				return err
			}
			if files, _ := s.get(composeFile); !strings.Contains(files, production) {
				fmt.Fprintf(cmd.ErrOrStderr(), "%s says %s=%s: %s has to be one of these files, or docker compose does not start production.\n", file, composeFile, files, production)
			}
			if len(made) == 0 {
				fmt.Fprintf(cmd.OutOrStdout(), "%s has all secrets.\n", file)
				return nil
			}
			if err := s.write(file); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "Made, in %s:\n  %s\n", file, strings.Join(made, "\n  "))
			return nil
		},
	}
	cmd.Flags().StringVar(&file, "file", ".env", "where they are kept, a line NAME=value each")
	cmd.Flags().StringArrayVar(&operators, "operator", nil, "make a token for the operator of this name (the first one is called admin if nobody is named)")
	cmd.Flags().StringArrayVar(&renew, "renew", nil, "replace the secret of this name")
	completeFlag(cmd, "renew", cobra.FixedCompletions(secretNames, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// secretFile is a file of lines NAME=value. Other lines are kept.
type secretFile struct{ lines []string }

func readSecrets(file string) (*secretFile, error) {
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		text, err = []byte(secretsHeader), nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the secrets: %w", err)
	}
	return &secretFile{strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")}, nil
}

// write replaces the file as a whole.
func (s *secretFile) write(file string) error {
	unfinished := file + ".new"
	if err := os.Remove(unfinished); err != nil && !errors.Is(err, fs.ErrNotExist) { // its mode would stay
		return fmt.Errorf("writing the secrets: %w", err)
	}
	if err := os.WriteFile(unfinished, []byte(strings.Join(s.lines, "\n")+"\n"), 0o600); err != nil {
		return fmt.Errorf("writing the secrets: %w", err)
	}
	if err := os.Rename(unfinished, file); err != nil {
		return fmt.Errorf("writing the secrets: %w", err)
	}
	return nil
}

// get returns the value of a name; an empty one counts as missing.
func (s *secretFile) get(name string) (value string, ok bool) {
	for _, line := range slices.Backward(s.lines) { // the last one counts
		if value, ok := strings.CutPrefix(line, name+"="); ok {
			value = strings.Trim(value, `"'`)
			return value, value != ""
		}
	}
	return "", false
}

func (s *secretFile) set(name, value string) {
	s.lines = slices.DeleteFunc(s.lines, func(line string) bool { return strings.HasPrefix(line, name+"=") })
	s.lines = append(s.lines, name+"="+value)
}

// operatorName matches the names that the gateway accepts.
var operatorName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$`)

// complete adds the secrets that are missing, among them a token for each operator, and replaces those in renew. It returns
// a line about each secret that it has made, without the secret itself.
func (s *secretFile) complete(operators, renew []string) (made []string, err error) {
	for _, name := range renew {
		if !slices.Contains(secretNames, name) {
			return nil, cli.WrongUsage("--renew %q: there are %s; a new token of an operator is made by --operator", cli.Printable(name), strings.Join(secretNames, ", "))
		}
	}
	if _, known := s.get(composeFile); !known {
		s.set(composeFile, "compose.yaml:"+production)
		made = append(made, composeFile+", by which docker compose means production")
	}
	for _, name := range secretNames {
		old, known := s.get(name)
		again := slices.Contains(renew, name)
		if known && !again {
			continue
		}
		if known && name == idSecret {
			s.set(previousIDSecret, old)
			made = append(made, previousIDSecret+", which was "+idSecret)
		}
		s.set(name, rand.Text()) // letters and digits: it stands in URLs
		made = append(made, name)
	}
	for _, name := range operators {
		if !operatorName.MatchString(name) {
			return nil, cli.WrongUsage("--operator %q: a name has 1 to 64 letters, digits, dots, dashes, underscores or @", cli.Printable(name))
		}
		tokens, known := s.get(operatorTokens)
		if known {
			tokens += ","
		}
		s.set(operatorTokens, tokens+name+":"+rand.Text())
		made = append(made, "a token of "+name+", in "+operatorTokens)
	}
	return made, nil
}
