package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// The bounds of an idle shop in one process.
const (
	maxMemory = 100 << 20
	maxStart  = 3 * time.Second
)

// program is `shopdev up` in a process of its own, with data in a folder of its own.
type program struct {
	shop
	process *os.Process
	token   string
	ready   time.Duration // from the servers' answer to the shop's
	exited  chan struct{}
}

var (
	opened = regexp.MustCompile(`The shop is open at (\S+) until Ctrl-C. Operator token: (\S+)`)
	ready  = regexp.MustCompile(`shop ready \(([0-9.]+) s\)`)
)

// up starts `shopdev up` in dir, with env added to its environment, and returns when it prints that it is ready.
func up(t *testing.T, binary, dir string, env ...string) *program {
	t.Helper()
	cmd := exec.Command(binary, "up")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "DATABASE_URL=", "AMQP_URL=", "AMQP_MANAGEMENT_URL=", "HTTP_ADDR=127.0.0.1:0",
		"ORDER_ADDR=127.0.0.1:0", "INVENTORY_ADDR=127.0.0.1:0", "LOGGING_ADDR=127.0.0.1:0", "ADMIN_ADDR=127.0.0.1:0", "LOG_LEVEL=warn")
	cmd.Env = append(cmd.Env, env...)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &program{process: cmd.Process, exited: make(chan struct{})}
	t.Cleanup(func() { _ = p.process.Kill(); <-p.exited })
	isOpen := make(chan struct{})
	go func() {
		defer close(p.exited)
		lines := bufio.NewScanner(stderr)
		for lines.Scan() {
			t.Log(lines.Text())
			if m := ready.FindStringSubmatch(lines.Text()); m != nil {
				p.ready, _ = time.ParseDuration(m[1] + "s")
			}
			if m := opened.FindStringSubmatch(lines.Text()); m != nil {
				p.url, p.token = m[1], m[2]
				close(isOpen)
			}
		}
		_ = cmd.Wait()
	}()
	select {
	case <-isOpen:
	case <-p.exited:
		t.Fatal("shopdev up ended before the shop was open")
	case <-time.After(2 * time.Minute):
		t.Fatal("the shop did not open within two minutes")
	}
	return p
}

// stop ends the shop as Ctrl-C does.
func (p *program) stop(t *testing.T) {
	t.Helper()
	if err := p.process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.exited:
	case <-time.After(testTimeout):
		t.Fatal("the shop did not stop")
	}
}

// operator gets path with the token that make up printed.
func (p *program) operator(t *testing.T, path string) answer {
	t.Helper()
	return p.call(t, http.MethodGet, path, "", "Authorization", "Bearer "+p.token)
}

const oneOfEach = `{"customer_name":"Ada","customer_email":"ada@example.org","order_items":[{"product_id":5,"quantity":1},{"product_id":6,"quantity":1}]}`

