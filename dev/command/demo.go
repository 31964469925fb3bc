package command

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"shop.example/dev/local"
	"shop.example/dev/stack"
	"shop.example/shop/cli"
	"shop.example/shop/workspace"
)

// sampleOrder is the order of the demo that the shop grew out of.
//
//go:embed sample.json
var sampleOrder []byte

// demoTimeout bounds each wait of the demo; an order takes milliseconds.
const demoTimeout = 20 * time.Second

func demoCommand() *cobra.Command {
	var verbose bool
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Run the shop, send it the sample order, and show what became of it",
		Long: `Starts a shop with fresh data on a free port, sends it the sample order, shows the events that the
order caused and the stock before and after, and ends. Exit code 0 means all of it was as it must be.`,
		Example: "  shopdev demo",
		Args:    cli.Args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			base, err := workspace.Dir()
			if err != nil {
				return err
			}
			dir := filepath.Join(base, "demo")
			if err := stack.Down(dir); err != nil { // what a killed demo left
				return err
			}
			return withShop(cmd.Context(), workspace.Shop(dir), true, cmd.ErrOrStderr(), func(cfg *local.Config, _ *stack.Stack) {
				anyPort(cfg)
				setVerbosity(cfg, verbose)
			}, func(ctx context.Context, s *running) error {
				return demonstrate(ctx, cmd.OutOrStdout(), s)
			})
		},
	}
	addVerbose(cmd, &verbose)
	return cmd
}

// anyPort changes the addresses to free ports, so that a demo can run beside a shop on the usual ports, unless the
// environment sets addresses.
func anyPort(cfg *local.Config) {
	for variable, addr := range cfg.Addrs() {
		if os.Getenv(variable) == "" {
			*addr = "127.0.0.1:0"
		}
	}
}

type (
	order struct {
		ID         string `json:"id"`
		State      string `json:"state"`
		Reason     string `json:"reason"`
		TotalItems int    `json:"total_items"`
		TotalValue struct {
			Currency string `json:"currency_code"`
			Units    string `json:"units"`
		} `json:"total_value"`
	}
	event struct {
		RoutingKey  string    `json:"routing_key"`
		Source      string    `json:"source"`
		PublishedAt time.Time `json:"published_at"`
		LoggedAt    time.Time `json:"created_at"`
	}
	item struct {
		Name     string `json:"product_name"`
		OnHand   int    `json:"on_hand"`
		Reserved int    `json:"reserved"`
	}
)

// demonstrate places the sample order and shows its events. It fails if the order does not end as it must.
func demonstrate(ctx context.Context, out io.Writer, s *running) error {
	c := client{base: s.url, http: &http.Client{Timeout: demoTimeout}}
	before, err := c.stock(ctx)
	if err != nil {
		return err
	}
	var readable bytes.Buffer
	if err := json.Indent(&readable, sampleOrder, "", "  "); err != nil {
		return fmt.Errorf("the sample order: %w", err)
	}
	fmt.Fprintf(out, "\nThe sample order: POST %s/intermediary/order\n%s\n", s.url, bytes.TrimSpace(readable.Bytes()))
	answer, location, err := c.post(ctx, "/intermediary/order", sampleOrder)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "→ %s  Location: %s\n", answer, location)

	var o order
	if err := c.until(ctx, location, &o, func() bool { return o.State != "PENDING" }); err != nil {
		return err
	}
	fmt.Fprintf(out, "\nGET %s\n→ %s, %d pieces, %s %s\n", location, o.State, o.TotalItems, o.TotalValue.Units, o.TotalValue.Currency)
	if o.State != "CONFIRMED" || o.TotalItems != 7 || o.TotalValue.Units != "205" {
		return fmt.Errorf("the sample order is %s %s: want CONFIRMED with 7 pieces worth 205", o.State, o.Reason)
	}

	var log struct {
		Events []event `json:"events"`
	}
	if err := c.until(ctx, location+"/events", &log, func() bool { return len(log.Events) >= 3 }); err != nil {
		return err
	}
	var after []item
	settled := func() bool { return changed(before, after) == "Laptop Stand -3, Mouse Pad -4" }
	if err := c.until(ctx, "/v1/inventory", &struct{ Items *[]item }{&after}, settled); err != nil {
		return fmt.Errorf("%w: the stock changed by %q", err, changed(before, after))
	}
	fmt.Fprintln(out, "\nIts events, from when they were published until they were in the event log:")
	printEvents(out, log.Events)
	fmt.Fprintln(out, "\nThe stock:")
	printStock(out, before, after)
	fmt.Fprint(out, "\nTry next: make up, and place an order at http://localhost:3000.\n.bin/shopdev up --demo has buttons that try to break it.\n")
	return nil
}

