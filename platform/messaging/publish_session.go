package messaging

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// publishSession holds the channels of a publisher on one connection.
type publishSession struct {
	confirmed *amqp.Channel              // in confirm mode, for messages that must arrive
	plain     *amqp.Channel              // for requests and replies
	closed    [2]chan *amqp.Error        // of confirmed and of plain
	returns   chan amqp.Return           // of confirmed; drained by assignReturns
	discarded chan amqp.Return           // of plain
	onReturn  sync.Map                   // message id → func()
	cause     atomic.Pointer[amqp.Error] // why confirmed was closed by the broker, a moment later
	progress  atomic.Int64               // confirms that were waited for and came
	rejected  chan struct{}              // has something if the broker has refused a message

	seen  int64     // progress when unconfirmedFor looked last
	since time.Time // when that had changed last

	mu        sync.Mutex
	windows   map[*inFlight]struct{} // what the broker may still return or confirm
	number    uint64                 // of the last window
	finished  map[string]uint64      // by routing key, the number of the last window that begins with it and is confirmed
	over      bool                   // its channels are closed
	abandoned int                    // how many of the windows are
}

// inFlight is a window of messages between its publishing and its last confirm.
type inFlight struct {
	number    uint64 // in the order of publishing
	since     time.Time
	messages  []Outgoing
	confirms  []*amqp.DeferredConfirmation
	returned  map[int]string // why messages were returned, by their place
	sent      atomic.Bool    // confirms does not change any more
	progress  int64          // of the session when it was published
	overtaken chan struct{}  // closed when nothing is to be expected of the broker any more, see findOvertaken
	late      bool           // overtaken is closed
	abandoned bool           // nobody waits for it any more

	one [1]*amqp.DeferredConfirmation // the room of confirms for one message, which many a window has
}

