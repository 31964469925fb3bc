package ingress

import (
	"cmp"
	"context"
	"fmt"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"google.golang.org/grpc/codes"

	"shop.example/platform/apierror"
)

const (
	// streamRetry is what clients are told to wait when too many streams are open: streams last.
	streamRetry = 10 * time.Second
	// callRetry is the same for calls, which do not.
	callRetry = time.Second
	// What may be open unless something else is configured. A call costs up to 30 KB while it waits, a connection about as much:
	// all of them together stay below 200 MB.
	defaultStreams     = 1000
	defaultCalls       = 3000
	defaultConnections = 3000
)

// Limiter bounds how much is in use at a time, in total and per client, so that a single client cannot use up everything.
// It is safe for concurrent use. A nil Limiter has no bound.
type Limiter struct {
	max, maxPerClient int
	refused           func() // counts refusals; may be nil

	mu   sync.Mutex // guards what follows
	used int
	by   map[Client]int // only clients that use something
}

// NewLimiter returns a limiter of limit in total and maxPerClient (at least 1) per client.
func NewLimiter(limit, maxPerClient int) *Limiter {
	return &Limiter{max: limit, maxPerClient: max(1, maxPerClient), by: map[Client]int{}}
}

// Exceeded says which limit was reached: the total, or the client's.
type Exceeded struct {
	max   int
	ofOne bool // it is the limit of one client
}

// Acquire takes n for the client and returns nil, or says which limit is exceeded. What was acquired must be released, with
// the same n. An n above what one client may have counts as that maximum: it succeeds if the client has nothing else.
func (l *Limiter) Acquire(from Client, n int) *Exceeded {
	if l == nil {
		return nil
	}
	n = min(n, l.maxPerClient)
	l.mu.Lock()
	defer l.mu.Unlock()
	mine := l.by[from]
	switch {
	case l.used+n > l.max:
		return l.refuse(Exceeded{max: l.max})
	case mine+n > l.maxPerClient:
		return l.refuse(Exceeded{max: l.maxPerClient, ofOne: true})
	}
	l.used += n
	l.by[from] = mine + n
	return nil
}

func (l *Limiter) refuse(e Exceeded) *Exceeded {
	if l.refused != nil {
		l.refused()
	}
	return &e
}

// Release returns what Acquire has taken for the client.
func (l *Limiter) Release(from Client, n int) {
	if l == nil {
		return
	}
	n = min(n, l.maxPerClient)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.used -= n
	if l.by[from] -= n; l.by[from] == 0 {
		delete(l.by, from)
	}
}

// Limits are the limiters of one gateway.
type Limits struct {
	connections *Limiter
	Calls       *Limiter
	Streams     *Limiter
	Memory      *Limiter // bytes of requests and responses that are held for clients, see CallMemory
}

// NewLimits returns limiters that count their refusals; 0 stands for the default. behindProxies says that connections come
// from proxies, which are not clients: a single one may have as many connections as there are.
func NewLimits(connections, calls, streams int, behindProxies bool, meter metric.Meter) (Limits, error) {
	connections, calls, streams = cmp.Or(connections, defaultConnections), cmp.Or(calls, defaultCalls), cmp.Or(streams, defaultStreams)
	refused, err := meter.Int64Counter("gateway.refused", metric.WithDescription("Refused or cut off because a limit was reached."))
	if err != nil {
		return Limits{}, fmt.Errorf("metrics of the limits: %w", err)
	}
	all := Limits{
		connections: NewLimiter(connections, connections*2/3),
		Calls:       NewLimiter(calls, calls*2/3),
		Streams:     NewLimiter(streams, streams/4),
		Memory:      NewLimiter(maxMemory, maxMemory/4),
	}
	if behindProxies {
		all.connections.maxPerClient = connections
	}
	for name, l := range all.byName() {
		limit := metric.WithAttributeSet(attribute.NewSet(attribute.String("limit", name)))
		refused.Add(context.Background(), 0, limit)
		l.refused = func() { refused.Add(context.Background(), 1, limit) }
	}
	if err := all.observe(meter); err != nil {
		return Limits{}, fmt.Errorf("metrics of the limits: %w", err)
	}
	return all, nil
}

func (l Limits) byName() map[string]*Limiter {
	return map[string]*Limiter{"connections": l.connections, "calls": l.Calls, "streams": l.Streams, "memory": l.Memory}
}

// observe registers metrics of how much of each limit is in use.
func (l Limits) observe(meter metric.Meter) error {
	used, err := meter.Int64ObservableGauge("gateway.in_use", metric.WithDescription("What is open or held, by limit: connections, calls, streams, and bytes of memory."))
	if err != nil {
		return err
	}
	most, err := meter.Int64ObservableGauge("gateway.in_use.max", metric.WithDescription("The most that may be in use, by limit."))
	if err != nil {
		return err
	}
	_, err = meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		for name, limiter := range l.byName() {
			n, _ := limiter.InUse()
			limit := metric.WithAttributes(attribute.String("limit", name))
			o.ObserveInt64(used, int64(n), limit)
			o.ObserveInt64(most, int64(limiter.max), limit)
		}
		return nil
	}, used, most)
	return err
}

// TooManyStreams returns the error for a stream that was refused because of e.
func TooManyStreams(e *Exceeded) error {
	format := "%d streams are open, which is the most; try again later"
	if e.ofOne {
		format = "this client has %d streams open, which is the most that one may have: close some"
	}
	return apierror.New(codes.ResourceExhausted, "TOO_MANY_STREAMS", format, e.max).WithRetryAfter(streamRetry)
}

func tooManyCalls(e *Exceeded) error {
	format := "%d calls are open, which is the most; try again"
	if e.ofOne {
		format = "this client has %d calls open, which is the most that one may have: wait for some of them"
	}
	return apierror.New(codes.ResourceExhausted, "TOO_MANY_CALLS", format, e.max).WithRetryAfter(callRetry)
}

// InUse returns how much is in use in total, and by how many clients.
func (l *Limiter) InUse() (used, clients int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.used, len(l.by)
}
