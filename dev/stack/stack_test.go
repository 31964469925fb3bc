package stack

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"shop.example/platform/messaging/provision"
)

// starterVariable makes the test binary a process that starts a stack in the folder it names, and waits to be killed.
const starterVariable = "STACK_TEST_STARTER"

func TestMain(m *testing.M) {
	dir := os.Getenv(starterVariable)
	if dir == "" {
		os.Exit(m.Run())
	}
	if _, err := Start(context.Background(), Options{Dir: dir, Fast: true}); err != nil {
		fmt.Fprintln(os.Stdout, err)
		os.Exit(1)
	}
	fmt.Fprintln(os.Stdout, "started")
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// ours is this machine without servers that its environment names.
func ours() host {
	h := thisHost()
	h.getenv = func(string) string { return "" }
	return h
}

func needsServers(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("starts servers")
	}
	pg, mq := &postgres{host: ours(), dir: t.TempDir()}, &rabbitMQ{host: ours()}
	if found, err := pg.find(t.Context()); err != nil || !found {
		t.Skip("PostgreSQL is not installed here")
	}
	if found, _ := mq.find(t.Context()); !found {
		t.Skip("RabbitMQ is not installed here")
	}
}

func startHere(t *testing.T, dir string, h host) (*Stack, string) {
	t.Helper()
	var progress bytes.Buffer
	s, err := start(t.Context(), Options{Dir: dir, Fast: true, Progress: &progress}, h)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(s.Stop(), Down(dir)); err != nil {
			t.Error(err)
		}
	})
	return s, progress.String()
}

func query(t *testing.T, s *Stack, statement string) (result string) {
	t.Helper()
	db, err := sql.Open("postgres", s.DatabaseURL)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.QueryRow(statement).Scan(&result); err != nil && !errors.Is(err, sql.ErrNoRows) {
		t.Fatalf("%s: %v", statement, err)
	}
	return result
}

func broker(t *testing.T, s *Stack, method, path, body string) string {
	t.Helper()
	answer, err := provision.Call(t.Context(), method, s.ManagementURL+path, []byte(body))
	if err != nil {
		t.Fatal(err)
	}
	return string(answer)
}

// under returns the processes that have dir in their command line, as those of PostgreSQL do, or in their environment,
// as those of RabbitMQ do.
func under(t *testing.T, dir string) (found []string) {
	t.Helper()
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range processes {
		command, _ := os.ReadFile(p + "/cmdline")
		environment, _ := os.ReadFile(p + "/environ")
		if p != fmt.Sprintf("/proc/%d", os.Getpid()) && bytes.Contains(append(command, environment...), []byte(dir)) {
			found = append(found, p+" "+strings.ReplaceAll(string(command), "\x00", " "))
		}
	}
	return found
}

// nothingRuns checks that no process of the stack is left. Erlang's helpers end by themselves a moment after it.
func nothingRuns(t *testing.T, dir string) {
	t.Helper()
	var left []string
	defer func() {
		if len(left) > 0 {
			t.Errorf("still there: %s", strings.Join(left, ", "))
		}
	}()
	waitUntil(t, "all processes of the stack have ended", func() bool {
		left = under(t, dir)
		return len(left) == 0
	})
}

