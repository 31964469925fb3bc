package web

import (
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
)

func TestPage_LinksTracesIfTheirPageIsKnown(t *testing.T) {
	t.Parallel()
	p, err := newPage(nil)
	if err != nil {
		t.Fatal(err)
	}
	for address, want := range map[string]string{
		"": `<body>`,
		"http://localhost:16686/trace/{trace_id}?a=1&b": `<body data-traces="http://localhost:16686/trace/{trace_id}?a=1&amp;b">`,
	} {
		w := httptest.NewRecorder()
		p.write(w, http.StatusOK, "index.html", &form{TraceURL: address})
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("with %q there is no %s", address, want)
		}
	}
}

func TestPage_LinksDashboardsForOperatorsIfThereAreAny(t *testing.T) {
	t.Parallel()
	p, err := newPage(nil)
	if err != nil {
		t.Fatal(err)
	}
	for address, want := range map[string]int{"": 0, "http://localhost:3200/dashboards?tag=shop&from=now-1h": 1} {
		w := httptest.NewRecorder()
		p.write(w, http.StatusOK, "index.html", &form{DashboardURL: address})
		link := `<a href="` + strings.ReplaceAll(address, "&", "&amp;") + `" data-operator hidden target="_blank" rel="noreferrer">Dashboards</a>`
		if n := strings.Count(w.Body.String(), link); n != want || strings.Count(w.Body.String(), "Dashboards") != want {
			t.Errorf("with %q there are %d links, want %d: %s", address, n, want, link)
		}
	}
}

// A browser finds out what a module imports when it has read it: without being told it would ask three times in a row.
func TestPage_NamesTheModulesThatItRunsAtOnce(t *testing.T) {
	t.Parallel()
	p, err := newPage(nil)
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	p.write(w, http.StatusOK, "index.html", &form{Modules: p.modules})
	for name := range p.files {
		// What operators see is loaded when somebody is one.
		once := strings.HasSuffix(name, ".js") && !slices.Contains([]string{"operator.js", "audit.js", "breaking.js", "tour.js", "lookup.js", "deadletters.js", "health.js", "log.js"}, name)
		if named := strings.Contains(w.Body.String(), `<link rel="modulepreload" href="/page/`+name+`">`); named != once {
			t.Errorf("%s is preloaded: %t, want %t", name, named, once)
		}
	}
}

// What stands there is followed by whoever clicks: it must not be a script.
func TestDashboardURL_IsAnAddress(t *testing.T) {
	t.Parallel()
	for address, good := range map[string]bool{"": true, "https://grafana.example.org": true, "javascript:alert(1)": false, "/dashboards": false} {
		if err := checkDashboardURL(address); (err == nil) != good {
			t.Errorf("%q: %v", address, err)
		}
	}
}

// What stands there is followed by whoever clicks: it must not be a script.
func TestTraceURL_IsAnAddressWithTheTraceInIt(t *testing.T) {
	t.Parallel()
	for address, good := range map[string]bool{
		"":                                      true,
		"https://traces.example.org/{trace_id}": true,
		"http://localhost:16686/":               false,
		"javascript:alert('{trace_id}')":        false,
		"{trace_id}":                            false,
	} {
		if err := checkTraceURL(address); (err == nil) != good {
			t.Errorf("%q: %v", address, err)
		}
	}
}
