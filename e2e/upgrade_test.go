package e2e

import (
	"cmp"
	"errors"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"shop.example/db"
	"shop.example/platform/testkit/postgrestest"
)

// firstRelease stands for the release before this one as long as there is no tag.
const firstRelease = "60e6876f34e871abd7432b010843550010a6c57f"

// Migrations first, then each replica: until the last one, those of the release before are at work on the same schema and
// the same queues. UPGRADE_FROM names another commit to begin with.
func TestUpgrade_ReplicasOfTwoReleasesSideBySideLoseNothing(t *testing.T) {
	t.Parallel()
	this := mustBinaries(t)
	before := olderBinaries(t)
	f := newDeployment(t, deploymentOptions{replicas: map[string]int{"gateway": 2, "order": 2, "inventory": 2, "logging": 2, "webhooks": 2}})
	f.database = postgrestest.NewEmpty(t)
	f.servers(t, f.broker.URL, f.database)
	f.each(func(r *replica, name string) { r.binary = filepath.Join(before, name) })
	added := f.without(t, before)
	f.up(t)
	tr := f.traffic(t, f.unlimitedStock(t), answerLimit, f.gateways()...)
	tr.flows(t, 50)

	err := db.MigrateAll(t.Context(), f.database, func(schema string, files []string) { t.Logf("%s: applied %v", schema, files) })
	if err != nil {
		t.Fatal(err)
	}
	tr.flows(t, 50)
	for name := range f.replicas { // one of the release before that starts now finds a schema that it does not know
		f.replicas[name][0].end(syscall.SIGKILL)
		f.replicas[name][0].start(t)
		f.replicas[name][0].waitReady(t)
	}
	tr.flows(t, 50)

	maps.Copy(f.replicas, added)
	for i := range 2 {
		for _, name := range []string{"logging", "inventory", "order", "webhooks", "gateway"} { // as docs/operations.md says
			r := f.replicas[name][i]
			if r.running() {
				r.term(t)
			}
			r.binary = filepath.Join(this, name)
			r.start(t)
			r.waitReady(t)
			tr.flows(t, 20)
		}
	}

	f.usedUpNoAttempt(t)
	f.comesToRest(t, tr.end(t))
	tr.isDecided(t, &f.shop)
}

// without removes from the deployment the services that the release with the binaries in dir does not have, and returns
// them.
func (f *deployment) without(t *testing.T, dir string) map[string][]*replica {
	t.Helper()
	added := map[string][]*replica{}
	for name, replicas := range f.replicas {
		if _, err := os.Stat(filepath.Join(dir, name)); errors.Is(err, fs.ErrNotExist) {
			added[name] = replicas
			delete(f.replicas, name)
		}
	}
	return added
}

func (f *deployment) each(do func(r *replica, service string)) {
	for name, replicas := range f.replicas {
		for _, r := range replicas {
			do(r, name)
		}
	}
}

// mustBinaries returns the folder of the services. Whoever needs it starts processes, and so is skipped in short mode.
func mustBinaries(t *testing.T) string {
	t.Helper()
	if testing.Short() {
		t.Skip("starts the services")
	}
	dir, err := binaries()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// olderBinaries builds the services of the release before this one and returns the folder that they are in.
func olderBinaries(t *testing.T) string {
	t.Helper()
	commit := cmp.Or(os.Getenv("UPGRADE_FROM"), newestTag(t), firstRelease)
	if _, err := git("cat-file", "-e", commit+"^{commit}"); err != nil { // a shallow clone
		if said, err := git("fetch", "--quiet", "--depth=1", "origin", commit); err != nil {
			t.Fatalf("commit %s, the release to upgrade from, is neither in this clone nor at its origin: "+
				"git fetch --unshallow, or name another one in UPGRADE_FROM\n%v: %s", commit, err, said)
		}
	}
	dir := t.TempDir()
	archive := exec.Command("git", "archive", "--output", filepath.Join(dir, "archive.tar"), commit)
	archive.Dir = ".." // all of it, not this folder
	for _, cmd := range []*exec.Cmd{archive, exec.Command("tar", "-x", "-C", dir, "-f", filepath.Join(dir, "archive.tar"))} {
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("unpacking commit %s: %s: %v\n%s", commit, cmd.Path, err, out)
		}
	}
	bin := filepath.Join(dir, ".bin")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", bin+"/", "./gateway")
	built, err := filepath.Glob(filepath.Join(dir, "services", "*"))
	if err != nil {
		t.Fatal(err)
	}
	build.Args = append(build.Args, built...)
	build.Dir, build.Env = dir, append(os.Environ(), "CGO_ENABLED=0", "GOWORK=", "GOFLAGS=")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building commit %s: %v\n%s", commit, err, out)
	}
	t.Logf("the release before this one is %s", commit)
	return bin
}

// newestTag is the newest release that this commit follows, "" if there is none.
func newestTag(t *testing.T) string {
	t.Helper()
	tags, err := git("tag", "--merged", "HEAD", "--no-contains", "HEAD", "--sort=-version:refname", "--list", "v*")
	if err != nil {
		t.Fatalf("listing the releases: %v: %s", err, tags)
	}
	newest, _, _ := strings.Cut(tags, "\n")
	return newest
}

func git(args ...string) (said string, err error) {
	cmd := exec.Command("git", args...)
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}
