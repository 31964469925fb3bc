package messaging

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"shop.example/platform/contract"
)

const (
	// subscriptionPrefetch is how many events may be on their way to a subscription at a time.
	subscriptionPrefetch = 200
	// subscriptionLinger is how long a subscription stays bound when nobody wants it any more: binding again costs the
	// broker more than the few events that come until then.
	subscriptionLinger = 10 * time.Second
)

// subscriptionQueue bounds a subscription's queue. While its process does not keep up the queue keeps the newest events.
var subscriptionQueue = amqp.Table{
	amqp.QueueTypeArg:    amqp.QueueTypeClassic,
	"x-max-length":       int64(10_000),
	"x-max-length-bytes": int64(16 << 20),
}

// Subscription passes events to the parts of this process that wait for them, for as long as some do. Its queue belongs to
// the process alone, and is not bound to anything while nobody waits, so it costs the broker nothing then. It is not
// reliable: events that are published while it is not bound, or lost with the connection, are missed. Bound tells when that
// may have happened. Its methods may be called concurrently.
type Subscription struct {
	conn     *Connection
	events   []contract.Event
	wanted   func(orderID string) bool
	dispatch dispatcher
	linger   time.Duration

	mu      sync.Mutex
	users   int
	bound   bool
	times   uint64        // how often it has been bound
	changed chan struct{} // closed and replaced when one of these changes
}

// NewSubscription returns a subscription to the events of handlers, each made with Handle. wanted says for which orders
// events are decoded at all; it is called concurrently with anything else. If a handler fails the event is dropped. The
// subscription works while Run runs.
func NewSubscription(conn *Connection, wanted func(orderID string) bool, handlers ...Handler) *Subscription {
	s := &Subscription{
		conn: conn, wanted: wanted, dispatch: newDispatcher(handlers), linger: subscriptionLinger, changed: make(chan struct{}),
	}
	for _, h := range handlers {
		event, _ := contract.ByName(h.event)
		s.events = append(s.events, event)
	}
	return s
}

// Want makes events come until release is called. They come as soon as Bound says so.
func (s *Subscription) Want() (release func()) {
	s.update(func() { s.users++ })
	return sync.OnceFunc(func() { s.update(func() { s.users-- }) })
}

// Bound returns 0 while no events come, otherwise a number that changes with every gap in which events may have been
// missed. changed is closed when the number may have changed.
func (s *Subscription) Bound() (generation uint64, changed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.bound {
		return 0, s.changed
	}
	return s.times, s.changed
}

// Run serves until ctx ends.
func (s *Subscription) Run(ctx context.Context) error {
	return s.conn.runSessions(ctx, "subscription", s.session)
}

func (s *Subscription) update(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
	close(s.changed)
	s.changed = make(chan struct{})
}

// session uses a queue on one channel until that fails or ctx ends.
func (s *Subscription) session(ctx context.Context, conn *amqp.Connection) error {
	ch, err := conn.Channel()
	if err != nil {
		return fmt.Errorf("opening a channel: %w", err)
	}
	defer func() { _ = ch.Close() }()
	if err := ch.Qos(subscriptionPrefetch, 0, false); err != nil {
		return fmt.Errorf("setting the prefetch: %w", err)
	}
	q, err := declareOwn(ctx, conn, ch, subscriptionQueue)
	if err != nil {
		return fmt.Errorf("declaring the queue: %w", err)
	}
	deliveries, err := ch.Consume(q.Name, "", false, true, false, false, nil)
	if err != nil {
		return fmt.Errorf("consuming %s: %w", q.Name, err)
	}
	ctx, stop := context.WithCancel(ctx)
	taken := make(chan error, 1)
	go func() { taken <- s.take(ctx, ch, prefetchBuffer(deliveries, subscriptionPrefetch)) }()
	defer s.update(func() { s.bound = false })
	err = s.bindWhileWanted(ctx, conn, ch, q.Name, taken)
	stop()
	return errors.Join(err, <-taken)
}

// bindWhileWanted binds the queue when somebody wants it, and unbinds it some time after the last one has gone. While it is
// wanted it is bound again every second, because the broker does not tell when a binding is gone. It returns when ctx has
// ended or failed has an error, which it leaves there.
func (s *Subscription) bindWhileWanted(ctx context.Context, conn *amqp.Connection, ch *amqp.Channel, queue string, failed chan error) error {
	again := time.NewTicker(keepInterval)
	defer again.Stop()
	var idle <-chan time.Time // counts while nobody wants it and it is bound
	for {
		s.mu.Lock()
		wanted, bound, changed := s.users > 0, s.bound, s.changed
		s.mu.Unlock()
		if wanted && !bound {
			if err := s.bind(ctx, conn, ch, queue); err != nil {
				return err
			}
			s.update(func() {
				s.bound = true
				s.times++
			})
			continue
		}
		switch {
		case wanted || !bound:
			idle = nil
		case idle == nil:
			idle = time.After(s.linger)
		}
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			failed <- err
			return nil
		case <-changed:
		case <-again.C:
			if !wanted {
				continue
			}
			if err := s.bind(ctx, conn, ch, queue); err != nil {
				return err
			}
		case <-idle:
			idle = nil
			s.update(func() { s.bound = s.users > 0 })
			if generation, _ := s.Bound(); generation != 0 {
				continue // somebody was quicker
			}
			for _, e := range s.events {
				if err := ch.QueueUnbind(queue, e.RoutingKey, e.Exchange, nil); err != nil {
					return fmt.Errorf("unbinding a queue from %s: %w", e.RoutingKey, err)
				}
			}
		}
	}
}

func (s *Subscription) bind(ctx context.Context, conn *amqp.Connection, ch *amqp.Channel, queue string) error {
	return bounded(ctx, conn, declareTimeout, func() error {
		for _, e := range s.events {
			if err := ch.QueueBind(queue, e.RoutingKey, e.Exchange, false, nil); err != nil {
				return fmt.Errorf("binding a queue to %s: %w", e.RoutingKey, err)
			}
		}
		return nil
	})
}

// take gives deliveries to the handlers until ctx ends.
func (s *Subscription) take(ctx context.Context, ch *amqp.Channel, deliveries <-chan amqp.Delivery) error {
	room := make([]amqp.Delivery, 0, subscriptionPrefetch)
	for {
		batch := gather(ctx, deliveries, room, 0)
		if len(batch) == 0 {
			if ctx.Err() != nil {
				return nil
			}
			return errors.New("the broker has ended the subscription")
		}
		last := batch[len(batch)-1].DeliveryTag
		batch = slices.DeleteFunc(batch, func(d amqp.Delivery) bool { return !s.wanted(d.CorrelationId) })
		for _, g := range s.dispatch.groups(batch) {
			err := g.err
			if err == nil {
				err = g.run(ctx)
			}
			if err != nil {
				s.conn.log.Warn("an event was not handed to who waits for it", "error", err)
			}
		}
		if err := ch.Ack(last, true); err != nil {
			return fmt.Errorf("acknowledging: %w", err)
		}
	}
}
