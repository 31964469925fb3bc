package server

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"shop.example/domain/enduser"
	"shop.example/gateway/ingress"
	loggingv1 "shop.example/gen/shop/logging/v1"
)

// growingLog is an event log whose events have consecutive ids.
type growingLog struct {
	size int // of an event, in bytes

	mu      sync.Mutex
	last    int64
	changed chan struct{}   // closed when last changes
	broken  chan struct{}   // closed to end all calls
	calls   map[string]bool // those that are open, by their number
	callers map[bool]int    // how many calls there have been on behalf of operators and of others
	begun   int
}

func newGrowingLog(size int) *growingLog {
	return &growingLog{size: size, changed: make(chan struct{}), broken: make(chan struct{}), calls: map[string]bool{}, callers: map[bool]int{}}
}

func (l *growingLog) grow(n int) (last int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last += int64(n)
	close(l.changed)
	l.changed = make(chan struct{})
	return l.last
}

func (l *growingLog) breakCalls() {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.broken)
	l.broken = make(chan struct{})
}

func (l *growingLog) state() (last int64, changed, broken <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last, l.changed, l.broken
}

// open returns the calls that are open.
func (l *growingLog) open() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.calls)
}

func (l *growingLog) stream(req *loggingv1.StreamEventsRequest, stream logStream) error {
	l.mu.Lock()
	l.begun++
	number := strconv.Itoa(l.begun)
	l.calls[number] = true
	l.callers[enduser.IsOperator(stream.Context())]++
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.calls, number)
	}()
	last, changed, broken := l.state()
	at := req.GetAfterId()
	if at == 0 && !req.GetFromBeginning() && req.GetOrderId() == "" {
		at = last
	}
	if err := stream.Send(&loggingv1.StreamEventsResponse{Position: at}); err != nil {
		return err
	}
	for {
		for ; at < last; at++ {
			e := &loggingv1.Event{Id: at + 1, ErrorMessage: strings.Repeat("x", l.size)}
			if err := stream.Send(&loggingv1.StreamEventsResponse{Event: e, Position: e.GetId()}); err != nil {
				return err
			}
		}
		select {
		case <-stream.Context().Done():
			return stream.Context().Err()
		case <-broken:
			return status.Error(codes.Unavailable, "broken by the test")
		case <-changed:
		}
		last, changed, _ = l.state()
	}
}

// expectUpTo reads the events after the id from, each once and in their order, up to the id to.
func (r *sseReader) expectUpTo(from, to int64) error {
	for want := from + 1; want <= to; want++ {
		if _, err := r.next(); err != nil || r.id != strconv.FormatInt(want, 10) {
			return fmt.Errorf("want event %d, got %s (%w)", want, r.id, err)
		}
	}
	return nil
}

func (r *sseReader) begin(t *testing.T) int64 {
	t.Helper()
	for r.lines.Scan() {
		if id, ok := strings.CutPrefix(r.lines.Text(), "id: "); ok {
			begin, err := strconv.ParseInt(id, 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return begin
		}
	}
	t.Fatalf("the stream does not begin: %v", r.lines.Err())
	return 0
}

// shared waits until so many calls are open, and returns the last event. A stream that had all events before the feed was open
// joins it with the next one, so there are more of them while calls are too many.
func (l *growingLog) shared(t *testing.T, calls int) (last int64) {
	t.Helper()
	eventually(t, func() error {
		switch n := l.open(); {
		case n > calls:
			l.grow(1)
			fallthrough
		case n < calls:
			return fmt.Errorf("%d calls are open, want %d", n, calls)
		}
		return nil
	})
	last, _, _ = l.state()
	return last
}

func TestFeed_StreamsThatBeginAnywhereShareACallAndSeeEachEventOnce(t *testing.T) {
	t.Parallel()
	log := newGrowingLog(100)
	s := startStreaming(t, ingress.NewLimiter(100, 100), time.Minute, time.Minute, log.stream)
	log.grow(50)
	var growing sync.WaitGroup
	growing.Go(func() {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for range 150 {
			log.grow(3)
			<-tick.C
		}
	})
	const streams = 24
	readers, begins := make([]*sseReader, streams), make([]int64, streams)
	for i := range streams {
		headers := []string{asOperator}
		if i%3 == 1 { // one that resumes, as others are on their way
			headers = append(headers, "Last-Event-ID: "+strconv.Itoa(10*i))
		}
		readers[i] = follow(t, protocolOf(1+i%2), s.url+"/v1/events:stream", headers...)
		if begins[i] = readers[i].begin(t); i%3 == 1 && begins[i] != int64(10*i) {
			t.Errorf("resumed at %d instead of %d", begins[i], 10*i)
		}
	}
	overGRPC, err := loggingv1.NewEventLogServiceClient(client(t, strings.TrimPrefix(s.url, "http://"))).StreamEvents(
		metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+operatorToken), &loggingv1.StreamEventsRequest{FromBeginning: true})
	if err != nil {
		t.Fatal(err)
	}
	growing.Wait()
	last := log.grow(1) // there is news for whoever has not joined
	for want := int64(0); want <= last; want++ {
		if reply, err := overGRPC.Recv(); err != nil || reply.GetPosition() != want {
			t.Fatalf("over gRPC: %v (%v), want %d", reply, err, want)
		}
	}
	for i, r := range readers {
		if err := r.expectUpTo(begins[i], last); err != nil {
			t.Errorf("stream %d, which began at %d: %v", i, begins[i], err)
		}
	}
	log.shared(t, 1)
	next := log.grow(1)
	for i, r := range readers {
		if err := r.expectUpTo(last, next); err != nil {
			t.Errorf("stream %d: %v", i, err)
		}
		_ = r.res.Body.Close()
	}
}

