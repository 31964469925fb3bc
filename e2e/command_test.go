package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"shop.example/domain/orderstate"
	"shop.example/platform/testkit/netproxy"
	"shop.example/shop/cli"
	"shop.example/shop/command"
)

// said is the output and the exit of a command.
type said struct {
	out, errs string
	status    int
}

// shopCommand runs `shop` against the shop, as an operator.
func (s *shop) shopCommand(t *testing.T, args ...string) said {
	t.Helper()
	var out, errs bytes.Buffer
	err := s.command(&out, &errs, args...).ExecuteContext(t.Context())
	if err != nil && errs.Len() == 0 {
		fmt.Fprintln(&errs, "shop:", err)
	}
	return said{out.String(), errs.String(), cli.ExitStatus(err)}
}

func (s *shop) command(out, errs io.Writer, args ...string) *cobra.Command {
	root := command.Root()
	root.SetIn(strings.NewReader(""))
	root.SetOut(out)
	root.SetErr(errs)
	switch args[0] {
	case "order", "inventory", "events", "dlq", "webhooks", "actions", "customer", "open":
		args = append(args, "--server", s.url, "--token", operatorToken)
	}
	root.SetArgs(args)
	return root
}

// must runs a command that has to succeed, and returns what it printed.
func (s *shop) must(t *testing.T, args ...string) string {
	t.Helper()
	got := s.shopCommand(t, args...)
	if got.status != 0 {
		t.Fatalf("shop %s: exit status %d\n%s%s", strings.Join(args, " "), got.status, got.out, got.errs)
	}
	return got.out
}