func openPublishSession(conn *amqp.Connection) (*publishSession, error) {
	s := &publishSession{
		// The library waits for room, and with it all its reader does: a window's worth never makes it wait.
		returns:   make(chan amqp.Return, window),
		discarded: make(chan amqp.Return, window),
		windows:   map[*inFlight]struct{}{},
		finished:  map[string]uint64{},
		rejected:  make(chan struct{}, 1),
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

var errNoConfirms = errors.New("the broker's node confirms nothing")

// wait serves the session until one of its channels closes, moveOn has closed the connection, ctx ends, or the session has to be
// replaced.
func (s *publishSession) wait(ctx context.Context, log *slog.Logger, moveOn func() bool) error {
	look := time.NewTicker(confirmStall / 8)
	defer look.Stop()
	begun := time.Now()
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
		case <-s.rejected:
			// A channel keeps who led a queue when it began, and refuses messages as long as that node is down; another channel finds
			// the new leader. Within rejectPause they are only published again: there may be none yet.
			if time.Since(begun) > rejectPause && !s.confirmed.IsClosed() {
				log.Warn("the broker has refused messages, publishing them again over another channel")
				return nil
			}
		case <-look.C:
			if n := s.findOvertaken(time.Now()); n > 0 {
				log.Warn("the broker has confirmed later messages and not these, publishing them again", "messages", n)
			}
			if moveOn() {
				return errNoConfirms
			}
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

// close closes the channels and ends the wait for their confirms.
func (s *publishSession) close() error {
	defer s.end()
	return errors.Join(s.confirmed.Close(), s.plain.Close())
}

// unconfirmedFor returns how long the broker has owed confirms without sending any. Only one goroutine calls it.
func (s *publishSession) unconfirmedFor(now time.Time) time.Duration {
	if seen := s.progress.Load(); seen != s.seen || s.since.IsZero() {
		s.seen, s.since = seen, now
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var owed time.Duration
	for f := range s.windows {
		if !f.abandoned || !f.confirmed() {
			owed = max(owed, now.Sub(f.since))
		}
	}
	return min(owed, now.Sub(s.since))
}

// missingExchange is an exchange that does not exist, for which the broker has closed a channel; the zero value is none.
type missingExchange struct {
	name string
	err  error
}

// first returns the index of the first message to that exchange, or the number of messages.
func (m missingExchange) first(messages []Outgoing) int {
	if m.err == nil {
		return len(messages)
	}
	if i := slices.IndexFunc(messages, func(o Outgoing) bool { return o.Exchange == m.name }); i >= 0 {
		return i
	}
	return len(messages)
}

// missing returns the exchange for which the broker has closed the channel. It may be a long time until that exists again.
func (s *publishSession) missing(messages []Outgoing) (none missingExchange) {
	cause := s.cause.Load()
	if cause == nil || cause.Code != amqp.NotFound {
		return none
	}
	for i := range messages {
		if strings.Contains(cause.Reason, "'"+messages[i].Exchange+"'") {
			return missingExchange{messages[i].Exchange, fmt.Errorf("%w: %s", ErrUnroutable, strings.ToLower(cause.Reason))}
		}
	}
	return none
}

// register records messages that are about to be published.
func (s *publishSession) register(messages []Outgoing) *inFlight {
	f := &inFlight{messages: messages, since: time.Now(), progress: s.progress.Load(), overtaken: make(chan struct{})}
	if f.confirms = f.one[:]; len(messages) != 1 {
		f.confirms = make([]*amqp.DeferredConfirmation, len(messages))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.number++
	f.number = s.number
	s.windows[f] = struct{}{}
	if s.over {
		f.overtake()
	}
	return f
}

// finish assigns the returned messages of a window. All its confirms have come: the broker returns a message before it
// confirms it, and the library delivers both in that order, so the returns are in the channel.
func (s *publishSession) finish(f *inFlight) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.assignReturns()
	delete(s.windows, f)
	key := f.messages[0].RoutingKey
	s.finished[key] = max(s.finished[key], f.number)
}

// findOvertaken looks for windows that are owed a confirm, although what was published later under the same routing key has got
// its own, or, some time later, anything else has; and says how many messages these are. A node of a cluster that passes a
// message on to the leader of a queue, on another node, may lose sight of it when that node dies, and then confirms everything but
// this message.
func (s *publishSession) findOvertaken(now time.Time) (messages int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for f := range s.windows {
		waited := now.Sub(f.since)
		if f.late || f.abandoned || !f.sent.Load() || waited < confirmStall {
			continue
		}
		others := waited >= 2*confirmStall && s.progress.Load() > f.progress
		for i, confirm := range f.confirms {
			if !isDone(confirm) && (others || s.finished[f.messages[i].RoutingKey] > f.number) {
				f.overtake()
				messages += len(f.confirms)
				break
			}
		}
	}
	return messages
}

// end lets go of who still waits for a confirm when the channels are closed.
func (s *publishSession) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
	for f := range s.windows {
		f.overtake()
	}
}

// overtake has whoever waits for the window publish it again. It is called with the session's mutex.
func (f *inFlight) overtake() {
	if !f.late {
		f.late = true
		close(f.overtaken)
	}
}

func isDone(confirm *amqp.DeferredConfirmation) bool {
	select {
	case <-confirm.Done():
		return true
	default:
		return false
	}
}

// abandon drops a window whose confirms nobody waits for any more. It is remembered until they come: otherwise a return of
// its messages could be mistaken for that of the same message when it is sent again.
func (s *publishSession) abandon(f *inFlight) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f.abandoned = true
	s.abandoned++
	f.messages = slices.Clone(f.messages)
	for i := range f.messages {
		f.messages[i].Body = nil
	}
}

// assignReturns assigns each returned message to the first window that may contain it: messages are returned in the order
// in which they were published.
func (s *publishSession) assignReturns() {
	var over []*inFlight // their returns, if any, are in the channel
	if s.abandoned > 0 {
		for f := range s.windows {
			if f.abandoned && f.confirmed() {
				over = append(over, f)
			}
		}
	}
	for len(s.returns) > 0 {
		if r, open := <-s.returns; open {
			s.assignReturn(&r)
		}
	}
	for _, f := range over {
		delete(s.windows, f)
		s.abandoned--
	}
}

func (s *publishSession) assignReturn(r *amqp.Return) {
	var first *inFlight
	var place int
	for f := range s.windows {
		if i := f.find(r); i >= 0 && (first == nil || f.number < first.number) {
			first, place = f, i
		}
	}
	if first == nil {
		return
	}
	if first.returned == nil {
		first.returned = map[int]string{}
	}
	first.returned[place] = strings.ToLower(r.ReplyText)
}

// find returns the index of the first message that r can be and that has not been returned yet, or -1.
func (f *inFlight) find(r *amqp.Return) int {
	for i := range f.messages {
		m := &f.messages[i]
		if _, back := f.returned[i]; !back && m.MessageID == r.MessageId && m.RoutingKey == r.RoutingKey && m.Exchange == r.Exchange {
			return i
		}
	}
	return -1
}

func (f *inFlight) confirmed() bool {
	return !slices.ContainsFunc(f.confirms, func(confirm *amqp.DeferredConfirmation) bool { return !isDone(confirm) })
}
