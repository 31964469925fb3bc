package messaging

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"runtime/debug"
	"runtime/pprof"
	"sync/atomic"
	"time"

	"buf.build/go/protovalidate"
	amqp "github.com/rabbitmq/amqp091-go"
	"go.opentelemetry.io/otel/metric"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"shop.example/platform/apierror"
	"shop.example/platform/backoff"
	"shop.example/platform/contract"
	"shop.example/platform/failpoint"
	"shop.example/platform/flightrecorder"
	"shop.example/platform/postgres"
)

// drainTimeout is how long the batch in hand may take to finish once the consumer has been told to stop.
const drainTimeout = 5 * time.Second

// idleLimit is how long a consumer that receives nothing keeps its channel. If somebody deletes a quorum queue and declares
// it again at once, RabbitMQ still counts the old consumer and delivers to it, but nothing arrives. A new channel does
// receive, and what was delivered to the old one is delivered again.
const idleLimit = 15 * time.Second

// ConsumerOptions bound the batches of a consumer.
type ConsumerOptions struct {
	Batch int // messages handed to a handler at once, at most; 200 if it is 0
	// Linger is how long a batch that is not full waits for more messages after the first one. Larger batches cost less a
	// message, because they share a transaction.
	Linger time.Duration
}

// Consumer receives the messages of one queue in batches, gives them to the handlers of their types and settles them. It
// handles one batch at a time: two at once would be half as large each, and contend for the same rows. For the same reason
// the replicas of a service do not share its queue evenly. Each chooses a random priority; the broker fills the prefetch of
// the consumer with the highest priority first, and gives the rest to the next
// (https://www.rabbitmq.com/docs/consumer-priority). While a dependency is down for one replica, that one leaves the queue
// to the others.
//
// The prefetch is two batches: one in hand and one on its way. AMQP counts messages, not bytes, so it is smaller while
// messages are large, see maxHeld. It begins with one message and grows while it is too small, so that a process which died
// of what it was sent does not get the same amount again when it restarts.
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
	held     atomic.Pointer[heldBatch]
	buffered atomic.Pointer[<-chan amqp.Delivery] // what the broker has handed out beside the batch

	// Run's alone:
	ch            *amqp.Channel // of the session
	tag           string        // of its subscription
	tags          int           // that were given so far
	yielding      bool          // the session ends behind what was handed out
	resubscribing bool          // it goes on behind that with another prefetch
	halvings      int           // of the prefetch
	largest       int           // message of late, in bytes
	size          int           // messages handed to a handler at once: fewer than batch after a failure
	slow          bool          // the database gave up on the message that failed last, and none was handled since
}

// NewConsumer returns a consumer of queue. It publishes retries and dead letters through pub, which must run too.
func NewConsumer(conn *Connection, pub *Publisher, queue string, o ConsumerOptions, handlers ...Handler) *Consumer {
	if o.Batch == 0 {
		o.Batch = 200
	}
	dispatch := newDispatcher(handlers)
	dispatch.check = func(d *amqp.Delivery) error { return conn.checkPublisher(d, queue) }
	c := &Consumer{
		conn: conn, pub: pub, queue: queue, batch: o.Batch, linger: o.Linger, priority: rand.Int32(), dispatch: dispatch,
		halvings: bits.Len(uint(2*o.Batch)) - 1, size: o.Batch,
	}
	conn.metrics.expectConsumed(queue)
	conn.metrics.hold(c)
	return c
}

// heldBatch is the batch in hand.
type heldBatch struct {
	messages int
	since    time.Time
}

// inHand implements holder.
func (c *Consumer) inHand() (queue string, messages int, oldest time.Time) {
	if buffered := c.buffered.Load(); buffered != nil {
		messages = len(*buffered)
	}
	if batch := c.held.Load(); batch != nil {
		return c.queue, messages + batch.messages, batch.since
	}
	return c.queue, messages, time.Time{}
}

