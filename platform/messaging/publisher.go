package messaging

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/semaphore"
	"google.golang.org/protobuf/proto"

	"shop.example/platform/contract"
	"shop.example/platform/failpoint"
)

const (
	// window is how many messages of a publisher may wait for their confirms; each counts once more for every slotBytes of
	// its body. It is bounded because an acknowledgement of several messages makes the library scan all that wait. Quorum
	// queues reach their full rate with a few hundred.
	window = 1000
	// confirmTimeout bounds a call that publishes, with the wait for its confirms, if the caller's context does not end earlier.
	confirmTimeout = 10 * time.Second
	// confirmStall is how long a node may confirm nothing of what was published before the publisher moves to another node.
	// A node that is frozen or cut off does not close the connection.
	confirmStall = 2 * time.Second
	// rejectPause is how long a channel on which the broker refuses messages is kept at least.
	rejectPause = 500 * time.Millisecond
	// refusalHeld is how long a publisher is not ready after the broker refused it the right to publish: after that another
	// attempt has to show whether it still does.
	refusalHeld = 10 * time.Second
	// maxConfirmStall bounds confirmStall, which doubles if the next node confirms nothing either: then the queue is
	// probably electing a leader, and every move publishes the same messages once more.
	maxConfirmStall = 8 * time.Second
)

// HeaderExchange and HeaderRoutingKey name the exchange and the routing key that a message was first published with. It keeps
// them in a retry queue, as a dead letter or as a redrive, when the delivery's own are those of that detour.
const (
	HeaderExchange   = "shop-exchange"
	HeaderRoutingKey = "shop-routing-key"
)

const (
	headerTraceParent = "traceparent"
	headerTimestamp   = "timestamp_in_ms"
	headerAttempt     = "shop-attempt"
	headerReason      = "shop-reason"
	headerSourceQueue = "shop-source-queue"
)

const contentType = "application/protobuf"

// Publisher publishes over one connection. It works while its Run and the connection's Run do. Its methods may be called
// concurrently.
type Publisher struct {
	conn    *Connection
	slots   *semaphore.Weighted // a window, of what waits for its confirm
	maxBody atomic.Int64        // what the broker has refused is larger than this; it does not say before
	queues  []string            // of the topology, which take no answers
	denied  atomic.Pointer[denial]
	mu      sync.Mutex
	current *publishSession
	changed chan struct{} // closed and replaced when current changes
}

// NewPublisher returns a publisher on conn. It publishes nothing until Run is called.
func NewPublisher(conn *Connection) *Publisher {
	p := &Publisher{conn: conn, slots: semaphore.NewWeighted(window), queues: conn.topology.queueNames(), changed: make(chan struct{})}
	p.maxBody.Store(math.MaxInt64)
	return p
}

// denial records that the broker refused the publisher the right to publish.
type denial struct {
	at    time.Time
	cause *amqp.Error
}

// Ready returns nil if the broker accepts messages. After the broker has refused one for lack of rights it returns an error
// for 10 s, or until another message is confirmed.
func (p *Publisher) Ready(ctx context.Context) error {
	if err := p.conn.Ready(ctx); err != nil {
		return err
	}
	if r := p.denied.Load(); r != nil && time.Since(r.at) < refusalHeld {
		return fmt.Errorf("the broker refuses what is published: %s", r.cause.Reason)
	}
	return nil
}

// Run keeps the publisher's channels open until ctx ends.
func (p *Publisher) Run(ctx context.Context) error {
	stall := confirmStall
	return p.conn.runSessions(ctx, "publisher", func(ctx context.Context, conn *amqp.Connection) error {
		// A node that waits for another one, which is frozen, answers nothing about channels either, for up to 15 s.
		limit := declareTimeout
		if p.conn.hasAlternatives() {
			limit = tryTimeout
		}
		var s *publishSession
		err := bounded(ctx, conn, limit, func() (err error) {
			s, err = openPublishSession(conn)
			return err
		})
		if err != nil {
			return err
		}
		p.set(s)
		defer p.set(nil)
		defer func() { _ = bounded(context.WithoutCancel(ctx), conn, limit, s.close) }()
		cause := s.wait(ctx, p.conn.log, func() bool { return p.moveOn(conn, s, stall) })
		switch {
		case s.progress.Load() > 0:
			stall = confirmStall
		case errors.Is(cause, errNoConfirms):
			stall = min(2*stall, maxConfirmStall)
		}
		var refused *amqp.Error
		if errors.As(cause, &refused) {
			if limit, ok := refusedSize(refused); ok {
				p.maxBody.Store(limit) // before another session begins, whose publishers look at it
			}
			if refused.Code == amqp.AccessRefused {
				p.denied.Store(&denial{time.Now(), refused})
			}
		}
		return cause
	})
}

