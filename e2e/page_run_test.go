//go:build page

package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"shop.example/db/dbtest"
	"shop.example/dev/local"
	"shop.example/platform/testkit/brokertest"
	"shop.example/topology"
)

// keep records the moments at which the browser paints, and tasks that took longer than 50 ms.
const keep = `(() => {
	window.frames = [];
	window.tasks = [];
	let before = performance.now();
	const frame = (now) => { frames.push(now - before); before = now; requestAnimationFrame(frame); };
	requestAnimationFrame(frame);
	new PerformanceObserver((list) => tasks.push(...list.getEntries().map(({duration}) => duration))).observe({type: 'longtask'});
})()`

// frames are the times between paints, in ms, while f runs.
func (b *tab) frames(f func()) string {
	b.Helper()
	eval[any](b, "frames.length = tasks.length = 0")
	f()
	times, tasks := eval[[]float64](b, "frames"), eval[[]float64](b, "tasks")
	slices.Sort(times)
	at := func(part float64) float64 { return times[min(len(times)-1, int(part*float64(len(times))))] }
	return fmt.Sprintf("%d frames, median %.1f ms, p95 %.1f ms, p99 %.1f ms, longest %.1f ms; %d tasks longer than 50 ms %.0f",
		len(times), at(0.5), at(0.95), at(0.99), at(1), len(tasks), tasks)
}

const (
	smoothSeconds = 20
	eventsASecond = 500
	writtenEvery  = 100 * time.Millisecond // by the gateway, and so by recording
)

// An operator's page stays smooth while 500 events a second come. They are of orders that were placed before, and are played to
// the page as the gateway writes them, so that the browser has the machine that is measured for itself, as at a user's.
func TestPageSpeed_FiveHundredEventsASecondStaySmooth(t *testing.T) {
	s, product := startQuiet(t)
	r := s.record(t, product)
	b := browse(t, r.play(t, s)+"/#token="+operatorToken, before(keep))
	b.order("5", "1")
	b.text("#slip-state", "CONFIRMED")
	t.Log("idle: ", b.frames(func() { <-time.After(5 * time.Second) }))
	t.Log("500 events/s: ", b.frames(func() {
		close(r.begin)
		<-r.ended
		b.until(fmt.Sprintf("document.querySelector('#log-rows details:last-child')?.dataset.id === %q", r.last(t)))
	}))
	if painted := eval[int](b, "frames.length"); painted < 50*smoothSeconds {
		t.Errorf("the page has painted %d times in %d s", painted, smoothSeconds)
	}
}

// The same while the shop, its servers and the browser share the machine. How often the page paints then depends on what the others
// leave: this only says it.
func TestPageSpeed_FiveHundredEventsASecondOnASharedMachine(t *testing.T) {
	s, product := startQuiet(t)
	b := browse(t, s.operatorLink(), before(keep))
	b.order("5", "1")
	b.timeline(confirmedTimeline...)
	const orders, every = 2800, 7 * time.Millisecond // of three events each, and the changes of stock, which come together
	begin, first := time.Now(), eval[int](b, "Number(document.querySelector('#log-rows details:last-child').dataset.id)")
	t.Log("500 events/s: ", b.frames(func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		var placing sync.WaitGroup
		for range orders {
			<-tick.C
			placing.Go(func() { s.place(t, product, 1) })
		}
		placing.Wait()
	}))
	last := eval[int](b, "Number(document.querySelector('#log-rows details:last-child').dataset.id)")
	t.Logf("%.0f events/s came", float64(last-first)/time.Since(begin).Seconds())
}

// playback are events as the stream of all events had them, each with its empty line.
type playback struct {
	events []string
	begin  chan struct{} // closed when they are to be played
	ended  chan struct{} // closed when they have been
}

// record places orders until there are events for smoothSeconds.
func (s *shop) record(t *testing.T, product int) *playback {
	t.Helper()
	r := &playback{begin: make(chan struct{}), ended: make(chan struct{})}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.url+"/v1/events:stream", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header = http.Header{"Accept": {"text/event-stream"}, "Authorization": {"Bearer " + operatorToken}, "Last-Event-Id": {"0"}}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	enough := make(chan struct{})
	var placing sync.WaitGroup
	defer placing.Wait()
	placing.Go(func() {
		for {
			select {
			case <-enough:
				return
			default:
				s.place(t, product, 1)
			}
		}
	})
	defer close(enough)
	var event strings.Builder
	for lines := bufio.NewScanner(res.Body); len(r.events) < smoothSeconds*eventsASecond; {
		if !lines.Scan() {
			t.Fatalf("the stream has ended: %v", lines.Err())
		}
		line := lines.Text()
		event.WriteString(line + "\n")
		if line != "" {
			continue
		}
		if strings.Contains(event.String(), "data:") {
			r.events = append(r.events, event.String())
		}
		event.Reset()
	}
	return r
}

