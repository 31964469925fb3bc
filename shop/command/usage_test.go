package command

import (
	"io"
	"strings"
	"testing"

	"shop.example/shop/cli"
)

// "does not match regex pattern" and "time: invalid duration" were what people read who had filtered a list.
func TestFlags_AWrongValueSaysWhatToGive(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ command, flag, value, give string }{
		{"order list", "--id", "laptop", "the end of an order's id, digits, letters from a to f and dashes, 8f7ebae1 for example"},
		{"order list", "--since", "tomorrow", "a time with its unit, 30s, 5m or 24h for example (see shop order list --help)"},
		{"order list", "--since", "24", "a time with its unit, 30s, 5m or 24h for example (see shop order list --help)"},
		{"order list", "--limit", "many", "a whole number (see shop order list --help)"},
		{"order list", "--limit", "0x10", "a whole number (see shop order list --help)"},
		{"order list", "--json", "maybe", "true or false (see shop order list --help)"},
		{"inventory create Webcam", "--quantity", "many", "a whole number, 2147483647 at most (see shop inventory create --help)"},
		{"inventory set Webcam", "--quantity", "2147483648", "a whole number, 2147483647 at most (see shop inventory set --help)"},
		{"events tail", "--after", "yesterday", "a whole number (see shop events tail --help)"},
	} {
		root := Root()
		root.SetOut(io.Discard)
		root.SetErr(io.Discard)
		root.SetArgs(append(strings.Fields(tt.command), tt.flag+"="+tt.value))
		err := root.ExecuteContext(t.Context())
		if want := tt.flag + " " + tt.value + ": give " + tt.give; err == nil || err.Error() != want || cli.ExitStatus(err) != 2 {
			t.Errorf("%s: exit code %d, %v, want %s", tt.command, cli.ExitStatus(err), err, want)
		}
	}
}

// Of shop inventory set --quantity 010 the stock was 8 pieces, and 08 was an error.
func TestFlags_ANumberWithLeadingZerosIsDecimal(t *testing.T) {
	t.Parallel()
	for given, want := range map[string]string{"010": "10", "08": "8", "10": "10", "-1": "-1"} {
		for command, name := range map[string]string{"inventory create": "quantity", "inventory set": "quantity", "events tail": "after", "events list": "limit"} {
			cmd, _, err := Root().Find(strings.Fields(command))
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.ParseFlags([]string{"--" + name, given}); err != nil || cmd.Flag(name).Value.String() != want {
				t.Errorf("%s --%s %s: %v, %s, want %s", command, name, given, err, cmd.Flag(name).Value, want)
			}
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
