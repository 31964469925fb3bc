package e2e

import (
	"os"
	"testing"
)

// The commands in docs/operations.md for base backups with their log: what was decided up to a moment is there again, what was decided
// later is lost with the books of all services, and decided again, once, for whoever repeats the call.
func TestOperations_RestoresToAMomentAsDocumented(t *testing.T) {
	t.Parallel()
	own := newServers(t)
	backups, owner := t.TempDir(), ownerOf(t, own.data())
	handOver(t, backups, owner)
	env := append(shellTools(t), "SERVER_URL="+own.database, "BACKUPS="+backups, "PGDATA="+own.data())
	run := scenesOf(t, "docs/operations.md", env)
	run("archive")
	handOver(t, backups, owner)
	own.stopDatabase(t)
	own.start(t)

	f := newDeployment(t, deploymentOptions{own: own})
	f.up(t)
	ch := f.openChannel(t)
	stored := func() { eventually(t, func() error { return emptyQueues(t, ch) }) }
	first := f.keyed(t, "before the backup")
	f.decided(t, first)
	run("base-backup")
	kept := f.keyed(t, "before the moment")
	f.decided(t, kept)
	f.settled(t)
	stored()
	moment := texts(t, f.openDatabase(t), "SELECT clock_timestamp()::text")[0]
	lost := f.keyed(t, "after the moment")
	f.decided(t, lost)
	f.settled(t)
	stored()
	run("close-log")
	for _, name := range services[1:] {
		f.replicas[name][0].term(t)
	}
	waited := f.keyed(t, "while the database was away")

	own.stopDatabase(t)
	if err := os.Rename(own.data(), own.data()+".lost"); err != nil {
		t.Fatal(err)
	}
	scenesOf(t, "docs/operations.md", append(env, "MOMENT="+moment))("restore-moment")
	handOver(t, own.data(), owner)
	own.start(t)
	for _, name := range []string{"inventory", "order", "logging", "webhooks"} {
		f.replicas[name][0].start(t)
		f.replicas[name][0].waitReady(t)
	}
	f.decides(t, 3) // and not the one after the moment
	for _, location := range []string{first, kept, waited} {
		f.decided(t, location)
	}
	for range 2 {
		if again := f.keyed(t, "after the moment"); again != lost {
			t.Errorf("the order was %s, and is %s", lost, again)
		}
		if o := f.decided(t, lost); o.State != "CONFIRMED" {
			t.Errorf("order %s is %s after it was placed again", o.ID, o.State)
		}
	}
	f.comesToRest(t, 4)
}
