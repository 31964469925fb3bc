package upstream

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"shop.example/gateway/access"
	loggingv1 "shop.example/gen/shop/logging/v1"
)

const (
	// feedInterval is the minimum time between two batches of a feed, unless one is full.
	feedInterval = 100 * time.Millisecond
	// fullInterval is that of full batches: a feed whose clients read nothing reads no more than 10 MiB a second for them.
	fullInterval = 25 * time.Millisecond
	// feedRate is how many bytes a feed hands out a second, to all its streams together; beyond that they get events later.
	// It leaves most of two cores to orders.
	feedRate = 96 << 20
	// maxBatch is the size from which a batch takes no more responses, and keptBytes that of the batches that all feeds
	// together keep for streams that are late. Both count encoded responses.
	maxBatch  = 256 << 10
	keptBytes = 4 << 20
)

// Batch is some responses of StreamEvents that a feed hands to many streams. It does not change.
type Batch struct {
	Responses []*loggingv1.StreamEventsResponse

	last    int64 // the position after it
	size    int
	once    sync.Once
	encoded []byte
	err     error
}

// Encode returns what encode makes of the responses, which is called once for all streams. Callers must pass the same
// function, and not change the result.
func (b *Batch) Encode(encode func([]*loggingv1.StreamEventsResponse) ([]byte, error)) ([]byte, error) {
	b.once.Do(func() { b.encoded, b.err = encode(b.Responses) })
	return b.encoded, b.err
}

func (b *Batch) add(r *loggingv1.StreamEventsResponse) {
	b.Responses = append(b.Responses, r)
	b.last = r.GetPosition()
	b.size += proto.Size(r)
}

// after returns the part of b that a stream at cursor has not had: b itself if that is all of it, nil if it is nothing.
func (b *Batch) after(cursor int64) *Batch {
	first := slices.IndexFunc(b.Responses, func(r *loggingv1.StreamEventsResponse) bool {
		return r.GetPosition() > cursor || r.GetEvent() == nil && r.GetPosition() == cursor
	})
	switch first {
	case -1:
		return nil
	case 0:
		return b
	}
	return &Batch{Responses: b.Responses[first:], last: b.last}
}

type batchesKey struct{}

// WithBatches returns ctx for a stream whose SendMsg also takes a *Batch.
func WithBatches(ctx context.Context) context.Context {
	return context.WithValue(ctx, batchesKey{}, true)
}

// beginStream makes a call of StreamEvents.
type beginStream func(ctx context.Context, request proto.Message) (grpc.ClientStream, error)

// feeds has a feed for each routing key that streams of the whole log ask for.
type feeds struct {
	begin beginStream
	name  string // of the service, for errors

	mu    sync.Mutex
	byKey map[string]*feed
}

// feed is a stream of the log that is read, and its responses encoded, once for many clients' streams. It begins at the end
// of the log. Each client's stream begins with a call of its own, which checks its access and says where it begins, and
// goes on with the feed as soon as the feed has all that follows. A stream that is too late for what the feed keeps goes
// on with a call of its own, until it has caught up: no stream waits for another.
type feed struct {
	stop    context.CancelFunc
	done    chan struct{} // closed when run has ended
	readers int           // guarded by the mutex of feeds

	mu      sync.Mutex // guards what follows
	opened  bool
	err     error         // why it has ended
	changed chan struct{} // closed when something of this changes
	from    int64         // it has every event after that
	batches []*Batch
	first   int // the number of batches[0]
	size    int // of batches
}

// reader is a client's stream.
type reader struct {
	client grpc.ServerStream
	cursor int64
	feed   *feed // once it has joined
	// The position of the feed then. What the feed had read before is not for this stream: a person may have been erased in the
	// log since.
	joined int64
}