func TestFeed_AStreamThatIsNotReadHoldsNobodyUpAndMissesNothing(t *testing.T) {
	t.Parallel()
	log := newGrowingLog(10_000)
	s := startStreaming(t, ingress.NewLimiter(100, 100), time.Minute, time.Minute, log.stream)
	slow := follow(t, protocolOf(1), s.url+"/v1/events:stream", asOperator)
	begin := slow.begin(t)
	quick := follow(t, protocolOf(1), s.url+"/v1/events:stream", asOperator)
	quick.begin(t)
	first := log.grow(1)
	if err := errors.Join(slow.expectUpTo(begin, first), quick.expectUpTo(begin, first)); err != nil {
		t.Fatal(err)
	}
	log.shared(t, 1)
	last := log.grow(1500) // more than the feed keeps and the operating system buffers
	if err := quick.expectUpTo(first, last); err != nil {
		t.Fatalf("a stream beside one that is not read: %v", err)
	}
	if err := slow.expectUpTo(first, last); err != nil {
		t.Fatalf("the stream that was not read: %v", err)
	}
	last, next := last, log.grow(1)
	if err := errors.Join(slow.expectUpTo(last, next), quick.expectUpTo(last, next)); err != nil {
		t.Fatal(err)
	}
	log.shared(t, 1)
}

func TestFeed_StreamsOfACallThatBreaksEndWhereTheyCanResume(t *testing.T) {
	t.Parallel()
	log := newGrowingLog(100)
	s := startStreaming(t, ingress.NewLimiter(100, 100), time.Minute, time.Minute, log.stream)
	readers := make([]*sseReader, 4)
	for i := range readers {
		readers[i] = follow(t, protocolOf(1), s.url+"/v1/events:stream", asOperator)
		readers[i].begin(t)
	}
	first := log.grow(5)
	for _, r := range readers {
		if err := r.expectUpTo(0, first); err != nil {
			t.Fatal(err)
		}
	}
	shared := log.shared(t, 1)
	for _, r := range readers {
		if err := r.expectUpTo(first, shared); err != nil {
			t.Fatal(err)
		}
	}
	first = shared
	log.breakCalls()
	for _, r := range readers {
		if _, err := r.next(); !errors.Is(err, io.EOF) || r.rest[len(r.rest)-1] != ": logging service is not available" {
			t.Errorf("ended with %v, %q", err, r.rest)
		}
	}
	last := log.grow(5)
	for i, r := range readers {
		readers[i] = follow(t, protocolOf(1), s.url+"/v1/events:stream", asOperator, "Last-Event-ID: "+r.id)
		if begin := readers[i].begin(t); begin != first {
			t.Errorf("resumed at %d instead of %d", begin, first)
		}
		if err := readers[i].expectUpTo(first, last); err != nil {
			t.Error(err)
		}
	}
}

func TestFeed_StreamsOfAnOrderAreReadForTheirCallerAlone(t *testing.T) {
	t.Parallel()
	log := newGrowingLog(100)
	s := startStreaming(t, ingress.NewLimiter(100, 100), time.Minute, time.Minute, log.stream)
	ofOrder := s.url + "/v1/orders/" + storedOrder + "/events:stream"
	for _, headers := range [][]string{nil, nil, {asOperator}} {
		follow(t, protocolOf(1), ofOrder, headers...).begin(t)
	}
	if got := send(t, "GET", s.url+"/v1/events:stream", "", "Authorization: Bearer guess"); got.status != 401 {
		t.Errorf("a stream of the whole log for somebody who is no operator: %d %s", got.status, got.body)
	}
	log.shared(t, 3)
	log.mu.Lock()
	defer log.mu.Unlock()
	if log.callers[false] != 2 || log.callers[true] != 1 {
		t.Errorf("calls on behalf of operators and others: %v", log.callers)
	}
}