var (
	uuidPattern = regexp.MustCompile(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`)
	timePattern = regexp.MustCompile(`\d{4}-\d\d-\d\d \d\d:\d\d:\d\d`)
	clock       = regexp.MustCompile(`(?m)^\d\d:\d\d:\d\d\.\d{3}( +[+-]\d+ ms|)`)
)

// masked replaces values that differ from run to run by others of the same width.
func masked(s string) string {
	s = uuidPattern.ReplaceAllStringFunc(s, func(id string) string { return strings.Repeat("x", len(id)) })
	s = timePattern.ReplaceAllStringFunc(s, func(at string) string { return strings.Repeat("t", len(at)) })
	return clock.ReplaceAllStringFunc(s, func(at string) string { return strings.Repeat("t", len(at)) })
}

func expect(t *testing.T, what, got, want string) {
	t.Helper()
	if got, want = masked(got), strings.TrimPrefix(want, "\n"); got != want {
		t.Errorf("%s:\n%s\nwant:\n%s", what, got, want)
	}
}

// place is an order of Ada's.
func placing(args ...string) []string {
	return append([]string{"order", "place", "--name", "Ada", "--email", "ada@example.org"}, args...)
}

func TestOrderCommand_PlacesShowsListsAndCancels(t *testing.T) {
	t.Parallel()
	s := start(t)
	placed := s.must(t, placing("--item", "laptop stand=3", "--item", "6=4")...)
	expect(t, "the order", placed, `
ORDER                                 STATE      PLACED               CUSTOMER
xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx  CONFIRMED  ttttttttttttttttttt  Ada <ada@example.org>

LINE  PRODUCT       QUANTITY  UNIT PRICE       PRICE
   1  Laptop Stand         3   35.00 USD  105.00 USD
   2  Mouse Pad            4   25.00 USD  100.00 USD
      total                7              205.00 USD
`)
	id := uuidPattern.FindString(placed)
	if shown := s.must(t, "order", "get", id); shown != placed {
		t.Errorf("shown as\n%s\nplaced as\n%s", shown, placed)
	}
	var viaREST, asJSON any
	s.get(t, "/v1/orders/"+id).json(t, &viaREST)
	if err := json.Unmarshal([]byte(s.must(t, "order", "get", id, "--json")), &asJSON); err != nil || fmt.Sprint(viaREST) != fmt.Sprint(asJSON) {
		t.Errorf("as JSON %v\nover REST %v, %v", asJSON, viaREST, err)
	}

	rejected := s.shopCommand(t, placing("--item", "Laptop=51")...)
	if rejected.status != 1 || !strings.Contains(rejected.out, "REJECTED OUT_OF_STOCK") || rejected.errs !=
		"shop: the order was rejected: there is not enough of it in stock (OUT_OF_STOCK: Laptop: you asked for 51, only 50 available); shop inventory list shows what is left\n" {
		t.Errorf("too many pieces: %+v", rejected)
	}
	expect(t, "the list", s.must(t, "order", "list"), `
ORDER                                 STATE                  PIECES       TOTAL  PLACED               CUSTOMER
xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx  REJECTED OUT_OF_STOCK      51           -  ttttttttttttttttttt  Ada
xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx  CONFIRMED                   7  205.00 USD  ttttttttttttttttttt  Ada
`)
	if one := s.shopCommand(t, "order", "list", "--limit", "1"); strings.Count(one.out, "\n") != 2 || one.errs != "There are more than 1: --limit 0 lists all.\n" {
		t.Errorf("one is listed as %+v", one)
	}
	var list struct {
		Orders []order
	}
	(answer{body: []byte(s.must(t, "order", "list", "--state", "confirmed", "--json"))}).json(t, &list)
	if len(list.Orders) != 1 || list.Orders[0].ID != id {
		t.Errorf("confirmed: %+v", list)
	}
	for search, found := range map[string]bool{
		"--email ADA@example.org --since 1h": true, "--product 5": true, "--product mouse_pad": true, "--id " + strings.ToUpper(id[28:]): true,
		"--email eve@example.org": false, "--product Laptop": false, "--id 00000000ffff": false, "--product 5 --since 1ns": false,
	} {
		args := []string{"order", "list", "--state", "confirmed"}
		for _, word := range strings.Fields(search) {
			args = append(args, strings.ReplaceAll(word, "_", " "))
		}
		if got := s.shopCommand(t, args...); strings.Contains(got.out, id) != found || got.status != 0 || !found && got.errs != "No such orders.\n" {
			t.Errorf("%s: %+v", search, got)
		}
	}
	if link := s.must(t, "open"); link != s.operatorLink()+"\n" {
		t.Errorf("the page is at %s", link)
	}
	if cancelled := s.must(t, "order", "cancel", id); !strings.Contains(cancelled, id+"  CANCELLED") {
		t.Errorf("cancelled:\n%s", cancelled)
	}

	var first, second order
	once := placing("--item", "1", "--idempotency-key", "one of Ada's", "--json")
	(answer{body: []byte(s.must(t, once...))}).json(t, &first)
	(answer{body: []byte(s.must(t, once...))}).json(t, &second)
	if first.ID != second.ID || first.State != "CONFIRMED" {
		t.Errorf("the same key has placed %+v and %+v", first, second)
	}
}

func TestOrderCommand_WatchesAnOrderToItsEnd(t *testing.T) {
	t.Parallel()
	s := start(t)
	watched := s.must(t, placing("--item", "Mouse", "--watch")...)
	for _, key := range []string{"shop.order.placed                  by gateway", "shop.order.confirmed               by order", "shop.inventory.decrement.quantity  by order"} {
		if strings.Count(watched, key) != 1 {
			t.Errorf("%q is not there once in\n%s", key, watched)
		}
	}
	if lines := strings.Split(masked(watched), "\n"); len(lines) != 11 || !strings.HasPrefix(lines[0], "tttttttttttt  ") || lines[5] != "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx  CONFIRMED  ttttttttttttttttttt  Ada <ada@example.org>" {
		t.Errorf("watched:\n%s", watched)
	}
	id := uuidPattern.FindString(watched)
	for _, again := range []string{s.must(t, "order", "watch", id), s.must(t, "order", "get", id, "--watch")} {
		if again != watched {
			t.Errorf("later it is\n%s\nit was\n%s", again, watched)
		}
	}
	if unknown := s.shopCommand(t, "order", "watch", uuid.NewString()); unknown.status != 1 || !strings.Contains(unknown.errs, "there is no order") {
		t.Errorf("an id that nobody was given: %+v", unknown)
	}
	s.must(t, "order", "cancel", id)
	if cancelled := s.must(t, "order", "watch", id, "--json"); strings.Count(cancelled, "\n") != 4 || strings.Count(cancelled, `"routing_key":"shop.order.cancelled"`) != 1 {
		t.Errorf("cancelled it is\n%s", cancelled)
	}
	rejected := s.shopCommand(t, placing("--item", "4711", "--watch")...)
	if rejected.status != 1 || !strings.Contains(rejected.out, "shop.order.rejected                by order      UNKNOWN_PRODUCT there is no product") || !strings.Contains(rejected.errs, "UNKNOWN_PRODUCT") {
		t.Errorf("rejected: %+v", rejected)
	}
}

func TestInventoryCommand_ListsCreatesSetsAndDeletes(t *testing.T) {
	t.Parallel()
	s := start(t)
	expect(t, "the catalogue", s.must(t, "inventory", "list"), `
ID  PRODUCT       AVAILABLE  ON HAND  RESERVED        PRICE  ETAG
 1  Laptop               50       50         0  1000.00 USD  1
 2  Phone               200      200         0   500.00 USD  1
 3  Keyboard            100      100         0    50.00 USD  1
 4  Mouse               100      100         0    45.00 USD  1
 5  Laptop Stand        150      150         0    35.00 USD  1
 6  Mouse Pad           200      200         0    25.00 USD  1
 7  Phone Case          175      175         0    30.00 USD  1
 8  KVM Switch          100      100         0   175.00 USD  1
`)
	expect(t, "created", s.must(t, "inventory", "create", "マウス", "--quantity", "20", "--price", "49.9"), `
ID  PRODUCT  AVAILABLE  ON HAND  RESERVED      PRICE  ETAG
 9  マウス          20       20         0  49.90 USD  1
`)
	expect(t, "changed", s.must(t, "inventory", "set", "マウス", "--price", "12.34", "--name", "Mäuschen", "--etag", "1"), `
ID  PRODUCT   AVAILABLE  ON HAND  RESERVED      PRICE  ETAG
 9  Mäuschen         20       20         0  12.34 USD  2
`)
	expect(t, "sold out", s.must(t, "inventory", "set", "9", "--quantity", "0"), `
ID  PRODUCT   AVAILABLE  ON HAND  RESERVED      PRICE  ETAG
 9  Mäuschen          0        0         0  12.34 USD  3
`)
	if stale := s.shopCommand(t, "inventory", "set", "9", "--price", "1", "--etag", "1"); stale.status != 1 || !strings.Contains(stale.errs, "has changed since it was read") {
		t.Errorf("an old etag: %+v", stale)
	}
	var viaREST, asJSON any
	s.get(t, "/v1/inventory").json(t, &viaREST)
	(answer{body: []byte(s.must(t, "inventory", "list", "--json"))}).json(t, &asJSON)
	if fmt.Sprint(viaREST) != fmt.Sprint(asJSON) {
		t.Errorf("as JSON %v\nover REST %v", asJSON, viaREST)
	}
	if out := s.must(t, "inventory", "delete", "mäuschen"); out != "9 deleted\n" {
		t.Errorf("deleted: %q", out)
	}
	if _, there := s.stock(t)["Mäuschen"]; there {
		t.Error("it is still there")
	}
}

func TestCommands_SayInOneLineWhatIsWrong(t *testing.T) {
	t.Parallel()
	s := start(t)
	var states []string
	for _, state := range orderstate.Stored() {
		states = append(states, strings.ToLower(state.String()))
	}
	for _, c := range []struct {
		args   string
		status int
		wrong  string
	}{
		{"order place --name Ada", 2, `required flag(s) "email", "item" not set (see shop order place --help)`},
		{"order place --name Ada --email ada --item 1", 2, "--email: must be a valid email address"},
		{"order place --name Ada --email ada@example.org --item Lapto", 2, `there is no product "Lapto"; there are Laptop, Phone, Keyboard`},
		{"order place --name Ada --email ada@example.org --item Laptop=two", 2, "--item Laptop=two: give a whole number of pieces after =, Laptop=2 for example"},
		{"order place --name Ada --email ada@example.org --item 1=0", 2, "--item 1=0: give a whole number"},
		{"order place --name Ada --email ada@example.org --item 1=200000", 2, "--item: must be greater than 0"},
		{"order place --name Ada --email ada@example.org --item 1 --wait 1h", 2, "--wait 1h0m0s: give 0 to 30s"},
		{"order plce", 2, `unknown command "plce": did you mean place? (see shop order --help)`},
		{"ordr", 2, `unknown command "ordr": did you mean order? (see shop --help)`},
		{"order get", 2, "ORDER_ID is missing (see shop order get --help)"},
		{"order get one two", 2, `unexpected argument "two"`},
		{"order get nope", 2, "ORDER_ID: must be a valid UUID"},
		{"order get 0192f6a0-0000-7000-8000-000000000001", 1, "there is no order 0192f6a0-0000-7000-8000-000000000001"},
		{"order list --state lost", 2, "--state lost: there are " + strings.Join(states, ", ") + " and all"},
		{"order list --since -1h", 2, "--since -1h0m0s: give how far to look back"},
		{"open --server localhost:1", 1, "no shop answers at localhost:1"},
		{"order list --limit many", 2, "--limit many: give a whole number"},
		{"order list --token wrong", 1, "does not know this operator token"},
		{"order list --server localhost:1", 1, "no shop answers at localhost:1: start one with make up, or name it with --server"},
		{"order list --server shop", 2, `"shop" is no address of a shop: give --server host:port`},
		{"events tail --server localhost:1", 1, "no shop answers at localhost:1"},
		{"events tail --after -1", 2, "--after: must be greater than or equal to 0"},
		{"events tail --order nope", 2, "--order: must be a valid UUID"},
		{"events list --routing-key shop.ordr.placed", 2, "--routing-key shop.ordr.placed: no event has such a routing key; there are shop.inventory.create, "},
		{"order list --server https://" + s.Gateway.HTTPAddr(), 1, "does not speak TLS: write http://" + s.Gateway.HTTPAddr()},
		{"events list --status lost", 2, "--status lost: there are success and error"},
		{"inventory create Webcam --quantity 1", 2, `required flag(s) "price" not set`},
		{"inventory create Webcam --quantity -1 --price 1", 2, "--quantity: must be"},
		{"inventory create Webcam --quantity 1 --price 1.234", 2, "--price 1.234: must have at most 2 decimals"},
		{"inventory create Webcam --quantity 1 --price cheap", 2, "--price cheap: give an amount like 12.50"},
		{"inventory create Webcam --quantity 1 --price 1 --currency usd", 2, "--currency: "},
		{"inventory create Laptop --quantity 1 --price 1", 1, `there is an item "Laptop" already`},
		{"inventory set Laptop", 2, "at least one of the flags in the group [name quantity price] is required"},
		{"inventory set 4711 --quantity 1", 1, "there is no item 4711"},
		{"actions --limit -1", 2, "--limit -1: give how many to list, 0 for all"},
		{"actions --since -1h", 2, "--since -1h0m0s: give how far to look back"},
		{"actions --token wrong", 1, "does not know this operator token"},
		{"customer export", 2, "say whose data are meant: --email or --subject, or both"},
		{"customer erase --subject 4711 --yes", 2, "--issuer: must be given with a subject: this gateway knows no issuer of tokens"},
		{"inventory delete Lapto", 2, `there is no product "Lapto"`},
	} {
		args := strings.Fields(c.args)
		var out, errs bytes.Buffer
		root := command.Root()
		root.SetOut(&out)
		root.SetErr(&errs)
		if !strings.Contains(c.args, "--server") && len(args) > 1 {
			args = append(args, "--server", s.url)
		}
		if !strings.Contains(c.args, "--token") && len(args) > 1 {
			args = append(args, "--token", operatorToken)
		}
		root.SetArgs(args)
		err := root.ExecuteContext(t.Context())
		if err == nil || !strings.Contains(err.Error(), c.wrong) || strings.Contains(err.Error(), "\n") || cli.ExitStatus(err) != c.status || out.Len()+errs.Len() > 0 {
			t.Errorf("shop %s: %v, exit status %d, want %d and %s\n%s%s", c.args, err, cli.ExitStatus(err), c.status, c.wrong, &out, &errs)
		}
	}
}

// tailing is a command that runs until the test ends it.
type tailing struct {
	lines chan string
	end   func()
	notes *lockedBuffer
}

// next is the next line.
func (t *tailing) next(test *testing.T) string {
	test.Helper()
	select {
	case line := <-t.lines:
		return line
	case <-time.After(testTimeout):
		test.Fatalf("no line for %s; %s", testTimeout, t.notes)
		return ""
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func (s *shop) tail(t *testing.T, args ...string) *tailing {
	t.Helper()
	r, w := io.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	tail := &tailing{lines: make(chan string, 1000), notes: &lockedBuffer{}}
	cmd := s.command(w, tail.notes, append([]string{"events", "tail"}, args...)...)
	go func() {
		err := cmd.ExecuteContext(ctx)
		_ = w.Close()
		ended <- err
	}()
	go func() {
		for lines := bufio.NewScanner(r); lines.Scan(); {
			tail.lines <- lines.Text()
		}
	}()
	tail.end = sync.OnceFunc(func() {
		cancel()
		if status := cli.ExitStatus(<-ended); status != 130 {
			t.Errorf("shop events tail ended with exit status %d, %s", status, tail.notes)
		}
	})
	t.Cleanup(tail.end)
	return tail
}

// logged waits until there are so many events of a kind in the log, and returns their ids, the oldest first.
func (s *shop) logged(t *testing.T, key string, n int) []string {
	t.Helper()
	var ids []string
	eventually(t, func() error {
		ids = nil
		var list struct {
			Events []struct{ ID string }
		}
		a := s.get(t, "/v1/events?page_size=1000&routing_key="+key)
		if a.code != http.StatusOK {
			return fmt.Errorf("GET /v1/events: %d %s", a.code, a.body)
		}
		a.json(t, &list)
		for i := len(list.Events) - 1; i >= 0; i-- {
			ids = append(ids, list.Events[i].ID)
		}
		if len(ids) != n {
			return fmt.Errorf("%d events %s, want %d", len(ids), key, n)
		}
		return nil
	})
	return ids
}

// A tail over a connection that is cut repeatedly shows the same events as a listing.
func TestTailCommand_CutsLoseAndDoubleNothing(t *testing.T) {
	t.Parallel()
	s := start(t)
	through := netproxy.New(t, s.url)
	remote := *s
	remote.url = through.URL
	tail := remote.tail(t, "--routing-key", "shop.order.placed", "--json")
	var seen string
	placed := 0
	eventually(t, func() error { // until the tail is there
		s.place(t, 6, 1)
		placed++
		select {
		case seen = <-tail.lines:
			return nil
		case <-time.After(100 * time.Millisecond):
			return fmt.Errorf("the tail shows nothing of %d orders; %s", placed, tail.notes)
		}
	})
	for range 4 {
		through.Down()
		for range 5 {
			s.place(t, 6, 1)
		}
		placed += 5
		s.logged(t, "shop.order.placed", placed)
		through.Up(t)
		s.place(t, 6, 1)
		placed++
	}
	ids := s.logged(t, "shop.order.placed", placed)
	for ids = ids[slices.Index(ids, idOf(t, seen))+1:]; len(ids) > 0; ids = ids[1:] {
		if got := idOf(t, tail.next(t)); got != ids[0] {
			t.Fatalf("the tail shows event %s, want %s; %s", got, ids[0], tail.notes)
		}
	}
	tail.end()
	if notes := tail.notes.String(); !strings.Contains(notes, "is lost") || !strings.Contains(notes, "connected again") {
		t.Errorf("nobody was told about the cuts: %q", notes)
	}
}

func idOf(t *testing.T, line string) string {
	t.Helper()
	var event struct{ ID string }
	(answer{body: []byte(line)}).json(t, &event)
	return event.ID
}

func TestEventsCommand_ListsAndTails(t *testing.T) {
	t.Parallel()
	s := start(t)
	id := uuidPattern.FindString(s.must(t, placing("--item", "Phone", "--wait", "0")...))
	tail := s.tail(t, "--routing-key", "shop.order.*", "--order", id)
	for _, want := range []string{"shop.order.placed                  " + id + "  gateway    {\"", "shop.order.confirmed               " + id + "  order      {\""} {
		if line := tail.next(t); !strings.Contains(line, want) {
			t.Errorf("%q is not in %q", want, line)
		}
	}
	s.must(t, "order", "watch", id)
	listed := s.must(t, "events", "list", "--order", id)
	for _, key := range []string{"shop.order.placed", "shop.order.confirmed", "shop.inventory.decrement.quantity"} {
		if strings.Count(listed, key) != 1 {
			t.Errorf("%s is not once in\n%s", key, listed)
		}
	}
	if strings.Count(listed, "\n") != 4 || !strings.HasPrefix(listed, "ID  PUBLISHED            ROUTING KEY ") {
		t.Errorf("listed:\n%s", listed)
	}
	var list struct {
		Events []struct {
			RoutingKey string `json:"routing_key"`
		}
	}
	(answer{body: []byte(s.must(t, "events", "list", "--since", "1h", "--routing-key", "shop.order.*", "--limit", "1", "--json"))}).json(t, &list)
	if len(list.Events) != 1 || list.Events[0].RoutingKey != "shop.order.confirmed" {
		t.Errorf("the newest is %+v", list)
	}
	if none := s.shopCommand(t, "events", "list", "--status", "error"); none.out != "" || none.errs != "No such events.\n" {
		t.Errorf("no events: %+v", none)
	}
}

func TestCompletion_OffersWhatTheShopHas(t *testing.T) {
	t.Parallel()
	s := start(t)
	id := uuidPattern.FindString(s.must(t, placing("--item", "Phone")...))
	flags := []string{"--server", s.url, "--token", operatorToken}
	nobody := []string{"--server", "localhost:1"}
	for _, c := range []struct {
		words, flags, last []string
		want               string
	}{
		{[]string{"inventory", "set"}, flags, []string{""}, "Laptop Stand\n"},
		{[]string{"order", "place"}, flags, []string{"--item", ""}, "KVM Switch\n"},
		{[]string{"order", "get"}, flags, []string{""}, id + "\tCONFIRMED, "},
		{[]string{"events", "tail"}, flags, []string{"--order", ""}, id},
		{[]string{"events", "tail"}, nil, []string{"--routing-key", ""}, "shop.stock.depleted\n"},
		{[]string{"order", "list"}, nil, []string{"--state", ""}, "rejected\n"},
		{[]string{"dlq", "list"}, nil, []string{"--state", ""}, "discarded\n"},
		{[]string{"order"}, nil, []string{""}, "watch\tShow each event"},
		{nil, nil, []string{"comp"}, "completion\t"},
		{[]string{"order", "get"}, nobody, []string{""}, ":4\n"}, // nothing, and no files either
	} {
		got := s.shopCommand(t, slices.Concat([]string{"__complete"}, c.words, c.flags, c.last)...)
		if !strings.Contains(got.out, c.want) || len(c.flags) == len(nobody) && got.out != c.want {
			t.Errorf("shop %v %v offers\n%s\nwant %q", c.words, c.last, got.out, c.want)
		}
	}
}

func TestCompletion_IsAScriptForEachShell(t *testing.T) {
	t.Parallel()
	for _, shell := range []string{"bash", "zsh", "fish"} {
		var script bytes.Buffer
		root := command.Root()
		root.SetOut(&script)
		root.SetArgs([]string{"completion", shell})
		if err := root.ExecuteContext(t.Context()); err != nil || !strings.Contains(script.String(), "__complete") {
			t.Errorf("%s: %v\n%s", shell, err, &script)
		}
		interpreter, err := exec.LookPath(shell)
		if err != nil {
			continue // the others may be there
		}
		check := exec.CommandContext(t.Context(), interpreter, "-n")
		check.Stdin = &script
		if out, err := check.CombinedOutput(); err != nil {
			t.Errorf("%s does not understand its script: %v\n%s", shell, err, out)
		}
	}
}

// The help of each command says what it is for, and has an example.
func TestCommands_HaveHelpWithExamples(t *testing.T) {
	t.Parallel()
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		if cmd.Hidden {
			return
		}
		if cmd.Short == "" || cmd.Long == "" || !strings.Contains(cmd.Example, cmd.CommandPath()) {
			t.Errorf("%s has not all of short help, long help and an example", cmd.CommandPath())
		}
		if cmd.HasParent() && len(cmd.Parent().Groups()) > 0 && cmd.GroupID == "" {
			t.Errorf("%s is in no group", cmd.CommandPath())
		}
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	for _, root := range roots {
		walk(root())
	}
}
