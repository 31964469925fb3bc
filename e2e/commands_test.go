package e2e

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"mvdan.cc/sh/v3/syntax"

	benchcommand "shop.example/bench/command"
	devcommand "shop.example/dev/command"
	"shop.example/shop/command"
)

// A block of shell commands in a document says after ```sh what becomes of it:
//
//	```sh run               executed, with the other ones of its document, in front of a running shop; has to succeed
//	```sh run backup        executed by the test that sets the scene of this name
//	```sh watch             executed likewise, one command after the other, each until it has said something: streams
//	```sh example: reason   not executed, for this reason
//
// TOKEN is the operator's token, ID and ORDER an order that is decided.
const (
	executed = "run"
	watched  = "watch"
	example  = "example:"
)

// scenes are the names of blocks that a test of their own executes.
var scenes = []string{"guide", "install", "backup", "restore", "restore-broker", "audit", "repair", "archive", "base-backup", "close-log", "restore-moment", "rotation",
	"upgrade", "upgrade-check", "upgrade-broker", "upgrade-broker-next", "partition"}

// block is a block of code in a document.
type block struct {
	document string
	line     int
	language string
	tag      string
	rest     string // a scene, or a reason
	text     string
}

func (b block) String() string { return fmt.Sprintf("%s:%d", b.document, b.line) }

// shell says whether it is for a shell, whatever it calls itself.
func (b block) shell() bool {
	return slices.Contains([]string{"sh", "bash", "shell", "console", "zsh"}, b.language) || b.language == "" && prompt.MatchString(b.text)
}

var (
	prompt = regexp.MustCompile(`(?m)^\$ `)
	fence  = regexp.MustCompile("(?ms)^( *)```([^\n`]*)\n(.*?)^ *```$")
	// inline is code within a line. In a table | is \|.
	inline = regexp.MustCompile("`([^`\n]+)`")
	// modifier is what zsh applies to a parameter before it.
	modifier = regexp.MustCompile(`^:[a-zA-Z]`)
)

// documents are all documents of the project, by their path from its root.
func documents(t *testing.T) map[string]string {
	t.Helper()
	texts := map[string]string{}
	err := filepath.WalkDir("..", func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && (strings.HasPrefix(entry.Name(), ".") && entry.Name() != ".." || entry.Name() == "third_party" || entry.Name() == "node_modules"):
			return filepath.SkipDir
		case strings.HasSuffix(path, ".md"):
			text, err := os.ReadFile(path)
			texts[strings.TrimPrefix(path, "../")] = string(text)
			return err
		}
		return nil
	})
	if err != nil || len(texts) == 0 {
		t.Fatalf("%d documents, %v", len(texts), err)
	}
	return texts
}

func blocksOf(document, text string) (all []block) {
	for _, at := range fence.FindAllStringSubmatchIndex(text, -1) {
		language, info, _ := strings.Cut(strings.TrimSpace(text[at[4]:at[5]]), " ")
		tag, rest, _ := strings.Cut(info, " ")
		all = append(all, block{
			document: document, line: 1 + strings.Count(text[:at[0]], "\n"), language: language, tag: tag, rest: rest, text: text[at[6]:at[7]],
		})
	}
	return all
}

func TestDocuments_EveryBlockOfCommandsRunsOrSaysWhyNot(t *testing.T) {
	t.Parallel()
	blocks := 0
	for document, text := range documents(t) {
		for _, b := range blocksOf(document, text) {
			if !b.shell() {
				continue
			}
			blocks++
			switch {
			case b.language != "sh":
				t.Errorf("%s: write ```sh, and behind it %s, %s or %s", b, executed, watched, example)
			case b.tag == example && b.rest == "":
				t.Errorf("%s: give the reason why it is not executed, ```sh %s it takes minutes", b, example)
			case b.tag != example && b.tag != executed && b.tag != watched:
				t.Errorf("%s: say what becomes of it: ```sh %s, ```sh %s, or ```sh %s reason", b, executed, watched, example)
			case b.tag != example && b.rest != "" && !slices.Contains(scenes, b.rest):
				t.Errorf("%s: no test sets the scene %q", b, b.rest)
			}
		}
	}
	if blocks < 10 {
		t.Errorf("%d blocks were found", blocks)
	}
}

