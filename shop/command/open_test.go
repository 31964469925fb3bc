package command

import (
	"bytes"
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

// From another folder than the project's it printed the customers' link as if it were the one that was asked for.
func TestOpen_WithoutATokenItSaysThatTheLinkIsTheCustomers(t *testing.T) {
	t.Chdir(t.TempDir())
	t.Setenv("SHOP_OPERATOR_TOKEN", "")
	server := (&fakeShop{}).serve(t)
	for token, want := range map[string]struct{ link, hint string }{
		"":    {"http://" + server + "/\n", "This is the customers' link. For that of operators " + giveToken + ".\n"},
		"abc": {"http://" + server + "/#token=abc\n", ""},
	} {
		root := Root()
		var out, errs bytes.Buffer
		root.SetOut(&out)
		root.SetErr(&errs)
		root.SetArgs([]string{"open", "--server", server, "--token", token})
		if err := root.ExecuteContext(t.Context()); err != nil || out.String() != want.link || errs.String() != want.hint {
			t.Errorf("with the token %q: %v, %q, %q", token, err, out.String(), errs.String())
		}
	}
}
