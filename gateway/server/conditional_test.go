package server

import (
	"context"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	inventoryv1 "shop.example/gen/shop/inventory/v1"
	orderv1 "shop.example/gen/shop/order/v1"
	"shop.example/platform/apierror"
)

// catalogueOfOne is an inventory service with item 5, whose version is in its etag, and an order service with one order.
type catalogueOfOne struct {
	inventoryv1.UnimplementedInventoryServiceServer
	orderv1.UnimplementedOrderServiceServer

	mu      sync.Mutex
	version int
	deleted bool
	order   *orderv1.Order
	raced   bool // somebody else changes the item after each read
}

func (c *catalogueOfOne) item() *inventoryv1.Item {
	return &inventoryv1.Item{Id: 5, OnHand: 7, Etag: strconv.Itoa(c.version)}
}

func (c *catalogueOfOne) find(id int32, etag string) error {
	switch {
	case id != 5 || c.deleted:
		return apierror.New(codes.NotFound, "ITEM_NOT_FOUND", "there is no item %d", id)
	case etag != "" && etag != strconv.Itoa(c.version):
		return apierror.New(codes.Aborted, "ETAG_MISMATCH", "item %d has changed", id)
	}
	return nil
}

func (c *catalogueOfOne) GetItem(_ context.Context, req *inventoryv1.GetItemRequest) (*inventoryv1.GetItemResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.find(req.GetId(), ""); err != nil {
		return nil, err
	}
	resp := &inventoryv1.GetItemResponse{Item: c.item()}
	if c.raced {
		c.version++
	}
	return resp, nil
}

func (c *catalogueOfOne) UpdateItem(_ context.Context, req *inventoryv1.UpdateItemRequest) (*inventoryv1.UpdateItemResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.find(req.GetItem().GetId(), req.GetItem().GetEtag()); err != nil {
		return nil, err
	}
	c.version++
	return &inventoryv1.UpdateItemResponse{Item: c.item()}, nil
}

func (c *catalogueOfOne) DeleteItem(_ context.Context, req *inventoryv1.DeleteItemRequest) (*inventoryv1.DeleteItemResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.find(req.GetId(), req.GetEtag()); err != nil {
		return nil, err
	}
	c.deleted = true
	return &inventoryv1.DeleteItemResponse{}, nil
}

func (c *catalogueOfOne) GetOrder(context.Context, *orderv1.GetOrderRequest) (*orderv1.GetOrderResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return &orderv1.GetOrderResponse{Order: proto.CloneOf(c.order)}, nil
}

func (c *catalogueOfOne) CancelOrder(context.Context, *orderv1.CancelOrderRequest) (*orderv1.CancelOrderResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.order.State, c.order.UpdatedAt = orderv1.Order_CANCELLED, timestamppb.Now()
	return &orderv1.CancelOrderResponse{Order: proto.CloneOf(c.order)}, nil
}

func serveCatalogueOfOne(t *testing.T) (*catalogueOfOne, func(call, body string, headers ...string) answer) {
	t.Helper()
	c := &catalogueOfOne{version: 1, order: &orderv1.Order{Id: storedOrder, State: orderv1.Order_CONFIRMED, CustomerName: "Ada"}}
	addr := backend(t, func(s grpc.ServiceRegistrar) {
		inventoryv1.RegisterInventoryServiceServer(s, c)
		orderv1.RegisterOrderServiceServer(s, c)
	})
	g := startGateway(t, Config{OrderAddr: addr, InventoryAddr: addr})
	return c, func(call, body string, headers ...string) answer {
		t.Helper()
		method, path, _ := strings.Cut(call, " ")
		return send(t, method, "http://"+g.HTTPAddr()+path, body, append(headers, "Authorization: Bearer "+operatorToken)...)
	}
}

func TestETag_AReadThatFindsWhatTheClientHasIs304(t *testing.T) {
	t.Parallel()
	c, do := serveCatalogueOfOne(t)
	const item, order = "GET /v1/inventory/5", "GET /v1/orders/" + storedOrder
	for _, call := range []string{item, order} {
		first := do(call, "")
		tag := first.header.Get("ETag")
		if first.status != http.StatusOK || len(tag) < 3 || tag[0] != '"' {
			t.Fatalf("%s: %d, ETag %s", call, first.status, tag)
		}
		for header, want := range map[string]int{
			"If-None-Match: " + tag: 304, "If-None-Match: W/" + tag: 304, "If-None-Match: *": 304, `If-None-Match: "other", ` + tag: 304,
			`If-None-Match: "other"`: 200, "If-Match: " + tag: 200, "If-Match: *": 200, `If-Match: "other"`: 412, "If-Match: other": 400,
		} {
			got := do(call, "", header)
			if got.status != want || want == 304 && (got.body != "" || got.header.Get("ETag") != tag) {
				t.Errorf("%s with %s: %d %s", call, header, got.status, got.body)
			}
			if want == 412 && got.failure(t).reason() != "PRECONDITION_FAILED" {
				t.Errorf("%s with %s: %s", call, header, got.body)
			}
		}
		c.mu.Lock()
		c.version++
		c.order.CustomerName += ", erased" // and nothing else, as when personal data are erased
		c.mu.Unlock()
		if again := do(call, "", "If-None-Match: "+tag); again.status != http.StatusOK || again.header.Get("ETag") == tag {
			t.Errorf("%s, after a change: %d, ETag %s as before", call, again.status, tag)
		}
	}
	if head := do("HEAD /v1/inventory/5", "", "If-None-Match: *"); head.status != http.StatusNotModified {
		t.Errorf("HEAD: %d", head.status)
	}
	if missing := do("GET /v1/inventory/6", "", "If-None-Match: *", "If-Match: *"); missing.status != http.StatusNotFound {
		t.Errorf("what is not there: %d", missing.status)
	}
}

