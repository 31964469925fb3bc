package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"shop.example/shop/cli"
	"shop.example/shop/command"
)

// dlq runs `shop dlq` on the shop.
func (s *shop) dlq(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	root := command.Root()
	var out, errs bytes.Buffer
	root.SetIn(strings.NewReader(""))
	root.SetOut(&out)
	root.SetErr(&errs)
	root.SetArgs(append([]string{"dlq", "--server", s.url, "--token", operatorToken}, args...))
	err = root.ExecuteContext(t.Context())
	return out.String(), errs.String(), err
}

func (s *shop) mustDLQ(t *testing.T, args ...string) (stdout, stderr string) {
	t.Helper()
	stdout, stderr, err := s.dlq(t, args...)
	if err != nil {
		t.Fatalf("shop dlq %s: %v\n%s%s", strings.Join(args, " "), err, stdout, stderr)
	}
	return stdout, stderr
}

func TestDLQCommand_ShowsAndDecides(t *testing.T) {
	t.Parallel()
	s := start(t)
	ch := s.confirming(t)
	if out, errs := s.mustDLQ(t, "list"); out != "" || errs != "No dead letters (--state open).\n" {
		t.Errorf("nothing is listed as %q, %q", out, errs)
	}
	if _, errs := s.mustDLQ(t, "redrive", "--all", "--yes"); errs != "No dead letter is open.\n" {
		t.Errorf("nothing is redriven as %q", errs)
	}

	laptops := products("Laptop", 1)
	s.send(t, ch, "shop.topic", "shop.inventory.create", amqp.Publishing{Body: encode(t, laptops)})
	s.open(t, 1)
	s.send(t, ch, "shop.topic", "shop.order.placed", amqp.Publishing{Body: []byte("\xff\x1b[2J"), MessageId: uuid.NewString(), CorrelationId: uuid.NewString()})
	open := s.open(t, 2) // the newest first
	garbage, twice := open[0], open[1]

	out, _ := s.mustDLQ(t, "list")
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if len(lines) != 3 || !strings.HasPrefix(lines[0], "ID") || !strings.HasSuffix(lines[0], "REASON") {
		t.Fatalf("listed as\n%s", out)
	}
	for i, l := range []deadLetter{garbage, twice} {
		for _, cell := range []string{l.ID, "OPEN", l.SourceQueue, l.RoutingKey, l.OrderID, "1", l.Reason} {
			if !strings.Contains(lines[i+1], cell) {
				t.Errorf("%q is not in\n%s", cell, lines[i+1])
			}
		}
	}
	if out, errs := s.mustDLQ(t, "list", "--limit", "1"); !strings.Contains(out, garbage.ID) || strings.Contains(out, twice.Reason) || !strings.Contains(errs, "more than 1") {
		t.Errorf("one is listed as\n%s%s", out, errs)
	}
	var list struct {
		DeadLetters []deadLetter `json:"dead_letters"`
	}
	out, _ = s.mustDLQ(t, "list", "--json")
	if (answer{body: []byte(out)}).json(t, &list); len(list.DeadLetters) != 2 || list.DeadLetters[1].MessageID != twice.MessageID {
		t.Errorf("JSON: %s", out)
	}

	out, _ = s.mustDLQ(t, "show", twice.ID)
	for _, part := range []string{twice.Reason, twice.MessageID, "shop.topic", "redrivable until", `"product_name": "Laptop"`, laptops.GetRequestId()} {
		if !strings.Contains(out, part) {
			t.Errorf("%q is not shown in\n%s", part, out)
		}
	}
	out, _ = s.mustDLQ(t, "show", garbage.ID)
	if !strings.Contains(out, "ff 1b 5b 32 4a") || !strings.Contains(out, garbage.OrderID) || strings.Contains(out, "\x1b") {
		t.Errorf("garbage is shown as\n%q", out)
	}
	var shown deadLetter
	out, _ = s.mustDLQ(t, "show", garbage.ID, "--json")
	if (answer{body: []byte(out)}).json(t, &shown); !bytes.Equal(shown.Body, []byte("\xff\x1b[2J")) {
		t.Errorf("JSON: %s", out)
	}

	var discarded deadLetter
	out, _ = s.mustDLQ(t, "discard", garbage.ID, "--json")
	if (answer{body: []byte(out)}).json(t, &discarded); discarded.ID != garbage.ID || strings.Count(out, "\n") != 1 {
		t.Errorf("discarded as JSON: %s", out)
	}
	if out, _ = s.mustDLQ(t, "discard", garbage.ID); out != garbage.ID+" discarded (shop.order.placed of queue order)\n" {
		t.Errorf("discarded as %q", out)
	}
	// What is wrong with one does not keep the others.
	out, errs, err := s.dlq(t, "redrive", garbage.ID, "4711", twice.ID)
	var code cli.ExitCode
	if !errors.As(err, &code) || code != 1 || out != twice.ID+" redriven (shop.inventory.create of queue inventory)\n" ||
		!strings.Contains(errs, "was discarded") || !strings.Contains(errs, "there is no dead letter 4711") || !strings.Contains(errs, "2 of 3 dead letters not redriven") {
		t.Errorf("redriven: %v\n%s%s", err, out, errs)
	}
	again := s.open(t, 1)[0] // the laptops are still there
	if out, _ = s.mustDLQ(t, "redrive", "--all", "--yes"); !strings.HasPrefix(out, again.ID+" redriven") {
		t.Errorf("all are redriven as %q", out)
	}
	eventually(t, func() error {
		if open := s.deadLetters(t, "OPEN"); len(open) != 1 || open[0].ID == again.ID {
			return fmt.Errorf("open: %+v", open)
		}
		return nil
	})
	for _, what := range []string{"redrive", "discard"} { // a script that nobody can be asked by
		if out, _, err := s.dlq(t, what, "--all"); cli.ExitStatus(err) != 2 || !strings.Contains(err.Error(), "--yes") || out != "" {
			t.Errorf("shop dlq %s --all without a terminal: %v, %q", what, err, out)
		}
	}
	s.open(t, 1) // it is left alone
	s.mustDLQ(t, "discard", "--all", "--yes")
	s.open(t, 0)
	if out, _ = s.mustDLQ(t, "list", "--state", "discarded"); strings.Count(out, "DISCARDED") != 2 {
		t.Errorf("discarded:\n%s", out)
	}
	if out, _ = s.mustDLQ(t, "list", "--state", "all"); strings.Count(out, "\n") != 5 {
		t.Errorf("all:\n%s", out)
	}

	for args, wrong := range map[string]string{
		"list --state lost":                   "--state lost: there are open, redriven, discarded and all",
		"show 4711":                           "there is no dead letter 4711",
		"show one":                            `"one" is no id of a dead letter`,
		"redrive":                             "say which",
		"redrive 1 --all":                     "say which",
		"list --token wrong":                  "does not know this operator token",
		"list --server localhost:1":           "no shop answers at localhost:1",
		"redrive 1 2 --server http://[::1]:1": "no shop answers at http://[::1]:1",
		"discard 1 --token wrong":             "does not know this operator token",
	} {
		_, errs, err := s.dlq(t, strings.Fields(args)...)
		if err == nil || !strings.Contains(err.Error(), wrong) || strings.Contains(err.Error(), "\n") || errs != "" {
			t.Errorf("shop dlq %s: %v (and %q), want an error with %q", args, err, errs, wrong)
		}
	}
}
