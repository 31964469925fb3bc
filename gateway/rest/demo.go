package rest

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
)

// DemoHandler is a REST call for operators that no contract describes. Only shops that run as a demo have any.
type DemoHandler struct {
	Method string
	Path   string // a template, as in the contracts: "/demo/services/{service}/stop"
	// Call returns the value to send as JSON, or an error, preferably of package apierror. inPath has the values of the
	// fields in Path. ctx ends when the gateway begins to stop. Call may be called concurrently.
	Call func(ctx context.Context, inPath map[string]string, body []byte) (any, error)
}

// authorizer returns an error unless the values of the header Authorization allow the call.
type authorizer func(ctx context.Context, authorization []string) error

// AddDemo adds calls for operators, which authorize checks. Their contexts end when stopping is closed.
func (s *Server) AddDemo(handlers []DemoHandler, authorize authorizer, stopping <-chan struct{}) error {
	for _, c := range handlers {
		s.routes[c.Method+" "+c.Path] = &route{path: c.Path, body: "*", bound: fieldsIn(c.Path)}
		err := s.mux.HandlePath(c.Method, c.Path, func(w http.ResponseWriter, r *http.Request, inPath map[string]string) {
			answer, err := c.serve(r, inPath, authorize, stopping)
			if err != nil {
				s.writeError(r.Context(), nil, nil, w, r, err)
				return
			}
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write(answer) // fails when the client has gone
		})
		if err != nil {
			return fmt.Errorf("adding %s %s: %w", c.Method, c.Path, err)
		}
	}
	return nil
}

func (c DemoHandler) serve(r *http.Request, inPath map[string]string, authorize authorizer, stopping <-chan struct{}) ([]byte, error) {
	if err := authorize(r.Context(), r.Header.Values("Authorization")); err != nil {
		return nil, err
	}
	body, err := readBody(r.Body)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	go func() {
		select {
		case <-stopping:
			cancel()
		case <-ctx.Done():
		}
	}()
	answer, err := c.Call(ctx, inPath, body)
	if err != nil {
		return nil, err
	}
	return json.Marshal(answer)
}
