package stack

import (
	"net/http"
	"path/filepath"
	"strings"
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
