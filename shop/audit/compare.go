package audit

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"shop.example/domain/money"
	"shop.example/domain/orderstate"
	eventsv1 "shop.example/gen/shop/events/v1"
	orderv1 "shop.example/gen/shop/order/v1"
	"shop.example/platform/contract"
)

// placed is the routing key of the first event of an order.
var placed = routingKey(&eventsv1.OrderPlaced{})

func routingKey(m proto.Message) string {
	e, _ := contract.EventOf(m)
	return e.RoutingKey
}

// eventsOf returns the routing keys of the events that an order in this state has had.
func eventsOf(state orderv1.Order_State) (keys []string) {
	for _, event := range orderstate.EventsOf(state) {
		keys = append(keys, routingKey(event))
	}
	return keys
}

// followUps are the routing keys of the events that only a stored order can have.
var followUps = func() (keys []string) {
	for _, state := range orderstate.Stored() {
		for _, key := range eventsOf(state) {
			if key != placed && !slices.Contains(keys, key) {
				keys = append(keys, key)
			}
		}
	}
	return keys
}()

// decidedAlone are the reasons for which the order service rejects an order without asking inventory.
var decidedAlone = map[string]bool{
	eventsv1.OrderRejected_IDEMPOTENCY_KEY_REUSED.String(): true,
	eventsv1.OrderRejected_DISCARDED.String():              true,
}

// holdsOf is the state that an order's holds must be in, by what becomes of its stock.
var holdsOf = map[orderstate.Stock]string{orderstate.Sold: "SETTLED", orderstate.Released: "RELEASED"}

// isKnownState reports whether the audit knows what an order in this state must look like.
func isKnownState(state string) bool {
	s := orderstate.Parse(state)
	return len(orderstate.EventsOf(s)) > 0 && holdsOf[orderstate.StockOf(s)] != ""
}

// compare compares what the services know about an order.
func (a *Auditor) compare(f *orderView) []finding {
	c := comparison{orderView: f}
	if f.order == nil {
		c.compareUndecided(a)
		return c.found
	}
	if !isKnownState(f.order.state) {
		c.add(true, States, "it is %s, a state that this audit does not know; use the shop command of the release that wrote it", f.order.state)
		return c.found
	}
	c.compareDecision()
	if f.order.state == "REJECTED" {
		c.compareRejectedHolds(a)
	} else {
		c.compareHolds(a.isLate(f.order.age))
		c.compareLines()
	}
	if f.logged {
		c.compareEvents(a.isLate(f.order.age))
	}
	return c.found
}

type comparison struct {
	*orderView
	found []finding
}

func (c *comparison) add(late bool, check Check, format string, args ...any) {
	c.found = append(c.found, finding{Violation: Violation{Check: check, OrderID: c.id, Detail: fmt.Sprintf(format, args...)}, late: late})
}

// addLost is add for an inconsistency that ends when an event of the log is sent again.
func (c *comparison) addLost(late bool, check Check, format string, args ...any) {
	c.add(late, check, format, args...)
	last := &c.found[len(c.found)-1]
	last.lost, last.slow = true, true
	if c.sent > 0 {
		last.Detail += fmt.Sprintf("; it was sent again %d times, %s ago last", c.sent, c.sentAge)
	}
}

// compareUndecided checks an order that is not stored. It may still wait in a queue.
func (c *comparison) compareUndecided(a *Auditor) {
	for _, key := range followUps {
		if c.events[key] > 0 {
			again := ""
			if c.discarded > 0 {
				again = fmt.Sprintf("; discard dead letter %d again", c.discarded)
			}
			c.add(true, Events, "it is not stored, but the log has %s%s", key, again)
		}
	}
	switch {
	case c.discarded > 0 || c.erased || !c.logged:
	case c.decision != nil && c.decision.reason == "":
		c.addLost(a.isLate(c.decision.age), Undecided, "its stock was held %s ago, but the order is not stored", c.decision.age)
	case c.decision != nil:
		c.addLost(a.isLate(c.decision.age), Undecided, "it was refused (%s) %s ago, but the order is not stored", c.decision.reason, c.decision.age)
	case len(c.events) > 0:
		c.addLost(a.isLate(c.placedAge), Undecided, "it was placed %s ago, but is neither decided nor stored", c.placedAge)
	}
}

