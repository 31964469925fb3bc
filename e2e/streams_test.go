package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	loggingv1 "shop.example/gen/shop/logging/v1"
)

// logged is an event of the log, as far as these tests look at it.
type logged struct {
	ID         string          `json:"id"`
	RoutingKey string          `json:"routing_key"`
	OrderID    string          `json:"order_id"`
	Payload    json.RawMessage `json:"payload"`
}

// liveEvents is an open stream of Server-Sent Events.
type liveEvents struct {
	body   io.ReadCloser
	lines  *bufio.Scanner
	lastID string
}

// openStream opens a stream of the log, behind lastID if it is not empty. The caller closes its body.
func openStream(ctx context.Context, url, token, lastID string) (*liveEvents, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	if lastID != "" {
		req.Header.Set("Last-Event-ID", lastID)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	if kind := res.Header.Get("Content-Type"); res.StatusCode != http.StatusOK || kind != "text/event-stream" {
		text, _ := io.ReadAll(res.Body)
		_ = res.Body.Close()
		return nil, fmt.Errorf("GET %s: %d %s %s", url, res.StatusCode, kind, text)
	}
	return &liveEvents{body: res.Body, lines: bufio.NewScanner(res.Body), lastID: lastID}, nil
}

// next reads to the end of the next message: an event, or a bare id, for which e.ID is empty.
func (s *liveEvents) next() (e logged, err error) {
	id := ""
	for s.lines.Scan() {
		name, value, _ := strings.Cut(s.lines.Text(), ": ")
		switch {
		case name == "id":
			id = value
		case name == "data":
			if err := json.Unmarshal([]byte(value), &e); err != nil {
				return e, err
			}
		case s.lines.Text() == "" && id != "":
			s.lastID = id
			if e.ID != "" && e.ID != id {
				return e, fmt.Errorf("event %s came with id %s", e.ID, id)
			}
			return e, nil
		}
	}
	if err := s.lines.Err(); err != nil {
		return e, err
	}
	return e, io.EOF
}

// event is the next message that is an event.
func (s *liveEvents) event() (e logged, err error) {
	for err == nil && e.ID == "" {
		e, err = s.next()
	}
	return e, err
}

func TestStreams_AnOrdersStreamHasAllItsEventsAndNoOthers(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.place(t, 2, 1) // another's
	location := s.place(t, 1, 1)
	o := s.decided(t, location)
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	live, err := openStream(ctx, s.url+location+"/events:stream", "", "")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = live.body.Close() }()
	over, err := loggingv1.NewEventLogServiceClient(s.dial(t)).StreamEvents(ctx, &loggingv1.StreamEventsRequest{OrderId: o.ID})
	if err != nil {
		t.Fatal(err)
	}
	if first, err := live.next(); err != nil || first.ID != "" || live.lastID != "0" {
		t.Fatalf("the stream begins with %+v, id %s (%v)", first, live.lastID, err)
	}
	if first, err := over.Recv(); err != nil || first.GetEvent() != nil || first.GetPosition() != 0 {
		t.Fatalf("the stream over gRPC begins with %v (%v)", first, err)
	}
	expect := func(key string) {
		t.Helper()
		e, err := live.event()
		if err != nil || e.RoutingKey != key || e.OrderID != o.ID {
			t.Fatalf("want %s of order %s, got %+v (%v)", key, o.ID, e, err)
		}
		reply, err := over.Recv()
		for err == nil && reply.GetEvent() == nil {
			reply, err = over.Recv()
		}
		if err != nil || fmt.Sprint(reply.GetEvent().GetId()) != e.ID || reply.GetPosition() != reply.GetEvent().GetId() || reply.GetEvent().GetRoutingKey() != key {
			t.Fatalf("want event %s over gRPC, got %v (%v)", e.ID, reply, err)
		}
	}
	for _, key := range []string{"shop.order.placed", "shop.order.confirmed", "shop.inventory.decrement.quantity"} {
		expect(key)
	}
	if a := s.call(t, http.MethodPost, location+":cancel", ""); a.code != http.StatusOK {
		t.Fatalf("cancelling: %d %s", a.code, a.body)
	}
	expect("shop.order.cancelled")
}

