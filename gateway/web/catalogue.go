package web

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"sync"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	inventoryv1 "shop.example/gen/shop/inventory/v1"
)

const (
	// catalogueSize is how many products the page shows at most.
	catalogueSize = 100
	// catalogueAge is how old the figures on a page may be when it asks for them.
	catalogueAge = 500 * time.Millisecond
	// patience bounds how long a page waits for the service that it shows something of. The page comes without it then.
	patience = 2 * time.Second
)

// catalogue is what pages show of the stock. However many pages are open, inventory is asked twice a second: asked by
// each of 200 it took a seventh of the orders that the shop could have settled meanwhile. It is safe for concurrent use.
type catalogue struct {
	inventory inventoryv1.InventoryServiceClient

	mu    sync.Mutex // held while inventory is asked: whoever else wants to know waits for the answer
	asked time.Time
	items []*inventoryv1.Item
	text  file // as JSON
	err   error
}

// read returns the products, and the same as JSON, as they were within catalogueAge; or why they are not known.
func (c *catalogue) read(ctx context.Context) ([]*inventoryv1.Item, file, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.asked) < catalogueAge {
		return c.items, c.text, c.err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience) // the answer is for others too
	defer cancel()
	list, err := c.inventory.ListItems(ctx, &inventoryv1.ListItemsRequest{PageSize: catalogueSize})
	c.items, c.text, c.err = list.GetItems(), file{}, err
	if err == nil {
		c.text.content, c.err = protojson.MarshalOptions{UseProtoNames: true, EmitDefaultValues: true}.Marshal(list)
		c.text.etag = etagOf(c.text.content)
	}
	c.asked = time.Now()
	return c.items, c.text, c.err
}

// serveCatalogue serves the figures in the form of GET /v1/inventory, and only where they have changed.
func (p *page) serveCatalogue(w http.ResponseWriter, r *http.Request, _ map[string]string) {
	_, text, err := p.catalogue.read(r.Context())
	header := w.Header()
	header.Set("Content-Type", "application/json")
	if err != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = w.Write([]byte(`{"message":"the catalogue does not answer"}`)) // fails when the client has gone
		return
	}
	header.Set("Cache-Control", "no-cache")
	header.Set("ETag", text.etag)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(text.content))
}

func etagOf(content []byte) string {
	sum := sha256.Sum256(content)
	return `"` + hex.EncodeToString(sum[:8]) + `"`
}
