package rest

import (
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
)

// Calls returns the routes that contracts describe, in no particular order: "POST /v1/orders".
func (s *Server) Calls() []string { return slices.Collect(maps.Keys(s.routes)) }

// Index returns a plain text that lists the routes.
func (s *Server) Index() string {
	var lines []string
	for call := range s.routes {
		method, path, _ := strings.Cut(call, " ")
		lines = append(lines, fmt.Sprintf("  %-46s %s\n", path, method))
	}
	slices.Sort(lines)
	return "The shop: an event-driven ordering system.\n\nREST\n" + strings.Join(lines, "") +
		"\n  /docs shows them and lets you call them; /openapi.json describes them.\n\ngRPC is on the same port:\n  grpcurl -plaintext <host:port> list\n"
}

// serveIndex serves the index at /.
func (s *Server) serveIndex(w http.ResponseWriter, _ *http.Request, _ map[string]string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = io.WriteString(w, s.Index()) // fails when the client has gone
}
