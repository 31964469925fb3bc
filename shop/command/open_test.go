package command

import (
	"strings"
	"testing"
)

// The list of commands said that it opens the page, and nothing opened.
func TestOpen_ItsSummaryPromisesABrowserForTheFlagAlone(t *testing.T) {
	t.Parallel()
	if short := openCommand().Short; !strings.HasPrefix(short, "Print the link") || strings.Contains(strings.ReplaceAll(short, "--browser opens it", ""), "open") {
		t.Errorf("the summary is %q", short)
	}
}
