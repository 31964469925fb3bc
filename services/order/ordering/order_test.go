package ordering

import (
	"errors"
	"math"
	"testing"
	"time"

	"github.com/google/uuid"

	"shop.example/domain/money"
	"shop.example/domain/orderstate"
	orderv1 "shop.example/gen/shop/order/v1"
)

func TestTransition_InvalidLeavesTheOrderAsItIs(t *testing.T) {
	t.Parallel()
	placed, moved := time.Unix(1, 0), time.Unix(2, 0)
	for _, from := range orderstate.All() {
		for _, to := range orderstate.All() {
			o := &Order{ID: uuid.New(), State: State(from.String()), UpdatedAt: placed}
			err := o.transition(State(to.String()), moved)
			if orderstate.CanFollow(from, to) {
				if err != nil || string(o.State) != to.String() || !o.UpdatedAt.Equal(moved) {
					t.Errorf("%s to %s: state %s at %v, %v", from, to, o.State, o.UpdatedAt, err)
				}
				continue
			}
			if !errors.Is(err, ErrInvalidTransition) || string(o.State) != from.String() || !o.UpdatedAt.Equal(placed) {
				t.Errorf("%s to %s: state %s at %v, %v; want ErrInvalidTransition and no change", from, to, o.State, o.UpdatedAt, err)
			}
		}
	}
}

// A state that is misspelled here would have no valid transition.
func TestStates_AreThoseOfTheContract(t *testing.T) {
	t.Parallel()
	for _, s := range []State{Pending, Confirmed, Rejected, Cancelled} {
		if orderstate.Parse(string(s)) == orderv1.Order_STATE_UNSPECIFIED {
			t.Errorf("the contract has no Order.State %s", s)
		}
	}
}

func TestTotals(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		lines []Line
		items int32
		value int64
		err   error
	}{
		"the demo's sample": {lines: []Line{{Quantity: 3, UnitPrice: 3500}, {Quantity: 4, UnitPrice: 2500}}, items: 7, value: 20500},
		"a product twice":   {lines: []Line{{ProductID: 1, Quantity: 1, UnitPrice: 5}, {ProductID: 1, Quantity: 2, UnitPrice: 5}}, items: 3, value: 15},
		"for nothing":       {lines: []Line{{Quantity: 2}}, items: 2},
		"the highest value": {lines: []Line{{Quantity: 1, UnitPrice: money.Max}}, items: 1, value: money.Max},
		"no lines":          {err: errTotalOutOfRange},
		"no pieces":         {lines: []Line{{Quantity: 0, UnitPrice: 1}}, err: errTotalOutOfRange},
		"negative pieces":   {lines: []Line{{Quantity: 2}, {Quantity: -1}}, err: errTotalOutOfRange},
		"negative price":    {lines: []Line{{Quantity: 1, UnitPrice: -1}}, err: errTotalOutOfRange},
		"one line too dear": {lines: []Line{{Quantity: 1, UnitPrice: money.Max + 1}}, err: errTotalOutOfRange},
		"product overflows": {lines: []Line{{Quantity: math.MaxInt32, UnitPrice: math.MaxInt64}}, err: errTotalOutOfRange},
		"sum too dear":      {lines: []Line{{Quantity: 1, UnitPrice: money.Max}, {Quantity: 1, UnitPrice: 1}}, err: errTotalOutOfRange},
		"pieces overflow":   {lines: []Line{{Quantity: math.MaxInt32}, {Quantity: 1}}, err: errTotalOutOfRange},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			items, value, err := totals(tt.lines)
			if items != tt.items || value != tt.value || !errors.Is(err, tt.err) {
				t.Errorf("totals = %d pieces, %d, %v; want %d, %d, %v", items, value, err, tt.items, tt.value, tt.err)
			}
		})
	}
}

func TestConfirm_UsesTheCataloguesLines(t *testing.T) {
	t.Parallel()
	o := &Order{State: Pending, Lines: []Line{{Number: 1, ProductName: "Mouse", Quantity: 2}}}
	priced := []Line{{Number: 1, ProductID: 4, ProductName: "Mouse", Quantity: 2, UnitPrice: 4500}}
	if err := o.confirm(priced, "USD", time.Unix(5, 0)); err != nil {
		t.Fatal(err)
	}
	if o.State != Confirmed || o.TotalItems != 2 || o.TotalValue != 9000 || o.Currency != "USD" || o.Lines[0] != priced[0] {
		t.Errorf("confirmed order is %+v", o)
	}
	if err := o.reject("OUT_OF_STOCK", "", time.Unix(6, 0)); !errors.Is(err, ErrInvalidTransition) || o.State != Confirmed || o.Reason != "" {
		t.Errorf("rejecting a confirmed order: %v, order %+v", err, o)
	}
}

func TestReject_KeepsTheLinesThatWereAskedFor(t *testing.T) {
	t.Parallel()
	asked := Line{Number: 1, ProductName: "Mousse", Quantity: 2}
	o := &Order{State: Pending, Lines: []Line{asked}}
	if err := o.reject("UNKNOWN_PRODUCT", "line 1: no product Mousse", time.Unix(5, 0)); err != nil {
		t.Fatal(err)
	}
	if o.State != Rejected || o.Reason != "UNKNOWN_PRODUCT" || o.TotalItems != 2 || o.Currency != "" || o.Lines[0] != asked {
		t.Errorf("rejected order is %+v", o)
	}
}