// Ready returns nil while the consumer is attached to its queue and no dependency of its handlers is down.
func (c *Consumer) Ready(context.Context) error {
	if !c.attached.Load() {
		return fmt.Errorf("consumer of queue %s is not attached", c.queue)
	}
	if err := c.down.Load(); err != nil {
		return fmt.Errorf("consumer of queue %s waits: %w", c.queue, *err)
	}
	return nil
}

// Run consumes until ctx ends, and returns nil. The batch in hand then has 5 s to finish; what was not begun goes back to
// the queue.
func (c *Consumer) Run(ctx context.Context) error {
	return c.conn.runSessions(ctx, "consumer of "+c.queue, c.session)
}

// session consumes on one channel until that fails or ctx ends. A delivery is acknowledged on the channel that it came
// from, because on another channel its tag would be that of another message.
func (c *Consumer) session(ctx context.Context, conn *amqp.Connection) error {
	idle := false // it only changes its channel
	defer func() {
		c.held.Store(nil)
		c.buffered.Store(nil)
		if !idle {
			c.attached.Store(false)
		}
	}()
	ch, err := conn.Channel()
	if err != nil {
		return fmt.Errorf("opening a channel: %w", err)
	}
	defer func() { _ = ch.Close() }()
	c.ch, c.yielding = ch, false
	ready, err := c.subscribe()
	if err != nil {
		return err
	}
	c.attached.Store(true)

	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(drainTimeout, cancel) })
	defer stop()

	room := make([]amqp.Delivery, 0, c.batch) // for one batch after the other: no handler keeps it
	for {
		distrust := time.AfterFunc(idleLimit, func() { _ = ch.Close() })
		batch := gather(ctx, ready, room[:0:min(c.batch, c.prefetch())], c.linger)
		trusted := distrust.Stop()
		switch {
		case len(batch) == 0 && ctx.Err() != nil:
			return nil
		case !trusted:
			idle = true
			return nil // what has come at the last moment comes again
		case ch.IsClosed():
			return errors.New("the broker has closed the channel") // and with it ended the right to acknowledge
		case len(batch) > 0:
			c.held.Store(&heldBatch{len(batch), time.Now()})
			failpoint.Hit("consumer.received")
			if err := c.settle(ctx, work, batch); err != nil {
				return err // what was not acknowledged goes back to the queue with the channel
			}
			if err := c.changePrefetch(batch, len(ready)); err != nil {
				return err
			}
			if err := ch.Ack(batch[len(batch)-1].DeliveryTag, true); err != nil {
				return fmt.Errorf("acknowledging: %w", err)
			}
			c.held.Store(nil)
		case c.yielding:
			return errors.New("it had left the queue while a dependency was down")
		case c.resubscribing:
			if ready, err = c.subscribe(); err != nil {
				return err
			}
		default:
			return errors.New("the broker has ended the consumer")
		}
	}
}

// subscribe starts a subscription with the current prefetch. Each subscription has a new name: RabbitMQ 3.10 confuses one
// that reuses a name with the earlier one, loses messages of it, and crashes when it looks for them.
func (c *Consumer) subscribe() (<-chan amqp.Delivery, error) {
	c.resubscribing = false
	c.tags++
	c.tag = fmt.Sprintf("%s.%d", c.queue, c.tags)
	if err := c.ch.Qos(c.prefetch(), 0, false); err != nil {
		return nil, fmt.Errorf("setting the prefetch: %w", err)
	}
	deliveries, err := c.ch.Consume(c.queue, c.tag, false, false, false, false, amqp.Table{"x-priority": c.priority})
	if err != nil {
		return nil, fmt.Errorf("consuming %s: %w", c.queue, err)
	}
	buffered := prefetchBuffer(deliveries, c.prefetch())
	c.buffered.Store(&buffered)
	return buffered, nil
}

// prefetch returns how many messages the broker may deliver before the first of them is acknowledged.
func (c *Consumer) prefetch() int { return 2 * c.batch >> c.halvings }

