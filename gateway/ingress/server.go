package ingress

import (
	"log/slog"
	"net/http"
	"time"
)

const (
	headerTimeout = 10 * time.Second
	// readTimeout bounds how long a request may take to arrive, and writeTimeout a whole call; streams have no such bound.
	readTimeout  = 30 * time.Second
	writeTimeout = 60 * time.Second
	idleTimeout  = 2 * time.Minute
	maxHeaders   = 16 << 10
	// maxStreams is how many calls one HTTP/2 connection may have open. A gRPC client puts all its calls on one.
	maxStreams = 1000
	// maxUnread and maxUnreadCall are how many bytes an HTTP/2 connection, or one call on it, may send before they are
	// read.
	maxUnread     = 256 << 10
	maxUnreadCall = 64 << 10
	// SlowReaderTimeout is how long a client may leave sent data unread before its connection is aborted.
	SlowReaderTimeout = 30 * time.Second
)

// NewServer returns a server that serves HTTP/1 and HTTP/2 on one port, with or without TLS.
func NewServer(handler http.Handler, log *slog.Logger) *http.Server {
	protocols := &http.Protocols{}
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler:   handler,
		Protocols: protocols,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams:          maxStreams,
			MaxReceiveBufferPerConnection: maxUnread,
			MaxReceiveBufferPerStream:     maxUnreadCall,
			WriteByteTimeout:              SlowReaderTimeout,
		},
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaders,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}