// waitUntil polls, for what other processes do cannot be waited for in another way.
func waitUntil(t *testing.T, what string, holds func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for !holds() {
		if pause(ctx, 20*time.Millisecond) != nil {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

func TestStart_AfterTheStarterWasKilledTheServersAreAdopted(t *testing.T) {
	t.Parallel()
	needsServers(t)
	dir := filepath.Join(t.TempDir(), "with space", "stack")
	t.Cleanup(func() { _ = Down(dir) })
	kill := startElsewhere(t, dir)

	_, err := start(t.Context(), Options{Dir: dir, Fast: true}, ours())
	if err == nil || !strings.Contains(err.Error(), "is in use by process") || strings.Contains(err.Error(), "\n") {
		t.Errorf("a second process in one folder: got %v, want one line that names the first", err)
	}
	kill()

	s, progress := startHere(t, dir, ours())
	if strings.Count(progress, "still running") != 2 {
		t.Errorf("the servers of the killed starter were not adopted:\n%s", progress)
	}
	query(t, s, "CREATE TABLE kept (v text); INSERT INTO kept VALUES ('row') RETURNING v")
	broker(t, s, http.MethodPut, "/api/queues/%2F/order", `{"durable": true, "arguments": {"x-queue-type": "quorum"}}`)
	broker(t, s, http.MethodPost, "/api/exchanges/%2F/amq.default/publish",
		`{"routing_key": "order", "payload": "kept", "payload_encoding": "string", "properties": {"delivery_mode": 2}}`)

	// Now the servers die too, without warning. RabbitMQ writes the names of its queues up to 3 s late.
	names := filepath.Join(dir, rabbitKind.folder, "data", "shop@localhost", "quorum", "shop@localhost", "names.dets")
	waitUntil(t, "the queue's name is on disk", func() bool {
		written, err := os.ReadFile(names)
		return err == nil && bytes.Contains(written, []byte("%2F_order")) // by that name of its process
	})
	for _, pid := range []int{s.PostgresPID, s.RabbitMQPID} {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	_ = s.finish(func() error { return nil }) // lets go of the folder, as the end of this process would
	again, progress := startHere(t, dir, ours())
	if strings.Contains(progress, "still running") {
		t.Errorf("a dead server was adopted:\n%s", progress)
	}
	if got := query(t, again, "SELECT v FROM kept"); got != "row" {
		t.Errorf("the row after the crash: got %q, want row", got)
	}
	waitUntil(t, "the message is there after the crash", func() bool { // the queue elects a leader first
		got, err := provision.Call(t.Context(), http.MethodPost, again.ManagementURL+"/api/queues/%2F/order/get",
			[]byte(`{"count": 1, "ackmode": "ack_requeue_true", "encoding": "auto"}`))
		return err == nil && strings.Contains(string(got), `"kept"`)
	})
	waitUntil(t, "the policy is on the queue", func() bool {
		queue := broker(t, again, http.MethodGet, "/api/queues/%2F/order", "")
		return strings.Contains(queue, `"policy":"work-queues"`) && strings.Contains(queue, `"delivery-limit":20`)
	})
	if err := again.Stop(); err != nil {
		t.Fatal(err)
	}
	nothingRuns(t, dir)
}

// startElsewhere starts a stack in a process of its own, with these variables, and returns what kills that process with SIGKILL.
func startElsewhere(t *testing.T, dir string, variables ...string) (kill func()) {
	t.Helper()
	starter := exec.Command(os.Args[0])
	starter.Env = append(append(os.Environ(), starterVariable+"="+dir, "DATABASE_URL=", "AMQP_URL="), variables...)
	if _, err := starter.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := starter.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := starter.Start(); err != nil {
		t.Fatal(err)
	}
	kill = sync.OnceFunc(func() {
		_ = starter.Process.Kill()
		_ = starter.Wait()
	})
	t.Cleanup(kill)
	said := make([]byte, 4096)
	n, _ := out.Read(said)
	if string(said[:n]) != "started\n" {
		t.Fatalf("the starter said %q", said[:n])
	}
	return kill
}

// lib/pq connects to PGHOSTADDR although the URL names another host, and refuses to connect with some others. The server that
// had just been started did "not answer within 1m0s".
func TestStart_VariablesForAnotherPostgreSQLAreNoneOfOurs(t *testing.T) {
	t.Parallel()
	needsServers(t)
	dir := filepath.Join(t.TempDir(), "stack")
	t.Cleanup(func() { _ = Down(dir) })
	startElsewhere(t, dir, "PGGSSENCMODE=disable", "PGHOSTADDR=192.0.2.1", "PGSERVICE=work", "PGCLIENTENCODING=LATIN1")
}

// Commands that share servers start them once, also at the same time, and none of them stops them.
func TestStartAndLeave_CommandsShareTheServersUntilDown(t *testing.T) {
	t.Parallel()
	needsServers(t)
	dir := filepath.Join(t.TempDir(), "kept")
	t.Cleanup(func() { _ = Down(dir) })
	stacks := make([]*Stack, 3)
	var wg sync.WaitGroup
	for i := range stacks {
		wg.Go(func() {
			var err error
			if stacks[i], err = startAndLeave(t.Context(), Options{Dir: dir, Fast: true}, ours()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	query(t, stacks[0], "CREATE TABLE kept (v text); INSERT INTO kept VALUES ('row') RETURNING v")
	for _, s := range stacks {
		if s.PostgresPID != stacks[0].PostgresPID || s.RabbitMQPID != stacks[0].RabbitMQPID {
			t.Errorf("servers %d and %d, and %d and %d: they are not shared", s.PostgresPID, s.RabbitMQPID, stacks[0].PostgresPID, stacks[0].RabbitMQPID)
		}
		if got := query(t, s, "SELECT v FROM kept"); got != "row" {
			t.Errorf("got %q, want row", got)
		}
	}
	if err := Down(dir); err != nil {
		t.Fatal(err)
	}
	nothingRuns(t, dir)
}

func TestDown_EndsTheServersThatAKilledStarterLeft(t *testing.T) {
	t.Parallel()
	needsServers(t)
	dir := filepath.Join(t.TempDir(), "stack")
	startElsewhere(t, dir)()
	if len(under(t, dir)) == 0 {
		t.Fatal("no server outlived its starter")
	}
	if err := Down(dir); err != nil {
		t.Fatal(err)
	}
	nothingRuns(t, dir)
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder is still there: %v", err)
	}
}

// A clone was copied with its folder .shop while its servers ran. `make up` in the copy ended them, and so did `make down`.
func TestStart_ACopyOfTheFolderLeavesTheServersOfTheOriginalAlone(t *testing.T) {
	t.Parallel()
	needsServers(t)
	base := t.TempDir()
	dir, copied, moved := filepath.Join(base, "shop"), filepath.Join(base, "copied"), filepath.Join(base, "moved")
	t.Cleanup(func() { _ = Down(moved) })
	original, _ := startHere(t, dir, ours())
	query(t, original, "CREATE TABLE kept (v text); INSERT INTO kept VALUES ('row') RETURNING v")
	query(t, original, "CHECKPOINT")
	// Files may go while they are copied, which cp complains about.
	out, err := exec.CommandContext(t.Context(), "cp", "-a", dir, copied).CombinedOutput()
	if _, statErr := os.Stat(filepath.Join(copied, postgresKind.folder, dataFolder, "postmaster.pid")); statErr != nil {
		t.Fatalf("the copy is not complete: %v, %v: %s", statErr, err, out)
	}

	second, progress := startHere(t, copied, ours())
	if strings.Contains(progress, "still running") || second.PostgresPID == original.PostgresPID || second.RabbitMQPID == original.RabbitMQPID {
		t.Errorf("the copy uses the servers of the original:\n%s", progress)
	}
	if got := query(t, second, "SELECT v FROM kept"); got != "row" {
		t.Errorf("in the copy: got %q, want row", got)
	}
	if err := second.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := Down(copied); err != nil {
		t.Fatal(err)
	}
	nothingRuns(t, copied)
	query(t, original, "SELECT v FROM kept")
	broker(t, original, http.MethodGet, "/api/overview", "")
	if _, running := recorded(filepath.Join(dir, rabbitKind.folder, epmdRecord)); !running {
		t.Error("the original's epmd was ended")
	}

	// The same folder by another name is no copy.
	_ = original.finish(func() error { return nil })
	if err := os.Rename(dir, moved); err != nil {
		t.Fatal(err)
	}
	if _, progress := startHere(t, moved, ours()); strings.Count(progress, "still running") != 2 {
		t.Errorf("the servers of the folder that was moved were not adopted:\n%s", progress)
	}
}

func TestStart_PortTakenBetweenChoosingAndBinding(t *testing.T) {
	t.Parallel()
	needsServers(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	var mu sync.Mutex
	calls := 0
	h := ours()
	h.freePort = func(preferred int) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		if calls++; calls <= 2 { // one for each server, or two for RabbitMQ
			return taken.Addr().(*net.TCPAddr).Port, nil
		}
		return freePort(preferred)
	}
	s, _ := startHere(t, filepath.Join(t.TempDir(), "stack"), h)
	if got := query(t, s, "SELECT 'answers'"); got != "answers" {
		t.Errorf("got %q", got)
	}
}

func TestStart_CancelledLeavesNothingRunning(t *testing.T) {
	t.Parallel()
	needsServers(t)
	dir := filepath.Join(t.TempDir(), "stack")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := start(ctx, Options{Dir: dir, Fast: true}, ours())
		ended <- err
	}()
	waitUntil(t, "RabbitMQ is on its way", func() bool {
		_, running := recorded(filepath.Join(dir, rabbitKind.folder, nodeRecord))
		return running
	})
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	nothingRuns(t, dir)
}

func TestStart_ServerThatDiesShowsTheEndOfItsLog(t *testing.T) {
	t.Parallel()
	needsServers(t)
	dir := t.TempDir()
	data := filepath.Join(dir, postgresKind.folder, "data")
	s, _ := startHere(t, dir, ours())
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(data, "postgresql.conf"), []byte("nonsense = on\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := start(t.Context(), Options{Dir: dir, Fast: true}, ours())
	if err == nil || !strings.Contains(err.Error(), "starting PostgreSQL: it ended at once") || !strings.Contains(err.Error(), `"nonsense"`) {
		t.Errorf("got %v", err)
	}
	nothingRuns(t, dir)

	if err := os.WriteFile(filepath.Join(data, "PG_VERSION"), []byte("12\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = start(t.Context(), Options{Dir: dir, Fast: true}, ours())
	if err == nil || !strings.Contains(err.Error(), "is of PostgreSQL 12, which is not installed") {
		t.Errorf("data of another version: got %v", err)
	}
}

func TestStart_ServersOfTheEnvironmentAreLeftAlone(t *testing.T) {
	t.Parallel()
	needsServers(t)
	first, _ := startHere(t, t.TempDir(), ours())
	h := ours()
	h.getenv = func(name string) string {
		return map[string]string{"DATABASE_URL": first.DatabaseURL, "AMQP_URL": first.AMQPURL}[name]
	}
	second, err := start(t.Context(), Options{Dir: filepath.Join(t.TempDir(), "stack")}, h)
	if err != nil {
		t.Fatal(err)
	}
	if second.DatabaseURL != first.DatabaseURL || second.AMQPURL != first.AMQPURL || second.PostgresPID != 0 || second.RabbitMQPID != 0 {
		t.Errorf("got %+v", second)
	}
	if err := second.Remove(); err != nil {
		t.Fatal(err)
	}
	query(t, first, "SELECT 'still there'")
	broker(t, first, http.MethodGet, "/api/overview", "")
}

func TestStart_UnreachableServerOfTheEnvironmentIsOneLine(t *testing.T) {
	t.Parallel()
	closed, err := freePort(0)
	if err != nil {
		t.Fatal(err)
	}
	h := ours()
	h.getenv = func(name string) string {
		return map[string]string{
			"DATABASE_URL": fmt.Sprintf("postgres://shop:secret@127.0.0.1:%d/shopdb?sslmode=disable", closed),
			"AMQP_URL":     fmt.Sprintf("amqp://shop:secret@127.0.0.1:%d/", closed),
		}[name]
	}
	_, err = start(t.Context(), Options{Dir: t.TempDir()}, h)
	if err == nil || strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), "secret") || !strings.Contains(err.Error(), "_URL names") {
		t.Errorf("got %v", err)
	}
}

func TestCheckSpace_FullDiskIsSaidBeforeAnythingStarts(t *testing.T) {
	t.Parallel()
	if err := checkSpace(t.TempDir(), math.MaxUint64); err == nil || !strings.Contains(err.Error(), "free some") {
		t.Errorf("got %v", err)
	}
}
