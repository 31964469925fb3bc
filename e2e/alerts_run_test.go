//go:build alerts

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"shop.example/platform/messaging/provision"
	"shop.example/platform/testkit/netproxy"
)

const (
	// firesWithin bounds the wait for an alert: the audit's takes five minutes by itself.
	firesWithin = 12 * time.Minute
	// clearsWithin is more than the longest window of the alerts that are provoked.
	clearsWithin = 20 * time.Minute
)

// watchedDeployment is a deployment with an audit, light traffic, and a real Prometheus with the shop's rules.
type watchedDeployment struct {
	*deployment
	prometheus string // its URL
	product    int    // of which there is enough for all orders
	audit      *exec.Cmd
	// the lines of the services, which can be frozen
	brokerLine, databaseLine *netproxy.Proxy
}

// observe starts the audit and Prometheus beside a deployment that is up.
func observe(t *testing.T, f *deployment) *watchedDeployment {
	t.Helper()
	w := &watchedDeployment{deployment: f, prometheus: "http://" + freeAddr(t), product: f.unlimitedStock(t)[0]}
	auditAddr := freeAddr(t)
	w.audit = w.process(t, filepath.Join(mustBinaries(t), "shop"), []string{"audit", "--every", "10s", "--listen", auditAddr}, "DATABASE_URL="+f.database, "LOG_LEVEL=warn")

	dir := t.TempDir()
	rules, err := os.ReadFile("../deploy/prometheus/rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	config := "global: {scrape_interval: 5s, evaluation_interval: 5s}\nrule_files: [rules.yaml]\nscrape_configs:\n"
	job := func(name string, targets ...string) {
		config += fmt.Sprintf("  - {job_name: %s, static_configs: [{targets: ['%s']}]}\n", name, strings.Join(targets, "', '"))
	}
	for _, name := range services {
		var targets []string
		for _, r := range f.replicas[name] {
			targets = append(targets, r.admin)
		}
		job(name, targets...)
	}
	job("audit", auditAddr)
	if addr := brokerMetrics(t); addr != "" {
		config += fmt.Sprintf("  - {job_name: rabbitmq, metrics_path: /metrics/per-object, static_configs: [{targets: ['%s']}]}\n", addr)
	}
	for name, text := range map[string]string{"prometheus.yaml": config, "rules.yaml": string(rules)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	prometheus, err := filepath.Abs("../.bin/prometheus")
	if err != nil {
		t.Fatal(err)
	}
	w.process(t, prometheus, []string{
		"--config.file=" + filepath.Join(dir, "prometheus.yaml"), "--storage.tsdb.path=" + filepath.Join(dir, "data"),
		"--web.listen-address=" + strings.TrimPrefix(w.prometheus, "http://"), "--log.level=warn",
	})
	eventuallyWithin(t, 2*time.Minute, func() error { // all targets were scraped
		var up map[string]float64
		up, err := w.query(t.Context(), `up == 1`)
		if err != nil || len(up) < 5 {
			return fmt.Errorf("%d targets are up: %w", len(up), err)
		}
		return nil
	})
	ctx, stop := context.WithCancel(context.Background())
	var clients sync.WaitGroup
	clients.Go(func() {
		for ctx.Err() == nil {
			w.order(ctx)
			select {
			case <-ctx.Done():
			case <-time.After(500 * time.Millisecond):
			}
		}
	})
	t.Cleanup(func() { stop(); clients.Wait() })
	return w
}

// brokerMetrics returns the address of the broker's metrics for Prometheus, "" if it has none.
func brokerMetrics(t *testing.T) string {
	t.Helper()
	body, err := provision.Call(t.Context(), http.MethodGet, os.Getenv("AMQP_MANAGEMENT_URL")+"/api/overview", nil)
	if err != nil {
		t.Fatal(err)
	}
	var overview struct {
		Listeners []struct {
			Protocol string `json:"protocol"`
			IP       string `json:"ip_address"`
			Port     int    `json:"port"`
		} `json:"listeners"`
	}
	if err := json.Unmarshal(body, &overview); err != nil {
		t.Fatal(err)
	}
	for _, l := range overview.Listeners {
		if l.Protocol == "http/prometheus" {
			return net.JoinHostPort(l.IP, strconv.Itoa(l.Port))
		}
	}
	return ""
}

// process runs a program to the end of the test.
func (w *watchedDeployment) process(t *testing.T, program string, args []string, env ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	cmd.SysProcAttr = endsWithParent()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd
}

// sql runs a statement on the database, without the services' knowledge.
func (w *watchedDeployment) sql(t *testing.T, statement string) {
	t.Helper()
	if _, err := w.openDatabase(t).ExecContext(t.Context(), statement); err != nil {
		t.Fatal(err)
	}
}

// order places one small order at one of the gateways. Whether it succeeds is for the metrics to tell.
func (w *watchedDeployment) order(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	for _, gateway := range w.gateways() {
		body := fmt.Sprintf(`{"customer_name":"Ada","customer_email":"ada@example.org","order_items":[{"product_id":%d,"quantity":1}]}`, w.product)
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, gateway+"/v1/orders", strings.NewReader(body))
		if err != nil {
			return
		}
		req.Header.Set("Content-Type", "application/json")
		if res, err := w.client.Do(req); err == nil {
			_ = res.Body.Close()
			return
		}
	}
}

// query returns the values of an instant query, by their labels.
func (w *watchedDeployment) query(ctx context.Context, expr string) (map[string]float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, w.prometheus+"/api/v1/query", nil)
	if err != nil {
		return nil, err
	}
	values := req.URL.Query()
	values.Set("query", expr)
	req.URL.RawQuery = values.Encode()
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = res.Body.Close() }()
	var answer struct {
		Status string `json:"status"`
		Error  string `json:"error"`
		Data   struct {
			Result []struct {
				Metric map[string]string `json:"metric"`
				Value  [2]any            `json:"value"`
			} `json:"result"`
		} `json:"data"`
	}
	if err := json.NewDecoder(res.Body).Decode(&answer); err != nil {
		return nil, err
	}
	if answer.Status != "success" {
		return nil, errors.New(answer.Error)
	}
	all := map[string]float64{}
	for _, r := range answer.Data.Result {
		var labels []string
		for _, name := range slices.Sorted(maps.Keys(r.Metric)) {
			labels = append(labels, name+"="+r.Metric[name])
		}
		var value float64
		if _, err := fmt.Sscan(fmt.Sprint(r.Value[1]), &value); err != nil {
			return nil, err
		}
		all[strings.Join(labels, ",")] = value
	}
	return all, nil
}