// last is the id of the last event.
func (r *playback) last(t *testing.T) string {
	t.Helper()
	for line := range strings.Lines(r.events[len(r.events)-1]) {
		if id, ok := strings.CutPrefix(line, "id: "); ok {
			return strings.TrimSpace(id)
		}
	}
	t.Fatalf("the event has no id: %s", r.events[len(r.events)-1])
	return ""
}

// play is the address of a gateway whose stream of all events is what was recorded.
func (r *playback) play(t *testing.T, s *shop) string {
	t.Helper()
	gateway, err := url.Parse(s.url)
	if err != nil {
		t.Fatal(err)
	}
	others := &httputil.ReverseProxy{Rewrite: func(p *httputil.ProxyRequest) { p.SetURL(gateway) }, FlushInterval: -1}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path != "/v1/events:stream" {
			others.ServeHTTP(w, req)
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		out := http.NewResponseController(w)
		_ = out.Flush()
		select {
		case <-r.begin:
		case <-req.Context().Done():
			return
		}
		tick := time.NewTicker(writtenEvery)
		defer tick.Stop()
		for part := range slices.Chunk(r.events, eventsASecond/int(time.Second/writtenEvery)) {
			<-tick.C
			if _, err := io.WriteString(w, strings.Join(part, "")); err != nil {
				return
			}
			_ = out.Flush()
		}
		close(r.ended)
		<-req.Context().Done()
	}))
	t.Cleanup(server.Close)
	return server.URL
}

// soldAllTheTime is the product that is ordered here.
const soldAllTheTime = "Sold all the time"

// startQuiet starts a shop that logs warnings only, and has more room for streams of one client. It returns the id of a
// product with enough stock.
func startQuiet(t *testing.T) (*shop, int) {
	t.Helper()
	broker, database := brokertest.New(t), dbtest.New(t)
	cfg := config(t, database, broker.Services(t, topology.Broker()))
	cfg.Telemetry.LogLevel, cfg.MaxStreams = slog.LevelWarn, 4000
	s, err := local.New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	run(t, s)
	shop := &shop{Shop: s, url: "http://" + s.Gateway.HTTPAddr(), database: database, broker: broker}
	shop.addProducts(t, 10_000_000, soldAllTheTime)
	return shop, shop.stock(t)[soldAllTheTime].ID
}

// openPages opens n pages as a browser does, without one: what they read is thrown away. They are closed when the context
// ends.
func (s *shop) openPages(ctx context.Context, t *testing.T, n int, operator bool) (closed func()) {
	t.Helper()
	var pages sync.WaitGroup
	var streaming atomic.Int64
	get := func(path, accept string) (*http.Response, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+path, nil)
		if err != nil {
			return nil, err
		}
		req.Header.Set("Accept", accept)
		if operator {
			req.Header.Set("Authorization", "Bearer "+operatorToken)
		}
		return http.DefaultClient.Do(req)
	}
	follow := func(path string) {
		res, err := get(path, "text/event-stream")
		if err != nil || res.StatusCode != http.StatusOK {
			t.Errorf("GET %s: %+v %v", path, res, err)
			return
		}
		defer func() { _ = res.Body.Close() }()
		if _, err := bufio.NewReader(res.Body).ReadString('\n'); err != nil {
			t.Errorf("GET %s: %v", path, err)
			return
		}
		streaming.Add(1)
		_, _ = io.Copy(io.Discard, res.Body)
	}
	poll := func(path string, every time.Duration) {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if res, err := get(path, "application/json"); err == nil {
				_, _ = io.Copy(io.Discard, res.Body)
				_ = res.Body.Close()
			}
		}
	}
	streams := 0
	for range n {
		order := s.place(t, 1, 1)
		pages.Go(func() { follow(order + "/events:stream") })
		pages.Go(func() { poll("/catalogue", 2*time.Second) })
		streams++
		if operator {
			pages.Go(func() { follow("/v1/events:stream") })
			pages.Go(func() { poll("/v1/status", time.Second) })
			streams++
		}
	}
	eventually(t, func() error {
		if n := streaming.Load(); n != int64(streams) {
			return fmt.Errorf("%d streams of %d are open", n, streams)
		}
		return nil
	})
	return pages.Wait
}

// settledRate places orders from some customers, one each time that every has passed or, if that is 0, as fast as the shop
// takes them, and returns how many were settled a second.
func (s *shop) settledRate(t *testing.T, product, orders int, every time.Duration) float64 {
	t.Helper()
	var placing sync.WaitGroup
	due := make(chan struct{}, orders)
	before := s.settled(t)[soldAllTheTime].OnHand
	begin := time.Now()
	for range 32 {
		placing.Go(func() {
			for range due {
				s.place(t, product, 1)
			}
		})
	}
	tick := time.NewTicker(max(every, 1))
	defer tick.Stop()
	for range orders {
		if every > 0 {
			<-tick.C
		}
		due <- struct{}{}
	}
	close(due)
	placing.Wait()
	eventually(t, func() error {
		if now := s.stock(t)[soldAllTheTime]; now.OnHand != before-orders || now.Reserved != 0 {
			return fmt.Errorf("%+v", now)
		}
		return nil
	})
	return float64(orders) / time.Since(begin).Seconds()
}