// moveOn closes the connection if the node has confirmed nothing for the duration stall, and reports whether it did. It
// does not if the broker blocks publishers, which explains missing confirms, or if there is no other node.
func (p *Publisher) moveOn(conn *amqp.Connection, s *publishSession, stall time.Duration) bool {
	waited := s.unconfirmedFor(time.Now())
	if waited < stall || p.conn.unblocked().Err() != nil || !p.conn.hasAlternatives() {
		return false
	}
	p.conn.moveOn(conn, waited)
	return true
}

func (p *Publisher) set(s *publishSession) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.current = s
	close(p.changed)
	p.changed = make(chan struct{})
}

// session returns the open channels. It waits for them until ctx ends, but not while the broker blocks publishers or lacks
// what this service may not declare: that takes longer than a caller waits.
func (p *Publisher) session(ctx context.Context) (*publishSession, error) {
	for {
		if p.conn.unblocked().Err() != nil {
			return nil, ErrBlocked
		}
		p.mu.Lock()
		s, changed := p.current, p.changed
		p.mu.Unlock()
		if s != nil && !s.confirmed.IsClosed() {
			return s, nil
		}
		if err := p.conn.missing(); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrNotConnected, err)
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(ErrNotConnected, ctx.Err())
		case <-changed:
		case <-time.After(minBackoff):
			// the channel was closed under us and Run has not seen it yet
		}
	}
}

// Publish publishes the event m and returns nil once the broker has confirmed it. It waits at most 10 s, or less by
// ctx. Send describes the errors.
func (p *Publisher) Publish(ctx context.Context, m proto.Message) error {
	if !trace.SpanContextFromContext(ctx).IsValid() { // nobody has begun a trace
		event, _ := contract.EventOf(m) // NewOutgoing returns the error if it is none
		var span trace.Span
		ctx, span = p.conn.tracer.Start(ctx, "publish "+event.RoutingKey)
		defer span.End()
	}
	out, err := NewOutgoing(ctx, m)
	if err != nil {
		return err
	}
	return p.Send(ctx, []Outgoing{out})
}

// Send publishes messages in their order and returns nil once the broker has confirmed all of them. If the connection
// breaks or the broker rejects a message, that message and all that follow it are published again, under the same message
// ids, so that their order is kept, until ctx ends, for 10 s at most.
//
// Errors: ErrBlocked and ErrNotConnected (some or all were not published), ErrUnconfirmed (the outcome is unknown),
// ErrUnroutable (no queue takes one of them, or its exchange does not exist), ErrTooLarge (the broker refuses one of them
// for its size). A RefusedError that wraps one of the last two says which messages. After an error any of them may have been
// published.
func (p *Publisher) Send(ctx context.Context, messages []Outgoing) (err error) {
	end := p.startSends(messages)
	defer func() { end(err) }()
	ctx, cancel := context.WithTimeout(ctx, confirmTimeout)
	defer cancel()
	start := time.Now()
	wait := newBackoff()
	var gone missingExchange
	for pending := messages; ; {
		s, err := p.session(ctx)
		if err != nil {
			p.count(ctx, pending, "refused")
			return err
		}
		for len(pending) > 0 {
			before := gone.first(pending) // those before it are not its fault: they go alone
			if before == 0 {
				p.count(ctx, pending, "failed")
				return p.withoutExchange(gone.err, len(messages), pending)
			}
			next, slots, err := p.nextWindow(pending[:before])
			if err != nil {
				p.count(ctx, pending, "failed")
				return p.refused(err, len(messages), pending)
			}
			done, refused, err := p.publishWindow(ctx, s, next, slots)
			if err != nil {
				p.count(ctx, pending, "failed")
				return err
			}
			if len(refused) > 0 {
				p.countRefused(ctx, pending[:done], refused)
				return newRefusedError(refused, len(messages)-len(pending), done)
			}
			pending = pending[done:]
			if done < len(next) {
				break
			}
		}
		if len(pending) == 0 {
			p.count(ctx, messages, "confirmed")
			p.conn.metrics.confirmSeconds.Record(ctx, time.Since(start).Seconds())
			return nil
		}
		wait.Sleep(ctx)
		if gone = s.missing(pending); gone.first(pending) == 0 {
			p.count(ctx, pending, "failed")
			return p.withoutExchange(gone.err, len(messages), pending)
		}
		if ctx.Err() != nil {
			p.count(ctx, pending, "unconfirmed")
			return ErrUnconfirmed
		}
	}
}

