// Package web serves the shop's front page.
//
// The HTML contains the catalogue, so that it can be read, and an order be placed, without JavaScript (form.go). The
// JavaScript modules in assets/ make it interactive; they use the shop's API as any other client does. There are no
// cookies, so pages of other sites cannot make a browser act in a customer's name.
package web

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"html/template"
	"io/fs"
	"mime"
	"net/http"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"shop.example/gateway/rest"
	checkoutv1 "shop.example/gen/shop/checkout/v1"
	inventoryv1 "shop.example/gen/shop/inventory/v1"
	orderv1 "shop.example/gen/shop/order/v1"
)

// policy lets the page load its own files and call its own shop, and nothing else. No script makes HTML of text.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; " +
	"base-uri 'none'; form-action 'self'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"

//go:embed *.html
var sources embed.FS

//go:embed assets
var assets embed.FS

// page serves the front page, its files and its form. It is safe for concurrent use.
type page struct {
	templates *template.Template
	files     map[string]rest.File // by name
	modules   []string             // of the files, those that the front page runs at once
	index     func() string        // what those get who do not ask for HTML
	demo      bool                 // whether operators can break the shop under /demo
	traceURL  string               // of the page of a trace, with {trace_id} in it; "" for none
	dashboard string               // the URL of the dashboards; "" for none
	orders    checkoutv1.CheckoutServiceClient
	decided   orderv1.OrderServiceClient
	shared    checkoutv1.ShareServiceClient
	catalogue catalogue
}

// routes is what the page's routes are added to: a rest.Server.
type routes interface {
	HandlePath(method, path string, handler runtime.HandlerFunc) error
	Index() string
}

// Register adds the page to REST. conn makes calls to the same shop. demo says whether operators can inject faults under
// /demo. traceURL is the URL of the page that shows a trace, with {trace_id} in it, and dashboardURL that of the dashboards;
// "" for no links.
func Register(server routes, conn grpc.ClientConnInterface, demo bool, traceURL, dashboardURL string) error {
	if err := errors.Join(checkTraceURL(traceURL), checkDashboardURL(dashboardURL)); err != nil {
		return err
	}
	p, err := newPage(conn)
	if err != nil {
		return err
	}
	p.index, p.demo, p.traceURL, p.dashboard = server.Index, demo, traceURL, dashboardURL
	return errors.Join(
		server.HandlePath(http.MethodGet, "/", p.serveFront),
		server.HandlePath(http.MethodGet, "/page/{file}", p.serveFile),
		server.HandlePath(http.MethodGet, "/catalogue", p.serveCatalogue),
		server.HandlePath(http.MethodPost, "/orders", p.placeOrder),
		server.HandlePath(http.MethodGet, "/orders/{order_id}", p.serveOrder),
		server.HandlePath(http.MethodGet, "/shared/{share_token}", p.serveShared),
	)
}

func checkTraceURL(address string) error {
	if address != "" && (!isWebAddress(strings.ReplaceAll(address, "{trace_id}", "0")) || !strings.Contains(address, "{trace_id}")) {
		return fmt.Errorf("TRACE_URL is %q: give the address of a trace with {trace_id} in it, for example http://localhost:16686/trace/{trace_id}", address)
	}
	return nil
}

func checkDashboardURL(address string) error {
	if address != "" && !isWebAddress(address) {
		return fmt.Errorf("DASHBOARD_URL is %q: give the address of the dashboards, for example http://localhost:3200/dashboards", address)
	}
	return nil
}

// isWebAddress reports whether a browser can follow an address without harm: it is no script.
func isWebAddress(address string) bool {
	u, err := url.Parse(address)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != ""
}

func newPage(conn grpc.ClientConnInterface) (*page, error) {
	templates, err := template.New("page").ParseFS(sources, "*.html")
	if err != nil {
		return nil, fmt.Errorf("reading the page's templates: %w", err)
	}
	files, err := readFiles()
	if err != nil {
		return nil, err
	}
	return &page{
		templates: templates, files: files, modules: imported(firstModule, nil),
		orders:    checkoutv1.NewCheckoutServiceClient(conn),
		decided:   orderv1.NewOrderServiceClient(conn),
		shared:    checkoutv1.NewShareServiceClient(conn),
		catalogue: catalogue{inventory: inventoryv1.NewInventoryServiceClient(conn)},
	}, nil
}

