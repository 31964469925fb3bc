package command

import (
	"bufio"
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
	"google.golang.org/protobuf/types/known/timestamppb"

	moneyv1 "shop.example/gen/shop/money/v1"
	orderv1 "shop.example/gen/shop/order/v1"
	"shop.example/shop/cli"
)

// shown is what a terminal of so many columns gets to see of a table.
func shown(t *testing.T, columns uint16, tab *table) string {
	t.Helper()
	person, program, err := pty.Open()
	if err != nil {
		t.Fatal("opening a terminal: ", err)
	}
	defer person.Close()
	defer program.Close()
	if err := pty.Setsize(program, &pty.Winsize{Cols: columns, Rows: 24}); err != nil {
		t.Fatal(err)
	}
	screenOf(program).print(tab)
	if _, err := program.WriteString("end\n"); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for lines := bufio.NewScanner(person); lines.Scan() && lines.Text() != "end"; {
		out.WriteString(lines.Text() + "\n")
	}
	return out.String()
}

// Not parallel: it sets the environment.
func TestTable_FitsTheTerminalAndHasColoursThereAlone(t *testing.T) {
	t.Setenv("NO_COLOR", "")
	t.Setenv("TERM", "xterm")
	tab := &table{header: []string{"ID", "NAME", "STATE"}, flexible: 1, minWidth: 5}
	tab.add(number("7"), text("a name that is too long"), cell{text: "CONFIRMED", colour: green})
	tab.add(number("12"), text("マウスとキーボード"), text("REJECTED"))
	const want = "" +
		"\x1b[1mID\x1b[0m  \x1b[1mNAME\x1b[0m          \x1b[1mSTATE\x1b[0m\n" +
		" 7  a name that…  \x1b[32mCONFIRMED\x1b[0m\n" +
		"12  マウスとキ…   REJECTED\n"
	if got := shown(t, 27, tab); got != want {
		t.Errorf("on 27 columns:\n%q, want\n%q", got, want)
	}
	t.Setenv("NO_COLOR", "1")
	if got := shown(t, 100, tab); strings.Contains(got, "\x1b") || !strings.Contains(got, "\n 7  a name that is too long  CONFIRMED\n12  マウスとキーボード       REJECTED\n") {
		t.Errorf("on 100 columns, without colours:\n%s", got)
	}
	for line := range strings.Lines(shown(t, 14, tab)) {
		if n := cli.Columns(strings.TrimSpace(line)); n > 14 {
			t.Errorf("a line of %d columns on 14: %s", n, line)
		}
	}
	var file bytes.Buffer
	t.Setenv("NO_COLOR", "")
	screenOf(&file).print(tab)
	if strings.Contains(file.String(), "\x1b") || strings.Contains(file.String(), "…") {
		t.Errorf("what is no terminal gets\n%s", &file)
	}
}

// On a terminal of 80 columns the list of orders showed neither when an order was placed nor by whom, and did not say so.
func TestOrderList_OnANarrowTerminalLeavesNoColumnOut(t *testing.T) {
	t.Setenv("NO_COLOR", "1")
	placed := time.Date(2026, 11, 20, 10, 0, 0, 0, time.UTC)
	list := shown(t, 80, ordersTable([]*orderv1.Order{{
		Id: "01a22682-6bec-74af-9b1d-0f6c1a2b3c4d", State: orderv1.Order_CONFIRMED, TotalItems: 3, CustomerName: "Ada Lovelace",
		TotalValue: &moneyv1.Money{CurrencyCode: "USD", Units: 1035}, CreatedAt: timestamppb.New(placed),
	}}))
	for _, want := range []string{"CUSTOMER", localTime(placed), "Ada Lov"} {
		if !strings.Contains(list, want) {
			t.Errorf("%q is missing in\n%s", want, list)
		}
	}
}
