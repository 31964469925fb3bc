// Package orderstate is the one table of the states of an order. It says of each state which states can follow it, whether an
// order in it is stored, decided or final, which events have been published about it, and what has happened to its stock.
//
// "Stored", "decided" and "final" differ. An order is stored as soon as the order service has a row for it, decided when its
// customer can be told the outcome, and final when no other state can follow. A state that is not in the table comes from
// a newer release: it is none of the three, and its stock is Unknown, which callers have to report.
package orderstate

import (
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"

	eventsv1 "shop.example/gen/shop/events/v1"
	orderv1 "shop.example/gen/shop/order/v1"
)

// Stock says what becomes of the stock that an order asked for.
type Stock int

// The zero value is Unknown.
const (
	Unknown  Stock = iota // this release does not know the state
	Open                  // the order is not decided: its stock may be held or not
	Sold                  // its holds are settled, or will be
	Released              // it holds nothing: it never did, or its holds are released or its stock is put back
)

type facts struct {
	after           orderv1.Order_State // the only state that it can follow
	event           proto.Message       // the event that an order has reached it
	also            []proto.Message     // events that are published together with that one
	stored, decided bool
	stock           Stock
}

var table = map[orderv1.Order_State]facts{
	orderv1.Order_PENDING:   {event: &eventsv1.OrderPlaced{}, stock: Open},
	orderv1.Order_CONFIRMED: {after: orderv1.Order_PENDING, event: &eventsv1.OrderConfirmed{}, also: []proto.Message{&eventsv1.DecrementQuantity{}}, stored: true, decided: true, stock: Sold},
	orderv1.Order_REJECTED:  {after: orderv1.Order_PENDING, event: &eventsv1.OrderRejected{}, stored: true, decided: true, stock: Released},
	orderv1.Order_CANCELLED: {after: orderv1.Order_CONFIRMED, event: &eventsv1.OrderCancelled{}, stored: true, decided: true, stock: Released},
}

// IsStored reports whether the order service has stored an order in this state.
func IsStored(s orderv1.Order_State) bool { return table[s].stored }

// IsDecided reports whether the customer of an order in this state can be told the outcome.
func IsDecided(s orderv1.Order_State) bool { return table[s].decided }

// IsFinal reports whether no other state can follow this one.
func IsFinal(s orderv1.Order_State) bool {
	for next := range table {
		if CanFollow(s, next) {
			return false
		}
	}
	return table[s].event != nil
}

// CanFollow reports whether an order can go from the state from directly to the state to.
func CanFollow(from, to orderv1.Order_State) bool {
	return from != orderv1.Order_STATE_UNSPECIFIED && table[to].after == from
}

// EventOf returns an empty event of the type that is published when an order reaches the state; nil if the state is unknown.
func EventOf(s orderv1.Order_State) proto.Message { return table[s].event }

// UpTo returns the states that an order in state s has been in, from the first one to s; none if s is unknown.
func UpTo(s orderv1.Order_State) []orderv1.Order_State {
	f, known := table[s]
	if !known {
		return nil
	}
	return append(UpTo(f.after), s)
}

// EventsOf returns empty events of the types that were published about an order in this state, in their order.
func EventsOf(s orderv1.Order_State) (events []proto.Message) {
	for _, s := range UpTo(s) {
		events = append(append(events, table[s].event), table[s].also...)
	}
	return events
}

// StockOf says what becomes of the stock of an order in this state.
func StockOf(s orderv1.Order_State) Stock { return table[s].stock }

// All returns the states that an order can have, in the order of their numbers in the contract.
func All() []orderv1.Order_State { return slices.Sorted(maps.Keys(table)) }

// Stored returns the states that a stored order can have, in the same order.
func Stored() []orderv1.Order_State {
	return slices.DeleteFunc(All(), func(s orderv1.Order_State) bool { return !IsStored(s) })
}

// Parse returns the state of this name ("CONFIRMED"), STATE_UNSPECIFIED if there is none.
func Parse(name string) orderv1.Order_State {
	return orderv1.Order_State(orderv1.Order_State_value[name])
}
