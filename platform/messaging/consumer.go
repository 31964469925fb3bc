package messaging

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"

	"shop.example/platform/crash"
	"shop.example/platform/postgres"
)

// drainTimeout is how long a batch in hand may take to finish after the consumer was told to stop.
const drainTimeout = 5 * time.Second

// idleLimit is how long a consumer that gets nothing trusts its channel. If somebody deletes a quorum queue and declares it
// again at once, RabbitMQ keeps the consumer and counts it, but what it hands out to it never arrives: to a new channel it
// does, and what was handed out to the old one comes again.
const idleLimit = 15 * time.Second

// ConsumerOptions bound what a consumer holds.
type ConsumerOptions struct {
	Batch int // messages handed to a handler at once, at most; 200 where it is 0
	// Linger is how long a batch that is not full waits for more messages after its first one. What a batch costs, a
	// transaction above all, is then shared by more of them.
	Linger time.Duration
}

// Consumer takes messages from one queue in batches, hands them to the handlers of their types and settles them, one
// batch after the other: two at a time would each be half as large, and meet in the same rows. For the same reason the
// replicas of a service do not take turns at its queue. Each draws a priority: the broker gives the first as much as its
// prefetch has room for, and the next what is left (https://www.rabbitmq.com/docs/consumer-priority). While a dependency
// is down for one of them it leaves the queue to the others.
type Consumer struct {
	conn     *Connection
	pub      *Publisher
	queue    string
	batch    int
	linger   time.Duration
	priority int32
	dispatch dispatcher
	attached atomic.Bool
	down     atomic.Pointer[error] // why the consumer waits, nil while it does not
	ch       *amqp.Channel         // of the session, nil when it has left the queue; Run's alone
	slow     bool                  // the database gave up on the message that failed last, and none was handled since; Run's alone
}

// NewConsumer returns a consumer of queue. Retries and dead letters are published through pub.
func NewConsumer(conn *Connection, pub *Publisher, queue string, o ConsumerOptions, handlers ...Handler) *Consumer {
	if o.Batch == 0 {
		o.Batch = 200
	}
	dispatch := newDispatcher(handlers)
	dispatch.admit = func(d *amqp.Delivery) error { return conn.admit(d, queue) }
	return &Consumer{conn: conn, pub: pub, queue: queue, batch: o.Batch, linger: o.Linger, priority: rand.Int32(), dispatch: dispatch}
}

// Ready is nil while it is attached to the queue and no dependency of the handlers is down.
func (c *Consumer) Ready(context.Context) error {
	if !c.attached.Load() {
		return fmt.Errorf("consumer of queue %s is not attached", c.queue)
	}
	if err := c.down.Load(); err != nil {
		return fmt.Errorf("consumer of queue %s waits: %w", c.queue, *err)
	}
	return nil
}

// Run consumes until ctx ends. A batch in hand then has 5 s to finish; what was not begun goes back to the queue.
func (c *Consumer) Run(ctx context.Context) error {
	return c.conn.each(ctx, "consumer of "+c.queue, c.session)
}

// session consumes over one channel until that fails or ctx ends. Every acknowledgement goes to the channel its
// delivery came from: delivery tags of another channel name other messages.
func (c *Consumer) session(ctx context.Context, conn *amqp.Connection) error {
	var idle atomic.Bool // it only changes its channel
	defer func() {
		if !idle.Load() {
			c.attached.Store(false)
		}
	}()
	ch, err := conn.Channel()
	if err != nil {
		return fmt.Errorf("opening a channel: %w", err)
	}
	defer func() { _ = ch.Close() }()
	// One batch in hand and one on the way.
	if err := ch.Qos(2*c.batch, 0, false); err != nil {
		return fmt.Errorf("setting the prefetch: %w", err)
	}
	deliveries, err := ch.Consume(c.queue, c.queue, false, false, false, false, amqp.Table{"x-priority": c.priority})
	if err != nil {
		return fmt.Errorf("consuming %s: %w", c.queue, err)
	}
	c.ch = ch
	c.attached.Store(true)

	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(drainTimeout, cancel) })
	defer stop()

	ready := buffered(deliveries, 2*c.batch)
	room := make([]amqp.Delivery, 0, c.batch) // for one batch after the other: no handler keeps it
	for {
		distrust := time.AfterFunc(idleLimit, func() { idle.Store(true); _ = ch.Close() })
		batch := gather(ctx, ready, room, c.linger)
		if !distrust.Stop() || len(batch) == 0 {
			if ctx.Err() != nil || idle.Load() {
				return nil
			}
			if c.ch == nil {
				return errors.New("it had left the queue while a dependency was down")
			}
			return errors.New("the broker has ended the consumer")
		}
		crash.Point("consumer.received")
		if err := c.settle(ctx, work, batch); err != nil {
			return err // what was not acknowledged goes back to the queue with the channel
		}
		if err := ch.Ack(batch[len(batch)-1].DeliveryTag, true); err != nil {
			return fmt.Errorf("acknowledging: %w", err)
		}
	}
}

