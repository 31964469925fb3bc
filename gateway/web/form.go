package web

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"shop.example/domain/money"
	checkoutv1 "shop.example/gen/shop/checkout/v1"
	eventsv1 "shop.example/gen/shop/events/v1"
	inventoryv1 "shop.example/gen/shop/inventory/v1"
	moneyv1 "shop.example/gen/shop/money/v1"
	orderv1 "shop.example/gen/shop/order/v1"
	"shop.example/platform/apierror"
)

// The names of the form's fields; the product's id follows those of a product.
const (
	nameField     = "customer_name"
	emailField    = "customer_email"
	keyField      = "idempotency_key"
	quantityField = "quantity."
	priceField    = "price."
	unsureField   = "may_be_placed"
)

const (
	// maxForm is the maximum size of a form, in bytes; with all fields of all products filled in it has 12 KB.
	maxForm = 16 << 10
	// maxLines is how many products an order may have, see PlaceOrderRequest. The form is shown again with its errors: if
	// it had a row for every field that somebody made up, it could become a page of megabytes.
	maxLines = 100
)

// form is the content of the front page: the catalogue, and the order as far as it has been filled in.
type form struct {
	Modules      []string // that the page runs at once
	Demo         bool     // whether operators can break the shop under /demo
	TraceURL     string   // of the page of a trace
	DashboardURL string   // of the dashboards
	Products     []product
	PageToken    string // of the page of the catalogue that is shown; "" for the first
	NextPage     string // the token of the next one; "" if there is none
	Notice       string // why there is no catalogue; "" if there is
	Key          string // the order's idempotency key: a form that is sent twice is one order
	Name         string
	Email        string
	// What is wrong: with a field, and with the order as a whole.
	NameError, EmailError, Problem string

	// Unsure says that the order may have been accepted: sent again it must be the same, at the same prices.
	Unsure bool

	lines []line
}

// product is a row of the form.
type product struct {
	ID        int32
	Name      string
	Price     string // for people
	UnitPrice string // for the form: what the customer saw, see readPrice
	Available int32
	OnHand    int32
	Reserved  int32
	Quantity  string // as it was entered
	Error     string
}

// line is what was entered for one product.
type line struct {
	id       int32
	entered  string
	quantity int32
	price    *moneyv1.Money // nil if the form does not say what the customer saw
	problem  string
}

// Blank returns the template of a row, from which JavaScript makes rows of products that appear later.
func (*form) Blank() product { return product{} }

func newForm() *form { return &form{Key: rand.Text()} }

// The forms that no page of ours makes.
var (
	errTooManyLines = fmt.Errorf("an order can have at most %d products", maxLines)
	errNotUTF8      = errors.New("the form is not in UTF-8")
)

// readForm reads a posted form. Errors in its fields are put into the form; the error is about a request that no page of
// ours sends.
func readForm(w http.ResponseWriter, r *http.Request) (*form, error) {
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	if err := r.ParseForm(); err != nil {
		return nil, fmt.Errorf("reading the form: %w", err)
	}
	f := &form{
		Key:       r.PostForm.Get(keyField),
		PageToken: r.PostForm.Get(pageToken),
		Name:      strings.TrimSpace(r.PostForm.Get(nameField)),
		Email:     strings.TrimSpace(r.PostForm.Get(emailField)),
		Unsure:    r.PostForm.Has(unsureField),
	}
	if !utf8.ValidString(f.Key + f.PageToken + f.Name + f.Email) {
		return nil, errNotUTF8
	}
	for field, values := range r.PostForm {
		id, found := strings.CutPrefix(field, quantityField)
		entered := strings.TrimSpace(values[0])
		if !found || entered == "" || entered == "0" {
			continue
		}
		n, err := strconv.ParseInt(id, 10, 32)
		if err != nil || strconv.FormatInt(n, 10) != id {
			continue // not a field of this form: 05 would be a second line of product 5
		}
		l := line{id: int32(n), entered: entered, price: readPrice(r.PostForm.Get(priceField + id))}
		if quantity, err := strconv.ParseInt(entered, 10, 32); err == nil {
			l.quantity = int32(quantity)
		} else {
			l.problem = "must be a whole number"
		}
		f.lines = append(f.lines, l)
	}
	if len(f.lines) > maxLines {
		return nil, errTooManyLines
	}
	slices.SortFunc(f.lines, func(a, b line) int { return int(a.id) - int(b.id) })
	return f, nil
}

