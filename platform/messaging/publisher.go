package messaging

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/semaphore"
	"google.golang.org/protobuf/proto"

	"shop.example/platform/contract"
	"shop.example/platform/crash"
)

const (
	// window is how many messages of a publisher may wait for their confirm. An acknowledgement of many scans all that
	// wait, so it is bounded; quorum queues reach their rate with a few hundred.
	window = 1000
	// confirmTimeout bounds the wait for one confirm where the caller's context does not.
	confirmTimeout = 10 * time.Second
)

// HeaderExchange and HeaderRoutingKey name where a message was published first. They go with it through a retry queue,
// the dead letters or a redrive, where exchange and routing key of the delivery are those of that detour.
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

// Publisher publishes over one connection. Its methods may be called concurrently.
type Publisher struct {
	conn    *Connection
	slots   *semaphore.Weighted // one for each message that waits for its confirm
	mu      sync.Mutex
	current *publishSession
	changed chan struct{} // closed and replaced when current changes
}

// NewPublisher returns a publisher on conn. It works while Run runs.
func NewPublisher(conn *Connection) *Publisher {
	return &Publisher{conn: conn, slots: semaphore.NewWeighted(window), changed: make(chan struct{})}
}

// Run keeps the publisher's channels open until ctx ends.
func (p *Publisher) Run(ctx context.Context) error {
	return p.conn.each(ctx, "publisher", func(ctx context.Context, conn *amqp.Connection) error {
		s, err := openPublishSession(conn)
		if err != nil {
			return err
		}
		p.set(s)
		defer p.set(nil)
		return s.wait(ctx)
	})
}

func (p *Publisher) set(s *publishSession) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.current = s
	close(p.changed)
	p.changed = make(chan struct{})
}

// session returns the open channels, waiting for them until ctx ends; while the broker is blocked it does not wait.
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
		select {
		case <-ctx.Done():
			return nil, errors.Join(ErrNotConnected, ctx.Err())
		case <-changed:
		case <-time.After(backoffFirst):
			// the channel was closed under us and Run has not seen it yet
		}
	}
}

var producerSpan = trace.WithSpanKind(trace.SpanKindProducer)

// Publish publishes the event m and returns once the broker has it. See Send for errors.
func (p *Publisher) Publish(ctx context.Context, m proto.Message) error {
	event, _ := contract.EventOf(m) // NewOutgoing says so where it is none
	ctx, span := p.conn.tracer.Start(ctx, "publish "+event.RoutingKey, producerSpan)
	defer span.End()
	out, err := NewOutgoing(ctx, m)
	if err != nil {
		return err
	}
	return p.Send(ctx, []Outgoing{out})
}