// serve sends a stream to its client. The caller must be an operator, and the request about no order.
func (s *feeds) serve(client grpc.ServerStream, request *loggingv1.StreamEventsRequest) error {
	r := &reader{client: client, cursor: -1}
	defer func() { s.leave(request.GetRoutingKey(), r.feed) }()
	for {
		err := s.alone(r, request)
		if err == nil {
			err = r.feed.follow(client, &r.cursor)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		request = &loggingv1.StreamEventsRequest{AfterId: r.cursor, FromBeginning: true, RoutingKey: request.GetRoutingKey()}
	}
}

// alone sends the responses of a call for this stream alone, until the feed has all that follows. The first response shows
// that the client may have the events; then it joins the feed. The error is io.EOF if the service ends the call.
func (s *feeds) alone(r *reader, request *loggingv1.StreamEventsRequest) error {
	ctx, cancel := context.WithCancel(r.client.Context())
	defer cancel()
	responses, err := s.begin(ctx, request)
	if err != nil {
		return Error(s.name, err)
	}
	for {
		response := &loggingv1.StreamEventsResponse{}
		if err := responses.RecvMsg(response); err != nil {
			return Error(s.name, err)
		}
		if err := r.client.SendMsg(response); err != nil {
			return err
		}
		r.cursor = response.GetPosition()
		if r.feed == nil {
			r.feed = s.join(r.client.Context(), request.GetRoutingKey())
			r.joined = r.feed.position()
		}
		if r.cursor >= r.joined && r.feed.has(r.cursor) {
			return nil
		}
	}
}

// join returns the feed for a routing key. Who joins must leave.
func (s *feeds) join(ctx context.Context, routingKey string) *feed {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.byKey[routingKey]
	if f == nil {
		f = &feed{done: make(chan struct{}), changed: make(chan struct{})}
		ctx, f.stop = context.WithCancel(context.WithoutCancel(ctx))
		s.byKey[routingKey] = f
		go func() {
			defer close(f.done)
			err := s.run(ctx, f, routingKey)
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.byKey[routingKey] == f { // who comes now needs another
				delete(s.byKey, routingKey)
			}
			f.end(Error(s.name, err))
		}()
	}
	f.readers++
	return f
}

// leave undoes join, and ends a feed that nobody reads any more.
func (s *feeds) leave(routingKey string, f *feed) {
	if f == nil {
		return
	}
	s.mu.Lock()
	f.readers--
	unused := f.readers == 0
	if unused && s.byKey[routingKey] == f {
		delete(s.byKey, routingKey)
	}
	s.mu.Unlock()
	if unused {
		f.stop()
		<-f.done
	}
}

// share returns how many streams read f, and how many bytes it may keep for them.
func (s *feeds) share(f *feed) (readers, kept int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return f.readers, keptBytes / max(1, len(s.byKey))
}

// run reads the feed's stream until it fails or ctx ends, and publishes what comes, in batches.
func (s *feeds) run(ctx context.Context, f *feed, routingKey string) error {
	responses, err := s.begin(ctx, &loggingv1.StreamEventsRequest{RoutingKey: routingKey})
	if err != nil {
		return err
	}
	first := &loggingv1.StreamEventsResponse{}
	if err := responses.RecvMsg(first); err != nil {
		return err
	}
	f.open(first.GetPosition())
	received := make(chan *loggingv1.StreamEventsResponse)
	var failed error // set before received is closed
	go func() {
		defer close(received)
		for {
			r := &loggingv1.StreamEventsResponse{}
			if failed = responses.RecvMsg(r); failed != nil { // at the latest when ctx ends
				return
			}
			received <- r
		}
	}()
	defer func() {
		f.stop()
		for range received { // until the goroutine has ended
		}
	}()
	due, paced := time.NewTimer(0), time.NewTimer(0)
	defer due.Stop()
	defer paced.Stop()
	for {
		b, open := collect(ctx, received, due)
		if len(b.Responses) > 0 {
			select {
			case <-ctx.Done():
			case <-paced.C:
			}
			readers, kept := s.share(f)
			f.publish(b, kept)
			pace := time.Duration(float64(b.size) * float64(readers) / feedRate * float64(time.Second))
			paced.Reset(max(fullInterval, pace))
			due.Reset(max(feedInterval, pace))
		}
		if !open {
			return failed
		}
	}
}

// collect returns a response and those that come until the next batch is due, or is full. It reports whether more may come.
func collect(ctx context.Context, received <-chan *loggingv1.StreamEventsResponse, due *time.Timer) (b *Batch, open bool) {
	b = &Batch{}
	r, open := <-received
	if !open {
		return b, false
	}
	b.add(r)
	for b.size < maxBatch {
		select {
		case <-ctx.Done():
			return b, true
		case <-due.C:
			return b, true
		case r, open := <-received:
			if !open {
				return b, false
			}
			b.add(r)
		}
	}
	return b, true
}

// open says that f has what follows position.
func (f *feed) open(position int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.opened, f.from = true, position
}

// publish gives a batch to the streams, and drops old ones beyond kept bytes.
func (f *feed) publish(b *Batch, kept int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.batches, f.size = append(f.batches, b), f.size+b.size
	for len(f.batches) > 1 && f.size > kept {
		f.from, f.size = f.batches[0].last, f.size-f.batches[0].size
		f.batches[0] = nil // for the memory
		f.batches, f.first = f.batches[1:], f.first+1
	}
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *feed) end(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
	close(f.changed)
}

// position returns the position of f's last batch, 0 if there was none.
func (f *feed) position() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.batches) == 0 {
		return 0
	}
	return f.batches[len(f.batches)-1].last
}