func TestKilledShop_IsAsItWas(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts the shop")
	}
	dir := t.TempDir()
	binary := filepath.Join(dir, "shopdev")
	if out, err := exec.Command("go", "build", "-o", binary, "shop.example/dev").CombinedOutput(); err != nil {
		t.Fatalf("building the shop: %v\n%s", err, out)
	}
	t.Cleanup(func() {
		down := exec.Command(binary, "down")
		down.Dir = dir
		if out, err := down.CombinedOutput(); err != nil {
			t.Errorf("shopdev down: %v\n%s", err, out)
		}
	})

	// A queue that RabbitMQ 3.10 made less than three seconds before it was killed never answers again, because the node
	// had not yet noted its name on disk. So the shop that is killed is one that was opened before.
	before := up(t, binary, dir)
	kept := filepath.Join(dir, ".shop", "up", "amqp-url")
	followsEvents(t, before, kept)
	before.stop(t)
	if exists(kept) {
		t.Error("the broker's URL is still there")
	}

	first := up(t, binary, dir)
	// The better of two: other tests have the machine too.
	if best := min(before.ready, first.ready); best == 0 || best > maxStart {
		t.Errorf("ready %s after the servers, want at most %s", best, maxStart)
	}
	if rss := memory(t, first.process.Pid); rss > maxMemory {
		t.Errorf("an idle shop takes %d MiB, want at most %d", rss>>20, maxMemory>>20)
	}

	// Kill everything in the midst of orders, the servers as well.
	const orders = 120
	accepted := make(chan string, orders)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range orders / 8 {
				res, err := http.Post(first.url+"/v1/orders", "application/json", strings.NewReader(oneOfEach))
				if err != nil {
					return
				}
				_ = res.Body.Close()
				if res.StatusCode == http.StatusAccepted {
					accepted <- res.Header.Get("Location")
				}
			}
		})
	}
	var locations []string
	for range orders / 2 {
		locations = append(locations, <-accepted)
	}
	killAll(t, first, dir)
	wg.Wait()
	close(accepted)
	for location := range accepted {
		locations = append(locations, location)
	}

	second := up(t, binary, dir)
	if second.token != first.token {
		t.Error("the operator token has changed")
	}
	for _, location := range locations {
		if o := second.decided(t, location); o.State != "CONFIRMED" {
			t.Errorf("order %s is %s %s", location, o.State, o.Reason)
		}
	}
	stock := second.settled(t)
	// An order whose answer was lost with the gateway may have been accepted all the same: the stock must match the
	// orders that are there.
	var list struct{ Orders []order }
	second.operator(t, "/v1/orders?page_size=1000").json(t, &list)
	if n := len(list.Orders); n < len(locations) || stock["Laptop Stand"].OnHand != 150-n || stock["Mouse Pad"].OnHand != 200-n {
		t.Errorf("%d orders were accepted, %d are stored, stock is %+v and %+v", len(locations), n, stock["Laptop Stand"], stock["Mouse Pad"])
	}
	eventually(t, func() error { return second.logged(t, len(list.Orders)) })
	t.Logf("%d orders accepted, %d stored", len(locations), len(list.Orders))
}

// followsEvents checks that a program finds the broker by what `make up` has kept: nothing said where it is.
func followsEvents(t *testing.T, p *program, kept string) {
	t.Helper()
	url, err := os.ReadFile(kept)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", "-C", "../examples", "run", "./events", "2")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "AMQP_URL="+strings.TrimSpace(string(url)))
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var said []string
	for lines := bufio.NewScanner(stderr); lines.Scan(); {
		said = append(said, lines.Text())
		if strings.HasSuffix(lines.Text(), " listening") {
			if a := p.call(t, http.MethodPost, "/v1/orders", oneOfEach); a.code != http.StatusAccepted {
				t.Errorf("placing an order: %d %s", a.code, a.body)
			}
		}
	}
	if err := cmd.Wait(); err != nil || strings.Count(strings.Join(said, "\n"), " shop.order.") != 2 {
		t.Errorf("%v\n%s", err, strings.Join(said, "\n"))
	}
}

// logged reports whether the log has each event of n confirmed orders exactly once.
func (p *program) logged(t *testing.T, n int) error {
	t.Helper()
	for _, key := range []string{"shop.order.placed", "shop.order.confirmed", "shop.inventory.decrement.quantity"} {
		var log struct{ Events []json.RawMessage }
		p.operator(t, "/v1/events?page_size=1000&routing_key="+key).json(t, &log)
		if len(log.Events) != n {
			return fmt.Errorf("%d events %s are logged for %d orders", len(log.Events), key, n)
		}
	}
	return nil
}

// killAll kills the shop, PostgreSQL and RabbitMQ with -9, as a power cut would.
func killAll(t *testing.T, p *program, dir string) {
	t.Helper()
	victims := []int{p.process.Pid}
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, proc := range procs {
		pid, err := strconv.Atoi(filepath.Base(proc))
		if err != nil || pid == os.Getpid() {
			continue
		}
		cmdline, err := os.ReadFile(filepath.Join(proc, "cmdline"))
		if err == nil && strings.Contains(string(cmdline), dir) {
			victims = append(victims, pid)
		}
	}
	if len(victims) < 3 {
		t.Fatalf("only %d processes to kill: the servers were not found", len(victims))
	}
	for _, pid := range victims {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			t.Fatalf("killing %d: %v", pid, err)
		}
	}
	<-p.exited
}

// memory returns the memory that the process uses, in bytes.
func memory(t *testing.T, pid int) int64 {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		var kib int64
		if _, err := fmt.Sscanf(line, "VmRSS: %d kB", &kib); err == nil {
			return kib << 10
		}
	}
	t.Fatal("no VmRSS in the process's status")
	return 0
}
