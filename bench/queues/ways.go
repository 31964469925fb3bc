package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"golang.org/x/sync/errgroup"
)

// way is a way in which the messages of orders could travel. The first one is the shop's.
type way struct {
	name string
	// logQueue is the type of the log's queue.
	logQueue string
	// logs are the messages that the log gets.
	logs []string
	// together says that what a batch of orders publishes is one message for each kind.
	together bool
	// batch is how many orders are decided together, and how many messages one acknowledgement is about.
	batch int
}

var (
	kinds = []string{"placed", "decrement", "confirmed"}
	ways  = []way{
		{name: "as the shop does", logQueue: "quorum", logs: kinds, batch: 60},
		{name: "events of a batch in one message", logQueue: "quorum", logs: kinds, together: true, batch: 60},
		{name: "one copy for the log, of three times the size", logQueue: "quorum", logs: kinds[2:], batch: 60},
		{name: "no copy for the log", logQueue: "quorum", batch: 60},
		{name: "a classic queue for the log", logQueue: "classic", logs: kinds, batch: 60},
		{name: "a stream for the log", logQueue: "stream", logs: kinds, batch: 60},
		{name: "batches and acknowledgements of 240", logQueue: "quorum", logs: kinds, batch: 240},
	}
)

const (
	waysExchange = "bench.ways"
	// eventSize is that of an event about one order of two lines, in bytes, with its headers left out.
	eventSize = 250
	// clients is how many orders wait for their confirms.
	clients = 64
)

// runWays measures each way in turns, and prints what an order costs the broker.
func runWays(orders, rounds, pid int) error {
	costs, rates := make([][]float64, len(ways)), make([][]float64, len(ways))
	for round := range rounds {
		for i := range ways {
			i = (i + round) % len(ways)
			cost, rate, err := perUnit(pid, orders, func() (time.Duration, error) { return ways[i].measure(os.Getenv("AMQP_URL"), orders) })
			if err != nil {
				return fmt.Errorf("%s: %w", ways[i].name, err)
			}
			costs[i], rates[i] = append(costs[i], cost), append(rates[i], rate)
		}
	}
	fmt.Fprintln(os.Stdout, "| way | CPU of the broker, µs an order (min to max) | ratio of pairs | orders a second |\n| --- | --- | --- | --- |")
	for i, w := range ways {
		ratios := make([]float64, rounds)
		for round := range rounds {
			ratios[round] = costs[i][round] / costs[0][round]
		}
		fmt.Fprintf(os.Stdout, "| %s | %.0f (%.0f to %.0f) | %.2f | %.0f |\n", w.name, median(costs[i]), slices.Min(costs[i]), slices.Max(costs[i]), median(ratios), median(rates[i]))
	}
	return nil
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

// measure sends orders this way, and returns how long it took until every queue was consumed.
func (w way) measure(url string, orders int) (took time.Duration, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	conn, err := amqp.Dial(url)
	if err != nil {
		return 0, err
	}
	defer func() { _ = conn.Close() }()
	ch, err := conn.Channel()
	if err != nil {
		return 0, err
	}
	if err := ch.ExchangeDeclare(waysExchange, amqp.ExchangeTopic, true, false, false, false, nil); err != nil {
		return 0, err
	}
	defer func() { _ = ch.ExchangeDelete(waysExchange, false, false) }()
	for queue, keys := range map[string][]string{"order": kinds[:1], "inventory": kinds[1:2], "log": w.logs} {
		kind := "quorum"
		if queue == "log" {
			kind = w.logQueue
		}
		if _, err := ch.QueueDeclare("bench."+queue, true, false, false, false, amqp.Table{amqp.QueueTypeArg: kind}); err != nil {
			return 0, err
		}
		defer func() { _, _ = ch.QueueDelete("bench."+queue, false, false, false) }()
		for _, key := range keys {
			if err := ch.QueueBind("bench."+queue, key, waysExchange, false, nil); err != nil {
				return 0, err
			}
		}
	}
	perBatch := w.batch
	if w.together {
		perBatch = 1
	}
	logged := 0
	for _, kind := range w.logs {
		if kind == kinds[0] {
			logged += orders
			continue
		}
		logged += orders / w.batch * perBatch
	}
	var from amqp.Table
	if w.logQueue == "stream" {
		from = amqp.Table{"x-stream-offset": "first"}
	}
	begun := time.Now()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return w.place(ctx, url, orders) })
	g.Go(func() error { return w.decide(ctx, url, orders) })
	g.Go(func() error {
		return consume(ctx, url, "bench.inventory", nil, orders/w.batch*perBatch, perBatch, nil)
	})
	g.Go(func() error { return consume(ctx, url, "bench.log", from, logged, w.batch, nil) })
	err = g.Wait()
	return time.Since(begun), err
}

// place publishes orders, of which so many as there are clients are unconfirmed.
func (w way) place(ctx context.Context, url string, orders int) error {
	out, err := open(ctx, url, clients)
	if err != nil {
		return err
	}
	defer out.close()
	for range orders {
		if err := out.publish(waysExchange, kinds[0], eventSize); err != nil {
			return err
		}
	}
	return out.flush()
}

// decide takes orders in batches and publishes two events about each, as the relays of order and inventory do.
func (w way) decide(ctx context.Context, url string, orders int) error {
	out, err := open(ctx, url, 2*w.batch)
	if err != nil {
		return err
	}
	defer out.close()
	return consume(ctx, url, "bench.order", nil, orders, w.batch, func() error {
		messages, size := w.batch, eventSize
		if w.together {
			messages, size = 1, w.batch*eventSize
		}
		for _, kind := range kinds[1:] {
			if len(w.logs) == 1 && kind == w.logs[0] {
				size *= len(kinds)
			}
			for range messages {
				if err := out.publish(waysExchange, kind, size); err != nil {
					return err
				}
			}
		}
		return out.flush()
	})
}