func readFiles() (map[string]rest.File, error) {
	entries, err := fs.ReadDir(assets, "assets")
	if err != nil {
		return nil, fmt.Errorf("reading the page's files: %w", err)
	}
	files := map[string]rest.File{}
	for _, entry := range entries {
		content, err := assets.ReadFile("assets/" + entry.Name())
		if err != nil {
			return nil, fmt.Errorf("reading the page's files: %w", err)
		}
		files[entry.Name()] = rest.NewFile(mimeTypeOf(entry.Name()), content)
	}
	return files, nil
}

// firstModule is what the front page runs.
const firstModule = "app.js"

var imports = regexp.MustCompile(`(?m)^import .* from '\./([a-z]+\.js)';$`)

// imported adds the module to those that are known, and all that it imports: a browser that is told of them does not find
// them one after the other.
func imported(module string, known []string) []string {
	if slices.Contains(known, module) {
		return known
	}
	known = append(known, module)
	source, _ := assets.ReadFile("assets/" + module) // one that is not there imports nothing
	for _, m := range imports.FindAllSubmatch(source, -1) {
		known = imported(string(m[1]), known)
	}
	return known
}

// mimeTypeOf does not leave it to the machine's tables what a module is: a browser would not run it as anything else.
func mimeTypeOf(name string) string {
	if path.Ext(name) == ".js" {
		return "text/javascript; charset=utf-8"
	}
	return mime.TypeByExtension(path.Ext(name))
}

// serveFront serves the front page to browsers, and to other clients a plain text that lists the routes.
func (p *page) serveFront(w http.ResponseWriter, r *http.Request, _ map[string]string) {
	w.Header().Add("Vary", "Accept")
	if !strings.Contains(r.Header.Get("Accept"), "text/html") {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = w.Write([]byte(p.index())) // fails when the client has gone
		return
	}
	f := newForm()
	f.PageToken = r.URL.Query().Get(pageToken)
	p.showFront(r.Context(), w, http.StatusOK, f)
}

// serveFile serves one of the page's files. A browser asks each time whether it has changed.
func (p *page) serveFile(w http.ResponseWriter, r *http.Request, inPath map[string]string) {
	f, ok := p.files[inPath["file"]]
	if !ok {
		http.NotFound(w, r)
		return
	}
	f.Serve(w, r)
}

// showFront writes the front page with the form as it stands, and with the catalogue if inventory answers.
func (p *page) showFront(ctx context.Context, w http.ResponseWriter, code int, f *form) {
	list, _, err := p.catalogue.read(ctx, f.PageToken)
	if status.Code(err) == codes.InvalidArgument { // the token of no page
		f.PageToken = ""
		list, _, err = p.catalogue.read(ctx, "")
	}
	f.Demo, f.TraceURL, f.DashboardURL, f.Modules = p.demo, p.traceURL, p.dashboard, p.modules
	switch f.fill(list.GetItems()); {
	case status.Code(err) == codes.Unauthenticated:
		f.Notice = forCustomers
	case err != nil:
		f.Notice = "The catalogue is unavailable at the moment. You can still order over the API."
	}
	f.NextPage = list.GetNextPageToken()
	p.write(w, code, "index.html", f)
}

// write writes a page. The gateway's headers prevent browsers from storing it, because it shows the shop as it is now, and
// from sending its address to others as the referrer, because the address of an order gives access to it.
func (p *page) write(w http.ResponseWriter, status int, name string, data any) {
	var body bytes.Buffer
	if err := p.templates.ExecuteTemplate(&body, name, data); err != nil {
		http.Error(w, "the page could not be written", http.StatusInternalServerError)
		return
	}
	header := w.Header()
	header.Set("Content-Type", "text/html; charset=utf-8")
	header.Set("Content-Security-Policy", policy)
	w.WriteHeader(status)
	_, _ = body.WriteTo(w) // fails when the client has gone
}

// short returns the end of an order's id, for people to read to each other. The beginning is a time, and so nearly the same
// for all.
func short(orderID string) string { return orderID[max(0, len(orderID)-8):] }