func (c *comparison) compareDecision() {
	o, d := c.order, c.decision
	switch {
	case decidedAlone[o.reason]:
	case d == nil:
		c.add(true, Decisions, "it is %s, but inventory has no decision about it", o.state)
	case o.state == "REJECTED" && d.reason == "":
		c.add(true, Decisions, "it is REJECTED (%s), but inventory held its stock", o.reason)
	case o.state == "REJECTED" && d.reason != o.reason:
		c.add(true, Decisions, "it is REJECTED for %s, inventory refused it for %s", o.reason, d.reason)
	case o.state != "REJECTED" && d.reason != "":
		c.add(true, Decisions, "it is %s, but inventory refused it (%s)", o.state, d.reason)
	}
}

// sweepTime is how long inventory's sweeper takes at most to find a hold that has become too old.
const sweepTime = 2 * time.Minute

// compareRejectedHolds checks that a rejected order holds nothing. If it was discarded inventory may have held stock
// before, which the sweeper releases.
func (c *comparison) compareRejectedHolds(a *Auditor) {
	for _, h := range c.holds {
		if h.state != "RELEASED" {
			swept := c.order.reason == eventsv1.OrderRejected_DISCARDED.String() && h.state == "HELD" && float64(h.age) < (a.holdLimit+sweepTime).Seconds()
			c.add(!swept, Holds, "it is REJECTED, but %d pieces of product %d are %s", h.quantity, h.productID, h.state)
		}
	}
}

// compareHolds checks the holds of an order that was not rejected; they must follow its state before it counts as late.
func (c *comparison) compareHolds(late bool) {
	pieces := map[int32]int64{}
	for _, l := range c.order.lines {
		pieces[l.productID] += int64(l.quantity)
	}
	want := holdsOf[orderstate.StockOf(orderstate.Parse(c.order.state))]
	onTheWay := false
	for _, h := range c.holds {
		if pieces[h.productID] != int64(h.quantity) {
			c.add(true, Lines, "%d pieces of product %d are ordered, %d are %s", pieces[h.productID], h.productID, h.quantity, h.state)
		}
		delete(pieces, h.productID)
		switch {
		case h.state == want:
		case h.state == "RELEASED": // for good
			c.add(true, Holds, "it is %s for %s, but %d pieces of product %d are %s", c.order.state, c.order.age, h.quantity, h.productID, h.state)
		case late:
			c.addLost(true, Holds, "it is %s for %s, but %d pieces of product %d are %s", c.order.state, c.order.age, h.quantity, h.productID, h.state)
		default:
			onTheWay = true
		}
	}
	if onTheWay {
		c.add(false, Holds, "")
	}
	for _, id := range slices.Sorted(maps.Keys(pieces)) {
		c.add(true, Holds, "it is %s, but none of its %d pieces of product %d were held", c.order.state, pieces[id], id)
	}
}

// compareLines compares the lines and totals of an order with the lines that were decided.
func (c *comparison) compareLines() {
	o := c.order
	var items, value int64
	for _, l := range o.lines {
		items += int64(l.quantity)
		value += int64(l.quantity) * l.price
	}
	if items != o.items || value != o.value {
		c.add(true, Lines, "its totals are %d pieces and %s, its lines sum up to %d and %s",
			o.items, money.Format(o.value, o.currency), items, money.Format(value, o.currency))
	}
	if c.decision == nil || c.decision.reason != "" {
		return // said by compareDecision
	}
	if len(o.lines) != len(c.decision.lines) {
		c.add(true, Lines, "it has %d lines, inventory decided %d", len(o.lines), len(c.decision.lines))
		return
	}
	for i, d := range c.decision.lines {
		if l := o.lines[i]; l != d {
			c.add(true, Lines, "its line %s was decided as %s", l, d)
		}
	}
}

func (l line) String() string {
	return fmt.Sprintf("%d: %d of product %d (%s) at %s", l.number, l.quantity, l.productID, l.name, money.Format(l.price, l.currency))
}

func (c *comparison) compareEvents(late bool) {
	expected := eventsOf(orderstate.Parse(c.order.state))
	for _, key := range expected {
		switch n := c.events[key]; {
		case n == 0:
			missing := c.add
			if key == placed {
				missing = c.addLost // it is made again; what tells of a decision is the order service's to send
			}
			missing(late, Events, "it is %s for %s, but the log has no %s", c.order.state, c.order.age, key)
			c.found[len(c.found)-1].slow = true
		case n > 1:
			c.add(true, Duplicates, "the log has %s %d times", key, n)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(c.events)) {
		if !slices.Contains(expected, key) && slices.Contains(followUps, key) {
			c.add(true, Events, "it is %s, but the log has %s", c.order.state, key)
		}
	}
}
