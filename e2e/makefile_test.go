package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// makes returns what make prints in the folder.
func makes(ctx context.Context, dir string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "make", args...)
	cmd.Dir = dir
	cmd.Env = slices.DeleteFunc(cmd.Environ(), func(v string) bool { // those of a make that runs this test
		return strings.HasPrefix(v, "MAKE") || strings.HasPrefix(v, "MFLAGS=")
	})
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// Make 3.81, which macOS has, does not know .SHELLFLAGS: tests failed, and make unit was green.
func TestMakefile_AnOldMakeIsRefused(t *testing.T) {
	t.Parallel()
	out, err := makes(t.Context(), "..", ".FEATURES=target-specific order-only", "MAKE_VERSION=3.81", "help")
	if want := "This is make 3.81, and GNU make 4.3 or newer is needed"; err == nil || !strings.Contains(out, want) {
		t.Errorf("got %v, want %q:\n%s", err, want, out)
	}
}

// gnu is what the tar, sed and coreutils of macOS do not have.
var gnu = regexp.MustCompile(`\btar (-\S+ )*--(files-from|ignore|create|extract|directory|transform|sort)|\bsed -i |\brealpath |\breadlink -f|\bstat -c|\bdate -d|\bgrep -\w*P|(&&|xargs) sha256sum`)

// make contracts, tidy and removable ended on macOS, where the rest works: illegal option, command c expects \ followed by text.
func TestMakefile_WhatItCallsIsOnMacOSToo(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if found := gnu.FindString(line); found != "" {
			t.Errorf("%q is GNU's alone: %s", found, line)
		}
	}
}

// In RUN='^TestA$|^TestB$' make took $| for a variable of its own: no test ran, and all was green.
func TestMakefile_WhatUsersGiveReachesTheCommandAsItIs(t *testing.T) {
	t.Parallel()
	const given = `^TestA$|^Test'B$`
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"t", "PKG=./a$b/...", "RUN=" + given, "ARGS=-skip '^C$|^D$'"}, `-run '^TestA$|^Test'\''B$' -skip '^C$|^D$' ./a$b/...`},
		{[]string{"unit", "ARGS=-run '^C$|^D$'"}, `-run '^C$|^D$'`},
		{[]string{"generate", "BECAUSE=it costs $5"}, `-because 'it costs $5'`},
		{[]string{"benchstat", "BENCHMARKS=" + given}, `-bench '^TestA$|^Test'\''B$'`},
		{[]string{"gate", "GATE=--only '^C$'"}, `--only '^C$'`},
	} {
		if out, err := makes(t.Context(), "..", append([]string{"-n"}, c.args...)...); err != nil || !strings.Contains(out, c.want) {
			t.Errorf("make %q: %v, %s is not in it:\n%s", c.args, err, c.want, out)
		}
	}
}

