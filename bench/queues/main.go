// Command queues measures how the rate of a broker grows with the number of order queues: it publishes small persistent messages to
// 1, 2 and 4 quorum queues by the hash of an id, with confirms, consumes them at the same time, and prints messages a second and
// the broker's CPU time a message. With -core it binds the broker to one core and itself to the others, which takes Linux and
// taskset. It wants a broker of its own:
//
//	.bin/shopdev exec --fast -- go run ./bench/queues -core 0
//
// With -ways it measures instead what an order's messages cost the broker if they travelled in another way: see ways.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"hash/fnv"
	"log"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/procfs"
	amqp "github.com/rabbitmq/amqp091-go"
	"golang.org/x/sync/errgroup"
)

const (
	exchange = "bench.queues"
	// connections are how many publish, as many gateways do.
	connections = 2
	// window is how many messages a connection has unconfirmed, and prefetch how many a consumer has unacknowledged.
	window   = 500
	prefetch = 1000
	// ackEvery is how many messages one acknowledgement is about, as a batch of the order service is.
	ackEvery = 100
)

var counts = []int{1, 2, 4}

func main() {
	log.SetFlags(0)
	messages := flag.Int("messages", 60_000, "so many a run")
	rounds := flag.Int("rounds", 3, "so many runs of each number of queues, in turns")
	size := flag.Int("size", 300, "bytes of a message")
	core := flag.Int("core", -1, "bind the broker to this core, and this program to the others")
	other := flag.Bool("ways", false, "measure the ways in which an order's messages could travel")
	pid := flag.Int("pid", 0, "the broker's process, if it is not on this machine under the number that it says (in a container)")
	flag.Parse()
	if *other {
		err := error(nil)
		if *pid == 0 {
			*pid, err = brokerPID(os.Getenv("AMQP_MANAGEMENT_URL"))
		}
		if err == nil {
			err = runWays(*messages/3/240*240, *rounds, *pid) // three messages an order, in whole batches
		}
		if err != nil {
			log.Fatal("queues: ", err)
		}
		return
	}
	if err := run(*messages, *rounds, *size, *core); err != nil {
		log.Fatal("queues: ", err)
	}
}

func run(messages, rounds, size, core int) error {
	url := os.Getenv("AMQP_URL")
	pid, err := brokerPID(os.Getenv("AMQP_MANAGEMENT_URL"))
	if err != nil {
		return err
	}
	if core >= 0 {
		if err := bind(pid, core); err != nil {
			return err
		}
	}
	rates, costs := map[int][]float64{}, map[int][]float64{}
	for range rounds {
		for _, queues := range counts {
			cost, rate, err := perUnit(pid, messages, func() (time.Duration, error) {
				return measure(url, queues, messages/connections*connections, size)
			})
			if err != nil {
				return err
			}
			rates[queues], costs[queues] = append(rates[queues], rate), append(costs[queues], cost)
		}
	}
	fmt.Fprintln(os.Stdout, "| queues | messages a second (min to max) | CPU of the broker, µs a message |\n| --- | --- | --- |")
	for _, queues := range counts {
		slices.Sort(rates[queues])
		slices.Sort(costs[queues])
		fmt.Fprintf(os.Stdout, "| %d | %.0f (%.0f to %.0f) | %.0f |\n", queues, rates[queues][rounds/2], rates[queues][0], rates[queues][rounds-1], costs[queues][rounds/2])
	}
	return nil
}

// perUnit measures a run that handles so many units: the broker's CPU time for each in µs, and how many there were a second.
func perUnit(pid, units int, run func() (took time.Duration, err error)) (cost, rate float64, err error) {
	before, err := cpu(pid)
	if err != nil {
		return 0, 0, err
	}
	took, err := run()
	if err != nil {
		return 0, 0, err
	}
	after, err := cpu(pid)
	return float64((after - before).Microseconds()) / float64(units), float64(units) / took.Seconds(), err
}

// measure publishes messages to so many queues and consumes them, and returns how long that took.
func measure(url string, queues, messages, size int) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	admin, err := amqp.Dial(url)
	if err != nil {
		return 0, err
	}
	defer func() { _ = admin.Close() }()
	ch, err := admin.Channel()
	if err != nil {
		return 0, err
	}
	if err := ch.ExchangeDeclare(exchange, amqp.ExchangeDirect, true, false, false, false, nil); err != nil {
		return 0, err
	}
	perQueue := make([]int, queues)
	for i := range messages {
		perQueue[queueOf(i, queues)]++
	}
	for i := range queues {
		name := queueName(i)
		if _, err := ch.QueueDeclare(name, true, false, false, false, amqp.Table{amqp.QueueTypeArg: amqp.QueueTypeQuorum}); err != nil {
			return 0, err
		}
		defer func() { _, _ = ch.QueueDelete(name, false, false, false) }()
		if err := ch.QueueBind(name, strconv.Itoa(i), exchange, false, nil); err != nil {
			return 0, err
		}
	}
	begun := time.Now()
	g, ctx := errgroup.WithContext(ctx)
	for i := range queues {
		g.Go(func() error { return consume(ctx, url, queueName(i), nil, perQueue[i], ackEvery, nil) })
	}
	for c := range connections {
		g.Go(func() error {
			return publish(ctx, url, c*messages/connections, (c+1)*messages/connections, queues, size)
		})
	}
	err = g.Wait()
	return time.Since(begun), err
}

func queueName(i int) string { return fmt.Sprint("bench.queue.", i) }

