package measure

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func loadOn(t *testing.T, clients int, handler http.HandlerFunc) *load {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	l := &load{}
	t.Cleanup(l.close)
	for range clients {
		c, err := dialREST(t.Context(), server.Listener.Addr().String(), ordersOf([]int64{11, 12, 13}, 2))
		if err != nil {
			t.Fatal(err)
		}
		l.clients = append(l.clients, c)
	}
	return l
}

func accept(w http.ResponseWriter, body string) {
	w.Header().Set("Location", "/v1/orders/the-id")
	w.WriteHeader(http.StatusAccepted)
	_, _ = io.WriteString(w, body)
}

func TestClosedLoop_PlacesEachOrderOnceOverConnectionsThatStay(t *testing.T) {
	t.Parallel()
	const order = `{"customer_name":"Ada Lovelace","customer_email":"ada.lovelace@example.org","order_items":[{"product_id":13,"quantity":1},{"product_id":11,"quantity":1}]}`
	var seen, bodies atomic.Int64
	connections := make(chan string, 100)
	l := loadOn(t, 2, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if string(body) == order && r.URL.Path == "/v1/orders" && r.Header.Get("Content-Type") == "application/json" {
			bodies.Add(1)
		}
		connections <- r.RemoteAddr
		// A long answer comes in chunks.
		accept(w, strings.Repeat("x", int(seen.Add(1)%2)*10_000))
	})
	l.onAccept = func(id string, _ time.Time) {
		if id != "the-id" {
			t.Errorf("the id is %q", id)
		}
	}
	result, err := l.closedLoop(t.Context(), 30)
	if err != nil {
		t.Fatal(err)
	}
	if seen.Load() != 30 || result.latencies.TotalCount() != 30 || bodies.Load() != 10 {
		t.Errorf("%d orders came, %d are counted, %d were of the third kind", seen.Load(), result.latencies.TotalCount(), bodies.Load())
	}
	close(connections)
	distinct := map[string]bool{}
	for c := range connections {
		distinct[c] = true
	}
	if len(distinct) > 2 {
		t.Errorf("two clients used %d connections", len(distinct))
	}
}

func TestClosedLoop_ARefusedOrderEndsItWithTheAnswer(t *testing.T) {
	t.Parallel()
	l := loadOn(t, 4, func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "no broker", http.StatusServiceUnavailable)
	})
	if _, err := l.closedLoop(t.Context(), 1000); err == nil || !strings.Contains(err.Error(), "503 Service Unavailable: no broker") {
		t.Errorf("the error is %v", err)
	}
}

func TestOpenLoop_AStallCountsForAllThatWereDueMeanwhile(t *testing.T) {
	t.Parallel()
	const stall = 300 * time.Millisecond
	var seen atomic.Int64
	l := loadOn(t, 1, func(w http.ResponseWriter, r *http.Request) {
		if seen.Add(1) == 10 {
			select {
			case <-time.After(stall):
			case <-r.Context().Done():
			}
		}
		accept(w, "{}")
	})
	result, err := l.openLoop(t.Context(), 100, 200)
	if err != nil {
		t.Fatal(err)
	}
	if took := result.end.Sub(result.begin); took < 490*time.Millisecond {
		t.Errorf("100 orders at 200 a second took %s", took)
	}
	// Sixty orders were due while the server stood still. The client that measured from sending would see one wait.
	if waited := time.Duration(result.latencies.ValueAtQuantile(70)) * time.Microsecond; waited < stall/4 {
		t.Errorf("three in ten waited for more than %s", waited)
	}
}