func TestStreams_TheWholeLogIsForOperators(t *testing.T) {
	t.Parallel()
	s := start(t)
	for _, token := range []string{"", operatorToken + "x"} {
		var header []string
		if token != "" {
			header = []string{"Authorization", "Bearer " + token}
		}
		if a := s.call(t, http.MethodGet, "/v1/events:stream", "", header...); a.code != http.StatusUnauthorized {
			t.Errorf("with the token %q: %d %s", token, a.code, a.body)
		}
	}
	over, err := loggingv1.NewEventLogServiceClient(s.dial(t)).StreamEvents(t.Context(), &loggingv1.StreamEventsRequest{})
	if err == nil {
		_, err = over.Recv()
	}
	if status.Code(err) != codes.Unauthenticated {
		t.Errorf("over gRPC: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	live, err := openStream(ctx, s.url+"/v1/events:stream?routing_key=shop.order.*&from_beginning=true", operatorToken, "")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = live.body.Close() }()
	if _, err := live.next(); err != nil {
		t.Fatal(err)
	}
	s.place(t, 1, 1)
	for _, key := range []string{"shop.order.placed", "shop.order.confirmed"} {
		if e, err := live.event(); err != nil || e.RoutingKey != key {
			t.Errorf("want %s, got %+v (%v)", key, e, err)
		}
	}
}

// Whatever was open before: a page that begins after an erasure was shown what gateway and log had read for others.
func TestStreams_WhatIsErasedIsNotShownToWhoBeginsAfterIt(t *testing.T) {
	t.Parallel()
	s := start(t)
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	url := s.url + "/v1/events:stream?routing_key=shop.order.placed"
	open, err := openStream(ctx, url, operatorToken, "")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = open.body.Close() }()
	if _, err := open.next(); err != nil {
		t.Fatal(err)
	}
	var before, last string
	for range 3 { // by the third the page has joined the others
		s.placeFor(t, "ada@example.org")
		e, err := open.event()
		if err != nil || !strings.Contains(string(e.Payload), "ada@example.org") {
			t.Fatalf("the open page has %+v (%v)", e, err)
		}
		before, last = last, e.ID
	}
	s.must(t, "customer", "erase", "--email", "ada@example.org", "--yes")
	late, err := openStream(ctx, url, operatorToken, before)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = late.body.Close() }()
	if e, err := late.event(); err != nil || e.ID != last || strings.Contains(string(e.Payload), "ada@") {
		t.Errorf("a page that begins after it has %+v, %s (%v)", e, e.Payload, err)
	}
	s.placeFor(t, "bob@example.org")
	for _, page := range []*liveEvents{open, late} {
		if e, err := page.event(); err != nil || !strings.Contains(string(e.Payload), "bob@example.org") {
			t.Errorf("then it has %+v (%v)", e, err)
		}
	}
}

// follower reads the log as a browser does: it connects again whenever a stream has ended, each time to the next
// gateway, with the last id that it was told.
type follower struct {
	began chan string // has the place where the first stream began
	mu    sync.Mutex
	told  bool // began has been
	ids   []string
	at    []time.Time // when each of them came
	ends  int
	// decided is when the decision of each order came first; nobody asks if it is nil.
	decided map[string]time.Time
}

func (f *follower) follow(ctx context.Context, gateways []string) {
	lastID := ""
	for i := 0; ctx.Err() == nil; i++ {
		live, err := openStream(ctx, gateways[i%len(gateways)]+"/v1/events:stream", operatorToken, lastID)
		if err != nil {
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
			continue
		}
		f.read(live)
		lastID = live.lastID
	}
}

// read takes what comes until the stream ends.
func (f *follower) read(live *liveEvents) {
	defer func() { _ = live.body.Close() }()
	for {
		e, err := live.next()
		f.mu.Lock()
		switch {
		case err != nil:
			f.ends++
		case e.ID != "":
			f.ids, f.at = append(f.ids, e.ID), append(f.at, time.Now())
			if _, known := f.decided[e.OrderID]; f.decided != nil && !known && (e.RoutingKey == "shop.order.confirmed" || e.RoutingKey == "shop.order.rejected") {
				f.decided[e.OrderID] = time.Now()
			}
		case f.ends == 0 && !f.told: // others say that nothing has happened
			f.told = true
			f.began <- live.lastID
		}
		f.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (f *follower) seen() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.ids)
}

func TestStreams_WhoResumesSeesEveryEventOnceWhateverRestarts(t *testing.T) {
	t.Parallel()
	f := newDeployment(t, deploymentOptions{replicas: map[string]int{"gateway": 2, "logging": 2}})
	f.up(t)
	f.url = f.gateways()[1] // stays
	ctx, leave := context.WithCancel(t.Context())
	var following sync.WaitGroup
	defer func() {
		leave()
		following.Wait()
	}()
	var browsers []*follower // the i-th begins at the i-th gateway
	for i := range f.gateways() {
		browser := &follower{began: make(chan string, 1)}
		following.Go(func() { browser.follow(ctx, slices.Concat(f.gateways()[i:], f.gateways()[:i])) })
		browsers = append(browsers, browser)
		if begin := <-browser.began; begin != "0" {
			t.Fatalf("the stream of an empty log begins at %s", begin)
		}
	}
	const each = 15
	orders := 0
	place := func() {
		for range each {
			f.place(t, 2, 1)
			orders++
		}
	}
	// A crash of one of two, and an orderly stop of a gateway and of the other logging service, under load.
	loggers, gateway := f.replicas["logging"], f.replicas["gateway"][0]
	place()
	loggers[0].kill()
	place()
	loggers[0].start(t)
	gateway.term(t)
	place()
	gateway.start(t)
	loggers[1].term(t)
	place()
	loggers[1].start(t)
	eventually(t, func() error {
		var log struct{ Events []logged }
		if a := f.get(t, "/v1/events?page_size=1000"); a.code == http.StatusOK {
			a.json(t, &log)
		}
		var want []string
		keys := map[string]int{}
		for _, e := range slices.Backward(log.Events) {
			want = append(want, e.ID)
			keys[e.RoutingKey]++
		}
		if keys["shop.order.placed"] != orders || keys["shop.order.confirmed"] != orders || keys["shop.inventory.decrement.quantity"] != orders {
			return fmt.Errorf("of %d orders are logged: %v", orders, keys)
		}
		for _, browser := range browsers {
			if got := browser.seen(); !slices.Equal(got, want) {
				return fmt.Errorf("came %v\nlogged %v", got, want)
			}
		}
		return nil
	})
	for i, browser := range browsers {
		browser.mu.Lock()
		if browser.ends == 0 {
			t.Errorf("no stream of client %d was broken", i)
		}
		browser.mu.Unlock()
	}
}
