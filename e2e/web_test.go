package e2e

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"reflect"
	"testing"

	"shop.example/db/dbtest"
	"shop.example/dev/local"
	"shop.example/platform/testkit/brokertest"
	"shop.example/topology"
)

// startFor starts a shop that pages of an origin may call.
func startFor(t *testing.T, origin string) *shop {
	t.Helper()
	broker := brokertest.New(t)
	database := dbtest.New(t)
	cfg := config(t, database, broker.Services(t, topology.Broker()))
	cfg.Ingress.Origins = []string{origin}
	s, err := local.New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	run(t, s)
	return &shop{Shop: s, url: "http://" + s.Gateway.HTTPAddr(), database: database, broker: broker}
}

func TestBrowser_APageOfAnotherSiteSpeaksConnectAndGRPCWeb(t *testing.T) {
	t.Parallel()
	pages := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		_, _ = w.Write([]byte(`<!doctype html><link rel="icon" href="data:,">`))
	}))
	t.Cleanup(pages.Close)
	s := startFor(t, pages.URL)
	script, err := os.ReadFile("testdata/web.js")
	if err != nil {
		t.Fatal(err)
	}
	b := browse(t, pages.URL)
	b.mayComplain("401") // the call that is refused
	type result struct {
		Messages int
		Status   string
	}
	type seen struct {
		State, Refused string
		Reason         bool
		Item, Missing  result
	}
	source := string(script)
	got := eval[seen](b, fmt.Sprintf("(%s)(%q)", source[:len(source)-2], s.url))
	if want := (seen{"PENDING", "unauthenticated", true, result{1, "0"}, result{0, "5"}}); !reflect.DeepEqual(got, want) {
		t.Errorf("the page has seen %+v, want %+v", got, want)
	}
}