// Commands that stand in running text, or are not executed, exist at least, and so do their flags, targets and files.
func TestDocuments_NameCommandsAndFilesThatExist(t *testing.T) {
	t.Parallel()
	targets := map[string]bool{}
	makefile, err := os.ReadFile("../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(?m)^([a-z./]+):`).FindAllSubmatch(makefile, -1) {
		targets[string(m[1])] = true
	}
	tools, err := filepath.Glob("../tools/*/go.mod")
	if err != nil {
		t.Fatal(err)
	}
	for _, tool := range tools {
		targets[".bin/"+filepath.Base(filepath.Dir(tool))] = true
	}
	top, err := os.ReadDir("..")
	if err != nil {
		t.Fatal(err)
	}
	named := 0
	for document, text := range documents(t) {
		var calls [][]string
		for _, b := range blocksOf(document, text) {
			if !b.shell() {
				continue
			}
			those, err := callsIn(b.text)
			if err != nil {
				t.Errorf("%s: %v", b, err)
			}
			calls = append(calls, those...)
		}
		for _, m := range inline.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
			those, _ := callsIn(m[1]) // which may be code of something else
			calls = append(calls, those...)
		}
		for _, words := range calls {
			named += check(t, document, words, targets, top)
		}
	}
	if named < 50 {
		t.Errorf("%d names were found", named)
	}
}

// check looks at a call, or at a name alone, and returns how many things it knew.
func check(t *testing.T, document string, words []string, targets map[string]bool, top []fs.DirEntry) int {
	t.Helper()
	switch name, args := words[0], words[1:]; {
	case roots[strings.TrimPrefix(name, ".bin/")] != nil:
		if err := known(roots[strings.TrimPrefix(name, ".bin/")](), args); err != nil {
			t.Errorf("%s: %s %s: %v", document, name, strings.Join(args, " "), err)
		}
	case name == "make" && len(args) > 0:
		if !targets[args[0]] {
			t.Errorf("%s: make %s: the Makefile has no such target", document, args[0])
		}
	case len(args) == 0 && slices.ContainsFunc(top, func(e fs.DirEntry) bool {
		return e.IsDir() && e.Name() != ".shop" && strings.HasPrefix(name, e.Name()+"/")
	}): // .shop is there while something runs
		if found, err := filepath.Glob("../" + strings.TrimSuffix(name, "/") + "*"); err != nil || found == nil { // docs/adr/0006 is one
			t.Errorf("%s names %s, which does not exist", document, name)
		}
	default:
		return 0
	}
	return 1
}

// roots are the commands that people type, by name.
var roots = map[string]func() *cobra.Command{"shop": command.Root, "shopdev": devcommand.Root, "shopbench": benchcommand.Root}

// known says whether a command has such a subcommand, with such flags.
func known(root *cobra.Command, args []string) error {
	cmd, rest, err := root.Find(args)
	if err != nil {
		return err
	}
	if err := cmd.ParseFlags(rest); err != nil && !errors.Is(err, pflag.ErrHelp) {
		return err
	}
	if cmd.HasSubCommands() && cmd.Flags().NArg() > 0 && cmd.Flags().Arg(0) != "…" {
		return fmt.Errorf("there is no %s %s", cmd.CommandPath(), cmd.Flags().Arg(0))
	}
	return nil
}

// callsIn are the commands of a script that are simple ones, each with its arguments as they stand there, unquoted.
func callsIn(script string) (calls [][]string, err error) {
	file, err := syntax.NewParser().Parse(strings.NewReader(script), "")
	if err != nil {
		return nil, err
	}
	syntax.Walk(file, func(node syntax.Node) bool {
		if call, ok := node.(*syntax.CallExpr); ok && len(call.Args) > 0 {
			var words []string
			for _, arg := range call.Args {
				words = append(words, strings.NewReplacer("'", "", `"`, "").Replace(script[arg.Pos().Offset():arg.End().Offset()]))
			}
			calls = append(calls, words)
		}
		return true
	})
	return calls, nil
}

