package stack

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

func TestStart_ContainersKeepTheirDataUntilDown(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts containers")
	}
	h := ours()
	for _, k := range []kind{postgresKind, rabbitKind} {
		if _, err := h.run(t.Context(), "docker", "image", "inspect", k.image); err != nil {
			t.Skipf("Docker is not here or has no %s", k.image)
		}
	}
	h.path, h.postgresFolders, h.rabbitMQFolders, h.erlangFolders = "", nil, nil, nil
	dir := filepath.Join(t.TempDir(), "stack")
	s, progress := startHere(t, dir, h)
	if strings.Count(progress, "in a container") != 2 {
		t.Errorf("progress: %s", progress)
	}
	if s.PostgresPID == 0 || s.RabbitMQPID == 0 {
		t.Errorf("PIDs %d and %d", s.PostgresPID, s.RabbitMQPID)
	}
	query(t, s, "CREATE TABLE kept (v text); INSERT INTO kept VALUES ('row') RETURNING v")
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	// The data decides, even if servers have been installed since.
	again, _ := startHere(t, dir, ours())
	if got := query(t, again, "SELECT v FROM kept"); got != "row" {
		t.Errorf("the row after a stop: got %q, want row", got)
	}
	if policies := broker(t, again, http.MethodGet, "/api/policies", ""); strings.Count(policies, `"work-queues"`) != 1 {
		t.Errorf("policies: %s", policies)
	}
	if err := again.Remove(); err != nil {
		t.Fatal(err)
	}
	left, err := h.run(t.Context(), "docker", "ps", "-aq", "--filter", "label="+containerLabel+"="+dir)
	if err != nil || len(left) > 0 {
		t.Errorf("containers left: %s, %v", left, err)
	}
}

// fakeDocker answers as Docker does to those who make, start and remove containers. It has their labels, by name.
func fakeDocker(t *testing.T) (h host, containers map[string]string) {
	t.Helper()
	var mu sync.Mutex
	containers = map[string]string{}
	h, _ = bare(t, func(_ string, args ...string) ([]byte, error) {
		mu.Lock()
		defer mu.Unlock()
		name := args[len(args)-1]
		switch args[0] {
		case "run":
			option := func(of string) string { return args[slices.Index(args, of)+1] }
			containers[option("--name")] = strings.TrimPrefix(option("--label"), containerLabel+"=")
			return nil, nil
		case "port":
			return []byte("127.0.0.1:32768\n"), nil
		}
		label, found := containers[name]
		switch {
		case !found:
			return []byte("No such container: " + name), errors.New("exit status 1")
		case args[0] == "rm":
			delete(containers, name)
		case args[0] == "inspect":
			return fmt.Appendln(nil, label), nil
		}
		return nil, nil
	})
	return h, containers
}

func startContainer(t *testing.T, h host, stack string) (name string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(stack, postgresKind.folder), 0o755); err != nil {
		t.Fatal(err)
	}
	d := newDocker(h, stack, postgresKind)
	if err := d.start(t.Context(), []int{5432}, nil); err != nil {
		t.Fatal(err)
	}
	return d.name
}

// The name was made of the folder's: in a clone that was moved the shop was empty, and make down left the container.
func TestDocker_AFolderThatWasMovedKeepsItsContainerAndACopyGetsItsOwn(t *testing.T) {
	t.Parallel()
	h, containers := fakeDocker(t)
	base := t.TempDir()
	first, moved, copied := filepath.Join(base, "first"), filepath.Join(base, "moved"), filepath.Join(base, "copied")
	name := startContainer(t, h, first)
	if again := startContainer(t, h, first); again != name {
		t.Errorf("started again: container %s, want %s", again, name)
	}

	if err := os.CopyFS(copied, os.DirFS(first)); err != nil {
		t.Fatal(err)
	}
	if err := stopContainers(h, copied, true); err != nil || len(containers) != 1 {
		t.Errorf("make down in the copy: %v, containers left: %v", err, containers)
	}
	if of := startContainer(t, h, copied); of == name || containers[of] != copied {
		t.Errorf("the copy got container %s of %v", of, containers)
	}
	link := filepath.Join(base, "link")
	if err := os.Symlink(first, link); err != nil {
		t.Fatal(err)
	}
	if of := startContainer(t, h, link); of != name {
		t.Errorf("the folder by another path got container %s, want %s", of, name)
	}

	if err := os.Rename(first, moved); err != nil {
		t.Fatal(err)
	}
	if of := startContainer(t, h, moved); of != name {
		t.Errorf("the folder that was moved got container %s, want %s", of, name)
	}
	// Another clone where the first one was.
	if of := startContainer(t, h, first); of == name {
		t.Errorf("a new folder got the container of the one that was moved")
	}
	if of := startContainer(t, h, moved); of != name {
		t.Errorf("the folder that was moved got container %s when its place was taken, want %s", of, name)
	}
	if err := stopContainers(h, moved, true); err != nil || containers[name] != "" || len(containers) != 2 {
		t.Errorf("make down in the folder that was moved: %v, containers left: %v", err, containers)
	}
}