func TestIfMatch_AChangeOfWhatHasChangedIs412(t *testing.T) {
	t.Parallel()
	c, do := serveCatalogueOfOne(t)
	const update, body = "PATCH /v1/inventory/5", `{"on_hand":7}`
	tag := do("GET /v1/inventory/5", "").header.Get("ETag")
	for _, wrong := range []string{`If-Match: "0"`, "If-Match: W/" + tag, "If-None-Match: *", "If-None-Match: " + tag} {
		for _, call := range []string{update, "DELETE /v1/inventory/5"} {
			if got := do(call, body, wrong); got.status != http.StatusPreconditionFailed || got.failure(t).reason() != "PRECONDITION_FAILED" {
				t.Errorf("%s with %s: %d %s", call, wrong, got.status, got.body)
			}
		}
	}
	if got := do(update, `{"on_hand":7,"etag":"0"}`); got.status != http.StatusConflict || got.failure(t).reason() != "ETAG_MISMATCH" {
		t.Errorf("with an old etag in the body: %d %s", got.status, got.body)
	}
	updated := do(update, body, `If-Match: "0", `+tag)
	if updated.status != http.StatusOK || updated.header.Get("ETag") != `"2"` {
		t.Fatalf("with its tag: %d %s", updated.status, updated.body)
	}
	// Whoever changes it between the gateway's look and the change is not overwritten.
	c.mu.Lock()
	c.raced = true
	c.mu.Unlock()
	if got := do(update, body, `If-Match: "2"`); got.status != http.StatusPreconditionFailed {
		t.Errorf("after a change in between: %d %s", got.status, got.body)
	}
	c.mu.Lock()
	c.raced = false
	c.mu.Unlock()
	if got := do("PATCH /v1/inventory/6", body, `If-Match: "2"`); got.status != http.StatusNotFound {
		t.Errorf("what is not there: %d %s", got.status, got.body)
	}
	if got := do("DELETE /v1/inventory/5", "", "If-Match: "+do("GET /v1/inventory/5", "").header.Get("ETag")); got.status != http.StatusOK || !c.deleted {
		t.Errorf("deleting it: %d %s", got.status, got.body)
	}
}

func TestIfMatch_AnOrderThatHasChangedIsNotCancelled(t *testing.T) {
	t.Parallel()
	c, do := serveCatalogueOfOne(t)
	const cancel = "POST /v1/orders/" + storedOrder + ":cancel"
	tag := do("GET /v1/orders/"+storedOrder, "").header.Get("ETag")
	if got := do(cancel, "{}", `If-Match: "other"`); got.status != http.StatusPreconditionFailed || c.order.GetState() != orderv1.Order_CONFIRMED {
		t.Errorf("with another tag: %d %s", got.status, got.body)
	}
	got := do(cancel, "{}", "If-Match: "+tag)
	if got.status != http.StatusOK || c.order.GetState() != orderv1.Order_CANCELLED {
		t.Errorf("with its tag: %d %s", got.status, got.body)
	}
	if now := do("GET /v1/orders/"+storedOrder, "").header.Get("ETag"); now != got.header.Get("ETag") || now == tag {
		t.Errorf("its tag is %s, the answer's %s, and was %s", now, got.header.Get("ETag"), tag)
	}
}

// A compressed answer has a tag of its own, which means the same.
func TestETag_OfACompressedOrderIsGoodToo(t *testing.T) {
	t.Parallel()
	c, do := serveCatalogueOfOne(t)
	for line := range int32(50) {
		c.order.OrderItems = append(c.order.OrderItems, &orderv1.OrderItem{Line: line + 1, ProductId: 5, ProductName: "Laptop Stand", Quantity: 1})
	}
	const read, accept = "GET /v1/orders/" + storedOrder, "Accept-Encoding: gzip"
	plain, packed := do(read, "", "Accept-Encoding: identity"), do(read, "", accept)
	if packed.header.Get("Content-Encoding") != "gzip" || len(packed.body) > len(plain.body)/4 || plain.header.Get("Content-Encoding") != "" {
		t.Fatalf("%d bytes %v, plain %d bytes %v", len(packed.body), packed.header, len(plain.body), plain.header)
	}
	tag := packed.header.Get("ETag")
	if tag == plain.header.Get("ETag") {
		t.Errorf("both forms have the tag %s", tag)
	}
	if again := do(read, "", accept, "If-None-Match: "+tag); again.status != http.StatusNotModified || again.header.Get("ETag") != tag {
		t.Errorf("once more: %d %v", again.status, again.header)
	}
	if got := do("POST /v1/orders/"+storedOrder+":cancel", "{}", "If-Match: "+tag); got.status != http.StatusOK {
		t.Errorf("cancelling it: %d %s", got.status, got.body)
	}
}
