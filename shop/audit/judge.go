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

// eventsOf are the routing keys of the events that an order in this state has had.
func eventsOf(state orderv1.Order_State) (keys []string) {
	for _, event := range orderstate.EventsOf(state) {
		keys = append(keys, routingKey(event))
	}
	return keys
}

// followUps are those of the events that an order can have had once it is stored.
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

// decidedAlone are the reasons for which the order service rejects an order without inventory.
var decidedAlone = map[string]bool{
	eventsv1.OrderRejected_IDEMPOTENCY_KEY_REUSED.String(): true,
	eventsv1.OrderRejected_DISCARDED.String():              true,
}

// holdsOf is the state of the holds of an order that needs its stock in this way.
var holdsOf = map[orderstate.Stock]string{orderstate.Sold: "SETTLED", orderstate.Released: "RELEASED"}

// isKnownState says whether the audit knows what an order in this state must look like.
func isKnownState(state string) bool {
	s := orderstate.Parse(state)
	return len(orderstate.EventsOf(s)) > 0 && holdsOf[orderstate.StockOf(s)] != ""
}

// judge compares what the services know about an order.
func (a *Auditor) judge(f *facts) []finding {
	j := judgement{facts: f}
	if f.order == nil {
		j.judgeUndecided(a)
		return j.found
	}
	if !isKnownState(f.order.state) {
		j.add(true, States, "it is %s, a state that this audit does not know; use the shop command of the release that wrote it", f.order.state)
		return j.found
	}
	j.judgeDecision()
	if f.order.state == "REJECTED" {
		j.judgeRejectedHolds(a)
	} else {
		j.judgeHolds(a.isLate(f.order.age))
		j.judgeLines()
	}
	if f.logged {
		j.judgeEvents(a.isLate(f.order.age))
	}
	return j.found
}

type judgement struct {
	*facts
	found []finding
}

func (j *judgement) add(late bool, check Check, format string, args ...any) {
	j.found = append(j.found, finding{Violation: Violation{Check: check, OrderID: j.id, Detail: fmt.Sprintf(format, args...)}, late: late})
}

// addLost is add about what an event of the log brings into order if it is sent again.
func (j *judgement) addLost(late bool, check Check, format string, args ...any) {
	j.add(late, check, format, args...)
	last := &j.found[len(j.found)-1]
	last.lost = true
	if j.sent > 0 {
		last.Detail += fmt.Sprintf("; it was sent again %d times, %s ago last", j.sent, j.sentAge)
	}
}

// judgeUndecided is about an order that is not stored. It may still wait in a queue.
func (j *judgement) judgeUndecided(a *Auditor) {
	for _, key := range followUps {
		if j.events[key] > 0 {
			j.add(true, Events, "it is not stored, but the log has %s", key)
		}
	}
	switch {
	case j.givenUp || j.erased || !j.logged:
	case j.decision != nil && j.decision.reason == "":
		j.addLost(a.isLate(j.decision.age), Undecided, "its stock was held %s ago, but the order is not stored", j.decision.age)
	case j.decision != nil:
		j.addLost(a.isLate(j.decision.age), Undecided, "it was refused (%s) %s ago, but the order is not stored", j.decision.reason, j.decision.age)
	case len(j.events) > 0:
		j.addLost(a.isLate(j.placedAge), Undecided, "it was placed %s ago, but is neither decided nor stored", j.placedAge)
	}
}

func (j *judgement) judgeDecision() {
	o, d := j.order, j.decision
	switch {
	case decidedAlone[o.reason]:
	case d == nil:
		j.add(true, Decisions, "it is %s, but inventory has no decision about it", o.state)
	case o.state == "REJECTED" && d.reason == "":
		j.add(true, Decisions, "it is REJECTED (%s), but inventory held its stock", o.reason)
	case o.state == "REJECTED" && d.reason != o.reason:
		j.add(true, Decisions, "it is REJECTED for %s, inventory refused it for %s", o.reason, d.reason)
	case o.state != "REJECTED" && d.reason != "":
		j.add(true, Decisions, "it is %s, but inventory refused it (%s)", o.state, d.reason)
	}
}

