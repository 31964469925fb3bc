package server

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"

	"shop.example/gen/openapi"
)

// document is what these tests read of the OpenAPI document.
type document struct {
	Info  struct{ Title, Version, Description string }
	Paths map[string]map[string]struct {
		OperationID string
		Security    []map[string][]string
		Responses   map[string]json.RawMessage
	}
}

func openAPI(t *testing.T) document {
	t.Helper()
	var d document
	if err := json.Unmarshal(openapi.Shop, &d); err != nil {
		t.Fatal(err)
	}
	return d
}

// anyName stands for the names of path parameters: the document may call them otherwise than the contracts.
var anyName = regexp.MustCompile(`{[^}]+}`)

func TestOpenAPI_DescribesEveryRouteAndNoOther(t *testing.T) {
	t.Parallel()
	var described, served []string
	for path, calls := range openAPI(t).Paths {
		for method := range calls {
			described = append(described, strings.ToUpper(method)+" "+anyName.ReplaceAllString(path, "{}"))
		}
	}
	tel := newTelemetry(t, t.Output())
	rest := serveREST(t, newAPI(grpc.NewServer(), testOperators, tel), nil, tel)
	for _, call := range rest.Calls() {
		served = append(served, anyName.ReplaceAllString(call, "{}"))
	}
	slices.Sort(described)
	slices.Sort(served)
	if !slices.Equal(described, served) {
		t.Errorf("the document describes\n%q, the gateway serves\n%q", described, served)
	}
}

func TestOpenAPI_SaysWhatTheContractsSayAboutAccessAndAnswers(t *testing.T) {
	t.Parallel()
	d := openAPI(t)
	if d.Info.Title == "" || d.Info.Version == "" || d.Info.Description == "" {
		t.Errorf("the document has no head: %+v", d.Info)
	}
	for call, guarded := range map[string]bool{
		"get /v1/orders": true, "post /v1/inventory": true, "post /v1/dead-letters/{id}:redrive": true, "get /v1/events": true,
		"get /v1/events:stream": true, "get /v1/orders/{order_id}/events": false, "get /v1/orders/{order_id}/events:stream": false,
		"get /v1/inventory": false, "post /v1/orders": false, "get /v1/orders/{order_id}": false,
	} {
		method, path, _ := strings.Cut(call, " ")
		security := d.Paths[path][method].Security
		if len(security) == 0 {
			t.Errorf("%s: the document does not say who may call it", call)
		}
		open := slices.ContainsFunc(security, func(either map[string][]string) bool { return len(either) == 0 })
		if got := !open; got != guarded {
			t.Errorf("%s is for operators: %t in the document, %t in the contracts", call, got, guarded)
		}
	}
	for path, calls := range d.Paths {
		for method, call := range calls {
			if _, ok := call.Responses["default"]; !ok {
				t.Errorf("%s %s: no answer for errors", method, path)
			}
		}
	}
	if _, ok := d.Paths["/v1/orders"]["post"].Responses["202"]; !ok {
		t.Error("placing an order can be answered with 202, which is not described")
	}
}

// reference is what a page loads or links to.
var reference = regexp.MustCompile(`(?:src|href)="([^"]+)"`)

func TestDocs_PageLoadsOnlyWhatTheGatewayServes(t *testing.T) {
	t.Parallel()
	_, addr := serveAPI(t, nothingPublished(t), orderServer{})
	page := send(t, http.MethodGet, "http://"+addr+"/docs", "")
	if page.status != http.StatusOK || !strings.Contains(page.header.Get("Content-Security-Policy"), "script-src 'self'; style-src 'self'; ") {
		t.Fatalf("/docs: %d, policy %q", page.status, page.header.Get("Content-Security-Policy"))
	}
	found := reference.FindAllStringSubmatch(string(page.body), -1)
	if len(found) < 5 {
		t.Fatalf("the page loads %q", found)
	}
	for _, ref := range found {
		plain := send(t, http.MethodGet, "http://"+addr+ref[1], "", "Accept-Encoding: identity")
		if plain.status != http.StatusOK || len(plain.body) == 0 {
			t.Errorf("%s: %d, %d bytes", ref[1], plain.status, len(plain.body))
		}
		packed := send(t, http.MethodGet, "http://"+addr+ref[1], "", "Accept-Encoding: gzip")
		body := []byte(packed.body)
		if packed.header.Get("Content-Encoding") == "gzip" {
			r, err := gzip.NewReader(bytes.NewReader(body))
			if err == nil {
				body, err = io.ReadAll(r)
			}
			if err != nil {
				t.Error(err)
			}
		}
		if !bytes.Equal(body, []byte(plain.body)) {
			t.Errorf("%s: %d bytes unpacked, %d bytes plain", ref[1], len(body), len(plain.body))
		}
		if again := send(t, http.MethodGet, "http://"+addr+ref[1], "", "Accept-Encoding: identity", "If-None-Match: "+plain.header.Get("ETag")); again.status != http.StatusNotModified && ref[1] != "/" {
			t.Errorf("%s asked for again: %d", ref[1], again.status)
		}
	}
}
