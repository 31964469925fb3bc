package web

import (
	"context"
	"net/http"
	"sync"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"shop.example/gateway/rest"
	inventoryv1 "shop.example/gen/shop/inventory/v1"
)

const (
	// catalogueSize is how many products a page of the catalogue has.
	catalogueSize = 100
	// maxCataloguePages is how many of them are kept: beyond, all are forgotten, and asked for again.
	maxCataloguePages = 100
	// catalogueAge is how old the stock on a page may be when the page is loaded.
	catalogueAge = 500 * time.Millisecond
	// readTimeout bounds how long a page waits for a service. Without an answer the page is shown without that part.
	readTimeout = 2 * time.Second
)

// catalogue is what pages show of the stock. However many pages are open, inventory is asked twice a second for each page of
// the catalogue: 200 pages that asked by themselves took a seventh of the throughput of orders. It is safe for concurrent use.
type catalogue struct {
	inventory inventoryv1.InventoryServiceClient

	mu    sync.Mutex
	pages map[string]*cataloguePage // by the token that leads to them
}

type cataloguePage struct {
	mu    sync.Mutex // held while inventory is asked, so that others wait for the same answer
	asked time.Time
	list  *inventoryv1.ListItemsResponse
	text  rest.File // as JSON
	err   error
}

// read returns a page of the products, and the same as JSON, as they were within catalogueAge; or an error.
func (c *catalogue) read(ctx context.Context, token string) (*inventoryv1.ListItemsResponse, rest.File, error) {
	if !utf8.ValidString(token) { // no message could be made of it
		return nil, rest.File{}, status.Error(codes.InvalidArgument, "the token of no page")
	}
	p := c.page(token)
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Since(p.asked) < catalogueAge {
		return p.list, p.text, p.err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), readTimeout) // the answer is for others too
	defer cancel()
	p.list, p.err = c.inventory.ListItems(ctx, &inventoryv1.ListItemsRequest{PageSize: catalogueSize, PageToken: token})
	p.text = rest.File{}
	if p.err == nil {
		var text []byte
		text, p.err = rest.JSON.Marshal(p.list)
		p.text = rest.NewFile("application/json", text)
	}
	p.asked = time.Now()
	return p.list, p.text, p.err
}

func (c *catalogue) page(token string) *cataloguePage {
	c.mu.Lock()
	defer c.mu.Unlock()
	p, ok := c.pages[token]
	if !ok {
		if c.pages == nil || len(c.pages) >= maxCataloguePages {
			c.pages = map[string]*cataloguePage{}
		}
		p = &cataloguePage{}
		c.pages[token] = p
	}
	return p
}

// pageToken is the name of the parameter, and of the form's field, that says which page of the catalogue is shown.
const pageToken = "page_token"

// forCustomers is shown in place of the catalogue if public calls are for customers: the page has no token.
const forCustomers = "This shop takes calls of customers with a token only. You can order over the API."

// serveCatalogue serves the figures in the form of GET /v1/inventory, and only if they have changed.
func (p *page) serveCatalogue(w http.ResponseWriter, r *http.Request, _ map[string]string) {
	_, text, err := p.catalogue.read(r.Context(), r.URL.Query().Get(pageToken))
	if err != nil {
		code, message := http.StatusServiceUnavailable, `{"message":"the catalogue is unavailable"}`
		switch status.Code(err) {
		case codes.InvalidArgument:
			code, message = http.StatusBadRequest, `{"message":"there is no such page of the catalogue"}`
		case codes.Unauthenticated:
			w.Header().Set("WWW-Authenticate", rest.Challenge)
			code, message = http.StatusUnauthorized, `{"message":"`+forCustomers+`"}`
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		_, _ = w.Write([]byte(message)) // fails when the client has gone
		return
	}
	text.Serve(w, r)
}