// fill puts the catalogue into the form, with the entries in the rows of their products.
func (f *form) fill(items []*inventoryv1.Item) {
	for _, item := range items {
		f.Products = append(f.Products, product{
			ID: item.GetId(), Name: item.GetProductName(), Price: price(item.GetPrice()), UnitPrice: writePrice(item.GetPrice()),
			Available: item.GetQuantity(), OnHand: item.GetOnHand(), Reserved: item.GetReserved(),
		})
	}
	for _, l := range f.lines {
		i := slices.IndexFunc(f.Products, func(p product) bool { return p.ID == l.id })
		if i < 0 { // no longer there, or not known at the moment: the entry stays all the same
			f.Products = append(f.Products, product{ID: l.id, Name: fmt.Sprintf("Product %d", l.id)})
			i = len(f.Products) - 1
		}
		f.Products[i].Quantity, f.Products[i].Error = l.entered, l.problem
		if f.Unsure && l.price != nil {
			f.Products[i].UnitPrice = writePrice(l.price)
		}
	}
}

func (f *form) request() *checkoutv1.PlaceOrderRequest {
	request := &checkoutv1.PlaceOrderRequest{CustomerName: f.Name, CustomerEmail: f.Email}
	for _, l := range f.lines {
		request.OrderItems = append(request.OrderItems, &checkoutv1.PlaceOrderRequest_Item{
			ProductId: l.id, Quantity: l.quantity, ExpectedUnitPrice: l.price,
		})
	}
	return request
}

// describeError puts an error of PlaceOrder beside the fields that it is about.
func (f *form) describeError(err error) {
	s := status.Convert(err)
	if s.Code() == codes.AlreadyExists {
		f.Key, f.Unsure = rand.Text(), false
		f.Problem = "This form has already placed another order. Submit it again to place this one, too."
		return
	}
	violations := 0
	for _, detail := range s.Details() {
		bad, _ := detail.(*errdetails.BadRequest)
		for _, v := range bad.GetFieldViolations() {
			violations++
			f.setFieldError(v.GetField(), v.GetDescription())
		}
	}
	if violations > 0 {
		return
	}
	f.Problem = "The order was not placed: " + s.Message() + "."
	if f.Unsure = f.Unsure || mayBePlaced(err); f.Unsure {
		f.Problem = "The order may not have been placed: " + s.Message() + ". Submit it again as it is: you will not order twice."
	}
}

// mayBePlaced reports whether an order may have been accepted although PlaceOrder failed.
func mayBePlaced(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable:
		return !slices.Contains([]string{"OVERLOADED", "ORDER_QUEUE_UNAVAILABLE"}, apierror.ReasonOf(err))
	case codes.Internal, codes.DeadlineExceeded, codes.Canceled, codes.Unknown:
		return true
	}
	return false
}

// setFieldError puts an error beside the field that it is about, or above the form if there is no such field.
func (f *form) setFieldError(field, description string) {
	var i int
	switch {
	case field == nameField:
		f.NameError = description
		if f.Name == "" {
			f.NameError = "Enter your name"
		}
	case field == emailField:
		f.EmailError = "Enter an email address"
		if f.Email != "" {
			f.EmailError = "Enter an email address such as ada@example.org"
		}
	case len(f.lines) == 0:
		f.Problem = "Add at least one product"
	default:
		if _, err := fmt.Sscanf(field, "order_items[%d]", &i); err != nil || i < 0 || i >= len(f.lines) {
			f.Problem = field + " " + description
			return
		}
		f.lines[i].problem = description
	}
}

// hasParseErrors reports whether an entry is not a number.
func (f *form) hasParseErrors() bool {
	return slices.ContainsFunc(f.lines, func(l line) bool { return l.problem != "" })
}

