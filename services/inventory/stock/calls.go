package stock

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"shop.example/domain/enduser"
	"shop.example/domain/idempotency"
	"shop.example/domain/money"
	"shop.example/domain/text"
	eventsv1 "shop.example/gen/shop/events/v1"
	inventoryv1 "shop.example/gen/shop/inventory/v1"
	moneyv1 "shop.example/gen/shop/money/v1"
	"shop.example/platform/apierror"
	"shop.example/platform/failpoint"
	"shop.example/platform/fieldmask"
	"shop.example/platform/pagetoken"
)

// stockServer serves StockService.
type stockServer struct {
	inventoryv1.UnimplementedStockServiceServer
	*store
}

func (c stockServer) CheckStock(ctx context.Context, req *inventoryv1.CheckStockRequest) (*inventoryv1.CheckStockResponse, error) {
	orders := make([]order, len(req.GetOrders()))
	for i, m := range req.GetOrders() {
		o, err := newOrder(m)
		if err != nil {
			return nil, apierror.InvalidArgument(apierror.Violation{Field: fmt.Sprintf("orders[%d].order_id", i), Description: "must be a UUID"})
		}
		orders[i] = o
	}
	a, err := c.check(ctx, orders)
	if err != nil {
		return nil, err
	}
	failpoint.Hit("inventory.held")
	c.logDecisions(ctx, a.fresh)
	resp := &inventoryv1.CheckStockResponse{Decisions: make([]*inventoryv1.StockDecision, len(orders))}
	for i, o := range orders {
		resp.Decisions[i] = a.decisions[o.id]
	}
	return resp, nil
}

func newOrder(m *inventoryv1.CheckStockRequest_Order) (order, error) {
	id, err := uuid.Parse(m.GetOrderId())
	if err != nil {
		return order{}, err
	}
	o := order{id: id, lines: make([]line, len(m.GetLines()))}
	for i, l := range m.GetLines() {
		o.lines[i] = line{productID: l.GetProductId(), productName: l.GetProductName(), quantity: l.GetQuantity()}
		if e := l.GetExpectedUnitPrice(); e != nil {
			o.lines[i].expected = &price{money.Minor(e), e.GetCurrencyCode()}
		}
	}
	return o, nil
}

// message returns the decision in the form in which it is sent, and stored to be sent again.
func (d decision) message() *inventoryv1.StockDecision {
	m := &inventoryv1.StockDecision{OrderId: d.order.id.String()}
	if d.reason != "" {
		m.Rejection = &inventoryv1.StockDecision_Rejection{
			Reason: eventsv1.OrderRejected_Reason(eventsv1.OrderRejected_Reason_value[string(d.reason)]),
			Detail: d.detail,
		}
		return m
	}
	m.Lines = make([]*eventsv1.PricedLine, len(d.lines))
	for i, l := range d.lines {
		m.Lines[i] = &eventsv1.PricedLine{
			Line: int32(i) + 1, ProductId: l.productID, ProductName: l.productName, Quantity: l.quantity, //nolint:gosec // at most 100 lines
			UnitPrice: money.FromMinor(l.unitPrice.minor, l.unitPrice.currency),
		}
	}
	return m
}

// inventoryServer serves InventoryService.
type inventoryServer struct {
	inventoryv1.UnimplementedInventoryServiceServer
	*store
}

const itemList = "items" // the list in its page tokens; it has no filters

func (c inventoryServer) ListItems(ctx context.Context, req *inventoryv1.ListItemsRequest) (*inventoryv1.ListItemsResponse, error) {
	after, err := pagetoken.ParseID(req.GetPageToken(), itemList)
	if err != nil {
		return nil, err
	}
	size := pagetoken.Size(req.GetPageSize())
	products, err := listItems(ctx, c.db, after, size+1) // one more than a page says whether there is another page
	if err != nil {
		return nil, err
	}
	resp := &inventoryv1.ListItemsResponse{}
	if len(products) > size {
		products = products[:size]
		resp.NextPageToken = pagetoken.NewID(int64(products[size-1].ID), itemList)
	}
	resp.Items = itemsOf(products)
	return resp, nil
}

