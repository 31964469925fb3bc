package service

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"
)

// newConnGrace is how long a connection that was just opened may take to send its first request once the server stops.
const newConnGrace = 500 * time.Millisecond

// ServeHTTP adds a part that serves HTTP on lis. When the service is about to stop, each connection is closed after the
// response to its next request, so that no client loses a request on a kept connection. When the part is stopped, requests
// in flight get half of the time for a stop. A handler whose response never ends by itself must watch Stopping.
func (s *Service) ServeHTTP(name string, lis net.Listener, server *http.Server) {
	idle := &newConns{}
	server.ConnState = idle.track
	server.Handler = s.closeWhenLeaving(server.Handler)
	s.Go(name, func(ctx context.Context) error {
		served := make(chan error, 1)
		go func() { served <- server.Serve(lis) }()
		select {
		case err := <-served:
			return fmt.Errorf("serving %s: %w", lis.Addr(), err)
		case <-ctx.Done():
		}
		drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.stopTimeout/2)
		defer cancel()
		defer time.AfterFunc(newConnGrace, idle.close).Stop()
		err := server.Shutdown(drain)
		if errors.Is(err, context.DeadlineExceeded) {
			s.logger.Warn("calls that are still running are cut off", "server", name)
			err = server.Close()
		}
		if ended := <-served; !errors.Is(ended, http.ErrServerClosed) {
			return fmt.Errorf("serving %s: %w", lis.Addr(), ended)
		}
		return err
	})
}

func (s *Service) closeWhenLeaving(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.leaving.Load() {
			w.Header().Set("Connection", "close") // over HTTP/2 net/http sends GOAWAY instead
		}
		next.ServeHTTP(w, r)
	})
}

// newConns are connections on which nothing has been sent yet, as browsers keep them ready. Shutdown would wait five
// seconds for each.
type newConns struct {
	conns sync.Map // net.Conn → nil; without a lock that all requests would meet at
}

// track is an http.Server's ConnState.
func (u *newConns) track(c net.Conn, state http.ConnState) {
	if state == http.StateNew {
		u.conns.Store(c, nil)
	} else {
		u.conns.Delete(c)
	}
}

func (u *newConns) close() {
	for c := range u.conns.Range {
		_ = c.(net.Conn).Close() // nothing was asked on it
	}
}
