package edge

import (
	"errors"
	"io"
	"os"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"shop.example/platform/apierror"
)

const (
	// maxBody bounds a request, in bytes.
	maxBody = 1 << 20
	// maxHeld bounds, in bytes, the requests that are coming in and the answers that are going out, all together; one client
	// may have a quarter of it.
	maxHeld = 32 << 20
	// freeRequest and freeAnswer are what a call may hold uncounted: the number of calls is bounded, and the server has
	// buffers of about this size for each of them anyway.
	freeRequest = 16 << 10
	freeAnswer  = 4 << 10
	// heldStep is how much more of a request is counted at a time.
	heldStep = 16 << 10
)

// held is what one call holds in memory for a client: its request until the call ends, and its answer until the client
// has taken it, which may take the client long. A request may be read while an answer is written; otherwise it is not
// for concurrent use.
type held struct {
	memory  *limiter
	from    caller
	request int // bytes that are counted
}

// release ends the call.
func (h *held) release() { h.memory.release(h.from, h.request) }

// errAnswerNotTaken is what becomes of an answer while the client leaves too much unread.
var errAnswerNotTaken = errors.New("the client leaves too much unread")

// write writes an answer or a part of one. After errAnswerNotTaken the call has to be cut off: what the client got is not
// whole.
func (h *held) write(w io.Writer, part []byte) (int, error) {
	if len(part) <= freeAnswer {
		return w.Write(part)
	}
	if h.memory.acquire(h.from, len(part)) != nil {
		return 0, errAnswerNotTaken
	}
	defer h.memory.release(h.from, len(part))
	return w.Write(part)
}

// requestReader reads the body of a request, and counts it.
type requestReader struct {
	io.ReadCloser
	held *held
	// max is how many bytes there may be; 0 where that is seen to elsewhere.
	max int
	// keepsBuffers says that whoever reads keeps each buffer whole, for a single byte too: gRPC does.
	keepsBuffers bool

	length, kept int
	refusal      error // why no more is read, if that is not the connection's fault
}

// Read implements io.Reader.
func (b *requestReader) Read(p []byte) (int, error) {
	if b.refusal != nil {
		return 0, b.refusal
	}
	n, err := b.ReadCloser.Read(p)
	b.length += n
	b.kept += n
	if b.keepsBuffers && n > 0 {
		b.kept += len(p) - n
	}
	switch {
	case b.max > 0 && b.length > b.max:
		b.refusal = status.Errorf(codes.ResourceExhausted, "the request is larger than %d bytes", b.max)
	case !b.count():
		b.refusal = errTooMuchAtOnce
	case errors.Is(err, os.ErrDeadlineExceeded):
		b.refusal = errRequestTimeout
	default:
		return n, err
	}
	return 0, b.refusal
}

// count counts what is kept beyond freeRequest, and says whether there is room for it.
func (b *requestReader) count() bool {
	for b.kept > freeRequest+b.held.request {
		if b.held.memory.acquire(b.held.from, heldStep) != nil {
			return false
		}
		b.held.request += heldStep
	}
	return true
}

var (
	errRequestTimeout = apierror.New(codes.DeadlineExceeded, "REQUEST_TIMEOUT", "the request did not arrive whole within %s", readTimeout)
	errTooMuchAtOnce  = apierror.New(codes.ResourceExhausted, "TOO_MUCH_AT_ONCE",
		"too much is being sent at the same time; send one large request after the other").WithRetryAfter(time.Second)
)
