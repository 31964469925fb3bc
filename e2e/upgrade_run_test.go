//go:build upgrade

package e2e

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"shop.example/platform/messaging/provision"
	"shop.example/platform/testkit/brokertest"
	"shop.example/topology"
)

// firstRelease stands for the release before this one as long as there is no tag.
const firstRelease = "60e6876f34e871abd7432b010843550010a6c57f"

// What docs/upgrading.md says, under load: broker and database first, then each replica, in an order that is drawn. Until the
// last one those of the release before are at work on the same schema and the same queues, and some of them come back.
// UPGRADE_FROM names another commit to begin with.
func TestUpgrade_ReplicasOfTwoReleasesSideBySideLoseNothing(t *testing.T) {
	t.Parallel()
	this, before := mustBinaries(t), olderBinaries(t)
	own := newServers(t)
	f := newDeployment(t, deploymentOptions{replicas: map[string]int{"gateway": 2, "order": 2, "inventory": 2, "logging": 2, "webhooks": 2}})
	f.broker, f.amqp, f.database = &brokertest.Broker{URL: own.amqp}, usersOfRelease(t, own, filepath.Dir(before)), own.makeDatabase(t)
	f.servers(t, own.amqp, f.database)
	f.each(func(r *replica, name string) { r.binary = filepath.Join(before, name) })
	all := maps.Clone(f.replicas)
	added := f.without(t, before)
	f.up(t)
	tr := f.traffic(t, f.unlimitedStock(t), answerLimit, f.gateways()...)
	tr.flows(t, 50)

	run := scenesOf(t, "docs/upgrading.md", append(toolsOf(t, own), "AMQP_MANAGEMENT_URL="+own.management, "DATABASE_URL="+f.database,
		"WEBHOOKS_AMQP_PASSWORD="+passwordOf(t, f.amqp["webhooks"])))
	run("upgrade")
	tr.flows(t, 50)
	for name := range f.replicas { // one of the release before that starts now finds a schema that it does not know
		f.replicas[name][0].end(syscall.SIGKILL)
		f.replicas[name][0].start(t)
		f.replicas[name][0].waitReady(t)
	}
	tr.flows(t, 50)

	seed := rand.Uint64() //nolint:gosec // no secret
	t.Logf("the order is that of seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // it is to be repeatable
	maps.Copy(f.replicas, added)
	replace := func(names []string, i int, dir string) {
		random.Shuffle(len(names), func(a, b int) { names[a], names[b] = names[b], names[a] })
		for _, name := range names {
			r := all[name][i]
			if r.running() {
				r.term(t)
			}
			if r.binary = filepath.Join(dir, name); !exists(r.binary) {
				continue // the release before does not have it
			}
			r.start(t)
			r.waitReady(t)
			tr.flows(t, 10)
		}
	}
	names := topology.Names()
	replace(names, 0, this)
	replace(names, 0, before)
	replace(names, 0, this)
	replace(names, 1, this)
	run("upgrade-check")

	refusedBefore, _ := tr.figures()
	own.stopDatabase(t)
	tr.flows(t, 50)
	own.start(t)
	f.ready(t)
	tr.flows(t, 50)
	if refused, _ := tr.figures(); !maps.Equal(refused, refusedBefore) {
		t.Errorf("orders were refused while the database restarted: %v, before %v", refused, refusedBefore)
	}
	run("upgrade-broker")
	own.stopBrokers(t, 0)
	own.start(t)
	run("upgrade-broker-next")
	tr.flows(t, 50)

	f.usedUpNoAttempt(t)
	f.comesToRest(t, tr.end(t))
	tr.isDecided(t, &f.shop)
}

// usersOfRelease makes the users of the services on a broker, with the rights of the release whose files are in dir, and of
// those that this release adds the names alone. It returns the URLs with them.
func usersOfRelease(t *testing.T, s *servers, dir string) map[string]string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "topology", "definitions.json"))
	if older, _ := filepath.Glob(filepath.Join(dir, "platform", "*", "*", "definitions.json")); len(files) == 0 {
		files = older // where the first release has it
	}
	if err != nil || len(files) != 1 {
		t.Fatalf("what the release before has on the broker is in the files %q, %v", files, err)
	}
	definitions, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	urls := map[string]string{}
	for _, name := range topology.Names() {
		login := provision.Login{User: name, Password: "password-of-" + name}
		if urls[name], err = login.URL(s.amqp); err != nil {
			t.Fatal(err)
		}
		if !regexp.MustCompile(`"user": ?"` + name + `"`).Match(definitions) {
			continue
		}
		user := fmt.Sprintf(`{"password": %q, "tags": ""}`, login.Password)
		if _, err := provision.Call(t.Context(), "PUT", s.management+"/api/users/"+name, []byte(user)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := provision.Call(t.Context(), "POST", s.management+"/api/definitions", definitions); err != nil {
		t.Fatal(err)
	}
	return urls
}

// toolsOf is the environment of a shell that has the shop's programs, and RabbitMQ's for the broker of s.
func toolsOf(t *testing.T, s *servers) []string {
	t.Helper()
	return append(os.Environ(), "PATH="+s.brokerTools(t, 0)+":"+filepath.Dir(s.program)+":"+os.Getenv("PATH"))
}

// without takes the services out of the deployment that a release, whose binaries are in dir, does not have, and returns them.
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