// Open pages cost the shop little: with 200 of customers it settles at least nine tenths of the orders that it settles
// without, and so it does with 200 of operators, each with all events, of the orders that make 500 events a second: it was a third
// while each stream was read and encoded by itself. The two are measured in turns. What operators' pages cost at full speed is
// only said.
func TestPageSpeed_TwoHundredOpenPagesHardlySlowOrdersDown(t *testing.T) {
	const pages = 200
	http.DefaultTransport.(*http.Transport).MaxIdleConnsPerHost = 2 * pages
	s, product := startQuiet(t)
	s.settledRate(t, product, 4000, 0) // warm
	for _, test := range []struct {
		what           string
		operator       bool
		rounds, orders int
		every          time.Duration
		enough         float64
	}{
		{"customers at full speed", false, 5, 4000, 0, 0.9},
		{"operators at 500 events a second", true, 3, 1400, 7 * time.Millisecond, 0.9},
		{"operators at full speed", true, 3, 4000, 0, 0},
	} {
		t.Run(test.what, func(t *testing.T) {
			ratios := make([]float64, test.rounds)
			for i := range ratios {
				var rates [2]float64
				for _, with := range []int{i % 2, 1 - i%2} { // who begins alternates
					ctx, closePages := context.WithCancel(t.Context())
					wait := func() {}
					if with == 1 {
						wait = s.openPages(ctx, t, pages, test.operator)
					}
					rates[with] = s.settledRate(t, product, test.orders, test.every)
					closePages()
					wait()
				}
				ratios[i] = rates[1] / rates[0]
				t.Logf("%.0f orders/s without, %.0f with, ratio %.2f", rates[0], rates[1], ratios[i])
			}
			slices.Sort(ratios)
			median := ratios[test.rounds/2]
			t.Logf("median ratio %.2f", median)
			if median < test.enough {
				t.Errorf("%d pages cost %.0f %% of the orders", pages, 100-100*median)
			}
		})
	}
}

// TestPageLighthouse is for make lighthouse, which says where Lighthouse is.
func TestPageLighthouse(t *testing.T) {
	s := startDemo(t)
	s.decided(t, s.place(t, 5, 3))
	browser, err := exec.LookPath("chromium")
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		page, path, form string
		enough           float64
		slow             bool // which the page of the API is: it is Swagger UI, 400 kB of scripts
	}{
		{"front", "/", "desktop", 1, false},
		{"front", "/", "phone", 0.95, false},
		{"operator", "/#token=" + operatorToken, "desktop", 1, false},
		{"operator", "/#token=" + operatorToken, "phone", 0.9, false},
		{"docs", "/docs", "desktop", 1, true},
		{"docs", "/docs", "phone", 0.95, true},
	} {
		t.Run(test.page+" "+test.form, func(t *testing.T) {
			arguments := []string{
				s.url + test.path, "--quiet", "--output=json", "--only-categories=performance,accessibility,best-practices", "--chrome-flags=--headless=new --no-sandbox",
			}
			if test.form == "desktop" {
				arguments = append(arguments, "--preset=desktop")
			}
			command := exec.CommandContext(t.Context(), os.Getenv("LIGHTHOUSE"), arguments...)
			command.Env = append(os.Environ(), "CHROME_PATH="+browser)
			var complaints strings.Builder
			command.Stderr = &complaints
			report, err := command.Output()
			if err != nil {
				t.Fatalf("%v: %s", err, complaints.String())
			}
			var found struct {
				Categories map[string]struct {
					Score     float64
					AuditRefs []struct{ ID string }
				}
				Audits map[string]struct {
					Title, DisplayValue string
					Score               *float64
				}
			}
			if err := json.Unmarshal(report, &found); err != nil {
				t.Fatal(err)
			}
			for name, category := range found.Categories {
				t.Logf("%s %s: %s %.0f", test.page, test.form, name, 100*category.Score)
				if category.Score >= test.enough || test.slow && name == "performance" {
					continue
				}
				t.Errorf("%s is %.0f, want %.0f", name, 100*category.Score, 100*test.enough)
				for _, ref := range category.AuditRefs {
					if audit := found.Audits[ref.ID]; audit.Score != nil && *audit.Score < 0.9 {
						t.Logf("    %s: %s %s (%.2f)", ref.ID, audit.Title, audit.DisplayValue, *audit.Score)
					}
				}
			}
		})
	}
}
