package e2e

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"shop.example/db/dbtest"
	"shop.example/platform/messaging/provision"
	"shop.example/platform/service"
	"shop.example/platform/testkit/brokertest"
	"shop.example/topology"
)

// stopLimit is how long a service may take to end after SIGTERM.
const stopLimit = 10 * time.Second

var services = topology.Names()

// binaries builds the services, shop and shopdev once for all tests: without the race detector, which would halve the speed
// of the suite and is used in the services' own tests, and with crash points, which do nothing unless SHOP_CRASH_AT is set.
var binaries = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "shop-e2e-")
	if err != nil {
		return "", err
	}
	built = dir
	cmd := exec.Command("go", "build", "-tags", "crashpoints", "-o", dir+"/", "shop.example/gateway", "shop.example/shop", "shop.example/dev")
	for _, name := range services[1:] {
		cmd.Args = append(cmd.Args, "shop.example/services/"+name)
	}
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building the services: %w\n%s", err, out)
	}
	if err := os.Rename(filepath.Join(dir, "dev"), filepath.Join(dir, "shopdev")); err != nil {
		return "", err
	}
	return dir, nil
})

var built string // the folder of the binaries, to be removed

func TestMain(m *testing.M) {
	m.Run()
	endBrowser()
	if built != "" {
		_ = os.RemoveAll(built)
	}
}

// deployment is the shop as it is deployed: each service in processes of its own, with a database and a virtual host of the
// test's own. The calls of the embedded shop go to the first gateway.
type deployment struct {
	shop
	replicas map[string][]*replica // by service
	amqp     map[string]string     // the broker's URL with the user of each service; nil if they share one
	receiver *hookReceiver         // of webhooks; nil unless registerReceiver was called
	client   *http.Client          // keeps the connections that it has made
}

// deploymentOptions change what a deployment has by default: one replica of each service, and direct connections to the
// servers.
type deploymentOptions struct {
	replicas          map[string]int // by service
	amqpURL, database string         // how the services get to broker and database, a line that can be cut for example
	host              string         // where the services listen; loopback if it is empty
	own               *servers       // of the test, instead of those of all tests
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

// newDeployment prepares a deployment of which nothing runs yet. The i-th replica of a service calls the i-th replica of
// another.
func newDeployment(t *testing.T, o deploymentOptions) *deployment {
	t.Helper()
	dir := mustBinaries(t)
	f := &deployment{replicas: map[string][]*replica{}, client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 100}}}
	if o.own != nil {
		f.shop = shop{broker: &brokertest.Broker{URL: o.own.amqp}, database: o.own.makeDatabase(t)}
	} else {
		f.shop = shop{broker: brokertest.New(t), database: dbtest.New(t)}
		f.amqp = f.broker.Services(t, topology.Broker())
	}
	env := append(os.Environ(), "DATABASE_URL="+cmp.Or(o.database, f.database), "LOG_LEVEL=warn", "LOG_FORMAT=text",
		"SHOP_OPERATOR_TOKEN="+operatorToken, "SHOP_ID_SECRET=id-secret-of-the-tests",
		"WEBHOOK_ALLOWED_NETWORKS=127.0.0.0/8", "WEBHOOK_TIMEOUT=2s")
	for _, name := range services {
		for i := range max(1, o.replicas[name]) {
			r := &replica{name: fmt.Sprintf("%s %d", name, i), binary: filepath.Join(dir, name), admin: freeAddr(t), addr: freeAddrOf(t, cmp.Or(o.host, loopback))}
			r.env = append(env[:len(env):len(env)], "AMQP_URL="+f.login(t, name, cmp.Or(o.amqpURL, f.broker.URL)), "ADMIN_ADDR="+r.admin, "GRPC_ADDR="+r.addr, "HTTP_ADDR="+r.addr)
			f.replicas[name] = append(f.replicas[name], r)
		}
	}
	for name, others := range map[string][]string{"gateway": services[1:], "inventory": {"order"}, "logging": {"order", "inventory"}, "webhooks": {"logging"}} {
		for i, r := range f.replicas[name] {
			for _, other := range others {
				r.env = append(r.env, strings.ToUpper(other)+"_ADDR="+f.replicas[other][i%len(f.replicas[other])].addr)
			}
		}
	}
	f.url = "http://" + f.replicas["gateway"][0].addr
	return f
}

// login returns amqp, a URL of the deployment's broker, with the user of the service.
func (f *deployment) login(t *testing.T, service, amqp string) string {
	t.Helper()
	if f.amqp == nil {
		return amqp
	}
	u, err := url.Parse(f.amqp[service])
	if err != nil {
		t.Fatal(err)
	}
	password, _ := u.User.Password()
	with, err := provision.Login{User: u.User.Username(), Password: password}.URL(amqp)
	if err != nil {
		t.Fatal(err)
	}
	return with
}

var (
	givenMu sync.Mutex
	given   = map[int]bool{}
)

// loopback is an address of this machine that no concurrent run of the tests uses: on Linux all of 127.0.0.0/8 is
// available.
var loopback = func() string {
	if runtime.GOOS != "linux" {
		return "127.0.0.1"
	}
	pid := os.Getpid()
	return fmt.Sprintf("127.%d.%d.%d", 1+pid>>16%250, pid>>8%256, 1+pid%250)
}()

