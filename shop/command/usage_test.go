package command

import (
	"io"
	"strings"
	"testing"

	"shop.example/shop/cli"
)

// "does not match regex pattern" and "time: invalid duration" were what people read who had filtered a list.
func TestOrderList_AWrongFilterSaysWhatToGive(t *testing.T) {
	t.Parallel()
	for value, want := range map[[2]string]string{
		{"--id", "laptop"}:      "--id laptop: give the end of an order's id, digits, letters from a to f and dashes, 8f7ebae1 for example",
		{"--since", "tomorrow"}: "--since tomorrow: give a time with its unit, 30s, 5m or 24h for example (see shop order list --help)",
		{"--since", "24"}:       "--since 24: give a time with its unit, 30s, 5m or 24h for example (see shop order list --help)",
		{"--limit", "many"}:     "--limit many: give a whole number (see shop order list --help)",
	} {
		root := Root()
		root.SetOut(io.Discard)
		root.SetErr(io.Discard)
		root.SetArgs([]string{"order", "list", value[0], value[1]})
		err := root.ExecuteContext(t.Context())
		if err == nil || err.Error() != want || cli.ExitStatus(err) != 2 {
			t.Errorf("%s: exit code %d, %v, want %s", value, cli.ExitStatus(err), err, want)
		}
	}
}

// A script whose variable is not set would redrive the dead letters of another shop.
func TestServer_AnEmptyAddressIsNotThatOfAnotherShop(t *testing.T) {
	t.Setenv("SHOP_SERVER", (&fakeShop{}).serve(t))
	for flags, want := range map[string]int{"": 0, " --server=": 2} {
		root := Root()
		root.SetOut(io.Discard)
		root.SetErr(io.Discard)
		root.SetArgs(strings.Fields("dlq list --token operator" + flags))
		err := root.ExecuteContext(t.Context())
		if cli.ExitStatus(err) != want || err != nil && !strings.Contains(err.Error(), `"" is no address of a shop: give --server host:port`) {
			t.Errorf("dlq list%s: exit code %d, %v, want %d", flags, cli.ExitStatus(err), err, want)
		}
	}
}
