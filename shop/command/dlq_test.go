package command

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	loggingv1 "shop.example/gen/shop/logging/v1"
	"shop.example/platform/apierror"
)

func TestTable_CutsReasonsToTheTerminalAndShowsNoControlCharacters(t *testing.T) {
	t.Parallel()
	letters := []*loggingv1.DeadLetter{
		{Id: 12, State: loggingv1.DeadLetter_OPEN, SourceQueue: "order", RoutingKey: "shop.order.placed", Attempts: 4,
			OrderId: "0192f6a0-0000-7000-8000-000000000001", Reason: "größer\nals " + strings.Repeat("ö", 300)},
		{Id: 3, State: loggingv1.DeadLetter_DISCARDED, RoutingKey: "shop.\x1b[31mred\u202e", Attempts: 1, Reason: "short"},
	}
	shown := func(width int) string {
		var out strings.Builder
		screen{out: &out, width: width}.print(deadLettersTable(letters))
		return out.String()
	}
	lines := strings.Split(strings.TrimSpace(shown(150)), "\n")
	if len(lines) != 3 {
		t.Fatalf("%d lines: %q", len(lines), lines)
	}
	if n := utf8.RuneCountInString(lines[1]); n != 150 || !strings.HasSuffix(lines[1], "ö…") || !strings.Contains(lines[1], "größer als ö") {
		t.Errorf("a long reason makes a line of %d characters: %s", n, lines[1])
	}
	if strings.ContainsAny(lines[2], "\x1b\u202e") || !strings.Contains(lines[2], "shop.\uFFFD[31mred\uFFFD") || !strings.HasSuffix(lines[2], "short") {
		t.Errorf("a key with control characters is shown as %q", lines[2])
	}
	header, _, _ := strings.Cut(lines[0], "REASON")
	if row, _, _ := strings.Cut(lines[2], "short"); utf8.RuneCountInString(row) != len(header) {
		t.Errorf("columns:\n%s", strings.Join(lines, "\n"))
	}
	if narrow := strings.Split(shown(40), "\n")[1]; !strings.HasSuffix(narrow, "…") || !strings.Contains(narrow, "größer als ööö") {
		t.Errorf("a narrow terminal gets %q", narrow)
	}
	if whole := shown(0); !strings.Contains(whole, strings.Repeat("ö", 300)) {
		t.Errorf("what is no terminal gets %q", whole)
	}
}

func TestOperatorToken_IsGivenOrInTheEnvironmentOrThatOfShopUpHere(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	t.Setenv("SHOP_OPERATOR_TOKEN", "")
	if token, err := operatorToken("", "localhost"); token != "" || err != nil {
		t.Errorf("where make up never ran: %q, %v", token, err)
	}
	kept := filepath.Join(dir, ".shop", "up", "operator-token")
	if err := os.MkdirAll(filepath.Dir(kept), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(kept, []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	for host, want := range map[string]string{"localhost": "kept", "127.0.0.1": "kept", "::1": "kept", "": "kept", "shop.example.org": "", "10.0.0.7": ""} {
		if token, err := operatorToken("", host); token != want || err != nil {
			t.Errorf("for a shop at %q: %q, %v, want %q", host, token, err, want)
		}
	}
	t.Setenv("SHOP_OPERATOR_TOKEN", "environment\n")
	if token, _ := operatorToken("", "localhost"); token != "environment" {
		t.Errorf("with one in the environment: %q", token)
	}
	if token, _ := operatorToken("given", "localhost"); token != "given" {
		t.Errorf("with one given: %q", token)
	}
}

func TestExplain_IsOneLineThatSaysWhatToDo(t *testing.T) {
	t.Parallel()
	g := &gateway{addr: "localhost:3000"}
	for want, err := range map[string]error{
		"in the project's folder, where shop finds it": apierror.New(codes.Unauthenticated, "OPERATOR_TOKEN_REQUIRED", "send it").GRPCStatus().Err(),
		"does not know this operator":                  apierror.New(codes.Unauthenticated, "OPERATOR_TOKEN_INVALID", "wrong").GRPCStatus().Err(),
		"no shop answers at localhost":                 status.Error(codes.Unavailable, "connection error: desc = \"transport: …\""),
		"has not answered in time":                     status.Error(codes.DeadlineExceeded, "context deadline exceeded"),
		"logging service is not there":                 apierror.Unavailable("SERVICE_UNAVAILABLE", 1, "logging service is not there").GRPCStatus().Err(),
		"two lines":                                    status.Error(codes.Internal, "two\nlines"),
	} {
		got := g.describeError(err)
		if got == nil || !strings.Contains(got.Error(), want) || strings.Contains(got.Error(), "\n") || status.Code(got) != status.Code(err) {
			t.Errorf("%v becomes %v", err, got)
		}
	}
	if err := g.describeError(status.FromContextError(context.Canceled).Err()); !errors.Is(err, context.Canceled) {
		t.Errorf("an interrupt becomes %v", err)
	}
	if err := g.describeError(nil); err != nil {
		t.Errorf("nil becomes %v", err)
	}
}

// withLetters returns a shop with three open dead letters, whose calls to redrive one fail as refuse says.
func withLetters(refuse func(id int64) error) *fakeShop {
	return &fakeShop{letters: []*loggingv1.DeadLetter{{Id: 3}, {Id: 2}, {Id: 1}}, redrive: refuse}
}

func limited(after time.Duration) error {
	return apierror.New(codes.ResourceExhausted, "RATE_LIMITED", "too many calls: one client may make 100 a second").WithRetryAfter(after).GRPCStatus().Err()
}

func TestDLQ_RedrivesAllThoughTheShopLimitsCalls(t *testing.T) {
	t.Parallel()
	var calls atomic.Int64
	f := withLetters(func(int64) error {
		if calls.Add(1)%2 == 0 {
			return limited(time.Millisecond)
		}
		return nil
	})
	got := f.run(t.Context(), t, "dlq", "redrive", "--all", "--yes")
	if got.status != 0 || strings.Count(got.out, " redriven ") != 3 || calls.Load() != 5 {
		t.Errorf("redriven in %d calls: %+v", calls.Load(), got)
	}
}

func TestDLQ_SaysHowFarItCameWhenItGivesUp(t *testing.T) {
	t.Parallel()
	for want, err := range map[string]error{
		"too many calls":                   limited(time.Hour),
		"logging service is not available": apierror.Unavailable("SERVICE_UNAVAILABLE", time.Second, "logging service is not available").GRPCStatus().Err(),
	} {
		f := withLetters(func(id int64) error {
			if id == 3 {
				return err
			}
			return nil
		})
		got := f.run(t.Context(), t, "dlq", "redrive", "--all", "--yes")
		if got.status != 1 || !strings.Contains(got.err.Error(), "dead letter 3: "+want) || !strings.HasSuffix(got.err.Error(), "; 2 of 3 dead letters redriven") {
			t.Errorf("given up: %+v", got)
		}
	}
}
