//go:build soak

package e2e

import (
	"encoding/csv"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"shop.example/platform/testkit/brokertest"
	"shop.example/topology"
)

const (
	soakDefault = 8 * time.Hour
	soakSample  = time.Minute
	// soakPace makes the faults of make chaos so many times rarer.
	soakPace = 10
	// soakWave is how long the load stays as it is.
	soakWave = 150 * time.Second
)

// soakPauses are the pauses of each buyer between two orders, wave after wave.
var soakPauses = []time.Duration{400 * time.Millisecond, buyersPause, 25 * time.Millisecond, buyersPause}

// soakLimits says for each kind of series how much it may grow over the second half of the run: the larger one of a share of its mean
// and an absolute value, which is what changes from minute to minute.
var soakLimits = map[string]struct{ share, absolute float64 }{
	"memory":     {0.15, 24 << 20},
	"goroutines": {0.15, 40},
	"files":      {0.15, 20},
	"outbox":     {0, 500},
	"messages":   {0, 500},
}

// TestSoak_NothingGrowsAndNothingIsLost places orders in waves while lines and servers fail now and then, for SOAK. The first replica of
// each service lives as long as the test. What each of them uses, and what waits, is written to .bin/soak.csv every minute, and must
// not grow over the second half. SOAK_SEED repeats a schedule of faults.
func TestSoak_NothingGrowsAndNothingIsLost(t *testing.T) {
	duration, seed := soakDefault, rand.Uint64() //nolint:gosec // no secret
	var err error
	if given := os.Getenv("SOAK"); given != "" {
		if duration, err = time.ParseDuration(given); err != nil {
			t.Fatalf("SOAK: %v", err)
		}
	}
	if given := os.Getenv("SOAK_SEED"); given != "" {
		if seed, err = strconv.ParseUint(given, 10, 64); err != nil {
			t.Fatalf("SOAK_SEED: %v", err)
		}
	}
	f := newDeployment(t, deploymentOptions{replicas: map[string]int{"gateway": 2, "order": 2, "inventory": 2, "logging": 2, "webhooks": 2}})
	c := &chaos{deployment: f, away: map[*replica]bool{}, pace: soakPace, own: newServers(t)}
	f.broker, f.amqp, f.database = &brokertest.Broker{URL: c.own.amqp}, nil, c.own.makeDatabase(t)
	c.broker, c.database = f.proxies(t)
	f.up(t)
	schedule := slices.DeleteFunc(c.schedule(duration, seed), func(s step) bool { return s.victim != nil && strings.HasSuffix(s.victim.name, " 0") })
	t.Logf("SOAK_SEED=%d SOAK=%s: %d faults", seed, duration, len(schedule)/2)

	samples := newSoakSamples(t)
	tr := f.mixedTraffic(t, f.unlimitedStock(t), f.stockLargest(t, 1_000_000).byID, callTimeout, f.gateways()...)
	begin := time.Now()
	for at := time.Duration(0); at < duration; at += soakSample {
		for len(schedule) > 0 && schedule[0].at < at {
			<-time.After(time.Until(begin.Add(schedule[0].at)))
			c.supervise(t)
			schedule[0].do(t)
			schedule = schedule[1:]
		}
		<-time.After(time.Until(begin.Add(at)))
		tr.pause.Store(int64(soakPauses[int(at/soakWave)%len(soakPauses)]))
		samples.take(t, f, at)
	}
	for _, s := range schedule { // what was begun is ended
		s.do(t)
	}
	eventually(t, func() error { return c.recovered(t) })
	tr.flows(t, 20)
	refused, longest := tr.figures()
	orders := tr.end(t)
	f.decidesWithin(t, orders, resendLimit)
	c.discardPoison(t)
	samples.failOnGrowth(t)
	f.comesToRest(t, orders)
	tr.isDecided(t, &f.shop)
	t.Logf("%d orders accepted; calls that had to be repeated: %v; longest time without an accepted order: %s", orders, refused, longest.Round(time.Millisecond))
}

// soakSamples are values by series, one a minute.
type soakSamples struct {
	values map[string][]float64
	file   *csv.Writer
}

func newSoakSamples(t *testing.T) *soakSamples {
	t.Helper()
	path := filepath.Join("..", ".bin", "soak.csv")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	s := &soakSamples{map[string][]float64{}, csv.NewWriter(file)}
	t.Cleanup(func() { s.file.Flush(); _ = file.Close() })
	s.write(t, "seconds", "series", "value")
	return s
}

