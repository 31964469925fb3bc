package ingress

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
	MaxBody = 1 << 20
	// maxHeld bounds, in bytes, the requests that are coming in and the answers that are going out, all together; one client
	// may have a quarter of it.
	maxMemory = 32 << 20
	// freeRequest and freeAnswer are what a call may hold uncounted: the number of calls is bounded, and the server has
	// buffers of about this size for each of them anyway.
	FreeRequest = 16 << 10
	freeAnswer  = 4 << 10
	// heldStep is how much more of a request is counted at a time.
	memoryStep = 16 << 10
)

// held is what one call holds in memory for a client: its request until the call ends, and its answer until the client
// has taken it, which may take the client long. A request may be read while an answer is written; otherwise it is not
// for concurrent use.
type CallMemory struct {
	limiter      *Limiter
	client       Client
	requestBytes int // bytes that are counted
}

// release ends the call.
func (h *CallMemory) Release() { h.limiter.Release(h.client, h.requestBytes) }

// errAnswerNotTaken is what becomes of an answer while the client leaves too much unread.
var errSlowReader = errors.New("the client leaves too much unread")

// write writes an answer or a part of one. After errAnswerNotTaken the call has to be cut off: what the client got is not
// whole.
func (h *CallMemory) Write(w io.Writer, part []byte) (int, error) {
	if len(part) <= freeAnswer {
		return w.Write(part)
	}
	if h.limiter.Acquire(h.client, len(part)) != nil {
		return 0, errSlowReader
	}
	defer h.limiter.Release(h.client, len(part))
	return w.Write(part)
}

// requestReader reads the body of a request, and counts it.
type RequestReader struct {
	io.ReadCloser
	Held *CallMemory
	// max is how many bytes there may be; 0 where that is seen to elsewhere.
	max int
	// keepsBuffers says that whoever reads keeps each buffer whole, for a single byte too: gRPC does.
	keepsBuffers bool

	length, kept int
	Refusal      error // why no more is read, if that is not the connection's fault
}

// Read implements io.Reader.
func (b *RequestReader) Read(p []byte) (int, error) {
	if b.Refusal != nil {
		return 0, b.Refusal
	}
	n, err := b.ReadCloser.Read(p)
	b.length += n
	b.kept += n
	if b.keepsBuffers && n > 0 {
		b.kept += len(p) - n
	}
	switch {
	case b.max > 0 && b.length > b.max:
		b.Refusal = status.Errorf(codes.ResourceExhausted, "the request is larger than %d bytes", b.max)
	case !b.count():
		b.Refusal = errTooMuchMemory
	case errors.Is(err, os.ErrDeadlineExceeded):
		b.Refusal = ErrRequestTimeout
	default:
		return n, err
	}
	return 0, b.Refusal
}

// count counts what is kept beyond freeRequest, and says whether there is room for it.
func (b *RequestReader) count() bool {
	for b.kept > FreeRequest+b.Held.requestBytes {
		if b.Held.limiter.Acquire(b.Held.client, memoryStep) != nil {
			return false
		}
		b.Held.requestBytes += memoryStep
	}
	return true
}

var (
	ErrRequestTimeout = apierror.New(codes.DeadlineExceeded, "REQUEST_TIMEOUT", "the request did not arrive whole within %s", readTimeout)
	errTooMuchMemory  = apierror.New(codes.ResourceExhausted, "TOO_MUCH_AT_ONCE",
		"too much is being sent at the same time; send one large request after the other").WithRetryAfter(time.Second)
)