// refused returns err as a RefusedError about the first of pending, whatever may become of the others; of is how many Send was given.
func (p *Publisher) refused(err error, of int, pending []Outgoing) error {
	return newRefusedError([]Refusal{p.refusal(0, &pending[0], err)}, of-len(pending), 1)
}

// newRefusedError returns the error for refusals of messages from offset on, of which so many are done.
func newRefusedError(refused []Refusal, offset, done int) error {
	for i := range refused {
		refused[i].Index += offset
	}
	return &RefusedError{refused, offset + done}
}

func (p *Publisher) refusal(index int, m *Outgoing, cause error) Refusal {
	return Refusal{index, errors.Is(cause, ErrTooLarge) || !p.conn.topology.routes(m.Exchange, m.RoutingKey), cause}
}

// withoutExchange returns the error about the first of pending, whose exchange is missing. An exchange of the topology may
// be declared again at any moment; if it is another one the message is at fault.
func (p *Publisher) withoutExchange(err error, of int, pending []Outgoing) error {
	if slices.ContainsFunc(p.conn.topology.Exchanges(), func(e Exchange) bool { return e.Name == pending[0].Exchange }) {
		return err
	}
	return p.refused(err, of, pending)
}

// countRefused counts messages that are done: those that were refused, and the others.
func (p *Publisher) countRefused(ctx context.Context, messages []Outgoing, refused []Refusal) {
	confirmed, failed := slices.Clone(messages), make([]Outgoing, 0, len(refused))
	for _, r := range slices.Backward(refused) {
		failed = append(failed, messages[r.Index])
		confirmed = slices.Delete(confirmed, r.Index, r.Index+1)
	}
	p.count(ctx, confirmed, "confirmed")
	p.count(ctx, failed, "failed")
}

func (p *Publisher) count(ctx context.Context, messages []Outgoing, outcome string) {
	counts := map[string]int64{} // by routing key: of a batch's many messages only a few differ
	for _, m := range messages {
		counts[m.RoutingKey]++
	}
	for key, n := range counts {
		p.conn.metrics.countPublished(ctx, n, key, outcome)
	}
}

// nextWindow returns as many of the messages, from the first on, as the window has room for, and how many slots they take.
func (p *Publisher) nextWindow(messages []Outgoing) (next []Outgoing, slots int64, err error) {
	for i := range messages {
		size := int64(len(messages[i].Body))
		if size > p.maxBody.Load() {
			if i > 0 {
				return messages[:i], slots, nil // those before it are not its fault
			}
			return nil, 0, fmt.Errorf("%w: %s has %d bytes, the broker takes %d", ErrTooLarge, messages[i].Type, size, p.maxBody.Load())
		}
		takes := min(1+size/slotBytes, window)
		if slots+takes > window {
			return messages[:i], slots, nil
		}
		slots += takes
	}
	return messages, slots, nil
}