func (c inventoryServer) GetItem(ctx context.Context, req *inventoryv1.GetItemRequest) (*inventoryv1.GetItemResponse, error) {
	p, err := readItem(ctx, c.db, req.GetId())
	if err != nil {
		return nil, err
	}
	return &inventoryv1.GetItemResponse{Item: p.item()}, nil
}

func (c inventoryServer) CreateItems(ctx context.Context, req *inventoryv1.CreateItemsRequest) (*inventoryv1.CreateItemsResponse, error) {
	items, err := readNewItems(c.store, req.GetItems())
	if err != nil {
		return nil, err
	}
	var resp *inventoryv1.CreateItemsResponse
	var replayed bool
	hashes := idempotency.Of(ctx)
	done, err := c.changeCatalogue(ctx, enduser.Operator(ctx), inventoryv1.InventoryService_CreateItems_FullMethodName, func(tx *sqlx.Tx) (done catalogueChange, err error) {
		if len(hashes) == 0 {
			return createItems(ctx, tx, items)
		}
		done, resp, replayed, err = c.createOnce(ctx, tx, hashes, items)
		return done, err
	})
	switch {
	case err != nil:
		return nil, err
	case len(hashes) == 0:
		return &inventoryv1.CreateItemsResponse{Items: itemsOf(done.products)}, nil
	case replayed:
		idempotency.MarkReplayed(ctx)
	}
	return resp, nil
}

func (c inventoryServer) UpdateItem(ctx context.Context, req *inventoryv1.UpdateItemRequest) (*inventoryv1.UpdateItemResponse, error) {
	update, err := c.readUpdate(req)
	if err != nil {
		return nil, err
	}
	done, err := c.changeCatalogue(ctx, enduser.Operator(ctx), inventoryv1.InventoryService_UpdateItem_FullMethodName, func(tx *sqlx.Tx) (catalogueChange, error) {
		return updateItems(ctx, tx, []itemUpdate{update})
	})
	if err != nil {
		return nil, err
	}
	return &inventoryv1.UpdateItemResponse{Item: done.products[0].item()}, nil
}

func (c inventoryServer) DeleteItem(ctx context.Context, req *inventoryv1.DeleteItemRequest) (*inventoryv1.DeleteItemResponse, error) {
	_, err := c.changeCatalogue(ctx, enduser.Operator(ctx), inventoryv1.InventoryService_DeleteItem_FullMethodName, func(tx *sqlx.Tx) (catalogueChange, error) {
		return deleteItems(ctx, tx, []int32{req.GetId()}, req.GetEtag())
	})
	if err != nil {
		return nil, err
	}
	return &inventoryv1.DeleteItemResponse{}, nil
}

// The bounds of a product in the contracts of the messages, which an update by call has to keep too.
const (
	maxNameLength = 200 // characters
	maxOnHand     = 1_000_000_000
)

