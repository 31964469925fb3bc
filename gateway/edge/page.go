package edge

import (
	"fmt"
	"slices"
	"strings"
)

// directory says where things are: it lists the routes by their paths.
func directory(routes map[string]*route) string {
	var lines []string
	for call := range routes {
		method, path, _ := strings.Cut(call, " ")
		lines = append(lines, fmt.Sprintf("  %-46s %s\n", path, method))
	}
	slices.Sort(lines)
	return "The shop: an event-driven ordering system.\n\nREST\n" + strings.Join(lines, "") +
		"\n  /docs shows them, and calls them; /openapi.json describes them.\n\ngRPC is on the same port:\n  grpcurl -plaintext <host:port> list\n"
}
