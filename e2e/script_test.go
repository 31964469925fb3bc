package e2e

import (
	"html/template"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
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
				eval[any](b, "localStorage.clear()")
				b.do(chromedp.Navigate(server.URL+"/?test="+name))
				if problem := eval[string](b, "import('"+module+"').then((m) => m."+name+"()).then(() => '', (error) => error.stack)"); problem != "" {
					t.Error(problem)
				}
			})
		}
	}
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
