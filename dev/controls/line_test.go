package controls

import (
	"strings"
	"testing"
)

// A URL without a port led to the line that connects to nothing, and one of a socket failed with %!w(<nil>).
func TestNewLine_ThePortIsTheSchemesAndWhatIsNoServerOverTCPIsSaid(t *testing.T) {
	t.Parallel()
	for serverURL, want := range map[string]string{
		"amqp://shop:secret@broker/":                 "broker:5672",
		"amqp://shop:secret@broker:5673/":            "broker:5673",
		"postgres://shop:secret@[::1]/shopdb":        "[::1]:5432",
		"postgresql://shop:secret@db/shopdb":         "db:5432",
		"postgres:///shopdb?host=/run/postgresql":    "",
		"postgres://db/shopdb?host=/run/postgresql":  "",
		"postgres://shop:secret@db1,db2/shopdb":      "",
		"amqps://shop:secret@broker/":                "",
		"amqp://shop:secret@broker:5672 oops/":       "",
		"host=/run/postgresql dbname=shopdb user=me": "",
	} {
		l, err := newLine(serverURL)
		if err != nil {
			if message := err.Error(); want != "" || strings.Contains(message, "%!") || strings.Contains(message, "secret") {
				t.Errorf("%s: %v", serverURL, err)
			}
			continue
		}
		l.end()
		if l.target != want {
			t.Errorf("%s: a line to %q, want %q", serverURL, l.target, want)
		}
	}
}
