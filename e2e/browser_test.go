package e2e

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	cdplog "github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// chromium is the one browser of these tests, started by the first that needs it. Each test has a profile of its own.
var chromium = sync.OnceValues(func() (context.Context, error) {
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		path, err := exec.LookPath(name)
		if err != nil {
			continue
		}
		options := append(chromedp.DefaultExecAllocatorOptions[:],
			chromedp.ExecPath(path), chromedp.NoSandbox, chromedp.DisableGPU,
			chromedp.Flag("disable-quic", true), chromedp.Flag("disable-component-update", true),
		)
		allocator, _ := chromedp.NewExecAllocator(context.Background(), options...) // ends with its process
		ctx, end := chromedp.NewContext(allocator)
		endBrowser = end
		return ctx, chromedp.Do(ctx)
	}
	return nil, errors.New("the tests of the front page need Chromium: install it (Debian: sudo apt-get install chromium; elsewhere Google Chrome will do, https://www.google.com/chrome)")
})

var endBrowser = func() {}

type action = chromedp.Action[chromedp.Void]

// tab is a tab of the browser, with a new profile.
type tab struct {
	*testing.T
	ctx      context.Context
	mu       sync.Mutex
	problems []string // what the console had to complain about
	tolerate []string // parts of complaints that are meant to come
}

// browse opens a tab of 1440 by 900 pixels, set up by setup, at url.
func browse(t *testing.T, url string, setup ...action) *tab {
	t.Helper()
	parent, err := chromium()
	if err != nil {
		t.Fatal(err)
	}
	ctx, closeTab := chromedp.NewContext(parent, chromedp.WithNewBrowserContext())
	b := &tab{T: t}
	t.Cleanup(func() {
		closeTab()
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, problem := range b.problems {
			t.Errorf("the browser's console says: %s", problem)
		}
	})
	if err := chromedp.Listen(ctx, b.listen); err != nil {
		t.Fatalf("opening a tab: %v", err)
	}
	var cancel context.CancelFunc
	b.ctx, cancel = context.WithTimeout(ctx, 8*testTimeout)
	t.Cleanup(cancel)
	b.do(with(cdplog.Enable, cdp.Empty{}), chromedp.EmulateViewport(1440, 900))
	b.do(setup...)
	b.do(chromedp.Navigate(url))
	return b
}

// with is the action that makes a call of the browser's protocol.
func with[P, R any](command cdp.Command[P, R], params P) action {
	return chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
		_, err := cdp.Call(ctx, target, command, params)
		return err
	})
}

// listen records errors, exceptions and violations of the content security policy.
func (b *tab) listen(event any) {
	var problem string
	switch e := event.(type) {
	case *runtime.EventExceptionThrown:
		problem = e.ExceptionDetails.Text
		if e.ExceptionDetails.Exception != nil {
			problem += " " + e.ExceptionDetails.Exception.Description
		}
	case *runtime.EventConsoleAPICalled:
		if e.Type == runtime.ConsoleAPICalledTypeError || e.Type == runtime.ConsoleAPICalledTypeWarning {
			problem = fmt.Sprintf("%s %s", e.Type, e.Args[0].Value)
		}
	case *cdplog.EventEntryAdded:
		if e.Entry.Level == cdplog.EntryLevelError || e.Entry.Source == cdplog.EntrySourceSecurity {
			problem = e.Entry.Text + " " + e.Entry.URL
		}
	}
	if problem == "" {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, part := range b.tolerate {
		if strings.Contains(problem, part) {
			return
		}
	}
	b.problems = append(b.problems, problem)
}

// mayComplain says which complaints on the console the test expects.
func (b *tab) mayComplain(parts ...string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tolerate = append(b.tolerate, parts...)
}

func (b *tab) do(steps ...action) {
	b.Helper()
	if err := chromedp.Do(b.ctx, steps...); err != nil {
		b.Fatalf("in the browser: %v", err)
	}
}

// eval evaluates an expression; if that is a promise, it waits for its value.
func eval[T any](b *tab, expression string) T {
	b.Helper()
	value, err := chromedp.Run(b.ctx, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
	if err != nil {
		b.Fatalf("in the browser: %v: %s", err, expression)
	}
	return value
}

// until waits until an expression is true.
func (b *tab) until(expression string) {
	b.Helper()
	b.within(2*testTimeout, expression)
}

func (b *tab) within(limit time.Duration, expression string) {
	b.Helper()
	deadline := time.Now().Add(limit)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !eval[bool](b, "Boolean("+expression+")") {
		if time.Now().After(deadline) {
			b.Fatalf("after %s not true: %s\nthe page:\n%s", limit, expression, eval[string](b, "document.body.innerText"))
		}
		<-tick.C
	}
}

// text waits until the element has a text that contains part.
func (b *tab) text(selector, part string) {
	b.Helper()
	b.until(fmt.Sprintf("document.querySelector(%q)?.textContent.includes(%q)", selector, part))
}

func (b *tab) fill(selector, value string) {
	b.Helper()
	b.do(chromedp.WaitVisible(chromedp.CSS(selector)), chromedp.Focus(chromedp.CSS(selector)))
	eval[any](b, "document.activeElement.select()") // what is typed replaces it
	b.press(cmp.Or(value, kb.Delete))
}

// disabled is whether a button does nothing at present, as the page marks it.
func disabled(selector string) string {
	return fmt.Sprintf("document.querySelector(%q).matches('[aria-disabled=true]')", selector)
}

func (b *tab) click(selector string) {
	b.Helper()
	b.do(chromedp.WaitVisible(chromedp.CSS(selector)))
	b.until("!" + disabled(selector))
	b.do(chromedp.Click(chromedp.CSS(selector)))
}

// press presses keys one after the other.
func (b *tab) press(keys ...string) {
	b.Helper()
	for _, key := range keys {
		b.do(chromedp.KeyEvent(key))
	}
}

// withoutScripts is a browser that runs no JavaScript.
func withoutScripts() action {
	return with(emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
}

// before runs a script ahead of those of each page.
func before(script string) action {
	return with(page.AddScriptToEvaluateOnNewDocument, page.AddScriptToEvaluateOnNewDocumentParams{Source: script})
}

// preferring is a browser of somebody who has a preference: "prefers-color-scheme", "dark" for example.
func preferring(feature, value string) action {
	return with(emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: feature, Value: value}}})
}

// phone is a narrow screen with touch.
func phone() action {
	return chromedp.EmulateViewport(360, 760, chromedp.EmulateMobile, chromedp.EmulateTouch, chromedp.EmulatePortrait)
}