// queueOf is the queue of the message with this number.
func queueOf(message, queues int) int {
	h := fnv.New32a()
	_, _ = h.Write([]byte(strconv.Itoa(message)))
	return int(h.Sum32()>>16) % queues
}

func publish(ctx context.Context, url string, from, to, queues, size int) error {
	out, err := open(ctx, url, window)
	if err != nil {
		return err
	}
	defer out.close()
	for i := from; i < to; i++ {
		if err := out.publish(exchange, strconv.Itoa(queueOf(i, queues)), size); err != nil {
			return err
		}
	}
	return out.flush()
}

// consume takes messages from a queue and acknowledges a batch at a time, each time after handle, if that is not nil.
func consume(ctx context.Context, url, queue string, args amqp.Table, messages, batch int, handle func() error) error {
	conn, err := amqp.Dial(url)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	ch, err := conn.Channel()
	if err != nil {
		return err
	}
	if err := ch.Qos(prefetch, 0, false); err != nil {
		return err
	}
	deliveries, err := ch.Consume(queue, "", false, false, false, false, args)
	if err != nil {
		return err
	}
	for n := 1; n <= messages; n++ {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case d, ok := <-deliveries:
			if !ok {
				return errors.New("the broker has ended a consumer")
			}
			if n%batch != 0 && n != messages {
				continue
			}
			if handle != nil {
				if err := handle(); err != nil {
					return err
				}
			}
			if err := d.Ack(true); err != nil {
				return err
			}
		}
	}
	return nil
}

// publisher publishes on a connection of its own. It is not for concurrent use.
type publisher struct {
	ctx     context.Context //nolint:containedctx // a run's
	conn    *amqp.Connection
	ch      *amqp.Channel
	window  int // of messages without a confirm
	waiting []*amqp.DeferredConfirmation
}

func open(ctx context.Context, url string, window int) (*publisher, error) {
	conn, err := amqp.Dial(url)
	if err != nil {
		return nil, err
	}
	ch, err := conn.Channel()
	if err == nil {
		err = ch.Confirm(false)
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return &publisher{ctx: ctx, conn: conn, ch: ch, window: window}, nil
}

func (p *publisher) close() { _ = p.conn.Close() }

// publish waits while the window is full.
func (p *publisher) publish(exchange, key string, size int) error {
	if len(p.waiting) == p.window {
		if err := p.await(p.waiting[:1]); err != nil {
			return err
		}
		p.waiting = slices.Delete(p.waiting, 0, 1)
	}
	confirm, err := p.ch.PublishWithDeferredConfirmWithContext(p.ctx, exchange, key, false, false,
		amqp.Publishing{DeliveryMode: amqp.Persistent, Body: make([]byte, size)})
	if err == nil {
		p.waiting = append(p.waiting, confirm)
	}
	return err
}

func (p *publisher) flush() error {
	defer func() { p.waiting = p.waiting[:0] }()
	return p.await(p.waiting)
}

func (p *publisher) await(confirms []*amqp.DeferredConfirmation) error {
	for _, c := range confirms {
		if ok, err := c.WaitContext(p.ctx); err != nil || !ok {
			return errors.Join(err, errors.New("the broker has not taken a message"))
		}
	}
	return nil
}

// brokerPID is the process of a broker on this machine. The broker says it a few seconds after it has started.
func brokerPID(management string) (pid int, err error) {
	for range 20 {
		if pid, err = askPID(management); err == nil {
			return pid, nil
		}
		<-time.After(time.Second)
	}
	return 0, fmt.Errorf("asking AMQP_MANAGEMENT_URL for the broker's process: %w", err)
}

func askPID(management string) (int, error) {
	res, err := http.Get(management + "/api/nodes") //nolint:noctx // it is the first thing that happens
	if err != nil {
		return 0, err
	}
	defer func() { _ = res.Body.Close() }()
	var nodes []struct {
		PID string `json:"os_pid"`
	}
	if err := json.NewDecoder(res.Body).Decode(&nodes); err != nil {
		return 0, err
	}
	if len(nodes) != 1 {
		return 0, fmt.Errorf("it has %d nodes, want 1", len(nodes))
	}
	return strconv.Atoi(nodes[0].PID)
}

// bind leaves one core to the broker.
func bind(pid, core int) error {
	other := fmt.Sprintf("0-%d", cpus()-1)
	if core > 0 {
		other = fmt.Sprintf("0-%d", core-1)
	} else if cpus() > 1 {
		other = fmt.Sprintf("1-%d", cpus()-1)
	}
	for process, where := range map[int]string{pid: strconv.Itoa(core), os.Getpid(): other} {
		if out, err := exec.Command("taskset", "-acp", where, strconv.Itoa(process)).CombinedOutput(); err != nil { //nolint:gosec,noctx // numbers
			return fmt.Errorf("taskset: %w: %s", err, out)
		}
	}
	return nil
}

func cpus() int {
	n, _ := strconv.Atoi(strings.TrimSpace(output("nproc", "--all")))
	return max(1, n)
}

func output(name string, args ...string) string {
	out, _ := exec.Command(name, args...).Output() //nolint:gosec,noctx // constants
	return string(out)
}

// cpu is the time that a process has used.
func cpu(pid int) (time.Duration, error) {
	process, err := procfs.NewProc(pid)
	if err != nil {
		return 0, err
	}
	stat, err := process.Stat()
	return time.Duration(stat.CPUTime() * float64(time.Second)), err
}