// stepBack leaves the queue to the other replicas. What is handed out already stays; the session ends behind the batch in
// hand, and what was not begun goes back to the queue.
func (c *Consumer) stepBack() {
	if c.ch == nil {
		return
	}
	if err := c.ch.Cancel(c.queue, false); err != nil {
		return // the channel is gone, and the session with it
	}
	c.ch = nil
	c.conn.log.Warn("the queue is left to other replicas until the dependency is back", "queue", c.queue)
}

// buffered makes room between the library and gather: the library's channel has none, so it never shows more than one
// delivery. room is the prefetch, more than which is never unacknowledged, so the goroutine never waits for gather; it
// ends when the library closes the channel.
func buffered(deliveries <-chan amqp.Delivery, room int) <-chan amqp.Delivery {
	out := make(chan amqp.Delivery, room)
	go func() {
		defer close(out)
		for d := range deliveries {
			out <- d
		}
	}()
	return out
}

// gather waits for one delivery and takes what else is there or comes within linger, as far as batch, which is empty, has
// room. It returns nothing when ctx has ended or the channel has closed.
func gather(ctx context.Context, deliveries <-chan amqp.Delivery, batch []amqp.Delivery, linger time.Duration) []amqp.Delivery {
	if ctx.Err() != nil {
		return nil
	}
	select {
	case <-ctx.Done():
		return nil
	case d, ok := <-deliveries:
		if !ok {
			return nil
		}
		batch = append(batch, d)
	}
	var enough <-chan time.Time
	if linger > 0 {
		enough = time.After(linger)
	}
	for len(batch) < cap(batch) {
		if linger <= 0 && len(deliveries) == 0 {
			break
		}
		select {
		case d, ok := <-deliveries:
			if !ok {
				return nil // the channel is gone, and with it the right to acknowledge
			}
			batch = append(batch, d)
		case <-enough:
			return batch
		case <-ctx.Done():
			return batch
		}
	}
	return batch
}

// settle brings every delivery of a batch to its end: handled, sent to a retry queue, or a dead letter. After nil all
// of them may be acknowledged.
func (c *Consumer) settle(ctx, work context.Context, batch []amqp.Delivery) error {
	for _, group := range c.dispatch.groups(batch) {
		start := time.Now()
		if group.err != nil {
			if err := c.deadLetter(work, &group.deliveries[0], group.err); err != nil {
				return err
			}
			continue
		}
		if err := c.handle(ctx, work, group); err != nil {
			return err
		}
		queue := metric.WithAttributes(label("queue", c.queue))
		c.conn.metrics.batchSize.Record(ctx, int64(len(group.deliveries)), queue)
		c.conn.metrics.handleSeconds.Record(ctx, time.Since(start).Seconds(), queue)
	}
	return nil
}