// sweepTime is how long the sweeper of inventory takes to find a hold that has become too old.
const sweepTime = 2 * time.Minute

// judgeRejectedHolds is about what a rejected order still holds. For one that was discarded inventory may have held stock
// before: the sweeper releases it.
func (j *judgement) judgeRejectedHolds(a *Auditor) {
	for _, h := range j.holds {
		if h.state != "RELEASED" {
			swept := j.order.reason == eventsv1.OrderRejected_DISCARDED.String() && h.state == "HELD" && float64(h.age) < (a.holdLimit+sweepTime).Seconds()
			j.add(!swept, Holds, "it is REJECTED, but %d pieces of product %d are %s", h.quantity, h.productID, h.state)
		}
	}
}

// judgeHolds is about the holds of an order that was not rejected, which follow its state within the time that makes it late.
func (j *judgement) judgeHolds(late bool) {
	pieces := map[int32]int64{}
	for _, l := range j.order.lines {
		pieces[l.productID] += int64(l.quantity)
	}
	want := holdsOf[orderstate.StockOf(orderstate.Parse(j.order.state))]
	onTheWay := false
	for _, h := range j.holds {
		if pieces[h.productID] != int64(h.quantity) {
			j.add(true, Lines, "%d pieces of product %d are ordered, %d are %s", pieces[h.productID], h.productID, h.quantity, h.state)
		}
		delete(pieces, h.productID)
		switch {
		case h.state == want:
		case h.state == "RELEASED": // which never comes back
			j.add(true, Holds, "it is %s for %s, but %d pieces of product %d are %s", j.order.state, j.order.age, h.quantity, h.productID, h.state)
		case late:
			j.addLost(true, Holds, "it is %s for %s, but %d pieces of product %d are %s", j.order.state, j.order.age, h.quantity, h.productID, h.state)
		default:
			onTheWay = true
		}
	}
	if onTheWay {
		j.add(false, Holds, "")
	}
	for _, id := range slices.Sorted(maps.Keys(pieces)) {
		j.add(true, Holds, "it is %s, but none of its %d pieces of product %d were held", j.order.state, pieces[id], id)
	}
}

// judgeLines compares the lines and totals of an order with the lines that were decided.
func (j *judgement) judgeLines() {
	o := j.order
	var items, value int64
	for _, l := range o.lines {
		items += int64(l.quantity)
		value += int64(l.quantity) * l.price
	}
	if items != o.items || value != o.value {
		j.add(true, Lines, "its totals are %d pieces and %s, its lines sum up to %d and %s",
			o.items, money.Format(o.value, o.currency), items, money.Format(value, o.currency))
	}
	if j.decision == nil || j.decision.reason != "" {
		return // said by judgeDecision
	}
	if len(o.lines) != len(j.decision.lines) {
		j.add(true, Lines, "it has %d lines, inventory decided %d", len(o.lines), len(j.decision.lines))
		return
	}
	for i, d := range j.decision.lines {
		if l := o.lines[i]; l != d {
			j.add(true, Lines, "its line %s was decided as %s", l, d)
		}
	}
}

func (l line) String() string {
	return fmt.Sprintf("%d: %d of product %d (%s) at %s", l.number, l.quantity, l.productID, l.name, money.Format(l.price, l.currency))
}

func (j *judgement) judgeEvents(late bool) {
	expected := eventsOf(orderstate.Parse(j.order.state))
	for _, key := range expected {
		switch n := j.events[key]; {
		case n == 0:
			j.add(late, Events, "it is %s for %s, but the log has no %s", j.order.state, j.order.age, key)
		case n > 1:
			j.add(true, Duplicates, "the log has %s %d times", key, n)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(j.events)) {
		if !slices.Contains(expected, key) && slices.Contains(followUps, key) {
			j.add(true, Events, "it is %s, but the log has %s", j.order.state, key)
		}
	}
}
