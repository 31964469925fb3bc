package stack

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"shop.example/platform/messaging/provision"
)

// Once, from some moment of a run of tests on, no test could make its queues: RabbitMQ answered 500, and said nothing.
func TestStart_AQueueThatIsDeletedWhileItComesIntoBeingKeepsNoOtherFromIt(t *testing.T) {
	t.Parallel()
	needsServers(t)
	dir := t.TempDir()
	s, _ := startHere(t, dir, ours())
	broker(t, s, http.MethodPut, "/api/policies/%2F/dead", `{"pattern": "^deleted", "apply-to": "queues", "priority": 9,
		"definition": {"dead-letter-exchange": "amq.topic", "dead-letter-strategy": "at-least-once", "overflow": "reject-publish"}}`)
	const quorum = `{"durable": true, "arguments": {"x-queue-type": "quorum"}}`
	limit := time.Now().Add(2 * time.Minute)
	for n := 0; crashes(t, dir) < 2; n++ {
		if time.Now().After(limit) {
			t.Fatalf("%d queues were deleted while they came into being, and what moves their dead letters did not crash", n)
		}
		queue := fmt.Sprintf("%s/api/queues/%%2F/deleted-%d", s.ManagementURL, n)
		var calls errgroup.Group
		calls.Go(func() error { // it fails if the queue is deleted before it has been made
			_, _ = provision.Call(t.Context(), http.MethodPut, queue, []byte(quorum))
			return nil
		})
		calls.Go(func() error { // until the queue is there to be deleted, this fails
			for range 5 {
				_, _ = provision.Call(t.Context(), http.MethodDelete, queue, nil)
			}
			return nil
		})
		_ = calls.Wait()
	}
	broker(t, s, http.MethodPut, "/api/queues/%2F/deleted-never", quorum)
}

// crashes counts in RabbitMQ's log how often what moves the dead letters of a queue has crashed.
func crashes(t *testing.T, dir string) int {
	t.Helper()
	log, err := os.ReadFile(filepath.Join(dir, rabbitKind.folder, serverLog))
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Count(log, []byte("initial call: rabbit_fifo_dlx_worker:init/1"))
}