// placeOrder places the order of a form and redirects to the page of the order, or shows the form again with its errors.
func (p *page) placeOrder(w http.ResponseWriter, r *http.Request, _ map[string]string) {
	f, err := readForm(w, r)
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		http.Error(w, fmt.Sprintf("the form is larger than %d bytes", maxForm), http.StatusRequestEntityTooLarge)
		return
	case errors.Is(err, errTooManyLines):
		http.Error(w, err.Error(), http.StatusUnprocessableEntity)
		return
	case err != nil:
		http.Error(w, "the form cannot be decoded", http.StatusBadRequest)
		return
	}
	if f.hasParseErrors() {
		p.showFront(r.Context(), w, http.StatusUnprocessableEntity, f)
		return
	}
	ctx := r.Context()
	if f.Key != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "idempotency-key", f.Key)
	}
	placed, err := p.orders.PlaceOrder(ctx, f.request())
	if err != nil {
		f.describeError(err)
		p.showFront(r.Context(), w, refusalStatus(err), f)
		return
	}
	http.Redirect(w, r, "/orders/"+placed.GetOrder().GetId(), http.StatusSeeOther)
}

// refusalStatus returns the HTTP status of a form that was refused: that of the API, except for a form with wrong fields.
func refusalStatus(err error) int {
	code := status.Code(err)
	if code == codes.InvalidArgument {
		return http.StatusUnprocessableEntity
	}
	return runtime.HTTPStatusFromCode(code)
}

// orderView is the content of an order's page.
type orderView struct {
	ID      string       // "" if it is shared
	Short   string       // what people call it
	Shared  bool         // it is shown to somebody who may only see it
	Unknown bool         // there is no such order
	Order   decidedOrder // nil while it has not been decided
	State   string
	Message string
	Total   string
	Lines   []lineView
}

// decidedOrder is an order as its customer sees it, or as others do.
type decidedOrder interface {
	GetState() orderv1.Order_State
	GetReason() eventsv1.OrderRejected_Reason
	GetRejectionDetail() string
	GetOrderItems() []*orderv1.OrderItem
	GetTotalItems() int32
	GetTotalValue() *moneyv1.Money
}

type lineView struct {
	Name     string
	Quantity int32
	Price    string
}

// messages are the texts for each state, and for each reason of a rejection.
var messages = map[string]string{
	"PENDING":                "Accepted and safely queued. Checking stock… This page refreshes every second.",
	"CONFIRMED":              "Your order is confirmed.",
	"CANCELLED":              "The order was cancelled, and its items are back in stock.",
	"OUT_OF_STOCK":           "The order was rejected: not enough stock. Nothing was reserved. Order less.",
	"UNKNOWN_PRODUCT":        "The order was rejected: a product is no longer available. Nothing was reserved.",
	"PRICE_CHANGED":          "The order was rejected: a price has changed since you saw it. Nothing was reserved.",
	"IDEMPOTENCY_KEY_REUSED": "The order was rejected: its form has placed another order before. Nothing was reserved. Place the order again.",
	"AMOUNT_TOO_LARGE":       "The order was rejected: it is worth more than the shop can handle. Nothing was reserved. Order less.",
	"DISCARDED":              "The order was rejected: the shop could not process it. Nothing was reserved.",
	"MIXED_CURRENCIES":       "The order was rejected: the prices of its products are in different currencies. Nothing was reserved.",
}

// messageOf returns the text for a state or reason; the name itself if it comes from a newer release.
func messageOf(name string) string {
	return cmp.Or(messages[name], "The order is "+name+".")
}