// handle gives a group to its handler. While a dependency is down it holds the group and tries again; any other failure
// of several messages is retried one by one, so that each meets its own verdict.
func (c *Consumer) handle(ctx, work context.Context, g group) error {
	wait := newBackoff()
	err := c.call(work, g)
	for tries := 1; isDown(err); tries++ {
		cause := err // Ready reads it while err changes
		c.down.Store(&cause)
		c.conn.log.Warn("a dependency is down, the queue waits", "queue", c.queue, "messages", len(g.deliveries), "error", err)
		if tries == 2 { // the first may be a transaction that has lost against another one
			c.stepBack()
		}
		wait.sleep(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		err = c.call(work, g)
	}
	c.down.Store(nil)
	switch {
	case err == nil:
		c.slow = false
		c.count(work, g, "handled")
		return nil
	case work.Err() != nil:
		return fmt.Errorf("stopped before the batch was finished: %w", err)
	case len(g.deliveries) == 1:
		return c.fail(work, &g.deliveries[0], err)
	}
	c.conn.log.Warn("a batch failed, trying its messages one by one", "queue", c.queue, "messages", len(g.deliveries), "error", err)
	for i := range g.deliveries {
		if err := c.handle(ctx, work, g.one(i)); err != nil {
			return err
		}
	}
	return nil
}

// call runs the handler; a panic is an error of the messages, not the end of the process.
func (c *Consumer) call(ctx context.Context, g group) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("the handler panicked: %v", r)
			c.conn.log.Error("a handler panicked", "queue", c.queue, "panic", r, "stack", string(debug.Stack()))
		}
	}()
	links := make([]trace.Link, 0, min(len(g.deliveries), 32))
	for i := range g.deliveries[:cap(links)] {
		if sc := spanContext(stringHeader(g.deliveries[i].Headers, headerTraceParent)); sc.IsValid() {
			links = append(links, trace.Link{SpanContext: sc})
		}
	}
	ctx, span := c.conn.tracer.Start(ctx, "process "+c.queue, trace.WithSpanKind(trace.SpanKindConsumer), trace.WithLinks(links...), trace.WithNewRoot())
	defer span.End()
	return g.run(ctx)
}

// fail sends one message to the retry queue of its attempt, or to the dead letters.
func (c *Consumer) fail(ctx context.Context, d *amqp.Delivery, cause error) error {
	attempt, next := attemptOf(d), attemptOf(d)+1
	if c.isSlow(cause) {
		c.down.Store(&cause)
		next = attempt
	}
	if isPermanent(cause) || next > len(retryDelays) {
		return c.deadLetter(ctx, d, cause)
	}
	delay := retryDelays[min(attempt, len(retryDelays)-1)]
	out := again(d)
	out.Headers[headerAttempt] = int32(next)
	out.Headers[headerReason] = clip(cause.Error())
	out.RoutingKey = retryQueue(c.queue, delay)
	c.log(d).Warn("message failed, will be tried again", "attempt", attempt, "in", delay, "error", cause)
	if err := c.pub.Send(ctx, []Outgoing{out}); err != nil {
		return fmt.Errorf("sending a message to %s: %w", out.RoutingKey, err)
	}
	crash.Point("consumer.retried")
	c.countOne(ctx, "retried")
	return nil
}

// isSlow says whether the database is slow for everybody, and so it is no fault of the message that a statement about it
// alone was given up: one before it failed for the same reason, and nothing has been handled since.
func (c *Consumer) isSlow(cause error) bool {
	before := c.slow
	c.slow = errors.Is(cause, postgres.ErrExhausted)
	return before && c.slow
}

func (c *Consumer) deadLetter(ctx context.Context, d *amqp.Delivery, cause error) error {
	out := again(d)
	out.Headers[headerAttempt] = int32(attemptOf(d))
	out.Headers[headerReason] = clip(cause.Error())
	out.Headers[headerSourceQueue] = c.queue
	out.Exchange, out.RoutingKey = deadLetterExchange, c.queue
	c.log(d).Error("message is a dead letter", "attempt", attemptOf(d), "error", cause)
	if err := c.pub.Send(ctx, []Outgoing{out}); err != nil {
		return fmt.Errorf("sending a message to the dead letters: %w", err)
	}
	crash.Point("consumer.dead-lettered")
	c.countOne(ctx, "dead")
	return nil
}

func (c *Consumer) count(ctx context.Context, g group, verdict string) {
	c.conn.metrics.consumed.Add(ctx, int64(len(g.deliveries)), metric.WithAttributes(label("queue", c.queue), label("verdict", verdict)))
}

func (c *Consumer) countOne(ctx context.Context, verdict string) {
	c.conn.metrics.consumed.Add(ctx, 1, metric.WithAttributes(label("queue", c.queue), label("verdict", verdict)))
}
