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
	// MaxBody is the maximum size of a request, in bytes.
	MaxBody = 1 << 20
	// maxMemory bounds, in bytes, the requests that are being read and the responses that are being written, all together;
	// one client may use a quarter of it.
	maxMemory = 32 << 20
	// FreeRequest and freeAnswer are how much a call may hold without being counted, in bytes: the number of calls is
	// limited, and the server has buffers of about this size for each of them anyway.
	FreeRequest = 16 << 10
	freeAnswer  = 4 << 10
	// memoryStep is in which steps the memory of a request is counted, in bytes.
	memoryStep = 16 << 10
	// maxDecoding is how many requests beyond FreeRequest are decoded at a time. A message can take 36 times as much as its
	// bytes, which is what is counted: a request of 1 MiB has room for half a million items, and all of them are there until
	// their number is refused.
	maxDecoding = 2
)

var decoding = make(chan struct{}, maxDecoding)

// BeginDecoding waits until a request of so many bytes may be decoded. done has to be called when it is.
func BeginDecoding(size int) (done func()) {
	if size <= FreeRequest {
		return func() {}
	}
	decoding <- struct{}{}
	return func() { <-decoding }
}

// CallMemory counts the memory that one call holds for a client: its request until the call ends, and its response until
// the client has read it, which may take long. A request may be read while a response is written; otherwise it must not be
// used concurrently.
type CallMemory struct {
	limiter      *Limiter
	client       Client
	requestBytes int // bytes that are counted
}

// Release ends the call, and with it the count of its request.
func (h *CallMemory) Release() { h.limiter.Release(h.client, h.requestBytes) }

// errSlowReader means that a response was not written because its client leaves too much unread.
var errSlowReader = errors.New("the client leaves too much unread")

// Write writes a response, or a part of one, to w. size is the memory that the call holds for it, in bytes, which is more
// than the part if the part is compressed. After errSlowReader the connection must be aborted, because the response is
// incomplete.
func (h *CallMemory) Write(w io.Writer, part []byte, size int) (int, error) {
	if size <= freeAnswer {
		return w.Write(part)
	}
	if h.limiter.Acquire(h.client, size) != nil {
		return 0, errSlowReader
	}
	defer h.limiter.Release(h.client, size)
	return w.Write(part)
}

// RequestReader reads the body of a request, and counts its memory. It is not safe for concurrent use.
type RequestReader struct {
	io.ReadCloser
	Held *CallMemory
	// max is how many bytes there may be; 0 if the limit is enforced elsewhere.
	max int
	// keepsBuffers says that the reader keeps each buffer as a whole, even for a single byte, as gRPC does.
	keepsBuffers bool

	length, kept int
	Refusal      error // to respond with because reading was stopped; nil if it was not, or if the connection failed
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

// count counts what is kept beyond FreeRequest, and reports whether there is room for it.
func (b *RequestReader) count() bool {
	for b.kept > FreeRequest+b.Held.requestBytes {
		if b.Held.limiter.Acquire(b.Held.client, memoryStep) != nil {
			return false
		}
		b.Held.requestBytes += memoryStep
	}
	return true
}

// What is answered to requests that are not read to their end.
var (
	ErrRequestTimeout = apierror.New(codes.DeadlineExceeded, "REQUEST_TIMEOUT", "the request did not arrive whole within %s", readTimeout)
	errTooMuchMemory  = apierror.New(codes.ResourceExhausted, "TOO_MUCH_AT_ONCE",
		"too much is being sent at the same time; send one large request after the other").WithRetryAfter(time.Second)
)
