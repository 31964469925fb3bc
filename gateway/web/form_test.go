package web

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	inventoryv1 "shop.example/gen/shop/inventory/v1"
	moneyv1 "shop.example/gen/shop/money/v1"
	orderv1 "shop.example/gen/shop/order/v1"
	"shop.example/platform/apierror"
)

// An order that may have been accepted was said not to be placed, and sent again it had another price and was refused.
func TestForm_AnOrderThatMayHaveBeenAcceptedKeepsItsPrices(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		err    error
		unsure bool
	}{
		"not confirmed":   {apierror.Unavailable("BROKER_UNAVAILABLE", time.Second, "not confirmed").GRPCStatus().Err(), true},
		"late":            {status.Error(codes.DeadlineExceeded, "late"), true},
		"overloaded":      {apierror.Unavailable("OVERLOADED", time.Second, "too many").GRPCStatus().Err(), false},
		"too many orders": {status.Error(codes.ResourceExhausted, "too many"), false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newForm()
			f.lines = []line{{id: 1, entered: "2", quantity: 2, price: &moneyv1.Money{CurrencyCode: "USD", Units: 1000}}}
			f.describeError(c.err)
			f.fill([]*inventoryv1.Item{{Id: 1, ProductName: "Laptop", Price: &moneyv1.Money{CurrencyCode: "USD", Units: 1001}}})
			want := map[bool][2]string{true: {"The order may not have been placed: ", "100000 USD"}, false: {"The order was not placed: ", "100100 USD"}}[c.unsure]
			if p := f.Products[0]; !strings.HasPrefix(f.Problem, want[0]) || p.UnitPrice != want[1] || p.Price != "1001.00 USD" {
				t.Errorf("%s, and the price that is sent is %s, that is shown %s", f.Problem, p.UnitPrice, p.Price)
			}
		})
	}
}

// What the first answer was is forgotten with the second: "not placed" after one that may have been, and at another price.
func TestForm_AnOrderThatMayHaveBeenAcceptedStaysSo(t *testing.T) {
	t.Parallel()
	p, err := newPage(nil)
	if err != nil {
		t.Fatal(err)
	}
	f := newForm()
	f.describeError(status.Error(codes.DeadlineExceeded, "late"))
	w := httptest.NewRecorder()
	p.write(w, http.StatusGatewayTimeout, "index.html", f)
	const field = `<input type="hidden" name="may_be_placed" value="yes">`
	if !strings.Contains(w.Body.String(), field) {
		t.Fatalf("the form has no %s", field)
	}
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/orders", strings.NewReader("may_be_placed=yes"))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	again, err := readForm(httptest.NewRecorder(), r)
	if err != nil {
		t.Fatal(err)
	}
	again.describeError(apierror.Unavailable("OVERLOADED", time.Second, "too many orders").GRPCStatus().Err())
	if !strings.HasPrefix(again.Problem, "The order may not have been placed: ") || !again.Unsure {
		t.Errorf("then it says: %s", again.Problem)
	}
	again.describeError(status.Error(codes.AlreadyExists, "another order"))
	if again.Unsure {
		t.Error("another order may have been placed, too")
	}
}

// An order of one piece had "1 pieces".
func TestOrder_OfOnePieceHasOnePiece(t *testing.T) {
	t.Parallel()
	p, err := newPage(nil)
	if err != nil {
		t.Fatal(err)
	}
	for pieces, want := range map[int32]string{1: "<dd>1 piece</dd>", 2: "<dd>2 pieces</dd>"} {
		w := httptest.NewRecorder()
		p.write(w, http.StatusOK, "order.html", orderView{Order: &orderv1.Order{TotalItems: pieces}})
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("there is no %s", want)
		}
	}
}