// changePrefetch ends the subscription if another prefetch would be better; it is called before batch is acknowledged. The
// next subscription begins behind the messages that were delivered. It acts only if the whole prefetch has been delivered,
// in batch and behind it: only then can the prefetch be too small, and only then is no message on its way, which the broker
// would take back and count as one more delivery.
func (c *Consumer) changePrefetch(batch []amqp.Delivery, behind int) error {
	c.largest -= c.largest / 8
	for i := range batch {
		c.largest = max(c.largest, len(batch[i].Body))
	}
	if c.resubscribing || c.yielding || len(batch)+behind < c.prefetch() || !c.adjustPrefetch() {
		return nil
	}
	if err := c.ch.Cancel(c.tag, false); err != nil {
		return fmt.Errorf("changing the prefetch: %w", err)
	}
	c.resubscribing = true
	return nil
}

// adjustPrefetch multiplies the prefetch by eight, within the bound of bytes that may be held, and reports whether it
// changed.
func (c *Consumer) adjustPrefetch() bool {
	before := c.prefetch()
	c.halvings = max(0, c.halvings-3)
	for c.prefetch() > 1 && c.prefetch()*c.largest > maxHeld {
		c.halvings++
	}
	return c.prefetch() != before
}

// yieldQueue cancels the subscription, so that other replicas get the messages of the queue. What was delivered already is
// kept, and handled when the dependency is back.
func (c *Consumer) yieldQueue() {
	if c.yielding {
		return
	}
	if err := c.ch.Cancel(c.tag, false); err != nil {
		return // the channel is gone, and the session with it
	}
	c.yielding = true
	c.conn.log.Warn("the queue is left to other replicas until the dependency is back", "queue", c.queue)
}

// prefetchBuffer puts a buffer between the library and gather, because the library's channel has none and so never shows
// more than one delivery. room is the prefetch: there are never more deliveries than that without an acknowledgement, so
// the goroutine never waits for gather. It ends when the library closes the channel.
func prefetchBuffer(deliveries <-chan amqp.Delivery, room int) <-chan amqp.Delivery {
	out := make(chan amqp.Delivery, room)
	go func() {
		defer close(out)
		for d := range deliveries {
			out <- d
		}
	}()
	return out
}