// readUpdate reads which fields to change, by the rules of AIP-134: without a mask those that are set, with the mask "*"
// all. Over REST the mask lists the leaves of the body: the parts of the price, for example, and the fields that a client
// merely sends back.
func (c inventoryServer) readUpdate(req *inventoryv1.UpdateItemRequest) (itemUpdate, error) {
	m := req.GetItem()
	u := itemUpdate{id: m.GetId(), etag: m.GetEtag(), read: m}
	paths := fieldmask.Paths(req.GetUpdateMask(), m, "product_name", "on_hand", "price")
	for _, path := range paths {
		field, _, _ := strings.Cut(path, ".")
		switch field {
		case "id", "etag":
		case "product_name":
			name, violation := readProductName(m.GetProductName())
			if violation != "" {
				return u, invalidItem(field, "%s", violation)
			}
			u.name = &name
		case "on_hand":
			if m.GetOnHand() < 0 || m.GetOnHand() > maxOnHand {
				return u, invalidItem(field, "must be from 0 to %d", maxOnHand)
			}
			u.onHand = &m.OnHand
		case "price":
			if m.GetPrice() == nil {
				return u, invalidItem(field, "is required if update_mask names it")
			}
			if !slices.Contains(paths, field) && !slices.Contains(paths, "price.units") { // without it 1000.99 would become 0.99
				return u, invalidItem("price.units", "is required: a price is set as a whole")
			}
			p, err := c.price(m.GetPrice(), "item.price")
			if err != nil {
				return u, err
			}
			u.price = &p
		case "quantity", "reserved", "created_at", "updated_at":
			u.asRead = append(u.asRead, protoreflect.Name(field))
		default:
			return u, invalidItem(path, "cannot be changed: product_name, on_hand and price can")
		}
	}
	if u.name == nil && u.onHand == nil && u.price == nil {
		return u, apierror.InvalidArgument(apierror.Violation{Field: "update_mask", Description: "must name product_name, on_hand or price"})
	}
	return u, nil
}

// readProductName returns a name in the form in which the catalogue stores it, or what is wrong with it. Orders find
// products by their names, so two names that look the same must be the same.
func readProductName(given string) (name, violation string) {
	name = text.Normal(given)
	if n := utf8.RuneCountInString(name); n == 0 || n > maxNameLength {
		return "", fmt.Sprintf("must be 1 to %d characters long", maxNameLength)
	}
	if !text.Visible(name) {
		return "", text.Rule
	}
	return name, ""
}

func invalidItem(field, format string, args ...any) error {
	return apierror.InvalidArgument(apierror.Violation{Field: "item." + field, Description: fmt.Sprintf(format, args...)})
}

// readNewItems reads the items of a call or a message, which have the same fields.
func readNewItems[T interface {
	GetProductName() string
	GetQuantity() int32
	GetPrice() *moneyv1.Money
}](st *store, messages []T) ([]newItem, error) {
	items := make([]newItem, len(messages))
	for i, m := range messages {
		name, violation := readProductName(m.GetProductName())
		if violation != "" {
			return nil, apierror.InvalidArgument(apierror.Violation{Field: fmt.Sprintf("items[%d].product_name", i), Description: violation})
		}
		p, err := st.price(m.GetPrice(), fmt.Sprintf("items[%d].price", i))
		if err != nil {
			return nil, err
		}
		items[i] = newItem{name: name, onHand: m.GetQuantity(), price: p}
	}
	return items, nil
}

// price reads a price of the catalogue, which has one currency. field is the price's path in the request, for errors.
func (st *store) price(m *moneyv1.Money, field string) (price, error) {
	if m.GetCurrencyCode() != st.currency {
		return price{}, apierror.InvalidArgument(apierror.Violation{Field: field + ".currency_code", Description: "must be " + st.currency})
	}
	if err := money.Check(m); err != nil {
		return price{}, apierror.InvalidArgument(apierror.Violation{Field: field, Description: err.Error()})
	}
	return price{money.Minor(m), m.GetCurrencyCode()}, nil
}

func itemsOf(products []product) []*inventoryv1.Item {
	items := make([]*inventoryv1.Item, len(products))
	for i, p := range products {
		items[i] = p.item()
	}
	return items
}

func (p product) item() *inventoryv1.Item {
	return &inventoryv1.Item{
		Id: p.ID, ProductName: p.Name, Quantity: p.available(), OnHand: p.OnHand, Reserved: p.Reserved,
		Price:     money.FromMinor(p.UnitPrice, p.Currency),
		CreatedAt: timestamppb.New(p.CreatedAt), UpdatedAt: timestamppb.New(p.UpdatedAt), Etag: p.etag(),
	}
}
