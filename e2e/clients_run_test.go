//go:build clients

package e2e

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strconv"
	"testing"

	"shop.example/topology"
)

// Each client is made of the contracts alone, compiles and works: see tools/clients.
func TestClients_AreGeneratedAndWork(t *testing.T) {
	site := &clientSite{}
	pages := httptest.NewServer(site)
	t.Cleanup(pages.Close)
	s := startFor(t, pages.URL)
	products := s.unlimitedStock(t)
	product := products[0]
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	contracts := filepath.Join(root, ".bin/contracts")
	_, commander := s.brokerUser(t, "backoffice")
	_, listener := s.brokerUser(t, "warehouse")
	scripts, err := filepath.Glob("../tools/clients/*/run.sh")
	if err != nil || len(scripts) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, script := range scripts {
		if script, err = filepath.Abs(script); err != nil {
			t.Fatal(err)
		}
		t.Run(filepath.Base(filepath.Dir(script)), func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), script)
			cmd.Dir = t.TempDir()
			cmd.Env = append(os.Environ(),
				"CONTRACTS="+contracts, "OPENAPI="+filepath.Join(contracts, "shop.openapi.json"), "CLIENT="+filepath.Dir(script), "EXAMPLES="+filepath.Join(root, "examples"),
				"SHOP_URL="+s.url, "SHOP_SERVER="+s.Gateway.HTTPAddr(), "SHOP_OPERATOR_TOKEN="+operatorToken, "PRODUCT="+strconv.Itoa(product), "UNSOLD_PRODUCT="+strconv.Itoa(products[1]),
				"AMQP_URL="+listener, "COMMANDER_URL="+commander, "CALLER_URL="+s.broker.Services(t, topology.Broker())["order"])
			if said, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, said)
			}
			if _, err := os.Stat(filepath.Join(cmd.Dir, "index.html")); err == nil {
				site.folder = cmd.Dir
				seenByPage(t, fmt.Sprintf("%s/index.html?shop=%s&product=%d", pages.URL, url.QueryEscape(s.url), product))
			}
		})
	}
}

// clientSite serves what a client has written, from an origin of its own.
type clientSite struct{ folder string }

func (c *clientSite) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	http.FileServer(http.Dir(c.folder)).ServeHTTP(w, r)
}

// seenByPage opens a page in the browser, which uses the shop over Connect and over gRPC-Web, and checks what it has seen.
func seenByPage(t *testing.T, url string) {
	t.Helper()
	type seen struct {
		Placed, Read, Refused, Forbidden string
		Events                           []string
	}
	b := browse(t, url)
	b.mayComplain("401", "404") // the calls that are refused
	got := eval[[]seen](b, "window.seen()")
	want := seen{"PENDING", "CONFIRMED", "NotFound ITEM_NOT_FOUND", "Unauthenticated OPERATOR_TOKEN_REQUIRED", []string{"shop.order.placed", "shop.order.confirmed"}}
	if !reflect.DeepEqual(got, []seen{want, want}) {
		t.Errorf("the page has seen %+v, want %+v twice", got, want)
	}
}
