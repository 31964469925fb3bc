package web

import (
	"context"
	"net/http"
	"sync"
	"time"

	"shop.example/gateway/rest"
	inventoryv1 "shop.example/gen/shop/inventory/v1"
)

const (
	// catalogueSize is how many products the page shows at most.
	catalogueSize = 100
	// catalogueAge is how old the stock on a page may be when the page is loaded.
	catalogueAge = 500 * time.Millisecond
	// readTimeout bounds how long a page waits for a service. Without an answer the page is shown without that part.
	readTimeout = 2 * time.Second
)

// catalogue caches what pages show of the stock. However many pages are open, inventory is called twice a second: 200 pages
// that called it themselves took a seventh of the throughput of orders. It is safe for concurrent use.
type catalogue struct {
	inventory inventoryv1.InventoryServiceClient

	mu    sync.Mutex // held while inventory is asked, so that others wait for the same answer
	asked time.Time
	items []*inventoryv1.Item
	text  rest.File // as JSON
	err   error
}

// read returns the products, and the same as JSON, at most catalogueAge old; or an error.
func (c *catalogue) read(ctx context.Context) ([]*inventoryv1.Item, rest.File, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.asked) < catalogueAge {
		return c.items, c.text, c.err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), readTimeout) // the answer is for others too
	defer cancel()
	list, err := c.inventory.ListItems(ctx, &inventoryv1.ListItemsRequest{PageSize: catalogueSize})
	c.items, c.text, c.err = list.GetItems(), rest.File{}, err
	if err == nil {
		var text []byte
		text, c.err = rest.JSON.Marshal(list)
		c.text = rest.NewFile("application/json", text)
	}
	c.asked = time.Now()
	return c.items, c.text, c.err
}

// serveCatalogue serves the products in the form of GET /v1/inventory; 304 if they have not changed.
func (p *page) serveCatalogue(w http.ResponseWriter, r *http.Request, _ map[string]string) {
	_, text, err := p.catalogue.read(r.Context())
	if err != nil {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = w.Write([]byte(`{"message":"the catalogue is unavailable"}`)) // fails when the client has gone
		return
	}
	text.Serve(w, r)
}
