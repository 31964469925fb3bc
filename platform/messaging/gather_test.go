package messaging

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

func TestGather_WaitsForMoreAsLongAsItLingers(t *testing.T) {
	t.Parallel()
	const ms, never = time.Millisecond, time.Hour
	for name, c := range map[string]struct {
		linger     time.Duration
		most       int
		arrive     []time.Duration // when deliveries come
		stop, gone time.Duration   // when the consumer is to stop, and when the channel closes
		want       int
		took       time.Duration
	}{
		"from the first one on":           {20 * ms, 10, []time.Duration{15 * ms, 30 * ms, 45 * ms}, never, never, 2, 35 * ms},
		"until the batch is full":         {20 * ms, 2, []time.Duration{0, 5 * ms, 10 * ms}, never, never, 2, 5 * ms},
		"not at all":                      {0, 10, []time.Duration{5 * ms, 10 * ms}, never, never, 1, 5 * ms},
		"until it is to stop":             {20 * ms, 10, []time.Duration{5 * ms, 15 * ms}, 10 * ms, never, 1, 10 * ms},
		"in vain where it is to stop":     {20 * ms, 10, nil, 10 * ms, never, 0, 10 * ms},
		"until nothing can come any more": {20 * ms, 10, []time.Duration{5 * ms}, never, 10 * ms, 1, 10 * ms},
		"in vain where nothing can come":  {20 * ms, 10, nil, never, 10 * ms, 0, 10 * ms},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				ctx, stop := context.WithCancel(t.Context())
				defer stop()
				deliveries := make(chan amqp.Delivery, len(c.arrive))
				var library sync.Mutex // one goroutine sends and closes
				for _, at := range c.arrive {
					time.AfterFunc(at, func() {
						library.Lock()
						defer library.Unlock()
						deliveries <- amqp.Delivery{}
					})
				}
				time.AfterFunc(c.stop, stop)
				time.AfterFunc(c.gone, func() {
					library.Lock()
					defer library.Unlock()
					close(deliveries)
				})
				begin := time.Now()
				batch := gather(ctx, deliveries, make([]amqp.Delivery, 0, c.most), c.linger)
				if took := time.Since(begin); len(batch) != c.want || took != c.took {
					t.Errorf("got %d deliveries after %s, want %d after %s", len(batch), took, c.want, c.took)
				}
			})
		})
	}
}

func TestConsumer_ThePrefetchGrowsAndShrinksWithTheSizeOfMessages(t *testing.T) {
	t.Parallel()
	conn, err := Dial("amqp://localhost", Options{Service: "order"}) // it is not run
	if err != nil {
		t.Fatal(err)
	}
	c := NewConsumer(conn, nil, "order", ConsumerOptions{Batch: 500})
	sizes := func(largest int) (all []int) {
		c.largest = largest
		for all = []int{c.prefetch()}; c.adjustPrefetch(); {
			all = append(all, c.prefetch())
		}
		return all
	}
	for _, c := range []struct {
		largest int
		want    []int
	}{
		{300, []int{1, 15, 125, 1000}},
		{84_000, []int{1000, 125}},
		{16 << 20, []int{125, 1}},
		{84_000, []int{1, 15, 125}},
		{20_000, []int{125, 500}},
	} {
		if got := sizes(c.largest); !slices.Equal(got, c.want) {
			t.Errorf("while the largest message has %d bytes: %v, want %v", c.largest, got, c.want)
		}
	}
}