// chartWidth is the width of the events' chart, in characters: with what stands before it, it fits into a terminal of 80.
const chartWidth = 20

// printEvents draws when each event was published and logged, between the first and the last.
func printEvents(out io.Writer, events []event) {
	start, end := events[0].PublishedAt, events[0].LoggedAt
	for _, e := range events {
		if e.PublishedAt.Before(start) {
			start = e.PublishedAt
		}
		if e.LoggedAt.After(end) {
			end = e.LoggedAt
		}
	}
	column := func(t time.Time) int { return int(chartWidth * t.Sub(start) / max(1, end.Sub(start))) }
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	for _, e := range events {
		from, to := column(e.PublishedAt), column(e.LoggedAt)
		bar := strings.Repeat("·", from) + strings.Repeat("█", max(1, to-from))
		fmt.Fprintf(w, "  %s\tby %s\t+%d ms\t%s\n", e.RoutingKey, e.Source, e.PublishedAt.Sub(start).Milliseconds(), bar)
	}
	_ = w.Flush()
}

func printStock(out io.Writer, before, after []item) {
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	for i, b := range before {
		if b.OnHand != after[i].OnHand {
			fmt.Fprintf(w, "  %s\t%d → %d\n", b.Name, b.OnHand, after[i].OnHand)
		} else {
			fmt.Fprintf(w, "  %s\t%d\n", b.Name, b.OnHand)
		}
	}
	_ = w.Flush()
}

// changed returns the products whose stock on hand has changed, once nothing is reserved any more.
func changed(before, after []item) string {
	var parts []string
	for i, b := range before {
		if i >= len(after) || after[i].Reserved != 0 {
			return "not settled yet"
		}
		if d := after[i].OnHand - b.OnHand; d != 0 {
			parts = append(parts, b.Name+" "+strconv.Itoa(d))
		}
	}
	return strings.Join(parts, ", ")
}

// client makes REST calls.
type client struct {
	base string
	http *http.Client
}

func (c client) stock(ctx context.Context) ([]item, error) {
	var list struct{ Items []item }
	err := c.until(ctx, "/v1/inventory", &list, func() bool { return true })
	return list.Items, err
}

func (c client) post(ctx context.Context, path string, body []byte) (answer, location string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base+path, bytes.NewReader(body))
	if err != nil {
		return "", "", err
	}
	req.Header.Set("Content-Type", "application/json")
	a, err := c.do(req)
	if err != nil {
		return "", "", err
	}
	if a.code != http.StatusOK {
		return "", "", fmt.Errorf("POST %s: %d %s", path, a.code, a.text)
	}
	return fmt.Sprintf("%d %s", a.code, a.text), a.location, nil
}

// until reads path into v until enough, which looks at v, returns true.
func (c client) until(ctx context.Context, path string, v any, enough func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, demoTimeout)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+path, nil)
		if err != nil {
			return err
		}
		a, err := c.do(req)
		switch {
		case err != nil:
			return err
		case a.code == http.StatusOK:
			if err := json.Unmarshal(a.text, v); err != nil {
				return fmt.Errorf("GET %s: %w", path, err)
			}
			if enough() {
				return nil
			}
		default:
			return fmt.Errorf("GET %s: %d %s", path, a.code, a.text)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("GET %s: still %d %s after %s", path, a.code, a.text, demoTimeout)
		case <-tick.C:
		}
	}
}

// restAnswer is what a call got.
type restAnswer struct {
	code     int
	text     []byte
	location string
}

func (c client) do(req *http.Request) (a restAnswer, err error) {
	res, err := c.http.Do(req)
	if err != nil {
		return a, err
	}
	defer func() { _ = res.Body.Close() }()
	a.code, a.location = res.StatusCode, res.Header.Get("Location")
	a.text, err = io.ReadAll(res.Body)
	return a, err
}