// has reports whether f has, or will have, everything after cursor.
func (f *feed) has(cursor int64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.opened && f.err == nil && cursor >= f.from
}

// follow sends batches to a client at cursor until it is too late for those that f keeps. It returns an error if the client
// or the feed fails.
func (f *feed) follow(client grpc.ServerStream, cursor *int64) error {
	for number := -1; ; number++ {
		b, at, err := f.wait(client.Context(), *cursor, number)
		if b == nil || err != nil {
			return err
		}
		number = at
		if b = b.after(*cursor); b == nil {
			continue
		}
		if err := send(client, b); err != nil {
			return err
		}
		*cursor = b.last
	}
}

// wait returns the batch with this number as soon as there is one, and its number. With a negative number it is the first one
// that f keeps. There is no batch if f no longer has all that follows cursor.
func (f *feed) wait(ctx context.Context, cursor int64, number int) (*Batch, int, error) {
	for {
		f.mu.Lock()
		b, at, changed, err := f.at(cursor, number)
		f.mu.Unlock()
		if changed == nil {
			return b, at, err
		}
		select {
		case <-ctx.Done():
			return nil, 0, ctx.Err()
		case <-changed:
		}
	}
}

func (f *feed) at(cursor int64, number int) (b *Batch, at int, changed <-chan struct{}, err error) {
	at = max(number, f.first)
	switch {
	case cursor < f.from:
		return nil, at, nil, nil
	case at-f.first < len(f.batches):
		return f.batches[at-f.first], at, nil, nil
	case f.err != nil:
		return nil, at, nil, f.err
	}
	return nil, at, f.changed, nil
}

// send sends a batch in one piece to a client that takes it so, or else response by response.
func send(client grpc.ServerStream, b *Batch) error {
	if client.Context().Value(batchesKey{}) != nil {
		return client.SendMsg(b)
	}
	for _, r := range b.Responses {
		if err := client.SendMsg(r); err != nil {
			return err
		}
	}
	return nil
}

// isShared reports whether a request is for the whole log, by somebody who may see all of it.
func isShared(ctx context.Context, request proto.Message) (*loggingv1.StreamEventsRequest, bool) {
	events, ok := request.(*loggingv1.StreamEventsRequest)
	return events, ok && events.GetOrderId() == "" && access.PrincipalOf(ctx).IsOperator()
}