// An interactive zsh knows no comments: `make demo # …` was given the words of one as targets, and an apostrophe in one begins a string.
func TestDocuments_NoBlockOfCommandsHasAComment(t *testing.T) {
	t.Parallel()
	for document, text := range documents(t) {
		for _, b := range blocksOf(document, text) {
			file, err := syntax.NewParser(syntax.KeepComments(true)).Parse(strings.NewReader(b.text), "")
			if err != nil || !b.shell() {
				continue // what does not parse, another test finds
			}
			syntax.Walk(file, func(node syntax.Node) bool {
				if comment, ok := node.(*syntax.Comment); ok {
					t.Errorf("%s: say it outside the block: #%s", b, comment.Text)
				}
				return true
			})
		}
	}
}

// zsh takes an address with a question mark that is not quoted for a pattern, and refuses it: no matches found. In $WEBHOOK:test it
// takes :t for a modifier.
func TestDocuments_NoAddressIsAPatternOfAShell(t *testing.T) {
	t.Parallel()
	calls := 0
	for document, text := range documents(t) {
		scripts := map[string]bool{}
		for _, b := range blocksOf(document, text) {
			scripts[b.text] = scripts[b.text] || b.shell()
		}
		for _, m := range inline.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
			scripts[m[1]] = true
		}
		for script, isShell := range scripts {
			file, err := syntax.NewParser().Parse(strings.NewReader(script), "")
			if err != nil || !isShell {
				continue // what does not parse in a block, another test finds
			}
			syntax.Walk(file, func(node syntax.Node) bool {
				parts := []syntax.WordPart(nil)
				switch node := node.(type) {
				case *syntax.Word:
					parts = node.Parts
				case *syntax.DblQuoted:
					parts = node.Parts
				}
				for i := 1; i < len(parts); i++ {
					literal, _ := parts[i].(*syntax.Lit)
					if parameter, ok := parts[i-1].(*syntax.ParamExp); ok && parameter.Short && literal != nil && modifier.MatchString(literal.Value) {
						t.Errorf("%s: write ${%s}%s", document, parameter.Param.Value, literal.Value)
					}
				}
				call, ok := node.(*syntax.CallExpr)
				if !ok || len(call.Args) == 0 || call.Args[0].Lit() != "curl" {
					return true
				}
				calls++
				for _, word := range call.Args {
					for _, part := range word.Parts {
						if literal, ok := part.(*syntax.Lit); ok && strings.ContainsAny(literal.Value, "?*[") {
							t.Errorf("%s: quote %s", document, script[word.Pos().Offset():word.End().Offset()])
						}
					}
				}
				return true
			})
		}
	}
	if calls < 50 {
		t.Errorf("%d calls were found", calls)
	}
}

func TestDocuments_TheirCommandsDoWhatTheySay(t *testing.T) {
	t.Parallel()
	tools := shellTools(t)
	for document, text := range documents(t) {
		var blocks []block
		for _, b := range blocksOf(document, text) {
			if b.shell() && b.tag != example && b.rest == "" {
				blocks = append(blocks, b)
			}
		}
		if len(blocks) == 0 {
			continue
		}
		t.Run(document, func(t *testing.T) {
			t.Parallel()
			s := startForReaders(t)
			id := strings.TrimPrefix(s.place(t, 5, 1), "/v1/orders/")
			s.decided(t, "/v1/orders/"+id)
			sh := &terminal{dir: workspace(t), address: s.Gateway.HTTPAddr(), env: slices.Concat(tools, []string{"TOKEN=" + operatorToken,
				"SHOP_OPERATOR_TOKEN=" + operatorToken, "SHOP_SERVER=" + s.Gateway.HTTPAddr(), "ID=" + id, "ORDER=" + id})}
			for _, b := range blocks {
				sh.do(t, b)
			}
		})
	}
}