// freeAddr returns a loopback address on whose port nothing listens, and which a replica can use again after a restart: the
// port is below the range that the system assigns to connections, and is returned only once.
func freeAddr(t *testing.T) string {
	t.Helper()
	return freeAddrOf(t, loopback)
}

// freeAddrOf is freeAddr for another host.
func freeAddrOf(t *testing.T, host string) string {
	t.Helper()
	givenMu.Lock()
	defer givenMu.Unlock()
	for range 1000 {
		port := 20000 + rand.IntN(12000) //nolint:gosec // no secret
		addr := fmt.Sprintf("%s:%d", host, port)
		if given[port] {
			continue
		}
		lis, err := net.Listen("tcp", addr)
		if err != nil {
			continue
		}
		given[port] = true
		_ = lis.Close()
		return addr
	}
	t.Fatal("no free port")
	return ""
}

// up starts the replicas that do not run, and returns when all are ready.
func (f *deployment) up(t *testing.T) {
	t.Helper()
	for _, name := range services {
		for _, r := range f.replicas[name] {
			if !r.running() {
				r.start(t)
			}
		}
	}
	for _, name := range services {
		for _, r := range f.replicas[name] {
			r.waitReady(t)
		}
	}
}

// gateways returns the URLs of all gateways.
func (f *deployment) gateways() []string {
	var urls []string
	for _, r := range f.replicas["gateway"] {
		urls = append(urls, "http://"+r.addr)
	}
	return urls
}

// replica is one process of a service, which can be started repeatedly. It is not safe for concurrent use.
type replica struct {
	name   string
	binary string
	env    []string
	admin  string
	addr   string // of gRPC; of a gateway, of REST and gRPC
	cmd    *exec.Cmd
	exited chan struct{} // closed when cmd has ended
	log    *logBuffer    // of all its lives
}

// start starts the process with env added to its environment. It is ended with the test at the latest.
func (r *replica) start(t *testing.T, env ...string) {
	t.Helper()
	if r.log == nil {
		r.log = &logBuffer{}
		t.Cleanup(func() { r.end(syscall.SIGKILL) })
	}
	cmd := exec.Command(r.binary)
	cmd.Env = append(r.env[:len(r.env):len(r.env)], env...)
	cmd.Stdout = io.MultiWriter(t.Output(), r.log)
	cmd.Stderr = cmd.Stdout
	cmd.SysProcAttr = endsWithParent()
	if err := cmd.Start(); err != nil {
		t.Fatalf("starting %s: %v", r.name, err)
	}
	exited := make(chan struct{})
	r.cmd, r.exited = cmd, exited
	go func() {
		defer close(exited)
		_ = cmd.Wait() // how it ended is in ProcessState
	}()
}

func (r *replica) running() bool {
	if r.cmd == nil {
		return false
	}
	select {
	case <-r.exited:
		return false
	default:
		return true
	}
}

// kill ends the process with SIGKILL, as a crash does.
func (r *replica) kill() { r.end(syscall.SIGKILL) }

// term sends SIGTERM. The process must end in time and without an error.
func (r *replica) term(t *testing.T) {
	t.Helper()
	if !r.end(syscall.SIGTERM) {
		t.Errorf("%s did not end within %s after SIGTERM", r.name, stopLimit)
	} else if code := r.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("%s ended with exit code %d after SIGTERM", r.name, code)
	}
}

// end sends the signal and waits for the process. If it takes too long it is killed, and end returns false.
func (r *replica) end(signal syscall.Signal) bool {
	if !r.running() {
		return true
	}
	_ = r.cmd.Process.Signal(signal)
	select {
	case <-r.exited:
		return true
	case <-time.After(stopLimit):
		_ = r.cmd.Process.Kill()
		<-r.exited
		return false
	}
}

// restart ends the process, starts it again with the environment of now, and waits until it is ready.
func (r *replica) restart(t *testing.T) {
	t.Helper()
	r.term(t)
	r.start(t)
	r.waitReady(t)
}

// waitReady waits until the service is ready.
func (r *replica) waitReady(t *testing.T) {
	t.Helper()
	eventually(t, func() error {
		if !r.running() {
			t.Fatalf("%s ended before it was ready: %v", r.name, r.cmd.ProcessState)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := service.Probe(ctx, r.admin); err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
		return nil
	})
}

// killedItself waits until the process has killed itself at a crash point.
func (r *replica) killedItself(point string) error {
	select {
	case <-r.exited:
	case <-time.After(testTimeout):
		return fmt.Errorf("%s did not come to crash point %s within %s", r.name, point, testTimeout)
	}
	status, ok := r.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if !ok || !status.Signaled() || status.Signal() != syscall.SIGKILL || !r.log.contains("crash point "+point+"\n") {
		return errors.New(r.name + " did not end at crash point " + point + ": " + r.cmd.ProcessState.String())
	}
	return nil
}

// logBuffer keeps what a process writes.
type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *logBuffer) contains(s string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return bytes.Contains(b.text.Bytes(), []byte(s))
}