// In a clone whose path has a space, or leads through a symbolic link, make named folders that do not exist.
func TestMakefile_TheModulesAreFoundWhateverThePathOfTheCloneIs(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	spaced, link := filepath.Join(base, "my shop"), filepath.Join(base, "link")
	files, err := filepath.Glob("../*/go.mod")
	inner, innerErr := filepath.Glob("../*/*/go.mod")
	if err != nil || innerErr != nil {
		t.Fatal(err, innerErr)
	}
	files = slices.DeleteFunc(append(files, inner...), func(file string) bool { return strings.HasPrefix(file, "../tools/") })
	for _, file := range append(files, "../go.work", "../Makefile") {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		there := filepath.Join(spaced, strings.TrimPrefix(file, "../"))
		if err := os.MkdirAll(filepath.Dir(there), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(there, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(spaced, link); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{spaced, link} {
		out, err := makes(t.Context(), dir, "-n", "unit")
		if err != nil || strings.Contains(out, base) || !strings.Contains(out, " ./services/order/... ") || strings.Count(out, "/... ") != len(files) {
			t.Errorf("in %s: %v\n%s", dir, err, out)
		}
		// The path of a tool is one word.
		tool := filepath.Join(spaced, "tools", "buf")
		if err := os.MkdirAll(tool, 0o755); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"go.mod", "go.sum"} {
			if err := os.WriteFile(filepath.Join(tool, name), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if out, err := makes(t.Context(), dir, "-n", ".bin/buf"); err != nil || !strings.Contains(out, `/.bin/buf" tool`) {
			t.Errorf("in %s: %v\n%s", dir, err, out)
		}
	}
}

// With links to an installed Prometheus, make renewed the times of files in /usr/bin, which only root may.
func TestMakefile_AnInstalledPrometheusIsNotTouched(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	installed := filepath.Join(base, "in stalled")
	script, err := os.ReadFile("../tools/prometheus.sh")
	if err != nil {
		t.Fatal(err)
	}
	for path, text := range map[string]string{
		filepath.Join(base, "tools", "prometheus.sh"): string(script),
		filepath.Join(installed, "promtool"):          "#!/bin/sh\necho promtool \"$@\"\n",
		filepath.Join(installed, "prometheus"):        "#!/bin/sh\necho prometheus \"$@\"\n",
	} {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil { //nolint:gosec // programs
			t.Fatal(err)
		}
	}
	for _, again := range []bool{false, true} {
		cmd := exec.CommandContext(t.Context(), "bash", filepath.Join(base, "tools", "prometheus.sh"))
		cmd.Env = append(os.Environ(), "PATH="+installed+":"+os.Getenv("PATH"))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("again %t: %v: %s", again, err, out)
		}
		for _, program := range []string{"promtool", "prometheus"} {
			path := filepath.Join(base, ".bin", program)
			if info, err := os.Lstat(path); err != nil || !info.Mode().IsRegular() {
				t.Errorf("%s: %v, want a file of its own", path, err)
			}
			out, err := exec.CommandContext(t.Context(), path, "--a", "b c").Output()
			if want := program + " --a b c\n"; err != nil || string(out) != want {
				t.Errorf("%s: %q, %v, want %q", path, out, err, want)
			}
		}
	}
}

// Ubuntu has no package chromium: apt-get refused the others with it, and make test ended there.
func TestSetup_WithoutAPackageOfChromiumTheOthersAreInstalled(t *testing.T) {
	t.Parallel()
	bin := t.TempDir()
	for _, name := range []string{"bash", "env", "grep"} {
		path, err := exec.LookPath(name)
		if err == nil {
			err = os.Symlink(path, filepath.Join(bin, name))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, script := range map[string]string{
		"git": "true", "curl": "true",
		"sudo":      `shift; exec "$@"`,
		"apt-get":   `echo "$@" >>"$0.said"`,
		"apt-cache": `[ "$2" = chromium ] || echo '  Candidate: 1.0'`,
	} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!"+bin+"/bash\n"+script+"\n"), 0o755); err != nil { //nolint:gosec // programs
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), filepath.Join(bin, "bash"), "../tools/setup.sh")
	cmd.Env = []string{"PATH=" + bin}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "install Google Chrome") {
		t.Errorf("%v: %s", err, out)
	}
	said, err := os.ReadFile(filepath.Join(bin, "apt-get.said"))
	if err != nil || !strings.HasSuffix(string(said), " --no-install-recommends gcc libc6-dev\n") {
		t.Errorf("apt-get got %v:\n%s", err, said)
	}
}

// `make kube` placed its order in the shop of SHOP_SERVER, or of this machine, and reported success.
func TestKube_WithoutAWayToTheGatewayNoOrderIsPlaced(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	script, err := os.ReadFile("../deploy/kubernetes/try/order.sh")
	if err != nil {
		t.Fatal(err)
	}
	for path, text := range map[string]string{
		"order.sh":         string(script),
		"secrets/shop.env": "SHOP_OPERATOR_TOKENS=ada:token\n",
		"bin/kubectl":      "#!/bin/sh\necho 'Error from server (NotFound): services \"gateway\" not found' >&2\nexit 1\n",
		"bin/shop":         "#!/bin/sh\necho CONFIRMED by another shop: \"$@\"\n",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(base, path)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(base, path), []byte(text), 0o755); err != nil { //nolint:gosec // programs
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), "bash", filepath.Join(base, "order.sh"), filepath.Join(base, "bin", "shop"))
	cmd.Env = append(os.Environ(), "PATH="+filepath.Join(base, "bin")+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	if err == nil || strings.Contains(string(out), "CONFIRMED") || !strings.Contains(string(out), "not found") || !strings.Contains(string(out), "no order was placed") {
		t.Errorf("%v: %s", err, out)
	}
}