// publishWindow publishes the messages of a window and waits for their confirms; while the broker blocks publishers none
// come. It returns how many messages are done before the first one that the broker rejected, and which of them no queue takes.
func (p *Publisher) publishWindow(ctx context.Context, s *publishSession, messages []Outgoing, slots int64) (done int, refused []Refusal, err error) {
	if err := p.slots.Acquire(ctx, slots); err != nil {
		return 0, nil, ErrUnconfirmed
	}
	defer p.slots.Release(slots)
	blocked := p.conn.unblocked().Done()

	f := s.register(messages)
	for i := range messages {
		msg := messages[i].publishing(p.conn.service)
		msg.UserId = p.conn.identity.user
		f.confirms[i], err = s.confirmed.PublishWithDeferredConfirm(messages[i].Exchange, messages[i].RoutingKey, true, false, msg)
		if errors.Is(err, amqp.ErrClosed) || f.confirms[i] == nil {
			f.confirms = f.confirms[:i] // this one and the rest go over the next session
			break
		}
	}
	f.sent.Store(true)
	failpoint.Hit("publisher.sent")
	for _, confirm := range f.confirms {
		select {
		case <-confirm.Done():
			s.progress.Add(1)
		case <-f.overtaken: // all of it again: the broker may have returned some of it
			if isDone(confirm) {
				s.progress.Add(1)
				continue
			}
			s.abandon(f)
			return 0, nil, nil
		case <-blocked:
			s.abandon(f)
			return 0, nil, fmt.Errorf("%w: %w", ErrUnconfirmed, ErrBlocked)
		case <-ctx.Done():
			s.abandon(f)
			return 0, nil, ErrUnconfirmed
		}
	}
	s.finish(f)
	for i, confirm := range f.confirms {
		if !confirm.Acked() {
			select {
			case s.rejected <- struct{}{}:
			default: // it is known
			}
			return i, refused, nil
		}
		if reason, returned := f.returned[i]; returned {
			refused = append(refused, p.refusal(i, &messages[i],
				fmt.Errorf("%w: %s with routing key %s (%s)", ErrUnroutable, messages[i].Type, messages[i].RoutingKey, reason)))
		}
	}
	if len(f.confirms) > 0 && p.denied.Load() != nil {
		p.denied.Store(nil)
	}
	return len(f.confirms), refused, nil
}

// publishTransient publishes without a confirm: for requests and replies, which are useless once their caller has given up.
// If onReturn is not nil and no queue takes the message, it is called from another goroutine.
func (p *Publisher) publishTransient(ctx context.Context, exchange, key string, msg amqp.Publishing, onReturn func()) error {
	if limit := min(MaxCall, p.maxBody.Load()); int64(len(msg.Body)) > limit {
		return fmt.Errorf("%w: %d bytes, a call carries %d at most", ErrTooLarge, len(msg.Body), limit)
	}
	s, err := p.session(ctx)
	if err != nil {
		return err
	}
	if onReturn != nil {
		s.onReturn.Store(msg.MessageId, onReturn)
		// The broker says no more about a message that found its queue.
		context.AfterFunc(ctx, func() { s.onReturn.Delete(msg.MessageId) })
	}
	msg.AppId, msg.UserId = p.conn.service, p.conn.identity.user
	msg.ContentType = cmp.Or(msg.ContentType, contentType)
	msg.Timestamp = time.Now()
	return s.plain.PublishWithContext(ctx, exchange, key, onReturn != nil, false, msg)
}

func (m *Outgoing) publishing(service string) amqp.Publishing {
	headers := make(amqp.Table, len(m.Headers)+2)
	for k, v := range m.Headers {
		headers[k] = v
	}
	if _, ok := headers[headerTimestamp]; !ok {
		headers[headerTimestamp] = m.Timestamp.UnixMilli()
	}
	if m.TraceParent != "" {
		headers[headerTraceParent] = m.TraceParent
	}
	return amqp.Publishing{
		Headers:       headers,
		ContentType:   contentType,
		DeliveryMode:  amqp.Persistent,
		MessageId:     m.MessageID,
		CorrelationId: m.CorrelationID,
		ReplyTo:       m.ReplyTo,
		Timestamp:     m.Timestamp,
		Type:          m.Type,
		AppId:         cmp.Or(m.AppID, service),
		Body:          m.Body,
	}
}
