package service

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
)

// ServeHTTP adds a part that serves HTTP on lis. When it is stopped, requests in flight get half of the time for a
// stop. A response that never ends by itself has to watch Stopping.
func (s *Service) ServeHTTP(name string, lis net.Listener, server *http.Server) {
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
