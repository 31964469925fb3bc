package edge

import (
	"sync"
	"time"

	"google.golang.org/grpc/codes"

	"shop.example/platform/apierror"
)

const (
	// shareOfOne is the part of all places that one client may take, so that nobody can keep the others out alone.
	shareOfOne = 4
	// streamRetry is what clients are told to wait when too many streams are open: streams last.
	streamRetry = 10 * time.Second
)

// places bound how many event streams are open at a time, in all and of one client. They are safe for concurrent use.
type places struct {
	most, mostOfOne int

	mu    sync.Mutex // guards what follows
	taken int
	by    map[caller]int // without those who have none
}

func newPlaces(most int) *places {
	return &places{most: most, mostOfOne: max(1, most/shareOfOne), by: map[caller]int{}}
}

// take returns an error where there is no place for a stream of the client. A place that was taken must be given back.
func (p *places) take(from caller) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.taken == p.most:
		return tooManyStreams("%d streams are open, which is the most; try again later", p.most)
	case p.by[from] == p.mostOfOne:
		return tooManyStreams("this client has %d streams open, which is the most that one may have: close some", p.mostOfOne)
	}
	p.taken++
	p.by[from]++
	return nil
}

func (p *places) giveBack(from caller) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.taken--
	if p.by[from]--; p.by[from] == 0 {
		delete(p.by, from)
	}
}

func tooManyStreams(format string, most int) error {
	return apierror.New(codes.ResourceExhausted, "TOO_MANY_STREAMS", format, most).WithRetryAfter(streamRetry)
}
