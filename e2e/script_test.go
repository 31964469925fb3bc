package e2e

import (
	"html/template"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

const (
	scripts     = "testdata/scripts" // each file has the tests of one part of the page: the functions that it exports
	pageSources = "../gateway/web"
)

// The page's scripts, each function alone: in the browser, because they are written for one, and with a shop that the
// test makes up. Each test has the page for itself.
func TestScripts(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(scriptPages(t))
	t.Cleanup(server.Close)
	b := browse(t, server.URL)
	b.mayComplain("status of ") // the browser notes every answer that is an error
	files, err := os.ReadDir(scripts)
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		module := "/tests/" + file.Name()
		if file.Name() == "check.js" {
			continue
		}
		names := eval[[]string](b, "import('"+module+"').then(Object.keys)")
		if len(names) == 0 {
			t.Errorf("%s has no tests", file.Name())
		}
		for _, name := range names {
			t.Run(strings.TrimSuffix(file.Name(), ".js")+"/"+name, func(t *testing.T) {
				b.do(chromedp.Navigate(server.URL + "/?test=" + name))
				eval[any](b, "localStorage.clear(), sessionStorage.clear()")
				if problem := eval[string](b, "import('"+module+"').then((m) => m."+name+"()).then(() => '', (error) => error.stack ?? String(error))"); problem != "" {
					t.Error(problem)
				}
			})
		}
	}
}

// The search stood in the form of the order: who pressed Enter to search had ordered.
func TestScripts_EnterInTheSearchPlacesNoOrder(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(scriptPages(t))
	t.Cleanup(server.Close)
	b := browse(t, server.URL)
	eval[any](b, `Promise.all([import('/page/storefront.js'), import('/tests/check.js')]).then(([storefront, {answerWith, json}]) => {
		const items = Array.from({length: 20}, (_, i) => ({id: i + 1, product_name: 'Product ' + i, quantity: 1, on_hand: 1, reserved: 0, price: {currency_code: 'USD', units: '1'}}));
		window.calls = answerWith(({path}) => (path === '/catalogue' ? json({items}) : new Promise(() => {})));
		storefront.start({onPlaced() {}, onReached() {}});
	})`)
	const orders = "window.calls.filter(({method}) => method === 'POST').length"
	b.fill(`[name="quantity.1"]`, "1")
	b.fill("#find", "product 19")
	b.press(kb.Enter)
	b.until("document.querySelectorAll('.product:not([hidden])').length === 2") // what is in the basket stays
	if n := eval[int](b, orders); n != 0 {
		t.Errorf("the search has placed %d orders", n)
	}
	b.fill("#customer_email", "ada@example.org")
	b.press(kb.Enter)
	b.until(orders + " === 1")
}

// scriptPages serves the page as it is without its scripts, the scripts, and their tests.
func scriptPages(t *testing.T) http.Handler {
	t.Helper()
	page, err := template.ParseFiles(pageSources + "/index.html")
	if err != nil {
		t.Fatal(err)
	}
	var html strings.Builder
	if err := page.Execute(&html, map[string]any{"Blank": map[string]any{}}); err != nil {
		t.Fatal(err)
	}
	const start = `<script type="module" src="/page/app.js"></script>`
	if !strings.Contains(html.String(), start) {
		t.Fatal("the page does not load app.js")
	}
	content := strings.Replace(html.String(), start, "", 1)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = w.Write([]byte(content))
	})
	mux.Handle("GET /page/", http.StripPrefix("/page/", http.FileServer(http.Dir(pageSources+"/assets"))))
	mux.Handle("GET /tests/", http.StripPrefix("/tests/", http.FileServer(http.Dir(scripts))))
	return mux
}
