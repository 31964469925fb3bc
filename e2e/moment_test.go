package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// The commands in docs/operations.md for base backups with their log: what was decided up to a moment is there again, what was decided
// later is lost with the books of all services, and decided again, once, for whoever repeats the call.
func TestOperations_RestoresToAMomentAsDocumented(t *testing.T) {
	t.Parallel()
	own := newServers(t)
	backups, owner := t.TempDir(), ownerOf(t, own.data())
	handOver(t, backups, owner)
	shell := append(shellTools(t), "SERVER_URL="+own.database, "BACKUPS="+backups, "PGDATA="+own.data())
	run := scenesOf(t, "docs/operations.md", shell)
	bases := func() []string {
		found, err := filepath.Glob(filepath.Join(backups, "base-*")) // sorted by time
		if err != nil || len(found) == 0 {
			t.Fatalf("%d base backups, %v", len(found), err)
		}
		return found
	}
	restore := func(moment string, env ...string) {
		t.Helper()
		own.stopDatabase(t)
		if err := os.Rename(own.data(), fmt.Sprint(own.data(), ".lost ", moment, env)); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(own.data(), 0o700); err != nil { // as a volume is there already
			t.Fatal(err)
		}
		all := bases()
		scenesOf(t, "docs/operations.md", slices.Concat(shell, env, []string{"MOMENT=" + moment, "BASE=" + all[len(all)-1]}))("restore-moment")
		handOver(t, own.data(), owner)
		own.start(t)
	}
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
	// The second night. What is old is removed then, and what a restore needs is not.
	run("base-backup")
	old, oldLog := bases()[0], filepath.Join(backups, "log", "000000010000000000000000")
	if err := os.WriteFile(oldLog, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, days := range map[string]time.Duration{old: 16, oldLog: 17} {
		at := time.Now().Add(-days * 24 * time.Hour)
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Rename(old, filepath.Join(backups, "base-2026-01-01T000000Z")); err != nil { // the name is of the second
		t.Fatal(err)
	}
	run("base-backup")
	if all := bases(); len(all) != 1 {
		t.Errorf("base backups are %v", all)
	}
	if _, err := os.Stat(oldLog); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("old log is there still: %v", err)
	}
	kept := f.keyed(t, "before the moment")
	f.decided(t, kept)
	f.settled(t)
	stored()
	now := func() string { return texts(t, f.openDatabase(t), "SELECT clock_timestamp()::text")[0] }
	moment := now()
	lost := f.keyed(t, "after the moment")
	f.decided(t, lost)
	f.settled(t)
	stored()
	later := now()
	f.decided(t, f.keyed(t, "after the later moment"))
	f.settled(t)
	stored()
	run("close-log")
	for _, name := range services[1:] {
		f.replicas[name][0].term(t)
	}
	waited := f.keyed(t, "while the database was away")

	restore(moment)
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

	// It was the wrong moment. What was decided between the two is on the timeline that the first restore left.
	restore(later, "TIMELINE=current")
	f.up(t)
	for _, location := range []string{first, kept, lost} {
		f.decided(t, location)
	}
	f.decides(t, 3)
	if again := f.keyed(t, "while the database was away"); again != waited {
		t.Errorf("the order was %s, and is %s", waited, again)
	}
	f.comesToRest(t, 4)

	// With everything there is, after which nothing was committed.
	run("close-log")
	restore("")
	f.up(t)
	for _, location := range []string{first, kept, waited, lost} {
		if o := f.decided(t, location); o.State != "CONFIRMED" {
			t.Errorf("with everything restored, order %s is %s", o.ID, o.State)
		}
	}
	f.comesToRest(t, 4)
}

// A file that was archived just before the server stopped is archived again by the next one, which failed for ever, and one that was
// interrupted has left a part.
func TestOperations_ArchivingGoesOnAfterItWasInterrupted(t *testing.T) {
	t.Parallel()
	own := newServers(t)
	backups, owner := t.TempDir(), ownerOf(t, own.data())
	run := scenesOf(t, "docs/operations.md", append(shellTools(t), "SERVER_URL="+own.database, "BACKUPS="+backups))
	run("archive")
	handOver(t, backups, owner)
	own.stopDatabase(t)
	own.start(t)
	db := (&shop{database: own.database}).openDatabase(t)
	// archived waits until what the server writes now is archived, and returns the file's name.
	archived := func() string {
		t.Helper()
		name := texts(t, db, "SELECT pg_walfile_name(pg_current_wal_insert_lsn())")[0]
		texts(t, db, "SELECT pg_logical_emit_message(true, 'test', 'something to archive')::text")
		run("close-log")
		eventually(t, func() error {
			last := texts(t, db, "SELECT format('%s, %s failed: %s', coalesce(last_archived_wal, ''), failed_count, last_failed_wal) FROM pg_stat_archiver")[0]
			if last < name {
				return fmt.Errorf("%s is not archived, the last is %s", name, last)
			}
			return nil
		})
		return name
	}
	status := filepath.Join(own.data(), "pg_wal", "archive_status", archived())
	if err := os.Rename(status+".done", status+".ready"); err != nil {
		t.Fatal(err)
	}
	part := filepath.Join(backups, "log", texts(t, db, "SELECT pg_walfile_name(pg_current_wal_insert_lsn())")[0]+".part")
	if err := os.WriteFile(part, []byte("half of it"), 0o600); err != nil {
		t.Fatal(err)
	}
	handOver(t, backups, owner)
	last := archived()
	if _, err := os.Stat(part); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the part is there still: %v", err)
	}
	for _, name := range []string{filepath.Base(status), last} {
		if info, err := os.Stat(filepath.Join(backups, "log", name)); err != nil || info.Size() != 16<<20 {
			t.Errorf("%s in the archive: %v, %v", name, info, err)
		}
	}
	if failed := texts(t, db, "SELECT failed_count::text FROM pg_stat_archiver")[0]; failed != "0" {
		t.Errorf("the command has failed %s times", failed)
	}
}
