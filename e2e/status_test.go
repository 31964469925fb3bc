package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"shop.example/shop/cli"
	"shop.example/shop/command"
	"shop.example/topology"
)

// shopStatus is the JSON of GET /v1/status; its numbers are numbers.
type shopStatus struct {
	Services []struct {
		Name   string `json:"name"`
		Ready  bool   `json:"ready"`
		Detail string `json:"detail"`
	} `json:"services"`
	Queues []struct {
		Name      string `json:"name"`
		Messages  int    `json:"messages"`
		Consumers int    `json:"consumers"`
	} `json:"queues"`
	Outboxes []struct {
		Service     string `json:"service"`
		Pending     int    `json:"pending"`
		OldestAgeMS int    `json:"oldest_age_ms"`
	} `json:"outboxes"`
	OrdersPerSecond *float64  `json:"orders_per_second"`
	At              time.Time `json:"at"`
}

func (s *shop) status(t *testing.T) (st shopStatus) {
	t.Helper()
	a := s.get(t, "/v1/status")
	if a.code != http.StatusOK {
		t.Fatalf("GET /v1/status: %d %s", a.code, a.body)
	}
	a.json(t, &st)
	return st
}

// unready lists the services that are not ready, and what they say.
func (st shopStatus) unready() (all []string) {
	for _, s := range st.Services {
		if !s.Ready {
			all = append(all, s.Name+": "+s.Detail)
		}
	}
	return all
}

func TestStatus_ShowsServicesQueuesOutboxesAndTheRateOfOrders(t *testing.T) {
	t.Parallel()
	s := start(t)
	if a := s.call(t, http.MethodGet, "/v1/status", ""); a.code != http.StatusUnauthorized {
		t.Errorf("without the token: %d %s", a.code, a.body)
	}
	const orders = 5
	for range orders {
		s.decided(t, s.place(t, 1, 1))
	}
	var st shopStatus
	eventually(t, func() error {
		st = s.status(t)
		if len(st.unready()) > 0 || st.OrdersPerSecond == nil || *st.OrdersPerSecond != orders/10.0 {
			return fmt.Errorf("status %+v", st)
		}
		return nil
	})
	names := []string{}
	for _, service := range st.Services {
		names = append(names, service.Name)
	}
	if want := append(called(), topology.Gateway); !slices.Equal(names, want) {
		t.Errorf("services %q, want %q", names, want)
	}
	consumers := map[string]int{}
	for _, q := range st.Queues {
		consumers[q.Name] = q.Consumers
	}
	if len(consumers) != len(topology.Broker().Queues()) || consumers["order"] != 1 || consumers["inventory"] != 1 || consumers["logging"] != 1 || consumers["dead-letter"] != 1 {
		t.Errorf("queues %+v", st.Queues)
	}
	if len(st.Outboxes) != 3 || st.Outboxes[0].Service != "order" || st.Outboxes[1].Service != "inventory" || st.Outboxes[2].Service != "webhooks" {
		t.Errorf("outboxes %+v", st.Outboxes)
	}
	if age := time.Since(st.At); age > time.Minute || age < -time.Minute {
		t.Errorf("gathered at %s", st.At)
	}
}

// Pages that ask all at once get the same answer, gathered once.
func TestStatus_IsGatheredOnceForAllWhoAsk(t *testing.T) {
	t.Parallel()
	s := start(t)
	var mu sync.Mutex
	gathered := map[time.Time]int{}
	var pages sync.WaitGroup
	for range 20 {
		pages.Go(func() {
			for range 10 {
				at := s.status(t).At
				mu.Lock()
				gathered[at]++
				mu.Unlock()
			}
		})
	}
	begin := time.Now()
	pages.Wait()
	if most := 2 + int(time.Since(begin)/(400*time.Millisecond)); len(gathered) > most {
		t.Errorf("200 answers were gathered %d times in %s", len(gathered), time.Since(begin))
	}
}