// gather waits for one delivery, and adds to batch, which is empty, those that are there or arrive within linger: as many
// as its capacity, and up to maxBatch bytes and one delivery. It returns nothing when ctx has ended or deliveries is
// closed.
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
	for size := len(batch[0].Body); len(batch) < cap(batch) && size < maxBatch; size += len(batch[len(batch)-1].Body) {
		if linger <= 0 && len(deliveries) == 0 {
			break
		}
		select {
		case d, ok := <-deliveries:
			if !ok {
				return batch
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

// settle brings every delivery of a batch to its end: handled, sent to a retry queue, or sent to the dead letters. If it
// returns nil all of them may be acknowledged.
func (c *Consumer) settle(ctx, work context.Context, batch []amqp.Delivery) error {
	for _, group := range c.dispatch.groups(batch) {
		start := time.Now()
		if group.err != nil {
			if err := c.deadLetter(ctx, work, &group.deliveries[0], undecodable{group.err}); err != nil {
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

// handle gives a group to its handler. While a dependency is down it keeps the group and tries again: with half as many
// messages after each second failure, in case their number is too much for the dependency, and with a quarter more after
// each success. After any other failure of several messages each of them is tried alone, to find the one at fault.
func (c *Consumer) handle(ctx, work context.Context, g group) error {
	wait := newBackoff()
	failures := 0 // in a row
	for len(g.deliveries) > 0 {
		n := min(c.size, len(g.deliveries))
		part := g.slice(0, n)
		err := c.call(work, part)
		if isUnavailable(err) {
			failures++
			if failures == 2 { // the first may be a transaction that has lost against another one
				c.yieldQueue()
			}
			if failures%2 == 0 {
				c.size = max(1, n/2)
			}
			if err := c.pause(ctx, wait, "a dependency is down, the queue waits", n, err); err != nil {
				return err
			}
			continue
		}
		c.down.Store(nil)
		failures = 0
		wait.Reset()
		switch {
		case err == nil:
			c.slow = false
			c.count(work, part, verdictHandled)
			c.size = min(c.batch, c.size+max(1, c.size/4))
		case work.Err() != nil:
			return fmt.Errorf("stopped before the batch was finished: %w", err)
		case n == 1:
			if err := c.fail(ctx, work, &part.deliveries[0], err); err != nil {
				return err
			}
		default:
			c.conn.log.Warn("a batch failed, trying its messages one by one", "queue", c.queue, "messages", n, "error", err)
			for i := range n {
				if err := c.handle(ctx, work, part.slice(i, i+1)); err != nil {
					return err
				}
			}
		}
		g = g.slice(n, len(g.deliveries))
	}
	return nil
}

// pause waits before the next try at something that cannot be done now, and logs why. It returns an error if the consumer
// has to stop.
func (c *Consumer) pause(ctx context.Context, wait *backoff.Backoff, what string, messages int, cause error) error {
	c.down.Store(&cause)
	c.conn.log.Warn(what, "queue", c.queue, "messages", messages, "error", cause)
	wait.Sleep(ctx)
	return ctx.Err()
}

// call runs the handler; a panic is an error of the messages, not the end of the process.
func (c *Consumer) call(ctx context.Context, g group) (err error) {
	ctx, end := c.startProcess(ctx, g)
	defer func() { end(err) }()
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("the handler panicked: %v", r)
			c.conn.log.Error("a handler panicked", "queue", c.queue, "panic", r, "stack", string(debug.Stack()))
		}
	}()
	start := time.Now()
	// Profiles tell queues apart.
	pprof.Do(ctx, pprof.Labels("queue", c.queue), func(ctx context.Context) { err = g.run(ctx) })
	flightrecorder.Took(c.queue, time.Since(start))
	return err
}

// fail sends one message to the retry queue of its attempt, or to the dead letters.
func (c *Consumer) fail(ctx, work context.Context, d *amqp.Delivery, cause error) error {
	attempt, next := attemptOf(d), attemptOf(d)+1
	if c.isSlow(cause) {
		c.down.Store(&cause)
		next = attempt
	}
	if isPermanent(cause) || next > len(retryDelays) {
		return c.deadLetter(ctx, work, d, cause)
	}
	delay := retryDelays[min(attempt, len(retryDelays)-1)]
	out := republish(d)
	out.Headers[headerAttempt] = int32(next)
	out.Headers[headerReason] = truncate(cause.Error())
	out.RoutingKey = retryQueue(c.queue, delay)
	c.log(d).Warn("message failed, will be tried again", "attempt", attempt, "in", delay, "error", cause)
	err := c.park(ctx, work, out)
	if errors.Is(err, ErrTooLarge) {
		return c.deadLetter(ctx, work, d, cause)
	}
	if err != nil {
		return err
	}
	failpoint.Hit("consumer.retried")
	c.countOne(work, verdictRetried)
	return nil
}

// isSlow reports whether the database is slow in general, so that a timeout of a statement about one message is not that
// message's fault: the message before it failed for the same reason, and nothing has been handled since.
func (c *Consumer) isSlow(cause error) bool {
	before := c.slow
	c.slow = errors.Is(cause, postgres.ErrExhausted)
	return before && c.slow
}

// deadLetter sends one message to the dead letters. If the broker has refused a message as too large, the body is cut to
// the size that it accepts.
func (c *Consumer) deadLetter(ctx, work context.Context, d *amqp.Delivery, cause error) error {
	out := republish(d)
	out.Headers[headerAttempt] = int32(attemptOf(d))
	out.Headers[headerReason] = truncate(cause.Error())
	out.Headers[headerSourceQueue] = c.queue
	out.Exchange, out.RoutingKey = c.conn.topology.DeadLetterExchange, c.queue
	c.log(d).Error("message is a dead letter", "attempt", attemptOf(d), "error", cause)
	err := c.park(ctx, work, out)
	if errors.Is(err, ErrTooLarge) {
		out.Headers[headerReason] = truncate(fmt.Sprintf("%v; the end of its body is cut off: %v", cause, err))
		out.Body = out.Body[:c.pub.maxBody.Load()]
		err = c.park(ctx, work, out)
	}
	if err != nil {
		return err
	}
	failpoint.Hit("consumer.dead-lettered")
	c.countOne(work, verdictDead)
	c.refuse(work, d, cause)
	return nil
}

// refuse answers the sender of a request that becomes a dead letter: that it was not handled, and why.
func (c *Consumer) refuse(ctx context.Context, d *amqp.Delivery, cause error) {
	_, key := firstRoute(d)
	event, ok := contract.ByRoutingKey(key)
	if !ok || event.Answer == "" || d.ReplyTo == "" {
		return
	}
	if _, ours := c.dispatch.events[event.Name]; !ours {
		return
	}
	if err := c.pub.reply(ctx, d.ReplyTo, d.CorrelationId, nil, refusal(cause)); err != nil {
		c.log(d).Warn("a refusal was not sent", "error", err)
	}
}

// refusal is the status that the sender of a dead letter gets. It hides failures of our own.
func refusal(cause error) error {
	var own interface{ GRPCStatus() *status.Status }
	if errors.As(cause, &own) {
		return own.GRPCStatus().Err()
	}
	_, unlawful := errors.AsType[wrongPublisher](cause)
	_, invalid := errors.AsType[*protovalidate.ValidationError](cause)
	switch {
	case unlawful:
		return apierror.New(codes.PermissionDenied, "CALLER_NOT_ALLOWED", "%v", cause)
	case invalid:
		return apierror.FromViolations(cause)
	case isPermanent(cause) || isUnreadable(cause):
		return apierror.New(codes.InvalidArgument, "INVALID_ARGUMENT", "%s", truncate(cause.Error()))
	}
	return apierror.New(codes.Internal, "INTERNAL", "the message could not be handled; it is kept as a dead letter")
}

// park publishes a message that the consumer cannot handle to a retry queue or to the dead letters, and waits until the
// broker has taken it. If it returned an error instead the session would end, and all messages behind this one would be
// delivered once more, closer to the broker's delivery limit. It returns an error only if the message is too large or the
// consumer has to stop.
func (c *Consumer) park(ctx, work context.Context, out Outgoing) error {
	wait := newBackoff()
	for tries := 0; ; tries++ {
		err := c.pub.Send(work, []Outgoing{out})
		if err == nil {
			if tries > 0 {
				c.down.Store(nil)
			}
			return nil
		}
		if errors.Is(err, ErrTooLarge) {
			return err
		}
		err = fmt.Errorf("sending a message to %s: %w", cmp.Or(out.Exchange, out.RoutingKey), err)
		if stop := c.pause(ctx, wait, "a message cannot be parked, the queue waits", 1, err); stop != nil {
			return errors.Join(stop, err)
		}
	}
}

// The verdicts about a message.
const (
	verdictHandled = "handled"
	verdictRetried = "retried"
	verdictDead    = "dead"
)

func (c *Consumer) count(ctx context.Context, g group, verdict string) {
	c.conn.metrics.consumed.Add(ctx, int64(len(g.deliveries)), metric.WithAttributes(label("queue", c.queue), label("verdict", verdict)))
}

func (c *Consumer) countOne(ctx context.Context, verdict string) {
	c.conn.metrics.consumed.Add(ctx, 1, metric.WithAttributes(label("queue", c.queue), label("verdict", verdict)))
}
