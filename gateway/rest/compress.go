package rest

import (
	"bytes"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"github.com/klauspost/compress/gzip"
)

// minCompressed is the length from which a response is compressed, in bytes: less fits into one packet anyway.
const minCompressed = 1 << 10

// gzipSuffix distinguishes the entity tag of a compressed response from that of the same response uncompressed.
const gzipSuffix = "-gzip"

var gzipWriters = sync.Pool{New: func() any {
	w, _ := gzip.NewWriterLevel(nil, gzip.BestSpeed) // a level that there is
	return w
}}

// compress returns body as gzip. The writer, which takes hundreds of kilobytes, is put back into the pool before anything
// is sent: a client that does not read its response must not hold on to one.
func compress(body []byte) []byte {
	w := gzipWriters.Get().(*gzip.Writer)
	defer gzipWriters.Put(w)
	var compressed bytes.Buffer
	compressed.Grow(len(body) / 4)
	w.Reset(&compressed)
	_, _ = w.Write(body) // into memory
	_ = w.Close()
	return compressed.Bytes()
}

// acceptsGzip reports whether a client accepts gzip, by RFC 9110, section 12.5.3.
func acceptsGzip(header http.Header) bool {
	accepted, named := false, false
	for _, value := range header["Accept-Encoding"] {
		for coding := range strings.SplitSeq(value, ",") {
			name, weight, weighted := strings.Cut(coding, ";")
			name = strings.ToLower(strings.TrimSpace(name))
			if name != "gzip" && (name != "*" || named) {
				continue
			}
			named = named || name == "gzip"
			accepted = true
			if _, q, ok := strings.Cut(strings.ToLower(weight), "q="); weighted && ok {
				n, err := strconv.ParseFloat(strings.TrimSpace(q), 64)
				accepted = err == nil && n > 0
			}
		}
	}
	return accepted
}

// encode returns the body as it is sent: compressed if it is long and the client accepts that, with the headers set
// accordingly. Streams are not compressed, because each part must arrive at once. A body with a length or coding of its own
// is sent as it is.
func (w *Response) encode(body []byte) []byte {
	header := w.Header()
	if len(body) < minCompressed || len(header["Content-Length"]) > 0 || len(header["Content-Encoding"]) > 0 || header.Get("Content-Type") == EventStream {
		return body
	}
	header.Add("Vary", "Accept-Encoding")
	if !acceptsGzip(w.request) {
		return body
	}
	header.Set("Content-Encoding", "gzip")
	if tag := header.Get("ETag"); tag != "" {
		header.Set("ETag", strings.TrimSuffix(tag, `"`)+gzipSuffix+`"`)
	}
	w.compressed = true
	return compress(body)
}

// EventStream is the media type of Server-Sent Events.
const EventStream = "text/event-stream"

// errWrittenTwice is the error of a second write after a compressed response.
var errWrittenTwice = errors.New("a compressed response has to be written at once")