// startForReaders starts a shop in which something happens all the time, and in which 16 messages could not be handled.
func startForReaders(t *testing.T) *shop {
	t.Helper()
	s := start(t)
	ch := s.confirming(t)
	const letters = 16
	for range letters {
		s.send(t, ch, "shop.topic", "shop.order.placed", amqp.Publishing{Body: []byte("garbage"), MessageId: uuid.NewString()})
	}
	s.open(t, letters)
	keepRunning(t, func(ctx context.Context) error {
		tick := time.NewTicker(300 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
			res, err := http.Post(s.url+"/v1/orders", "application/json", strings.NewReader(
				`{"customer_name":"Ada","customer_email":"ada@example.org","order_items":[{"product_id":2,"quantity":1}]}`))
			if err != nil {
				return fmt.Errorf("placing an order: %w", err)
			}
			_ = res.Body.Close()
		}
	})
	return s
}

// terminal executes blocks of one document.
type terminal struct {
	dir     string
	address string // of the gateway
	env     []string
}

// do executes a block, which must succeed.
func (sh *terminal) do(t *testing.T, b block) {
	t.Helper()
	if out, err := sh.try(t, b); err != nil {
		t.Errorf("%s: %v\n%s", b, err, out)
	}
}

// try executes a block.
func (sh *terminal) try(t *testing.T, b block) (out []byte, err error) {
	t.Helper()
	text := strings.NewReplacer("localhost:3000", sh.address, ".bin/", "").Replace(b.text)
	if b.tag == watched {
		file, err := syntax.NewParser().Parse(strings.NewReader(text), b.String())
		if err != nil {
			t.Fatal(err)
		}
		for _, command := range file.Stmts {
			sh.watch(t, b, text[command.Pos().Offset():command.End().Offset()])
		}
		return nil, nil
	}
	// Variables are kept from block to block in a file. In examples a call that is refused is a failure; what operators copy into
	// scripts has to say so itself.
	refused := ""
	if b.rest == "" {
		refused = `curl() { command curl --fail-with-body "$@"; }`
	}
	script := `set -Eeu
` + refused + `
[ ! -f .variables ] || . ./.variables
trap 'echo "this failed: $BASH_COMMAND" >&2' ERR
` + text + `
declare -p | grep -E '^declare -(x|-) (ID|ORDER)=' > .variables || true
`
	ctx, cancel := context.WithTimeout(t.Context(), 2*testTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-c", script)
	cmd.Dir, cmd.Env = sh.dir, sh.env
	return cmd.CombinedOutput()
}

// watch runs a command that may not end by itself until it has printed something, and a little longer. If it ends by itself
// it must succeed.
func (sh *terminal) watch(t *testing.T, b block, command string) {
	t.Helper()
	script := "[ ! -f .variables ] || . ./.variables\nexec " + command
	cmd := exec.Command("bash", "-c", script)
	cmd.Dir, cmd.Env = sh.dir, sh.env
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	end := sync.OnceFunc(func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
	stuck := time.AfterFunc(testTimeout, end)
	defer stuck.Stop()
	lines := bufio.NewReader(out)
	first, err := lines.ReadString('\n')
	if err != nil {
		end()
		t.Errorf("%s: %s said nothing: %v %v\n%s", b, command, err, cmd.Wait(), errs.Bytes())
		return
	}
	enough := time.AfterFunc(time.Second, end)
	defer enough.Stop()
	rest, _ := io.ReadAll(lines)
	if err := cmd.Wait(); err != nil && cmd.ProcessState.ExitCode() != -1 { // -1: ended by us
		t.Errorf("%s: %s: %v\n%s%s%s", b, command, err, first, rest, errs.Bytes())
	}
}

// shellTools returns the environment for blocks, with shop, grpcurl and PostgreSQL's programs on the path.
func shellTools(t *testing.T) []string {
	t.Helper()
	programs, bin := mustBinaries(t), t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(bin, "grpcurl"), "tool")
	build.Dir, build.Env = "../tools/grpcurl", append(os.Environ(), "GOWORK=off", "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building grpcurl: %v\n%s", err, out)
	}
	path := strings.Join([]string{bin, programs, filepath.Dir(postgresProgram(t, "pg_restore")), os.Getenv("PATH")}, ":")
	return append(os.Environ(), "PATH="+path)
}

// workspace is a folder that looks like the root of the project and can be written to.
func workspace(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".") {
			if err := os.Symlink(filepath.Join(root, e.Name()), filepath.Join(dir, e.Name())); err != nil {
				t.Fatal(err)
			}
		}
	}
	return dir
}
