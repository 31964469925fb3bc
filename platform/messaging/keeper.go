package messaging

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// keepInterval is how often a service checks its queues, on average.
const keepInterval = time.Second

// settleTime is how long a missing queue stays missing at least. If a queue is declared again before the broker has
// cancelled its consumers, they are still counted but receive nothing (see idleLimit). It also gives somebody who deletes a
// queue the time to declare it with other arguments.
const settleTime = 300 * time.Millisecond

// binding is one that a running RPC server needs in addition to those of the topology.
type binding struct{ queue, key, exchange string }

// keeper restores the queues of a service while its connection lives: somebody may delete a queue, a binding or an exchange
// at any time. A missing queue is declared again, and all bindings are made again, because the broker does not tell when
// one is gone. Exchanges are declared again only by users with rights to everything.
//
// The arguments of an existing queue are not compared: somebody who has replaced a queue is not interfered with until the
// service connects again.
type keeper struct {
	topology Topology
	service  string
	queues   []Queue // the service's own
	log      *slog.Logger
	renew    chan struct{} // asks for a look at once

	mu       sync.Mutex
	bindings map[binding]bool
	problem  error // nil if all was there at the last look
}

func newKeeper(t Topology, service string, log *slog.Logger) *keeper {
	return &keeper{topology: t, service: service, queues: t.ownQueues(service), log: log, renew: make(chan struct{}, 1), bindings: map[binding]bool{}}
}

// run checks the queues on conn until ctx ends or the connection is closed. After a failure the interval grows up to 10 s,
// because each question about something that is missing is an error in the broker's log.
func (k *keeper) run(ctx context.Context, conn *amqp.Connection) {
	var ch *amqp.Channel
	failing := newBackoff()
	k.report(nil) // ensureTopology has just seen to everything
	for {
		next := time.NewTimer(keepInterval/2 + rand.N(keepInterval)) //nolint:gosec // replicas are not to look all at once
		if k.state() != nil {
			next.Reset(failing.Next())
		}
		select {
		case <-ctx.Done():
			next.Stop()
			return
		case <-k.renew:
			next.Stop()
		case <-next.C:
		}
		// Not bounded by ctx: whoever ends it closes the connection in good order, and what is asked ends with that.
		err := bounded(context.WithoutCancel(ctx), conn, declareTimeout, func() (err error) {
			ch, err = k.look(ctx, conn, ch)
			return err
		})
		if conn.IsClosed() || ctx.Err() != nil {
			return
		}
		k.report(err)
		if err == nil {
			failing.Reset()
		}
	}
}

// look declares what is missing. It returns the channel for the next look, nil if the broker has closed this one.
func (k *keeper) look(ctx context.Context, conn *amqp.Connection, ch *amqp.Channel) (_ *amqp.Channel, err error) {
	if ch == nil {
		if ch, err = conn.Channel(); err != nil {
			return nil, fmt.Errorf("opening a channel to look after queues: %w", err)
		}
	}
	missing := k.refresh(ch)
	if missing == nil {
		return ch, nil
	}
	if !isNotFound(missing) {
		return nil, missing
	}
	k.log.Warn("the topology is incomplete, what is missing is declared again", "error", missing)
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(settleTime):
	}
	return nil, ensureTopology(conn, k.topology, k.service)
}

// refresh checks that the queues exist and binds them. Its error is about the first one that is missing or has no exchange.
// It waits while another connection declares: an exchange that was just declared again has no bindings yet, and a queue that
// is bound before the log's would get messages that the log never sees.
func (k *keeper) refresh(ch *amqp.Channel) error {
	defer declareAlone()()
	for _, q := range k.queues {
		if _, err := ch.QueueDeclarePassive(q.Name, true, false, false, false, nil); err != nil {
			return fmt.Errorf("looking for queue %s: %w", q.Name, err)
		}
		if err := q.bind(ch); err != nil {
			return err
		}
	}
	k.mu.Lock()
	bindings := make([]binding, 0, len(k.bindings))
	for b := range k.bindings {
		bindings = append(bindings, b)
	}
	k.mu.Unlock()
	for _, b := range bindings {
		// If it is the queue that is missing, its server has lost its consumer and declares it.
		if err := ch.QueueBind(b.queue, b.key, b.exchange, false, nil); err != nil {
			return fmt.Errorf("binding queue %s to %s: %w", b.queue, b.key, err)
		}
	}
	return nil
}

// report stores the result of a look, and logs it if it has changed.
func (k *keeper) report(err error) {
	k.mu.Lock()
	before := k.problem
	k.problem = err
	k.mu.Unlock()
	switch {
	case err != nil && (before == nil || before.Error() != err.Error()):
		k.log.Error("the topology is incomplete and cannot be mended from here, will look again", "error", err)
	case err == nil && before != nil:
		k.log.Info("the topology is complete again")
	}
}

// lookNow makes the keeper look at once, when a consumer was cancelled, because the reason may be that its queue is gone.
func (k *keeper) lookNow() {
	select {
	case k.renew <- struct{}{}:
	default: // it is about to look
	}
}

func (k *keeper) state() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.problem
}

// keepBound keeps a queue bound until forget is called.
func (k *keeper) keepBound(b binding) (forget func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.bindings[b] = true
	return func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		delete(k.bindings, b)
	}
}