// serveOrder serves the page of an order, to everybody who knows its id.
func (p *page) serveOrder(w http.ResponseWriter, r *http.Request, inPath map[string]string) {
	view := orderView{ID: inPath["order_id"], Short: short(inPath["order_id"]), State: orderv1.Order_PENDING.String()}
	ctx, cancel := context.WithTimeout(r.Context(), readTimeout)
	defer cancel()
	got, err := p.decided.GetOrder(ctx, &orderv1.GetOrderRequest{OrderId: view.ID})
	switch status.Code(err) {
	case codes.OK:
		view.show(got.GetOrder())
	case codes.InvalidArgument:
		http.Error(w, "there is no order with this address", http.StatusNotFound)
		return
	case codes.NotFound:
		view.State, view.Unknown = "NOT FOUND", true
		view.Message = "There is no order with this id. Check the link; if the order was placed a moment ago, reload this page."
		p.write(w, http.StatusNotFound, "order.html", view)
		return
	case codes.Unauthenticated, codes.PermissionDenied:
		http.Error(w, status.Convert(err).Message(), refusalStatus(err))
		return
	default:
		p.writeUnavailable(w, view)
		return
	}
	if view.Message == "" {
		view.Message = messageOf(view.State)
	}
	p.write(w, http.StatusOK, "order.html", view)
}

// serveShared serves the page of an order to somebody who has a link to it that shows it, and no more.
func (p *page) serveShared(w http.ResponseWriter, r *http.Request, inPath map[string]string) {
	view := orderView{Shared: true, State: orderv1.Order_PENDING.String()}
	ctx, cancel := context.WithTimeout(r.Context(), readTimeout)
	defer cancel()
	got, err := p.shared.GetSharedOrder(ctx, &checkoutv1.GetSharedOrderRequest{ShareToken: inPath["share_token"]})
	switch status.Code(err) {
	case codes.OK:
		view.Short = got.GetOrder().GetReference()
		view.show(got.GetOrder())
		view.Message = strings.Replace(view.Message, "Your order", "The order", 1) // whoever sees it need not have placed it
	case codes.NotFound, codes.InvalidArgument:
		view.State, view.Unknown = "NOT FOUND", true
		view.Message = "This link shows no order, or not any more. Ask whoever shared it for a new one."
		p.write(w, http.StatusNotFound, "order.html", view)
		return
	case codes.Unauthenticated, codes.PermissionDenied:
		http.Error(w, status.Convert(err).Message(), refusalStatus(err))
		return
	default:
		p.writeUnavailable(w, view)
		return
	}
	if view.Message == "" {
		view.Message = messageOf(view.State)
	}
	p.write(w, http.StatusOK, "order.html", view)
}

// writeUnavailable writes the page of an order that cannot be read: it may be decided, or not exist.
func (p *page) writeUnavailable(w http.ResponseWriter, view orderView) {
	view.State = "UNKNOWN"
	view.Message = "The shop cannot say at the moment how this order stands. If it was accepted, it is safe and will be decided. This page tries again every second."
	p.write(w, http.StatusServiceUnavailable, "order.html", view)
}

func (v *orderView) show(o decidedOrder) {
	if o.GetState() == orderv1.Order_PENDING {
		return
	}
	v.Order, v.State, v.Total = o, o.GetState().String(), price(o.GetTotalValue())
	v.Message = messageOf(v.State)
	if o.GetReason() != eventsv1.OrderRejected_REASON_UNSPECIFIED {
		v.Message = messageOf(o.GetReason().String())
		if detail := o.GetRejectionDetail(); detail != "" {
			v.Message += " " + detail + "."
		}
	}
	for _, item := range o.GetOrderItems() {
		v.Lines = append(v.Lines, lineView{item.GetProductName(), item.GetQuantity(), price(item.GetUnitPrice())})
	}
}

// price formats an amount for people; "" if there is none.
func price(m *moneyv1.Money) string {
	if m == nil {
		return ""
	}
	return money.Format(money.Minor(m), m.GetCurrencyCode())
}

// writePrice formats a price for the form's hidden field, in minor units: "1050 USD".
func writePrice(m *moneyv1.Money) string {
	return fmt.Sprintf("%d %s", money.Minor(m), m.GetCurrencyCode())
}

// readPrice parses what writePrice wrote; it returns nil for anything else.
func readPrice(text string) *moneyv1.Money {
	minor, currency, _ := strings.Cut(text, " ")
	n, err := strconv.ParseInt(minor, 10, 64)
	if err != nil || n < 0 {
		return nil
	}
	return money.FromMinor(n, currency)
}
