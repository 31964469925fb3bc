// Package orderstate says what follows from the state of an order, in one table for everybody who asks: which states can
// follow, whether it is stored, decided or final, which events it has had, and what has to become of its stock.
//
// "Stored", "decided" and "final" are three things. An order is stored as soon as the order service has a row of it,
// decided when its customer can be told the outcome, and final when no other state can follow. A state that is not in
// the table comes from a newer release: it is none of the three, and its stock is Unknown, which callers have to report.
package orderstate

import (
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"

	eventsv1 "shop.example/gen/shop/events/v1"
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
	after           orderv1.Order_State // the state before it
	event           proto.Message       // says that an order has come into it
	also            []proto.Message     // follow from that
	stored, decided bool
	stock           Stock
}

var table = map[orderv1.Order_State]facts{
	orderv1.Order_PENDING:   {event: &eventsv1.OrderPlaced{}, stock: Open},
	orderv1.Order_CONFIRMED: {after: orderv1.Order_PENDING, event: &eventsv1.OrderConfirmed{}, also: []proto.Message{&eventsv1.DecrementQuantity{}}, stored: true, decided: true, stock: Sold},
	orderv1.Order_REJECTED:  {after: orderv1.Order_PENDING, event: &eventsv1.OrderRejected{}, stored: true, decided: true, stock: Released},
	orderv1.Order_CANCELLED: {after: orderv1.Order_CONFIRMED, event: &eventsv1.OrderCancelled{}, stored: true, decided: true, stock: Released},
}

// IsStored says whether the order service has stored an order in this state.
func IsStored(s orderv1.Order_State) bool { return table[s].stored }

// IsDecided says whether the customer can be told the outcome.
func IsDecided(s orderv1.Order_State) bool { return table[s].decided }

// IsFinal says whether no other state can follow.
func IsFinal(s orderv1.Order_State) bool {
	for next := range table {
		if CanFollow(s, next) {
			return false
		}
	}
	return table[s].event != nil
}

// CanFollow says whether an order can go from one state to the other.
func CanFollow(from, to orderv1.Order_State) bool {
	return from != orderv1.Order_STATE_UNSPECIFIED && table[to].after == from
}

// EventOf is the event that says that an order has come into the state; nil if the state is unknown.
func EventOf(s orderv1.Order_State) proto.Message { return table[s].event }

// WayTo are the states that an order in this state has been in, from the first to this one; none if it is unknown.
func WayTo(s orderv1.Order_State) []orderv1.Order_State {
	f, known := table[s]
	if !known {
		return nil
	}
	return append(WayTo(f.after), s)
}

// EventsOf are the events that an order in this state has had, from the first on.
func EventsOf(s orderv1.Order_State) (events []proto.Message) {
	for _, s := range WayTo(s) {
		events = append(append(events, table[s].event), table[s].also...)
	}
	return events
}

// StockOf says what has to become of the stock of an order in this state.
func StockOf(s orderv1.Order_State) Stock { return table[s].stock }

// All are the states that an order can have, in the sequence of the contract.
func All() []orderv1.Order_State { return slices.Sorted(maps.Keys(table)) }

// Stored are those that a stored order can have.
func Stored() []orderv1.Order_State {
	return slices.DeleteFunc(All(), func(s orderv1.Order_State) bool { return !IsStored(s) })
}

// Parse returns the state of this name, STATE_UNSPECIFIED if there is none.
func Parse(name string) orderv1.Order_State {
	return orderv1.Order_State(orderv1.Order_State_value[name])
}
