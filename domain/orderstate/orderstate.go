// Package orderstate says what follows from the state of an order, in one table for everybody who asks: whether it is
// stored, decided or final, and what has to become of its stock.
//
// "Stored", "decided" and "final" are three things. An order is stored as soon as the order service has a row of it,
// decided when its customer can be told the outcome, and final when no other state can follow. A state that is not in
// the table comes from a newer release: it is none of the three, and its stock is Unknown, which callers have to report.
package orderstate

import (
	"slices"

	orderv1 "shop.example/gen/shop/order/v1"
)

// Stock is what has to become of the stock of an order.
type Stock int

// The zero value is Unknown.
const (
	Unknown  Stock = iota // of a state that this release does not know
	Open                  // not decided yet
	Sold                  // its holds are settled
	Released              // it holds nothing, or not any more
)

type facts struct {
	stored, decided, final bool
	stock                  Stock
}

var table = map[orderv1.Order_State]facts{
	orderv1.Order_PENDING:   {stock: Open},
	orderv1.Order_CONFIRMED: {stored: true, decided: true, stock: Sold},
	orderv1.Order_REJECTED:  {stored: true, decided: true, final: true, stock: Released},
	orderv1.Order_CANCELLED: {stored: true, decided: true, final: true, stock: Released},
}

// IsStored says whether the order service has stored an order in this state.
func IsStored(s orderv1.Order_State) bool { return table[s].stored }

// IsDecided says whether the customer can be told the outcome.
func IsDecided(s orderv1.Order_State) bool { return table[s].decided }

// IsFinal says whether no other state can follow.
func IsFinal(s orderv1.Order_State) bool { return table[s].final }

// StockOf says what has to become of the stock of an order in this state.
func StockOf(s orderv1.Order_State) Stock { return table[s].stock }

// Stored are the states that a stored order can have, in the sequence of the contract.
func Stored() (states []orderv1.Order_State) {
	for s, f := range table {
		if f.stored {
			states = append(states, s)
		}
	}
	slices.Sort(states)
	return states
}

// Parse returns the state of this name, STATE_UNSPECIFIED if there is none.
func Parse(name string) orderv1.Order_State {
	return orderv1.Order_State(orderv1.Order_State_value[name])
}