// Send publishes messages in their order and returns nil once the broker has confirmed all of them. What is not
// confirmed because the connection went is published again on the next one, under the same message id, until ctx ends
// (10 s where ctx has no deadline). Errors: ErrBlocked and ErrNotConnected (nothing or not everything was published),
// ErrUnconfirmed (outcome unknown), ErrUnroutable (no queue takes one of them, or there is no such exchange). After an error
// any of the messages may have been published.
func (p *Publisher) Send(ctx context.Context, messages []Outgoing) error {
	ctx, cancel := context.WithTimeout(ctx, confirmTimeout)
	defer cancel()
	start := time.Now()
	wait := newBackoff()
	pending := messages
	for {
		s, err := p.session(ctx)
		if err != nil {
			p.count(ctx, pending, "refused")
			return err
		}
		for rest := pending; len(rest) > 0; {
			n := min(len(rest), window)
			failed, err := p.publishWindow(ctx, s, rest[:n])
			if err != nil {
				p.count(ctx, rest, "failed")
				return err
			}
			rest = rest[n:]
			if len(failed) > 0 {
				// The order of what follows must not overtake what failed.
				pending = append(failed, rest...)
				break
			}
			pending = rest
		}
		if len(pending) == 0 {
			p.count(ctx, messages, "confirmed")
			p.conn.metrics.confirmSeconds.Record(ctx, time.Since(start).Seconds())
			return nil
		}
		wait.sleep(ctx)
		if err := s.missing(pending[0].Exchange); err != nil {
			p.count(ctx, pending, "failed")
			return err
		}
		if ctx.Err() != nil {
			p.count(ctx, pending, "unconfirmed")
			return ErrUnconfirmed
		}
	}
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

// publishWindow publishes at most a window of messages and waits for their confirms, which do not come while the broker
// is blocked. It returns those that must be published again.
func (p *Publisher) publishWindow(ctx context.Context, s *publishSession, messages []Outgoing) (failed []Outgoing, err error) {
	if err := p.slots.Acquire(ctx, int64(len(messages))); err != nil {
		return nil, ErrUnconfirmed
	}
	defer p.slots.Release(int64(len(messages)))
	blocked := p.conn.unblocked().Done()

	confirms := make([]*amqp.DeferredConfirmation, len(messages))
	for i := range messages {
		msg := messages[i].publishing(p.conn.service)
		msg.UserId = p.conn.identity.user
		confirms[i], err = s.confirmed.PublishWithDeferredConfirm(messages[i].Exchange, messages[i].RoutingKey, true, false, msg)
		if errors.Is(err, amqp.ErrClosed) || confirms[i] == nil {
			break // this one and the rest go over the next session
		}
	}
	crash.Point("publisher.sent")
	var unroutable error // the first; what else was returned is taken note of, or it would be held against the same message later
	for i, confirm := range confirms {
		if confirm == nil {
			return append(failed, messages[i:]...), unroutable
		}
		select {
		case <-confirm.Done():
		case <-blocked:
			return nil, fmt.Errorf("%w: %w", ErrUnconfirmed, ErrBlocked)
		case <-ctx.Done():
			return nil, ErrUnconfirmed
		}
		if !confirm.Acked() {
			failed = append(failed, messages[i])
			continue
		}
		if reason, returned := s.returned(messages[i].MessageID); returned && unroutable == nil {
			unroutable = fmt.Errorf("%w: %s with routing key %s (%s)", ErrUnroutable, messages[i].Type, messages[i].RoutingKey, reason)
		}
	}
	return failed, unroutable
}

// post publishes without a confirm, for requests and replies that are worth no more than their caller's patience.
// Where the message is mandatory and no queue takes it, onReturn is called from another goroutine.
func (p *Publisher) post(ctx context.Context, exchange, key string, msg amqp.Publishing, onReturn func()) error {
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
	msg.ContentType = contentType
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

// publishSession is one life of the publisher's channels.
type publishSession struct {
	confirmed *amqp.Channel              // in confirm mode, for messages that must arrive
	plain     *amqp.Channel              // for requests and replies
	closed    [2]chan *amqp.Error        // of confirmed and of plain
	returns   chan amqp.Return           // of confirmed; drained by returned and by wait
	discarded chan amqp.Return           // of plain
	onReturn  sync.Map                   // message id → func()
	cause     atomic.Pointer[amqp.Error] // why confirmed was closed by the broker, a moment later

	mu      sync.Mutex
	unknown map[string]string // message id → why it was returned; taken by returned
}

func openPublishSession(conn *amqp.Connection) (*publishSession, error) {
	s := &publishSession{
		// The library waits for room, and with it all its reader does: a window's worth never makes it wait.
		returns:   make(chan amqp.Return, window),
		discarded: make(chan amqp.Return, window),
		unknown:   map[string]string{},
	}
	var err error
	if s.confirmed, err = conn.Channel(); err != nil {
		return nil, fmt.Errorf("opening the publishing channel: %w", err)
	}
	if s.plain, err = conn.Channel(); err != nil {
		return nil, fmt.Errorf("opening the request channel: %w", err)
	}
	if err := s.confirmed.Confirm(false); err != nil {
		return nil, fmt.Errorf("asking for confirms: %w", err)
	}
	s.confirmed.NotifyReturn(s.returns)
	s.plain.NotifyReturn(s.discarded)
	s.closed[0] = s.confirmed.NotifyClose(make(chan *amqp.Error, 1))
	s.closed[1] = s.plain.NotifyClose(make(chan *amqp.Error, 1))
	return s, nil
}

// wait serves the session until one of its channels closes or ctx ends, and closes them.
func (s *publishSession) wait(ctx context.Context) error {
	defer func() { _ = s.confirmed.Close(); _ = s.plain.Close() }()
	discarded := s.discarded
	for {
		select {
		case <-ctx.Done():
			return nil
		case cause := <-s.closed[0]:
			s.cause.Store(cause)
			return closeError(cause)
		case cause := <-s.closed[1]:
			return closeError(cause)
		case r, ok := <-discarded:
			if !ok {
				discarded = nil
				continue
			}
			if f, ok := s.onReturn.LoadAndDelete(r.MessageId); ok {
				f.(func())()
			}
		}
	}
}

// missing is an error if the broker has closed the channel because there is no such exchange: it can be long until there is
// one again.
func (s *publishSession) missing(exchange string) error {
	if cause := s.cause.Load(); cause != nil && cause.Code == amqp.NotFound && strings.Contains(cause.Reason, "'"+exchange+"'") {
		return fmt.Errorf("%w: %s", ErrUnroutable, strings.ToLower(cause.Reason))
	}
	return nil
}

// returned says whether the broker has sent the message back. The broker returns a message before it confirms it, and
// the library hands over in that order, so after the confirm the return, if there is one, is in the channel.
func (s *publishSession) returned(messageID string) (reason string, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.returns) > 0 {
		r, open := <-s.returns
		if !open {
			break
		}
		s.unknown[r.MessageId] = strings.ToLower(r.ReplyText)
	}
	reason, ok = s.unknown[messageID]
	delete(s.unknown, messageID)
	return reason, ok
}