func (s *soakSamples) write(t *testing.T, fields ...string) {
	t.Helper()
	if err := s.file.Write(fields); err != nil {
		t.Fatal(err)
	}
	s.file.Flush()
}

// take reads all series. What does not answer at the moment has no value.
func (s *soakSamples) take(t *testing.T, f *deployment, at time.Duration) {
	t.Helper()
	now := map[string]float64{}
	for _, name := range services {
		r := f.replicas[name][0]
		now["memory of "+name] = r.memory(t)
		files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", r.cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		now["files of "+name] = float64(len(files))
		if code, _, err := r.ask("/livez"); err == nil && code == http.StatusOK {
			now["goroutines of "+name] = r.metric(t, "go_goroutines")
		}
	}
	for table, rows := range tables(t, f) {
		now[table] = rows
	}
	if conn, err := amqp.Dial(f.broker.URL); err == nil {
		now["messages in queues"] = 0
		for _, q := range topology.Broker().Queues() {
			if ch, err := conn.Channel(); err == nil {
				if state, err := ch.QueueDeclarePassive(q.Name, true, false, false, false, nil); err == nil {
					now["messages in queues"] += float64(state.Messages)
				}
			}
		}
		_ = conn.CloseDeadline(time.Now().Add(time.Second))
	}
	for _, series := range slices.Sorted(maps.Keys(now)) {
		s.values[series] = append(s.values[series], now[series])
		s.write(t, fmt.Sprintf("%.0f", at.Seconds()), series, strconv.FormatFloat(now[series], 'f', -1, 64))
	}
}

// tables are the rows that wait in outboxes, and the bytes of each schema; nothing while the database is away.
func tables(t *testing.T, f *deployment) map[string]float64 {
	t.Helper()
	now := map[string]float64{}
	rows, err := f.openDatabase(t).QueryContext(t.Context(), `
		SELECT 'outbox of orders', count(*)::float8 FROM orders.outbox
		UNION ALL SELECT 'outbox of inventory', count(*) FROM inventory.outbox
		UNION ALL SELECT 'outbox of webhooks', count(*) FROM webhooks.outbox
		UNION ALL SELECT 'bytes of ' || nspname, sum(pg_total_relation_size(pg_class.oid)) FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
			WHERE relkind = 'r' AND nspname IN ('orders', 'inventory', 'logging', 'webhooks') GROUP BY nspname`)
	if err != nil {
		return nil
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var name string
		var value float64
		if err := rows.Scan(&name, &value); err != nil {
			return nil
		}
		now[name] = value
	}
	if rows.Err() != nil {
		return nil
	}
	return now
}

// memory is what the process has in memory now, in bytes.
func (r *replica) memory(t *testing.T) (bytes float64) {
	t.Helper()
	statm, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", r.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	pages, err := strconv.ParseFloat(strings.Fields(string(statm))[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	return pages * float64(os.Getpagesize())
}

// failOnGrowth fails for each series that has grown over the second half, and prints all of them.
func (s *soakSamples) failOnGrowth(t *testing.T) {
	t.Helper()
	for _, series := range slices.Sorted(maps.Keys(s.values)) {
		all := s.values[series]
		half := all[len(all)/2:]
		mean := 0.0
		for _, v := range half {
			mean += v / float64(len(half))
		}
		growth := slope(half) * float64(len(half)-1)
		kind, _, _ := strings.Cut(series, " ")
		limit, limited := soakLimits[kind]
		t.Logf("%-24s first %.0f, last %.0f, mean of the second half %.0f, growth over it %+.0f", series, all[0], all[len(all)-1], mean, growth)
		if allowed := max(limit.absolute, limit.share*mean); limited && growth > allowed {
			t.Errorf("%s has grown by %.0f over the second half, more than %.0f", series, growth, allowed)
		}
	}
}

// slope is the median of the slopes between all pairs of samples (Theil, 1950; Sen, 1968), which a few outliers do not move.
func slope(samples []float64) float64 {
	var slopes []float64
	for i := range samples {
		for j := range i {
			slopes = append(slopes, (samples[i]-samples[j])/float64(i-j))
		}
	}
	if len(slopes) == 0 {
		return 0
	}
	slices.Sort(slopes)
	return slopes[len(slopes)/2]
}