// called are the services that the gateway can ask: those with gRPC of their own.
func called() (names []string) {
	for _, s := range topology.Services() {
		if s.GRPCPort != 0 {
			names = append(names, s.Name)
		}
	}
	return names
}

func TestStatus_ServicesThatAreAwayAreNamedAndDoNotHoldItUp(t *testing.T) {
	t.Parallel()
	s := start(t)
	alone := gatewayAlone(t, s)
	begin := time.Now()
	st := alone.status(t)
	if took := time.Since(begin); took > testTimeout/3 {
		t.Errorf("it took %s", took)
	}
	unready := st.unready()
	if len(unready) != len(called()) || len(st.Queues) != len(topology.Broker().Queues()) || len(st.Outboxes) != 0 || st.OrdersPerSecond != nil {
		t.Errorf("status %+v", st)
	}
	for _, said := range unready {
		if !strings.HasSuffix(said, ": not reachable") && !strings.Contains(said, "no answer within 1s") {
			t.Errorf("it says %q", said)
		}
	}
	if text, err := json.Marshal(st); err != nil || strings.Contains(string(text), "127.0.0.1") {
		t.Errorf("it names an address: %s, %v", text, err)
	}
}

// waiting is how many messages wait in a queue, -1 if there is none.
func (st shopStatus) waiting(queue string) int {
	for _, q := range st.Queues {
		if q.Name == queue {
			return q.Messages
		}
	}
	return -1
}

// writes is a writer that calls itself.
type writes func([]byte)

func (w writes) Write(text []byte) (int, error) {
	w(text)
	return len(text), nil
}

func TestStatusCommand_SaysHowTheShopIsAndFailsIfItIsNotReady(t *testing.T) {
	t.Parallel()
	s := startDemo(t)
	status := func(args ...string) (string, error) {
		root := command.Root()
		var out bytes.Buffer
		root.SetOut(&out)
		root.SetErr(&out)
		root.SetArgs(append([]string{"status", "--server", s.url, "--token", operatorToken}, args...))
		err := root.ExecuteContext(t.Context())
		return out.String(), err
	}
	lines := func(text string) string { return strings.Join(strings.Fields(text), " ") }
	eventually(t, func() error {
		out, err := status()
		for _, want := range []string{"order yes empty -", "logging yes - -", "gateway yes - -", "dead-letter 0 0 1", "inventory.retry.60s 0 0 0", "0.0 orders/s decided"} {
			if err != nil || !strings.Contains(lines(out), want) {
				return fmt.Errorf("no %q in it: %w\n%s", want, err, out)
			}
		}
		return nil
	})
	s.control(t, "/demo/services/order/stop", ``, nil)
	s.place(t, 1, 1)
	eventually(t, func() error {
		out, err := status()
		if !errors.Is(err, cli.ExitCode(1)) || !strings.Contains(lines(out), "order no - not reachable") ||
			!strings.Contains(lines(out), "order 1 0") || !strings.Contains(out, "does not say how many orders") {
			return fmt.Errorf("it ended with: %w\n%s", err, out)
		}
		return nil
	})
	// Again and again, until it is interrupted.
	ctx, interrupt := context.WithCancel(t.Context())
	var seen lockedBuffer
	watch := command.Root()
	watch.SetOut(writes(func(text []byte) {
		_, _ = seen.Write(text)
		if strings.Count(seen.String(), "QUEUE") == 2 {
			interrupt()
		}
	}))
	watch.SetArgs([]string{"status", "--watch", "--server", s.url, "--token", operatorToken})
	if err := watch.ExecuteContext(ctx); cli.ExitStatus(err) != 130 {
		t.Errorf("watched to %v\n%s", err, seen.String())
	}

	out, err := status("--json")
	var st shopStatus
	if parsed := json.Unmarshal([]byte(out), &st); parsed != nil || !errors.Is(err, cli.ExitCode(1)) || len(st.unready()) != 1 {
		t.Errorf("--json: %v, %v\n%s", parsed, err, out)
	}
}
