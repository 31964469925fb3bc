//go:build guides

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Each guide is followed exactly, in a copy of the project.
func TestGuides_LeadToAProjectThatBuildsAndPasses(t *testing.T) {
	for _, g := range guides(t) {
		t.Run(g.title, func(t *testing.T) {
			dir := copyOfTheProject(t)
			changed, err := g.apply(dir)
			if err != nil {
				t.Fatal(err)
			}
			for path, text := range changed {
				if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, path)), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(dir, path), []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			for _, commands := range g.commands {
				cmd := exec.CommandContext(t.Context(), "bash", "-xeuo", "pipefail", "-c", commands)
				cmd.Dir = dir
				cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
				if err := cmd.Run(); err != nil {
					t.Fatalf("%s: %v", g.title, err)
				}
			}
		})
	}
}

// copyOfTheProject copies the files that git knows or would add, and the tools that are built, with their times, so that
// make does not build them again.
func copyOfTheProject(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "bash", "-euo", "pipefail", "-c",
		`git ls-files -z --cached --others --exclude-standard | xargs -0 cp -a --parents -t "$0"; [ ! -d .bin ] || cp -a .bin "$0"; git init -q "$0"`, dir)
	cmd.Dir = ".."
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("copying the project: %v\n%s", err, out)
	}
	return dir
}