// firing returns the alerts that fire now, with their labels.
func (w *watchedDeployment) firing(t *testing.T) []string {
	t.Helper()
	alerts, err := w.query(t.Context(), `ALERTS{alertstate="firing"}`)
	if err != nil {
		t.Fatal(err)
	}
	return slices.Sorted(maps.Keys(alerts))
}

// fires reports whether one of the firing alerts has all of these labels.
func (w *watchedDeployment) fires(t *testing.T, labels ...string) bool {
	t.Helper()
	return slices.ContainsFunc(w.firing(t), func(alert string) bool {
		for _, label := range labels {
			if !slices.Contains(strings.Split(alert, ","), label) {
				return false
			}
		}
		return true
	})
}

// TestAlerts_FireWhenProvokedAndClear provokes each alert on a running shop, and repairs the cause. The lines that it logs
// are the table in docs/operations.md.
func TestAlerts_FireWhenProvokedAndClear(t *testing.T) {
	for _, c := range []struct {
		what    string
		alerts  [][]string // labels of each
		provoke func(t *testing.T, w *watchedDeployment) (repair func())
	}{
		{"broker frozen", [][]string{{"alertname=OrdersRefused", "reason=BROKER_UNAVAILABLE"}}, func(t *testing.T, w *watchedDeployment) func() {
			w.brokerLine.DropResponses()
			return func() { w.brokerLine.Up(t) }
		}},
		{"database frozen", [][]string{{"alertname=ServiceNotReady", "check=database"}, {"alertname=MessagesStuck", "queue=order"}, {"alertname=OrdersNotDecided"}}, func(t *testing.T, w *watchedDeployment) func() {
			w.databaseLine.DropResponses()
			return func() { w.databaseLine.Up(t) }
		}},
		{"broker slow", [][]string{{"alertname=OrdersAcceptedSlowlyBudget"}}, func(t *testing.T, w *watchedDeployment) func() {
			w.brokerLine.Delay(400 * time.Millisecond) // more than the 250 ms that orders are accepted in
			return func() { w.brokerLine.Up(t) }
		}},
		{"database slow", [][]string{{"alertname=OrdersDecidedSlowlyBudget"}}, func(t *testing.T, w *watchedDeployment) func() {
			w.databaseLine.Delay(600 * time.Millisecond) // a decision waits for some ten answers, and may take 5 s
			return func() { w.databaseLine.Up(t) }
		}},
		{"order service stopped, its queue has no consumer", [][]string{{"alertname=ServiceDown", "job=order"}, {"alertname=OrdersNotDecided"}}, func(t *testing.T, w *watchedDeployment) func() {
			w.replicas["order"][0].term(t)
			return func() { w.up(t) }
		}},
		{"poison message", [][]string{{"alertname=NewDeadLetters"}}, func(t *testing.T, w *watchedDeployment) func() {
			w.send(t, w.confirming(t), "shop.topic", "shop.order.placed", amqp.Publishing{Body: []byte("garbage"), MessageId: uuid.NewString()})
			return func() {}
		}},
		{"audit process gone", [][]string{{"alertname=AuditNotRunning"}}, func(_ *testing.T, w *watchedDeployment) func() {
			_ = w.audit.Process.Signal(syscall.SIGSTOP)
			return func() { _ = w.audit.Process.Signal(syscall.SIGCONT) }
		}},
		{"stock changed by hand", [][]string{{"alertname=DataInconsistent"}}, func(t *testing.T, w *watchedDeployment) func() {
			w.sql(t, "UPDATE inventory.product SET on_hand = on_hand + 1 WHERE id = 2")
			return func() { w.sql(t, "UPDATE inventory.product SET on_hand = on_hand - 1 WHERE id = 2") }
		}},
		{"overload", [][]string{{"alertname=OrdersRefused", "reason=OVERLOADED"}, {"alertname=OrdersRefusedBudget"}}, func(_ *testing.T, w *watchedDeployment) func() {
			ctx, stop := context.WithCancel(context.Background())
			var clients sync.WaitGroup
			for range 60 { // with 11 orders in flight at most
				clients.Go(func() {
					for ctx.Err() == nil {
						w.order(ctx)
						select {
						case <-ctx.Done():
						case <-time.After(300 * time.Millisecond):
						}
					}
				})
			}
			return func() { stop(); clients.Wait() }
		}},
	} {
		t.Run(c.what, func(t *testing.T) {
			t.Parallel()
			f := newDeployment(t, deploymentOptions{})
			broker, database := f.proxies(t)
			if c.what == "overload" {
				f.replicas["gateway"][0].env = append(f.replicas["gateway"][0].env, "ORDERS_IN_FLIGHT=11")
			}
			f.up(t)
			w := observe(t, f)
			w.brokerLine, w.databaseLine = broker, database
			<-time.After(time.Minute) // traffic, and no alert
			if firing := w.firing(t); len(firing) > 0 {
				t.Errorf("before anything has happened %v fire", firing)
			}
			start := time.Now()
			repair := c.provoke(t, w)
			fired := map[int]time.Duration{}
			for len(fired) < len(c.alerts) && time.Since(start) < firesWithin {
				<-time.After(2 * time.Second)
				for i, labels := range c.alerts {
					if _, known := fired[i]; !known && w.fires(t, labels...) {
						fired[i] = time.Since(start)
					}
				}
			}
			repair()
			start = time.Now()
			for i, labels := range c.alerts {
				if _, ok := fired[i]; !ok {
					t.Errorf("%s: %v did not fire within %s; these do: %v", c.what, labels, firesWithin, w.firing(t))
					continue
				}
				name := strings.TrimPrefix(labels[0], "alertname=")
				if strings.HasSuffix(name, "Budget") { // it remembers half an hour, as it should
					t.Logf("| %s | %s | %s | |", name, c.what, fired[i].Round(time.Second))
					continue
				}
				for w.fires(t, labels...) && time.Since(start) < clearsWithin {
					<-time.After(2 * time.Second)
				}
				if w.fires(t, labels...) {
					t.Errorf("%s: %v still fires %s after the repair", c.what, labels, clearsWithin)
				}
				t.Logf("| %s | %s | %s | %s |", name, c.what, fired[i].Round(time.Second), time.Since(start).Round(time.Second))
			}
			also, err := w.query(t.Context(), `count by (alertname) (count_over_time(ALERTS{alertstate="firing"}[1h]))`)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%s: all alerts that fired: %s", c.what, strings.Join(slices.Sorted(maps.Keys(also)), " "))
		})
	}
}

// TestAlerts_AreSilentWhileAllIsWellAndDuringARollingRestart watches a shop with two replicas of each service.
func TestAlerts_AreSilentWhileAllIsWellAndDuringARollingRestart(t *testing.T) {
	t.Parallel()
	quiet := 10 * time.Minute
	if text := os.Getenv("ALERTS_QUIET"); text != "" {
		var err error
		if quiet, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	f := newDeployment(t, deploymentOptions{replicas: map[string]int{"gateway": 2, "order": 2, "inventory": 2, "logging": 2}})
	f.up(t)
	w := observe(t, f)
	begin := time.Now()
	restarted := false
	for time.Since(begin) < quiet {
		<-time.After(5 * time.Second)
		if firing := w.firing(t); len(firing) > 0 {
			t.Fatalf("after %s, restarted %v, these fire: %v", time.Since(begin).Round(time.Second), restarted, firing)
		}
		if !restarted && time.Since(begin) > quiet/2 {
			restarted = true
			for _, name := range slices.Backward(services) {
				for _, r := range f.replicas[name] {
					r.restart(t)
				}
			}
		}
	}
	t.Logf("no alert in %s with one rolling restart", quiet)
}
